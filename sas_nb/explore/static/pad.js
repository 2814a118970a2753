// A map: marks to start from, and a point to drag. The model's traits are those of `Pad` in widgets.py.
// Coordinates of the model go from -span to span, y upwards; the board's from -100 to 100, y downwards.

const NAMESPACE = "http://www.w3.org/2000/svg"
const SAVE_EVERY = 80 // ms, while a hand drags
const STILL = 4 // pixels: a press that moves less is a click
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }

function draw(tag, attributes, ...inside) {
  const element = document.createElementNS(NAMESPACE, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...inside)
  return element
}

// Board: one map, the names on it, and a name that shows on hover.

function drawBoard(label) {
  const board = draw("svg", { class: "board", role: "group", "aria-label": label })
  const edge = draw("rect", { x: -100, width: 200, class: "edge" })
  const [marks, names, point] = [draw("g", {}), draw("g", { class: "names" }), drawPoint(label)]
  const tip = draw("text", { class: "tip" })
  board.append(edge, marks, names, point, tip)
  const resize = half => {
    board.setAttribute("viewBox", `-102 ${-half - 2} 204 ${2*half + 4}`)
    edge.setAttribute("y", -half)
    edge.setAttribute("height", 2*half)
  }
  return { board, marks, names, point, tip, resize }
}

function drawPoint(label) {
  const point = draw("g", {
    class: "point", tabindex: 0, role: "slider", "aria-label": label,
    "aria-roledescription": "point on a map",
  })
  point.append(draw("circle", { r: 13, class: "hit" }))
  for (const name of ["halo", "line"]) {
    point.append(draw("circle", { r: 8, class: name }))
    point.append(draw("path", { d: "M-13 0H-4M4 0H13M0-13V-4M0 4V13", class: name }))
  }
  return point
}

// Marks: each concept is a button, a picture or a diamond. As large as fits between the nearest two.

function sizeOf(places) {
  let nearest = 28
  places.forEach(([x, y], i) => {
    for (const [u, v] of places.slice(0, i)) {
      nearest = Math.min(nearest, Math.max(Math.abs(x - u), Math.abs(y - v)))
    }
  })
  return Math.max(6, .93*nearest)
}

function drawMark({ name, image }, [x, y], size, isStart) {
  const does = isStart ? "the start; go back to it" : "start from here"
  const mark = draw("g", {
    class: isStart ? "mark here" : "mark", role: "button", tabindex: isStart ? 0 : -1,
    "aria-label": `${name}: ${does}`, "data-name": name, transform: `translate(${x} ${y})`,
  })
  if (image) {
    const square = { x: -size/2, y: -size/2, width: size, height: size }
    mark.append(draw("image", { ...square, href: image, preserveAspectRatio: "xMidYMid slice" }))
    mark.append(draw("rect", square))
  } else {
    const r = Math.min(7, size/2)
    mark.append(draw("path", { d: `M0${-r} ${r} 0 0 ${r} ${-r} 0Z` }))
  }
  return mark
}

// Names: those that cover no other name and no mark, the start's first. The others show on hover and focus.

function drawNames(marks, places, size, here) {
  const boxes = places.map(([x, y]) => [x, y, size, size])
  const isFree = ([x, y, w, h]) => boxes.every(
    ([u, v, s, t]) => Math.abs(x - u) >= (w + s)/2 || Math.abs(y - v) >= (h + t)/2)
  const order = marks.map((mark, i) => i).sort((i, j) => (marks[j].name == here) - (marks[i].name == here))
  return order.flatMap(i => {
    const width = 5.2*marks[i].name.length
    const x = Math.max(width/2 - 100, Math.min(100 - width/2, places[i][0]))
    const box = [x, places[i][1] + size/2 + 5.5, width, 9]
    if (!isFree(box)) return []
    boxes.push(box)
    return [draw("text", { x, y: box[1] + 2.5, class: marks[i].name == here ? "here" : "" }, marks[i].name)]
  })
}

function listenToMarks({ marks, names, tip }, start) {
  const markAt = event => event.target.closest(".mark")
  const show = event => {
    const mark = markAt(event)
    if (!mark) return
    if ([...names.children].some(name => name.textContent == mark.dataset.name)) return
    const [x, y] = mark.getAttribute("transform").match(/-?[\d.e-]+/g).map(Number)
    tip.textContent = mark.dataset.name
    tip.setAttribute("x", Math.max(-70, Math.min(70, x)))
    tip.setAttribute("y", y < -80 ? y + 22 : y - 15)
  }
  const hide = () => { tip.textContent = "" }
  for (const type of ["pointerover", "focusin"]) marks.addEventListener(type, show)
  for (const type of ["pointerout", "focusout"]) marks.addEventListener(type, hide)
  marks.addEventListener("keydown", event => {
    const mark = markAt(event)
    if (event.key == "Enter" || event.key == " ") start(mark.dataset.name)
    else if (ARROWS[event.key]) focusNext(marks, mark, ARROWS[event.key])
    else return
    event.preventDefault()
    event.stopPropagation()
  })
}

function focusNext(marks, from, [right, up]) { // the nearest mark in this direction
  const middle = element => {
    const box = element.getBoundingClientRect()
    return [box.x + box.width/2, box.y + box.height/2]
  }
  const [x, y] = middle(from)
  let best = null
  let least = Infinity
  for (const mark of marks.children) {
    const [u, v] = middle(mark)
    const ahead = (u - x)*right - (v - y)*up
    const aside = Math.abs((u - x)*up) + Math.abs((v - y)*right)
    if (ahead > 1 && ahead + 2*aside < least) [best, least] = [mark, ahead + 2*aside]
  }
  if (best) best.focus()
}

// A press that stays is a click: on a mark it starts there, elsewhere it puts the point there.
// A press that moves drags. A finger drags the point alone, so that the page scrolls everywhere else.

function listenToPointer(model, { board, marks, point }, move, start) {
  let press = null
  const place = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(board.getScreenCTM().inverse())
    return [at.x*model.get("span")/100, -at.y*model.get("span")/100]
  }
  const hold = held => {
    model.set("dragging", held)
    model.save_changes()
  }
  const nameUnder = event => {
    const inside = box => event.clientX >= box.left && event.clientX <= box.right
      && event.clientY >= box.top && event.clientY <= box.bottom
    return [...marks.children].reverse().find(mark => inside(mark.getBoundingClientRect()))?.dataset.name
  }
  const isClick = event => Math.hypot(event.clientX - press.x, event.clientY - press.y) < STILL
  board.addEventListener("pointerdown", event => {
    if (event.button) return
    const onPoint = point.contains(event.target)
    const drags = onPoint || event.pointerType != "touch"
    press = { x: event.clientX, y: event.clientY, name: nameUnder(event), drags }
    if (!press.drags) return
    event.preventDefault()
    board.setPointerCapture(event.pointerId)
    point.focus()
    const grabbed = onPoint ? model.get("point") : place(event) // a point keeps its distance from the hand
    press.by = place(event).map((x, k) => grabbed[k] - x)
  })
  board.addEventListener("pointermove", event => {
    if (!press?.drags || !model.get("dragging") && isClick(event)) return
    const first = !model.get("dragging")
    if (first) hold(true)
    move(...place(event).map((x, k) => x + press.by[k]), first)
  })
  board.addEventListener("pointerup", event => {
    const { name } = press ?? {}
    if (model.get("dragging")) letGo()
    else if (press && isClick(event) && name) start(name)
    else if (press && isClick(event) && !point.contains(event.target)) move(...place(event), true)
    press = null
  })
  const letGo = () => {
    move.send() // the last place first: what follows the release is made there
    hold(false)
  }
  board.addEventListener("pointercancel", () => {
    if (model.get("dragging")) letGo()
    press = null
  })
}

function listenToKeys(model, point, move, start) {
  point.addEventListener("keydown", event => {
    const direction = ARROWS[event.key]
    if (direction) {
      const [x, y] = model.get("point")
      const step = model.get("step")*(event.shiftKey ? 5 : 1)
      move(x + direction[0]*step, y + direction[1]*step, true)
    } else if (event.key == "Home") {
      start(model.get("here"))
    } else {
      return
    }
    event.preventDefault()
    event.stopPropagation()
  })
}

// Tabs: each group of marks is a map of its own.

function drawTabs(groups, group, start) {
  return [...groups].map(([name, first]) => {
    const tab = document.createElement("button")
    tab.textContent = name
    tab.type = "button"
    tab.setAttribute("aria-pressed", name == group)
    tab.addEventListener("click", () => name == group || start(first))
    return tab
  })
}

function render({ model, el }) {
  const parts = drawBoard(model.get("label"))
  const { board, marks, names, point, resize } = parts
  const tabs = document.createElement("div")
  const words = document.createElement("output")
  const alone = document.createElement("p") // why there is no map
  let saved = 0
  let later = 0
  let held = null // where a hand holds the point: what Python says meanwhile is of an older place
  let isFlat = false

  const onBoard = ([x, y]) => [100*x/model.get("span"), -100*y/model.get("span")]
  const clamp = value => Math.max(-model.get("span"), Math.min(model.get("span"), +value.toFixed(6)))
  const start = name => model.send({ go: name })
  const showPoint = () => {
    const [x, y] = held ?? model.get("point")
    point.setAttribute("transform", `translate(${onBoard([x, y]).join(" ")})`)
    words.value = model.get("words") || `${x.toFixed(2)}, ${y.toFixed(2)}`
    const [most, text] = [model.get("span"), words.value]
    const told = { valuemin: -most, valuemax: most, valuenow: x, valuetext: text }
    for (const [name, value] of Object.entries(told)) point.setAttribute(`aria-${name}`, value)
  }
  const showMarks = () => {
    const here = model.get("here")
    const all = model.get("marks")
    const group = all.find(mark => mark.name == here)?.group
    const shown = all.filter(mark => mark.group == group)
    const places = shown.map(mark => onBoard([mark.x, mark.y]))
    const size = sizeOf(places)
    const groups = new Map(all.map(mark => [mark.group, mark.name]).reverse())
    const focused = marks.contains(document.activeElement) && document.activeElement.dataset.name
    isFlat = shown.every(mark => mark.y == 0)
    resize(isFlat ? 30 : 100)
    marks.replaceChildren(...shown.map((mark, i) => drawMark(mark, places[i], size, mark.name == here)))
    names.replaceChildren(...drawNames(shown, places, size, here))
    tabs.replaceChildren(...(groups.size > 1 ? drawTabs([...groups].reverse(), group, start) : []))
    board.style.display = words.style.display = shown.length > 1 ? "" : "none"
    const others = groups.size > 1
      ? "The buttons above lead to the other maps."
      : "A second one makes this a map."
    const lonely = `Only ${here || "nobody"} is on this map, so there is nothing to drag between. ${others}`
    alone.textContent = shown.length > 1 ? "" : lonely
    if (focused) [...marks.children].find(mark => mark.dataset.name == focused)?.focus()
  }
  const move = (x, y, atOnce) => {
    held = [clamp(x), isFlat ? 0 : clamp(y)]
    model.set("point", held)
    showPoint()
    const wait = saved + SAVE_EVERY - Date.now()
    if (atOnce || wait < 0) send()
    else later ||= setTimeout(send, wait) // the hand may rest now
    if (!model.get("dragging")) held = null
  }
  const send = () => {
    clearTimeout(later)
    later = 0
    saved = Date.now()
    if (held) model.set("point", held)
    model.save_changes()
  }
  move.send = () => {
    send()
    held = null
  }

  alone.className = "alone"
  el.append(tabs, board, alone, words)
  el.classList.add("sas-pad")
  tabs.className = "tabs"
  el.dataset.lmSuppressShortcuts = "true"
  for (const name of ["point", "words"]) model.on(`change:${name}`, showPoint)
  for (const name of ["marks", "here"]) model.on(`change:${name}`, showMarks)
  showPoint()
  showMarks()
  listenToMarks(parts, start)
  listenToPointer(model, parts, move, start)
  listenToKeys(model, point, move, start)
  model.send({ drawn: true })
}

export default { render }
