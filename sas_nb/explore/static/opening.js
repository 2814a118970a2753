// The page's shape, in grey, and what is being done, until the page itself is drawn. The model's traits are
// those of `Opening` in widgets.py.

const STILL = 150 // ms without a change: all widgets of the page are drawn
const LATEST = 5000 // ms: shown then as it is

function render({ model, el }) {
  const tell = () => { el.querySelector("[role=status]")?.replaceChildren(model.get("words")) }
  const pane = () => el.closest(".sas-pane")
  let timer
  let last

  const show = () => {
    watch.disconnect()
    clearTimeout(last)
    el.hidden = true
  }
  const look = () => {
    const page = pane()?.querySelector(".sas-explorer")
    if (!page) return
    last ??= setTimeout(show, LATEST)
    clearTimeout(timer)
    if (page.querySelector("h1")) timer = setTimeout(show, STILL)
  }
  const watch = new MutationObserver(look)

  el.innerHTML = model.get("page")
  el.classList.add("sas-opening")
  tell()
  model.on("change:words", tell)
  requestAnimationFrame(() => { // it stands in its pane only now
    document.querySelector(".sas-ahead")?.remove()
    if (pane()) watch.observe(pane(), { childList: true, subtree: true })
    look()
  })
  model.send({ drawn: true })
  return () => watch.disconnect()
}

export default { render }
