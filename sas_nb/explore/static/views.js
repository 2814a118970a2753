// Buttons that choose what the side of the page shows. The model's traits are those of `Views` in
// widgets.py. The page's styles show the box of the view that is named at its root.

function render({ model, el }) {
  const buttons = new Map()
  const show = () => {
    const chosen = model.get("chosen")
    const page = el.closest(".sas-explorer")
    if (page) page.dataset.view = chosen
    for (const [key, button] of buttons) button.setAttribute("aria-pressed", key == chosen)
  }
  const choose = key => {
    model.set("chosen", key)
    show()
    model.save_changes()
    const film = el.closest(".sas-explorer")?.querySelector(".sas-screen")
    if (!film || getComputedStyle(film).position != "sticky") return // what was chosen is in sight
    el.style.scrollMarginTop = `${film.offsetHeight + 20}px` // below the video, which stays
    el.scrollIntoView({ block: "start" })
  }

  for (const [key, label] of Object.entries(model.get("titles"))) {
    const button = document.createElement("button")
    button.type = "button"
    button.textContent = label
    button.addEventListener("click", () => choose(key))
    buttons.set(key, button)
  }
  el.append(...buttons.values())
  el.classList.add("sas-views")
  el.setAttribute("role", "group")
  el.setAttribute("aria-label", "ways to choose")
  model.on("change:chosen", show)
  show()
  requestAnimationFrame(show) // the page may be put together around it only now
}

export default { render }
