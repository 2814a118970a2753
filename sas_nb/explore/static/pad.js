// A map: marks to start from, and a point to drag. The model's traits are those of `Pad` in widgets.py.
// Coordinates of the model are norms of the update, from -span to span; those of the board are -100 to 100.

const NAMESPACE = "http://www.w3.org/2000/svg"
const MINUS = "\u2212"
const SAVE_EVERY = 80 // ms, while a hand drags
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }

function draw(tag, attributes, ...inside) {
  const element = document.createElementNS(NAMESPACE, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...inside)
  return element
}

function digits(x) {
  return (x < 0 ? MINUS : "+") + Math.abs(x).toPrecision(3)
}

// Frame: edge, axes through zero, what they mean, how far they reach.

function drawFrame(label, [xAxis, yAxis], span) {
  const board = draw("svg", {
    viewBox: "-124 -108 234 238", class: "board", role: "group", "aria-label": label,
  })
  board.append(
    draw("rect", { x: -100, y: -100, width: 200, height: 200, class: "edge" }),
    draw("line", { x1: -100, y1: 0, x2: 100, y2: 0, class: "axis" }),
    draw("line", { x1: 0, y1: -100, x2: 0, y2: 100, class: "axis" }),
    draw("text", { x: 0, y: 126 }, xAxis),
    draw("text", { transform: "rotate(-90)", x: 0, y: -114 }, yAxis),
  )
  const reach = digits(span).slice(1)
  for (const [words, at, anchor] of [[MINUS + reach, -100, "start"], [reach, 100, "end"]]) {
    const style = `text-anchor: ${anchor}`
    board.append(draw("text", { x: at, y: 112, style }, words))
    if (yAxis) board.append(draw("text", { transform: "rotate(-90)", x: at, y: -103, style }, words))
  }
  board.append(draw("text", { x: 0, y: 112 }, "0"))
  return board
}

// Marks: each concept is a button, a picture or a diamond with a name.

function drawMark({ name, image, above }, [x, y], isStart, start) {
  const does = isStart ? "the start; go back to it" : "start from here"
  const mark = draw("g", {
    class: "mark", tabindex: 0, role: "button", "aria-label": `${name}: ${does}`,
    transform: `translate(${x} ${y})`,
  })
  if (image) {
    const square = { x: -13, y: -13, width: 26, height: 26 }
    mark.append(draw("image", { ...square, href: image, preserveAspectRatio: "xMidYMid slice" }))
    mark.append(draw("rect", square))
  } else {
    mark.append(draw("path", { d: "M0-7 7 0 0 7-7 0Z" }))
  }
  const words = isStart ? `${name} (start)` : name
  mark.append(draw("text", { y: above ? -12 : 23, class: isStart ? "here" : "" }, words))
  mark.addEventListener("click", () => start(name))
  mark.addEventListener("keydown", event => {
    if (event.key != "Enter" && event.key != " ") return
    event.preventDefault()
    start(name)
  })
  return mark
}

// Point: a slider to screen readers and keyboards.

function drawPoint(label) {
  const point = draw("g", {
    class: "point", tabindex: 0, role: "slider", "aria-label": label,
    "aria-roledescription": "point on a map",
  })
  for (const name of ["halo", "line"]) {
    point.append(draw("circle", { r: 8, class: name }))
    point.append(draw("path", { d: "M-13 0H-4M4 0H13M0-13V-4M0 4V13", class: name }))
  }
  return point
}

function listenToPointer(model, board, point, move) {
  const span = model.get("span")
  const place = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(board.getScreenCTM().inverse())
    return [at.x*span/100, -at.y*span/100]
  }
  const hold = held => {
    model.set("dragging", held)
    model.save_changes()
  }
  const letGo = () => {
    if (!model.get("dragging")) return
    model.save_changes() // the last place first: what follows the release is made there
    hold(false)
  }
  board.addEventListener("pointerdown", event => {
    if (event.button || event.target.closest(".mark")) return
    event.preventDefault()
    board.setPointerCapture(event.pointerId)
    point.focus()
    hold(true)
    move(...place(event), true)
  })
  board.addEventListener("pointermove", event => {
    if (board.hasPointerCapture(event.pointerId)) move(...place(event), false)
  })
  board.addEventListener("pointerup", letGo)
  board.addEventListener("pointercancel", letGo)
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

function render({ model, el }) {
  const span = model.get("span")
  const axes = model.get("axes")
  const isFlat = !axes[1]
  const board = drawFrame(model.get("label"), axes, span)
  const marks = draw("g", {})
  const point = drawPoint(model.get("label"))
  const words = document.createElement("output")
  let saved = 0

  const onBoard = ([x, y]) => [100*x/span, -100*y/span]
  const clamp = value => Math.max(-span, Math.min(span, +value.toFixed(6)))
  const start = name => model.send({ go: name })
  const showPoint = () => {
    const [x, y] = model.get("point")
    point.setAttribute("transform", `translate(${onBoard([x, y]).join(" ")})`)
    words.value = `${digits(x)}${isFlat ? "" : `, ${digits(y)}`} (norm of the update)`
    const told = { valuemin: -span, valuemax: span, valuenow: x, valuetext: words.value }
    for (const [name, value] of Object.entries(told)) point.setAttribute(`aria-${name}`, value)
  }
  const showMarks = () => {
    const here = model.get("here")
    marks.replaceChildren(...model.get("marks").map(
      mark => drawMark(mark, onBoard([mark.x, mark.y]), mark.name == here, start)))
  }
  const move = (x, y, atOnce) => {
    model.set("point", [clamp(x), isFlat ? 0 : clamp(y)])
    showPoint()
    if (!atOnce && Date.now() - saved <= SAVE_EVERY) return
    saved = Date.now()
    model.save_changes()
  }

  board.append(marks, point)
  el.append(board, words)
  el.classList.add("sas-pad")
  el.dataset.lmSuppressShortcuts = "true"
  model.on("change:point", showPoint)
  model.on("change:marks", showMarks)
  model.on("change:here", showMarks)
  showPoint()
  showMarks()
  listenToPointer(model, board, point, move)
  listenToKeys(model, point, move, start)
  model.send({ drawn: true })
}

export default { render }
