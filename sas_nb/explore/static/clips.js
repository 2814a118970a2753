// Small clips in rows, each a button; a table has heads to choose from. The model's traits are those of
// `Clips` in widgets.py. Strips come one by one as messages: { strip: key, frames, fps } with their bytes.

const TILES = [[12, 140], [40, 88], [Infinity, 58]] // up to so many cells, each at least so wide, in pixels
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

function make(tag, className, text = "") {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  return element
}

function makeHead(names, name, label, change) {
  const select = make("select", "sas-head")
  select.setAttribute("aria-label", label)
  select.append(...names.map(n => new Option(n, n, false, n == name)))
  select.addEventListener("change", () => change(select.value))
  return select
}

function makeCell({ key, label, title }, chosen, go) {
  const cell = make("button", "sas-cell")
  cell.type = "button"
  cell.dataset.key = key
  cell.setAttribute("aria-label", title || label)
  cell.append(make("span", "sas-strip"), make("span", "sas-name", label))
  cell.addEventListener("click", () => go(key))
  showChosen(cell, chosen)
  return cell
}

function showChosen(cell, chosen) {
  const is = chosen.includes(cell.dataset.key)
  if (is) cell.setAttribute("aria-current", "true")
  else cell.removeAttribute("aria-current")
}

function showStrip(cell, strip) {
  if (!cell || !strip) return
  const picture = cell.querySelector(".sas-strip")
  picture.style.backgroundImage = `url(${strip.url})`
  picture.style.backgroundSize = `${100*strip.frames}% 100%`
  picture.style.setProperty("--shape", strip.shape || 1)
  picture.dataset.frames = strip.frames
  picture.dataset.fps = strip.fps
  picture.shown = undefined
}

function render({ model, el }) {
  const board = make("div", "sas-board")
  const strips = new Map()
  const go = key => model.send({ go: key })
  const cells = () => [...board.querySelectorAll(".sas-cell")]
  const head = (kind, names, i) => makeHead(model.get("names"), names[i], `${kind} ${i + 1}`, name => {
    model.send({ head: kind, at: i, name })
  })

  const showAll = () => {
    const rows = model.get("rows")
    const columns = model.get("columns")
    const at = document.activeElement?.dataset?.key
    const made = model.get("cells").map(cell => makeCell(cell, model.get("chosen"), go))
    board.classList.toggle("sas-table", rows.length > 0)
    board.style.setProperty("--columns", columns.length || 1)
    board.style.setProperty("--shape", model.get("shape") || 1)
    board.style.setProperty("--tile", `${TILES.find(([most]) => made.length <= most)[1]}px`)
    if (rows.length) {
      const corner = make("span", "sas-corner", "look \u2193 dance \u2192")
      const across = columns.map((_, i) => head("dance", columns, i))
      const lines = rows.flatMap((_, i) => [
        head("look", rows, i), ...made.slice(i*columns.length, (i + 1)*columns.length)])
      board.replaceChildren(corner, ...across, ...lines)
    } else {
      board.replaceChildren(...made)
    }
    for (const cell of made) showStrip(cell, strips.get(cell.dataset.key))
    const current = made.find(c => c.hasAttribute("aria-current")) || made[0]
    for (const cell of made) cell.tabIndex = cell == current ? 0 : -1
    if (at) made.find(c => c.dataset.key == at)?.focus()
  }
  const showWhere = () => {
    for (const cell of cells()) showChosen(cell, model.get("chosen"))
  }
  const walk = event => {
    const step = STEPS[event.key]
    const all = cells()
    const here = all.indexOf(event.target.closest(".sas-cell"))
    if (!step || here < 0) return
    const tops = all.map(c => c.offsetTop)
    const across = tops.lastIndexOf(tops[0]) + 1
    const next = all[here + step[0] + step[1]*across]
    event.preventDefault()
    event.stopPropagation()
    if (!next) return
    all[here].tabIndex = -1
    next.tabIndex = 0
    next.focus()
  }

  board.setAttribute("role", "group")
  board.setAttribute("aria-label", model.get("label"))
  board.addEventListener("keydown", walk)
  el.append(board)
  el.classList.add("sas-clips")
  el.dataset.lmSuppressShortcuts = "true"
  model.on("change:cells", showAll)
  model.on("change:rows", showAll)
  model.on("change:columns", showAll)
  model.on("change:chosen", showWhere)
  model.on("msg:custom", (message, buffers) => {
    if (!message?.strip) return
    const before = strips.get(message.strip)
    const url = URL.createObjectURL(new Blob([buffers[0]], { type: "image/webp" }))
    strips.set(message.strip, { ...message, url })
    showStrip(cells().find(c => c.dataset.key == message.strip), strips.get(message.strip))
    if (before) URL.revokeObjectURL(before.url)
    el.dataset.strips = strips.size // for tests
  })
  showAll()
  model.send({ drawn: true })
}

export default { render }
