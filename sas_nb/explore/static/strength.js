// A named slider, maybe with a picture at each end. The model's traits are those of `Strength` in
// widgets.py.

// Of { url, frames, fps, shape }; of { shape } while it is not there; or nothing.
function makeEnd(strip, name) {
  if (!strip?.url && !strip?.shape) return []
  const picture = document.createElement("span")
  picture.className = `sas-strip sas-end ${name}`
  picture.style.setProperty("--shape", strip.shape || 1)
  if (!strip.url) return [picture]
  picture.style.backgroundImage = `url(${strip.url})`
  picture.style.backgroundSize = `${100*strip.frames}% 100%`
  picture.dataset.frames = strip.frames
  picture.dataset.fps = strip.fps
  return [picture]
}

function render({ model, el }) {
  const label = document.createElement("label")
  const words = document.createElement("span")
  const line = document.createElement("div")
  const slider = document.createElement("input")

  const show = () => {
    const value = model.get("value")
    slider.min = model.get("least")
    slider.max = model.get("most")
    slider.step = model.get("step")
    slider.value = value
    slider.setAttribute("aria-label", model.get("label"))
    words.textContent = `${model.get("shown") || model.get("label")}: ${value.toFixed(2)}`
  }
  const showEnds = () => line.replaceChildren(
    ...makeEnd(model.get("low"), "low"), slider, ...makeEnd(model.get("high"), "high"))
  const set = (trait, value) => {
    model.set(trait, value)
    show()
    model.save_changes()
  }

  slider.type = "range"
  slider.addEventListener("input", () => set("value", +slider.value))
  slider.addEventListener("pointerdown", () => set("dragging", true))
  slider.addEventListener("pointerup", () => set("dragging", false))
  slider.addEventListener("pointercancel", () => set("dragging", false))
  line.className = "sas-line"
  label.append(words, line)
  el.append(label)
  el.classList.add("sas-strength")
  el.dataset.lmSuppressShortcuts = "true"
  for (const trait of ["value", "least", "most", "step", "label", "shown"]) model.on(`change:${trait}`, show)
  model.on("change:low", showEnds)
  model.on("change:high", showEnds)
  showEnds()
  show()
  model.send({ drawn: true })
}

export default { render }
