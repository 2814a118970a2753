// Words that the model knows, and chips in a prompt: the same rules as those of words.py.

const MOVEMENT = "Movement"

const escaped = text => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
const pattern = phrase => new RegExp(`(?<!\\w)${escaped(phrase)}(?!\\w)`)

export const plain = text => text.replace(/\s*\[[a-z]\]/g, "").replace(/\s+/g, " ").trim()
export const placeholders = text => [...text.matchAll(/\[([vu])\]/g)].map(m => m[1])

function likeness(a, b) { // shared pairs of letters
  const pairs = w => new Set([...w].map((c, i) => c + (w[i + 1] ?? "")))
  const [p, q] = [pairs(a), pairs(b)]
  return 2*[...p].filter(x => q.has(x)).length/(p.size + q.size)
}

function nearTo(word, known) {
  const begins = known.filter(w => w.startsWith(word))
  const alike = known.map(w => [likeness(word, w), w]).filter(([s]) => s > .4).sort((a, b) => b[0] - a[0])
  return (begins.length ? begins : alike.map(([, w]) => w)).slice(0, 3)
}

// Each word that is not known, with near ones.
export function unknownWords(text, vocabulary) {
  const known = Object.keys(vocabulary).filter(w => /^\w+$/.test(w))
  const words = new Set(plain(text).split(/[\s,.;:!?]+/).filter(Boolean))
  return [...words].filter(w => !(w.toLowerCase() in vocabulary))
    .map(word => ({ word, near: nearTo(word.toLowerCase(), known) }))
}

// The numbers of a prompt's words, ended; null where one is not known.
export function numbered(text, vocabulary) {
  const pieces = plain(text).toLowerCase().split(/\s+/).flatMap(w => w.match(/[^,.]+|[,.]/g) ?? [])
  const numbers = pieces.map(p => vocabulary[p])
  return numbers.includes(undefined) ? null : [...numbers, vocabulary["</s>"]]
}

// Does [u] stand before the noun that [v] has in the concept's own prompt, and [v] behind its pronoun?
const isSwapped = (text, own) => {
  const noun = /\[v\] (\w+)/.exec(own)?.[1], pronoun = /(\w+) (?:is|are) \[u\]/i.exec(own)?.[1]
  const has = pattern => new RegExp(pattern, "i").test(text)
  return Boolean(noun && pronoun) && has(`\\[u\\] ${noun}\\b`) && has(`\\b${pronoun} (?:is|are) \\[v\\]`)
}

// What to know of a prompt that lacks a new word whose part is turned on, or has both the wrong way round; Python
// also completes the prompt.
export function advice(text, own, strengths) {
  const meanings = { v: "who it is", u: "how it moves" }
  const lacks = placeholders(own).filter(w => strengths[w] && !placeholders(text).includes(w))
  if (!lacks.length && strengths.v && strengths.u && isSwapped(text, own)) {
    return `The prompt has [v] and [u] the wrong way round: write them as in \u201c${own}\u201d.`
  }
  if (!lacks.length) return ""
  const what = lacks.map(w => `[${w}] (the new word for ${meanings[w]})`).join(" and no ")
  const result = lacks.includes("v") ? "may show somebody else" : "may move as the base model would"
  return `The prompt has no ${what}, so it ${result}: write them as in \u201c${own}\u201d.`
}

// The longest run of words that two texts share within bounds: the first of several. Ends are excluded.
function longestRun(was, now, [a, b, c, d]) {
  let best = [a, c, 0]
  for (let i = a; i < b; i++) {
    for (let j = c; j < d; j++) {
      let n = 0
      while (i + n < b && j + n < d && was[i + n] == now[j + n]) n++
      if (n > best[2]) best = [i, j, n]
    }
  }
  return best
}

function shared(was, now, [a, b, c, d]) { // places in `now` of what both have, in order
  const [i, j, n] = longestRun(was, now, [a, b, c, d])
  if (!n) return []
  const run = Array.from({ length: n }, (_, k) => j + k)
  return [...shared(was, now, [a, i, c, j]), ...run, ...shared(was, now, [i + n, b, j + n, d])]
}

const [MARKS, SIGNS] = [".,;:!?。，、；：！？", "\\u3040-\\u30ff\\u3400-\\u9fff"]
const WORD = new RegExp(`\\s*(?:[${SIGNS}]|[^\\s${MARKS}${SIGNS}]+|[${MARKS}])`, "gu") // with the space before it

const spoken = text => (text.match(WORD) ?? []).map(w => w.trim()).filter(w => !MARKS.includes(w)).join(" ")

// A text without the words that have no counterpart in an earlier text: the same rule as that of edits.py.
export function withoutNew(known, text) {
  const [was, now] = [known, text].map(t => t.match(WORD) ?? [])
  const [a, b] = [was, now].map(words => words.map(w => w.trim().toLowerCase()))
  return shared(a, b, [0, a.length, 0, b.length]).map(k => now[k]).join("").trim()
}

// What the base alone is asked, in numbers of words, to see what an edit changes; null where nothing is new, or all is.
export function edited(own, prompt, vocabulary) {
  const asked = plain(prompt)
  const known = withoutNew(plain(own), asked)
  const [now, before] = [spoken(asked), spoken(known)]
  return !before || now == before ? null : { asked: numbered(asked, vocabulary), known: numbered(known, vocabulary) }
}

export function chosenChips(text, chips) {
  return Object.values(chips).flat().filter(phrase => pattern(phrase).test(text))
}

export function withoutChips(text, chips) {
  for (const phrase of chosenChips(text, chips)) text = text.replace(pattern(phrase), "")
  return text.replace(/ {2,}/g, " ").replace(/ +(?=[.,]|$)/g, "").trim()
}

export function withChips(bare, phrases, chips) {
  const places = Object.entries(chips).filter(([kind]) => kind != MOVEMENT).flatMap(([, of]) => of)
  const at = bare.indexOf(".")
  const [first, rest] = at < 0 ? [bare, ""] : [bare.slice(0, at), bare.slice(at)]
  let text = [first, ...places.filter(p => phrases.includes(p))].join(" ").trim() + rest
  for (const phrase of (chips[MOVEMENT] ?? []).filter(p => phrases.includes(p))) {
    text = text.includes("[u]") ? text.replace("[u]", `[u] ${phrase}`) : `${text} ${phrase}`
  }
  return text
}

// The text with this chip where it was not, without it where it was; only one of each kind. What it replaced of the
// concept's own prompt comes back.
export function toggled(text, phrase, chips, own = "") {
  const kind = Object.values(chips).find(of => of.includes(phrase))
  const on = chosenChips(text, chips)
  const left = on.filter(p => !kind.includes(p))
  const before = chosenChips(own, chips).filter(p => kind.includes(p) && p != phrase)
  return withChips(withoutChips(text, chips), [...left, ...on.includes(phrase) ? before : [phrase]], chips)
}

// The chips that fit whom a prompt's first sentence speaks of: what people wear and how they move is for people.
export function fitting(chips, own, { people = [], forPeople = [] } = {}) {
  const words = own.split(".")[0].toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []
  if (words.some(w => people.includes(w))) return chips
  const kept = Object.entries(chips).map(([kind, of]) => [kind, of.filter(p => !forPeople.includes(p))])
  return Object.fromEntries(kept.filter(([, of]) => of.length))
}

// A prompt after its concept's own became another one: chips that do not fit it stay behind.
export function carried(text, own, now, chips, kinds) {
  if (!text || withoutChips(text, chips) != withoutChips(own, chips)) return text
  const [before, after] = [own, now].map(x => Object.values(fitting(chips, x, kinds)).flat())
  const chosen = [...chosenChips(text, chips).filter(p => after.includes(p)),
                  ...chosenChips(now, chips).filter(p => !before.includes(p))]
  const moved = withChips(withoutChips(now, chips), chosen, chips)
  return moved == now ? "" : moved
}
