// The prompt, unknown words marked as one types, near ones to click, and chips. The model's traits are
// those of `Words` in widgets.py. All rooms are reserved: nothing moves while one types.

const WAIT = 250 // ms after the last key
const MOST = 3 // unknown words that are spelt out; the text marks them all

function makeButton(text, act) {
  const button = document.createElement("button")
  button.type = "button"
  button.textContent = text
  button.addEventListener("mousedown", event => event.preventDefault()) // the text keeps its caret
  button.addEventListener("click", act)
  return button
}

function marked(text, unknown) { // the text as nodes, its unknown words in <mark>
  return text.split(/([\s,.;:!?]+)/).map(word => {
    if (!unknown.has(word)) return word
    const mark = document.createElement("mark")
    mark.textContent = word
    return mark
  })
}

function listenToKeys(model, box, show) {
  let timer
  const save = () => {
    clearTimeout(timer)
    timer = undefined
    model.set("value", box.value)
    model.save_changes()
  }
  box.addEventListener("input", () => {
    show()
    clearTimeout(timer)
    timer = setTimeout(save, WAIT)
  })
  box.addEventListener("blur", save)
  box.addEventListener("keydown", event => {
    if (event.key != "Enter") return
    event.preventDefault()
    save()
  })
  return { save, isTyping: () => timer !== undefined }
}

function render({ model, el }) {
  const label = document.createElement("label")
  const frame = document.createElement("div")
  const behind = document.createElement("div")
  const box = document.createElement("textarea")
  const near = document.createElement("div")
  const chips = document.createElement("div")

  const showMarks = () => {
    const unknown = new Set(model.get("unknown").map(u => u.word))
    behind.replaceChildren(...marked(box.value, unknown), " ")
    behind.scrollTop = box.scrollTop
  }
  const { save, isTyping } = listenToKeys(model, box, showMarks)
  const put = (before, after) => {
    box.value = box.value.split(/([\s,.;:!?]+)/).map(w => w == before ? after : w).join("")
    save()
    box.focus()
  }
  let shown
  const showNear = () => {
    showMarks()
    const now = JSON.stringify([model.get("unknown"), model.get("hint")])
    if (shown == now) return // a button under a hand stays the same button
    shown = now
    box.setAttribute("aria-invalid", model.get("unknown").length > 0)
    const unknown = [...model.get("unknown")].sort((a, b) => (b.near.length > 0) - (a.near.length > 0))
    near.replaceChildren(...unknown.slice(0, MOST).flatMap(({ word, near }) => {
      const says = document.createElement("span")
      says.textContent = `\u201c${word}\u201d is unknown${near.length ? "; near:" : "."}`
      return [says, ...near.map(n => makeButton(n, () => put(word, n)))]
    }))
    if (unknown.length > MOST) near.append(`and ${unknown.length - MOST} more`)
    if (!near.childNodes.length) near.append(model.get("hint"))
  }
  const showValue = () => {
    box.placeholder = model.get("placeholder")
    if (!isTyping() && box.value.trim() != model.get("value").trim()) box.value = model.get("value")
    showNear()
  }
  const showChosen = () => {
    for (const chip of chips.querySelectorAll("button")) {
      chip.setAttribute("aria-pressed", model.get("chosen").includes(chip.textContent))
    }
  }
  const showChips = () => {
    chips.replaceChildren(...Object.entries(model.get("chips")).map(([kind, phrases]) => {
      const row = document.createElement("div")
      const title = document.createElement("span")
      title.textContent = kind
      row.setAttribute("role", "group")
      row.setAttribute("aria-label", kind)
      row.append(title, ...phrases.map(phrase => makeButton(phrase, () => model.send({ chip: phrase }))))
      return row
    }))
    showChosen()
  }

  label.append("Words", frame)
  box.rows = 2
  box.spellcheck = false
  box.setAttribute("aria-label", "Prompt")
  behind.setAttribute("aria-hidden", "true")
  near.setAttribute("role", "status")
  frame.className = "sas-frame"
  behind.className = "sas-behind"
  near.className = "sas-near"
  chips.className = "sas-chips"
  frame.append(behind, box)
  el.append(label, near, chips)
  el.classList.add("sas-words")
  el.dataset.lmSuppressShortcuts = "true"
  box.addEventListener("scroll", showMarks)
  model.on("change:value", showValue)
  model.on("change:placeholder", showValue)
  model.on("change:unknown", showNear)
  model.on("change:hint", showNear)
  model.on("change:chips", showChips)
  model.on("change:chosen", showChosen)
  showValue()
  showChips()
}

export default { render }
