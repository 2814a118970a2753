// A named slider from 0 to 2. The model's traits are those of `Strength` in widgets.py.

function render({ model, el }) {
  const label = document.createElement("label")
  const words = document.createElement("span")
  const slider = document.createElement("input")

  const show = () => {
    slider.value = model.get("value")
    words.textContent = `${model.get("label")}: ${model.get("value").toFixed(2)}`
  }
  const set = (trait, value) => {
    model.set(trait, value)
    show()
    model.save_changes()
  }

  Object.assign(slider, { type: "range", min: 0, max: 2, step: .05 })
  slider.setAttribute("aria-label", model.get("label"))
  slider.addEventListener("input", () => set("value", +slider.value))
  slider.addEventListener("pointerdown", () => set("dragging", true))
  slider.addEventListener("pointerup", () => set("dragging", false))
  slider.addEventListener("pointercancel", () => set("dragging", false))
  label.append(words, slider)
  el.append(label)
  el.classList.add("sas-strength")
  el.dataset.lmSuppressShortcuts = "true"
  model.on("change:value", show)
  show()
}

export default { render }
