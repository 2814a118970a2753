// The explorer without a kernel: the same widgets, driven by a small model of each; clips that were made
// beforehand at once, and all else by the model itself, which runs in a thread of this page (engine.js).

import { Places } from "./places.js"
import * as language from "./words.js"
import { Engine } from "./making.js"
import clips from "./widgets/clips.js"
import clock from "./widgets/clock.js"
import head from "./widgets/head.js"
import pad from "./widgets/pad.js"
import screen from "./widgets/screen.js"
import strength from "./widgets/strength.js"
import views from "./widgets/views.js"
import words from "./widgets/words.js"

const PARTS = { appearance: "look", motion: "dance" }
const TAKES = { "the whole person": "both", "only the look": "appearance", "only the dance": "motion" }
const STOPS = [0, .25, .5, .75, 1]
const same = (a, b) => JSON.stringify(a) == JSON.stringify(b)

// What a widget's module expects of its model.
class Model {
  constructor(state, hear = {}) {
    this.state = state
    this.hear = hear // { saved(changed), told(message) }
    this.heard = {}
    this.changed = new Set()
    this.dragging = false
  }
  get(name) { return this.state[name] }
  set(name, value) {
    if (same(this.state[name], value)) return
    this.state[name] = value
    this.changed.add(name)
    for (const f of this.heard[`change:${name}`] ?? []) f()
  }
  save_changes() {
    const changed = [...this.changed]
    this.changed.clear()
    if (changed.length) this.hear.saved?.(changed)
  }
  send(message) { this.hear.told?.(message) }
  on(event, f) { (this.heard[event] ??= []).push(f) }
  put(state) { // as the kernel would: nothing is told of it
    const own = new Set(this.changed)
    for (const [name, value] of Object.entries(state)) this.set(name, value)
    this.changed = own
  }
  strip(key, { data, ...about }) {
    for (const f of this.heard["msg:custom"] ?? []) f({ strip: key, ...about }, [data])
  }
}

function h(tag, { className = "", ...more } = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), more)
  if (className) element.className = className
  element.append(...inside)
  return element
}

const box = (name, ...inside) => h("div", { className: `widget-box sas-${name}` }, ...inside)

function drawn(widget, model) {
  const el = h("div")
  widget.render({ model, el })
  return el
}

function choice(label, options, take) { // options: values, or { words: value }
  const pairs = Array.isArray(options) ? options.map(o => [o, o]) : Object.entries(options)
  const select = h("select", {}, ...pairs.map(([text, value]) => new Option(text, value)))
  select.addEventListener("change", () => take(select.value))
  select.id = `choice-${label.replace(/\W/g, "-")}`
  const row = h("div", { className: "widget-inline-hbox" },
                h("label", { className: "widget-label", htmlFor: select.id }, label), select)
  row.style.display = "flex"
  return { row, select }
}

const about = await (await fetch("about.json")).json()
const places = new Places(about)
const names = about.hasAverage ? [...about.members, places.average] : about.members
const engine = new Engine(about)
const kept = new Map() // key -> clip { data, frames, fps, shape }

const spot = name => Object.fromEntries(Object.keys(PARTS).map(part => [part, places.at(part, name)]))
const start = (look, dance = look) => ({
  appearance: places.at("appearance", look), motion: places.at("motion", dance),
  strength: { appearance: 1, motion: 1 }, prompt: "", seed: 0,
})
let position = start(about.members[0])

// Clips: made beforehand, or by the model, or the nearest of those that were made beforehand.

const whole = (part, p) => {
  const [[name, share]] = places.shares(part, p[part])
  return share > .999 && !p[part].along.some(Boolean) ? name : null
}
const fileOf = (look, dance) => about.clips[`${look}|${dance}`]
const beforehand = p => {
  const plain = !p.prompt && !p.seed && p.strength.appearance == 1 && p.strength.motion == 1
  return plain ? fileOf(whole("appearance", p), whole("motion", p)) : undefined
}
const distance = (part, name, { point }) => {
  const [x, y] = places.map(part).places[name]
  return Math.hypot(x - point[0], y - point[1])
}
function nearest(p) { // [look, dance] of a clip that was made beforehand
  const look = places.heaviest("appearance", p.appearance)
  const group = places.group(p.motion.start)
  const dances = about.members.filter(name => fileOf(look, name))
  const alike = dances.filter(name => places.group(name) == group)
  const best = (alike.length ? alike : dances)
    .sort((a, b) => distance("motion", a, p.motion) - distance("motion", b, p.motion))[0]
  return [look, best]
}

const files = new Map()
function fetched(file) { // -> clip
  if (!files.has(file)) {
    files.set(file, fetch(`clips/${file}`).then(answer => {
      if (!answer.ok) throw new Error(`${file}: ${answer.status}`)
      return answer.arrayBuffer()
    }).then(data => ({ ...about.strip, data, file })))
  }
  return files.get(file)
}

function request(p, steps) {
  const own = places.ownPrompt(p)
  const prompt = p.prompt || own
  return {
    steps, seed: p.seed, strength: p.strength, numbers: language.numbered(prompt, about.vocabulary),
    edit: language.edited(own, prompt, about.vocabulary),
    placeholders: language.placeholders(prompt), apart: places.apart(p),
    weights: Object.fromEntries(Object.keys(PARTS).map(part => [part, places.weights(part, p[part])])),
  }
}

async function made(p, steps, urgent, tell) { // a clip by the model; null where nobody waits any more
  const asked = request(p, steps)
  const key = JSON.stringify(asked)
  if (kept.has(key)) return kept.get(key)
  const clip = await engine.make(asked, urgent, tell)
  if (clip) kept.set(key, { ...clip, fps: about.strip.fps })
  if (kept.size > 300) kept.delete(kept.keys().next().value)
  return clip && kept.get(key)
}

// The screen

const screenModel = new Model({ shape: about.strip.shape, turn: 0, progress: -1, note: "", old: "", details: "" })
function show(clip, p, note) {
  if (screenModel.get("data") != clip.data) {
    screenModel.state.data = clip.data
    screenModel.put({ frames: clip.frames, fps: clip.fps, type: clip.type ?? "image/webp" })
    screenModel.put({ label: places.describe(p), turn: screenModel.get("turn") + 1 })
  }
  screenModel.put({ note, old: "" })
}

const isHeld = () => held.some(model => model.get("dragging"))
let turn = 0

async function refresh() {
  const mine = ++turn
  const p = position
  const isNew = () => mine == turn
  const prompt = p.prompt || places.ownPrompt(p)
  if (!request(p, 1).numbers) {
    screenModel.put({ note: "The prompt has a word that the model does not know.", old: "still the video before" })
    return
  }
  if (request(p, 1).numbers.length + language.placeholders(prompt).length > about.length - 1) {
    screenModel.put({ note: "The prompt is too long for this page.", old: "still the video before" })
    return
  }
  const file = beforehand(p)
  if (file) {
    engine.forget()
    screenModel.put({ progress: -1 })
    const clip = await fetched(file)
    if (isNew()) show(clip, p, places.describe(p))
    return
  }
  const stoodIn = !engine.ready
  if (stoodIn) await standIn(p, isNew)
  if (!isNew() || engine.failed) return
  await exact(p, isNew, stoodIn).catch(error => isNew() && screenModel.put({ note: error.message, progress: -1 }))
}

async function standIn(p, isNew) { // until the model is here, the nearest clip
  const [look, dance] = nearest(p)
  const clip = await fetched(fileOf(look, dance))
  if (!isNew()) return
  const say = () => {
    const why = engine.failed ?? `the model is loading, ${Math.round(100*engine.loaded)}%`
    const note = `nearest clip made beforehand: look of ${look}, dance of ${dance} (${why})`
    if (isNew()) show(clip, p, note)
    if (isNew()) screenModel.put({ progress: engine.failed ? -1 : engine.loaded, details: note })
  }
  say()
  engine.onLoaded = say
  await engine.start()
  say()
}

async function exact(p, isNew, stoodIn) {
  const tell = share => isNew() && screenModel.put({ progress: share })
  for (const steps of [about.preview, about.steps]) {
    if (!isNew() || steps == about.steps && isHeld()) return
    const began = performance.now()
    const isOld = () => isNew() && steps == about.preview && !stoodIn // which says what it is
    const slow = setTimeout(() => isOld() && screenModel.put({ old: "still the video before" }), 1000)
    const clip = await made(p, steps, true, tell).finally(() => clearTimeout(slow))
    if (!clip || !isNew()) return
    const what = steps == about.steps ? "" : "preview: "
    show(clip, p, what + places.describe(p))
    screenModel.put({ details: `${steps} steps: ${((performance.now() - began)/1000).toFixed(2)} s` })
  }
  screenModel.put({ progress: -1 })
}

// Everything that shows the position, and changes it

const held = []
const following = []
function go(next) {
  const own = places.ownPrompt(next)
  const text = language.carried(next.prompt, places.ownPrompt(position), own, about.chips, about.kinds)
  position = { ...next, prompt: text == own ? "" : text }
  for (const follow of following) follow()
  refresh()
}
const put = (part, at) => go({ ...position, [part]: { ...position[part], ...at } })
const startAt = (part, name) => put(part, places.at(part, name))

function holds(state, { saved, told } = {}) { // a model that a hand may hold
  const model = new Model({ dragging: false, ...state }, {
    told, saved: changed => {
      saved?.(changed)
      if (changed.includes("dragging") && !model.get("dragging")) refresh()
    },
  })
  held.push(model)
  return model
}

function map(part) {
  const of = places.map(part)
  const marks = Object.keys(about.groups).flatMap(group => places.marks(group).map(name => {
    const [x, y] = of.places[name]
    return { name, x, y, group, image: about.stills[name] }
  }))
  const state = { span: 1, step: of.step, marks, label: `map of ${PARTS[part]}s`, point: [0, 0], here: "", words: "" }
  const model = holds(state, {
    saved: changed => {
      if (!changed.includes("point")) return
      const point = places.snap(part, model.get("point"))
      const [[start]] = places.shares(part, { ...position[part], point })
      put(part, { point, start })
    },
    told: ({ go: name }) => name && startAt(part, name),
  })
  following.push(() => {
    const at = position[part]
    const point = model.get("dragging") ? model.get("point") : at.point
    model.put({ here: at.start, point, words: places.words(part, at) })
  })
  return drawn(pad, model)
}

function strengths(part) {
  const label = `${PARTS[part]}: how strong; 1 is as learned`
  const model = holds({ value: 1, least: 0, most: 2, step: .05, label, shown: "how strong" }, {
    saved: () => go({ ...position, strength: { ...position.strength, [part]: model.get("value") } }),
  })
  following.push(() => model.put({ value: position.strength[part] }))
  return drawn(strength, model)
}

function sliders(part) { // one box for each group, of which one is shown
  const all = Object.entries(about.sliders[part]).map(([group, list]) => {
    const room = h("div", {}, ...list.map(slider => oneSlider(part, group, slider)))
    following.push(() => { room.hidden = places.group(position[part].start) != group })
    return room
  })
  return box("sliders", ...all)
}

function oneSlider(part, group, { number, label, low, high }) {
  const value = () => position[part].along[number - 1] ?? 0
  const model = holds({ value: 0, least: -3, most: 3, step: .25, low, high,
                        label: `${label}, in standard deviations`, shown: label }, {
    saved: () => {
      const along = Array.from({ length: Math.max(number, position[part].along.length) },
                               (_, k) => position[part].along[k] ?? 0)
      along[number - 1] = model.get("value")
      put(part, { along })
    },
  })
  following.push(() => places.group(position[part].start) == group && model.put({ value: value() }))
  return drawn(strength, model)
}

function beside(part) {
  const { row, select } = choice(`${PARTS[part][0].toUpperCase()}${PARTS[part].slice(1)} of`, names,
                                 name => startAt(part, name))
  const model = new Model({ cells: [], chosen: [], rows: [], columns: [], names: [], label: `whose ${PARTS[part]}` },
                          { told: ({ go: name }) => name && startAt(part, name) })
  const el = drawn(clips, model)
  following.push(() => {
    const name = position[part].start
    select.value = name
    const label = about.faces[name] ? "its own clip" : ""
    const title = `${PARTS[part]} of ${name}, ${label}: go back to it`
    if (same(model.get("cells")[0]?.key, name)) return
    model.put({ cells: [{ key: name, label, title }] })
    if (about.faces[name]) fetched(about.faces[name]).then(clip => model.strip(name, clip))
  })
  return h("div", { className: "widget-box sas-part" }, row, el, ...about.model ? [strengths(part)] : [])
}

function faces() {
  let takes = "both"
  const { row } = choice("A click takes", TAKES, value => { takes = value })
  const cells = about.members.map(name => ({ key: name, label: name }))
  const state = { cells, chosen: [], rows: [], columns: [], names: [], label: "faces" }
  const model = new Model(state, {
    told: ({ go: name }) => name && go({ ...position, ...takes == "both" ? spot(name)
                                         : { [takes]: places.at(takes, name) } }),
  })
  const el = drawn(clips, model)
  following.push(() => model.put({ chosen: [...new Set(Object.keys(PARTS).map(part => position[part].start))] }))
  for (const [name, file] of Object.entries(about.faces)) {
    fetched(file).then(clip => model.strip(name, clip)).catch(() => {})
  }
  return [row, el]
}

// The table and the line: clips made beforehand, and the others by the model when it is there.

async function fill(model, key, p, isWanted) {
  const file = beforehand(p)
  if (file) return model.strip(key, await fetched(file))
  await engine.start()
  if (engine.failed) return
  for (let clip; isWanted() && !clip;) {
    clip = await made(p, about.preview, false, () => {})
    if (clip && isWanted()) model.strip(key, clip)
  }
}

function table() {
  const few = about.table
  const state = { cells: [], chosen: [], rows: few, columns: few, names, label: "looks by dances" }
  const model = new Model(state, {
    told: ({ go: key, head, at, name }) => {
      const [look, dance] = key?.split("|") ?? []
      if (look) go({ ...position, appearance: places.at("appearance", look), motion: places.at("motion", dance) })
      const trait = head == "look" ? "rows" : "columns"
      if (head) model.put({ [trait]: model.get(trait).map((x, i) => i == at ? name : x) })
      if (head) showTable()
    },
  })
  const el = drawn(clips, model)
  let wish = ""
  const showTable = () => {
    const pairs = model.get("rows").flatMap(a => model.get("columns").map(b => [a, b]))
    const cells = pairs.map(([a, b]) => ({ key: `${a}|${b}`, label: "", title: `look of ${a}, dance of ${b}: go there` }))
    model.put({ cells, chosen: [`${position.appearance.start}|${position.motion.start}`] })
    const { appearance, motion, ...rest } = position
    const now = JSON.stringify([model.get("rows"), model.get("columns"), rest, chosenView()])
    if (now == wish || chosenView() != "table") return
    wish = now
    for (const [a, b] of pairs) {
      const own = places.ownPrompt(start(a, b))
      const prompt = language.carried(position.prompt, places.ownPrompt(position), own, about.chips, about.kinds)
      const p = { ...start(a, b), ...rest, prompt: prompt == own ? "" : prompt }
      fill(model, `${a}|${b}`, p, () => wish == now)
    }
  }
  following.push(showTable)
  return el
}

function between(one, other, share) {
  const p = { ...position }
  for (const part of Object.keys(PARTS)) {
    const [a, b] = [one, other].map(name => places.map(part).places[name])
    const point = places.snap(part, a.map((x, k) => x + share*(b[k] - x)))
    p[part] = share > 0 && share < 1 ? { start: one, point, along: [] } : places.at(part, share ? other : one)
  }
  return p
}

function line() {
  const ends = [...new Set([...about.table, ...about.members])].slice(0, 2)
  const selects = ends.map((name, i) => {
    const { row, select } = choice("AB"[i], names, value => {
      ends[i] = value
      showWay()
    })
    select.value = name
    return row
  })
  const model = holds({ value: 0, least: 0, most: 1, step: .05, label: "from A to B" },
                      { saved: changed => changed.includes("value") && go(between(...ends, model.get("value"))) })
  const way = new Model({ cells: [], chosen: [], rows: [], columns: [], names: [], label: "on the way from A to B" }, {
    told: ({ go: key }) => {
      if (key === undefined) return
      model.put({ value: +key })
      go(between(...ends, +key))
    },
  })
  const [el, slider] = [drawn(clips, way), drawn(strength, model)]
  const parted = h("p", { role: "status" })
  let wish = ""
  const showWay = () => {
    const alike = places.group(ends[0]) == places.group(ends[1])
    parted.textContent = alike ? "" : `${ends[0]} and ${ends[1]} stand on different maps, so nothing lies ` +
      "between them: choose two of one map."
    el.hidden = slider.hidden = !alike
    parted.hidden = alike
    if (!alike) return
    way.put({ cells: STOPS.map(x => ({ key: `${x}`, label: { 0: ends[0], 1: ends[1] }[x] ?? `${100*x}%` })) })
    const { appearance, motion, ...rest } = position
    const now = JSON.stringify([ends, rest, chosenView()])
    if (now == wish || chosenView() != "line") return
    wish = now
    for (const x of STOPS) fill(way, `${x}`, between(...ends, x), () => wish == now)
  }
  following.push(showWay)
  return [box("row", ...selects), parted, slider, el]
}

function prompt() {
  const state = { value: "", placeholder: "", unknown: [], hint: "", chips: about.chips, chosen: [] }
  const set = text => go({ ...position, prompt: text.trim() == places.ownPrompt(position) ? "" : text.trim() })
  const model = new Model(state, {
    saved: changed => changed.includes("value") && set(model.get("value")),
    told: ({ chip }) => {
      const own = places.ownPrompt(position)
      if (chip) set(language.toggled(model.get("value").trim() || own, chip, about.chips, own))
    },
  })
  following.push(() => {
    const own = places.ownPrompt(position)
    const text = position.prompt || own
    const fit = language.fitting(about.chips, own, about.kinds)
    if (!same(model.get("chips"), fit)) model.put({ chips: fit })
    const { appearance, motion } = position.strength
    model.put({ placeholder: own, value: text, chosen: language.chosenChips(text, about.chips),
                unknown: language.unknownWords(text, about.vocabulary),
                hint: language.advice(text, own, { v: appearance, u: motion }) })
  })
  return drawn(words, model)
}

const titles = { faces: "Faces", maps: "Maps", table: "Look \u00d7 dance", line: "A to B" }
const viewsModel = new Model({ titles, chosen: "faces" }, { saved: () => following.forEach(follow => follow()) })
const chosenView = () => viewsModel.get("chosen")
const view = (name, ...inside) => {
  const el = box("view", ...inside)
  el.classList.add(`sas-view-${name}`)
  return el
}

function maps() {
  return Object.entries(PARTS).map(([part, word]) => box("map", h("h2", {}, `whose ${word}`), map(part), sliders(part)))
}

function seed() {
  const numbers = about.noise.map((_, i) => i)
  const { row, select } = choice("Take", numbers, value => go({ ...position, seed: +value }))
  following.push(() => { select.value = position.seed })
  return row
}

const headModel = new Model({ title: "Whose look, whose dance?", sentence: about.sentence,
                              examples: about.examples.map(e => e.label), help: about.help }, {
  told: ({ example }) => {
    if (example === undefined) return
    const { look, dance, prompt: text } = about.examples[example]
    go({ ...start(look, dance), prompt: text })
  },
})

const root = document.querySelector(".sas-explorer")
root.append(
  drawn(head, headModel),
  box("page",
      box("show", drawn(screen, screenModel), box("beside", ...Object.keys(PARTS).map(beside))),
      box("row", drawn(clock, new Model({ paused: false })), ...about.model ? [seed()] : []),
      box("side", drawn(views, viewsModel), view("faces", ...faces()), view("maps", ...maps()),
          view("table", table()), view("line", ...line())),
      ...about.model ? [box("edit", prompt())] : []))
root.dataset.view = chosenView()
globalThis.sasPage = { about, engine, places, request, go, start, get position() { return position } } // for tests
go(position)
