// Boxes over a video: who is where. The model's traits are those of `Places` in widgets.py. A box is moved by
// a press inside it, made larger or smaller by its corner, and both by the arrow keys, with Shift for the
// size.

const SAVE_EVERY = 80 // ms, while a hand drags
const STEP = .05
const LEAST = .15
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const clamp = (x, low, high) => Math.max(low, Math.min(high, x))

function moved([left, top, right, bottom], [dx, dy]) {
  const x = clamp(dx, -left, 1 - right)
  const y = clamp(dy, -top, 1 - bottom)
  return [left + x, top + y, right + x, bottom + y]
}

function sized([left, top, right, bottom], [dx, dy]) {
  return [left, top, clamp(right + dx, left + LEAST, 1), clamp(bottom + dy, top + LEAST, 1)]
}

function make(className) {
  const element = document.createElement("div")
  element.className = className
  return element
}

function render({ model, el }) {
  const board = make("sas-board-of-places")
  let saved = 0
  let later = 0
  let held = null // where a hand holds the boxes: what Python says meanwhile is of older places
  let press = null

  const put = (i, place, atOnce) => {
    const rounded = place.map(x => +x.toFixed(4))
    const places = held ?? model.get("places")
    held = places.map((p, j) => i == j ? { ...p, box: rounded } : p)
    model.set("places", held)
    show()
    const wait = saved + SAVE_EVERY - Date.now()
    if (atOnce || wait < 0) send()
    else later ||= setTimeout(send, wait) // the hand may rest now
    if (!press) held = null
  }
  const send = () => {
    clearTimeout(later)
    later = 0
    saved = Date.now()
    if (held) model.set("places", held)
    model.save_changes()
  }
  const hold = held => {
    model.set("dragging", held)
    model.save_changes()
  }
  const listen = (box, i) => {
    box.addEventListener("focus", () => { // who was touched last lies over the others
      for (const other of board.children) other.classList.toggle("sas-front", other == box)
    })
    box.addEventListener("pointerdown", event => {
      if (event.button) return
      event.preventDefault()
      box.focus()
      box.setPointerCapture(event.pointerId)
      const change = event.target.classList.contains("sas-corner-of-place") ? sized : moved
      press = { x: event.clientX, y: event.clientY, from: model.get("places")[i].box, change }
      hold(true)
    })
    box.addEventListener("pointermove", event => {
      if (!press) return
      const { width, height } = board.getBoundingClientRect()
      put(i, press.change(press.from, [(event.clientX - press.x)/width, (event.clientY - press.y)/height]))
    })
    const letGo = () => {
      if (!press) return
      press = null
      send() // the last place first: what follows the release is made there
      held = null
      hold(false)
    }
    box.addEventListener("pointerup", letGo)
    box.addEventListener("pointercancel", letGo)
    box.addEventListener("keydown", event => {
      const by = ARROWS[event.key]?.map(x => x*STEP)
      if (!by) return
      event.preventDefault()
      event.stopPropagation()
      put(i, (event.shiftKey ? sized : moved)(model.get("places")[i].box, by), true)
    })
  }
  const showAll = () => {
    board.replaceChildren(...model.get("places").map(({ name }, i) => {
      const box = make("sas-place")
      const title = make("sas-name-of-place")
      title.textContent = name
      box.append(title, make("sas-corner-of-place"))
      box.tabIndex = 0
      box.dataset.name = name
      box.style.setProperty("--hue", 210 + 137*i)
      box.setAttribute("role", "group")
      box.setAttribute("aria-roledescription", "place in the picture")
      listen(box, i)
      return box
    }))
    show()
  }
  const show = () => {
    const places = held ?? model.get("places")
    if (board.children.length != places.length) return showAll()
    el.style.display = model.get("shown") ? "" : "none"
    el.style.setProperty("--shape", model.get("shape"))
    places.forEach(({ name, box: [left, top, right, bottom] }, i) => {
      const percent = x => `${100*x}%`
      const { style } = board.children[i]
      Object.assign(style, { left: percent(left), top: percent(top),
                             width: percent(right - left), height: percent(bottom - top) })
      const [from, to] = [left, right].map(x => Math.round(100*x))
      const where = `from ${from}% to ${to}% of the width`
      board.children[i].setAttribute("aria-label", `${name}: ${where}; arrow keys move it`)
    })
  }

  el.append(board)
  el.classList.add("sas-places")
  el.dataset.lmSuppressShortcuts = "true"
  for (const trait of ["places", "shown", "shape"]) model.on(`change:${trait}`, show)
  show()
  model.send({ drawn: true })
}

export default { render }
