// A video, a progress bar and a line of text. The model's traits are those of `Screen` in widgets.py.
// The next video is loaded out of sight and swapped in when it can play, at the same moment of the dance.

function makeFilm(label, loaded) {
  const video = document.createElement("video")
  const autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches
  Object.assign(video, { muted: true, loop: true, controls: true, playsInline: true, autoplay })
  video.setAttribute("aria-label", label)
  video.onloadeddata = () => loaded(video)
  return video
}

function makePreview(label, loaded) {
  const image = document.createElement("img")
  image.alt = label
  image.onload = () => loaded(image)
  return image
}

function render({ model, el }) {
  const stage = document.createElement("div")
  const bar = document.createElement("progress")
  const words = document.createElement("div")

  const swap = element => {
    const before = stage.firstChild
    if (element.tagName == "VIDEO" && before?.currentTime) element.currentTime = before.currentTime
    stage.replaceChildren(element)
    if (before) URL.revokeObjectURL(before.src)
    el.dataset.shown = +(el.dataset.shown || 0) + 1 // for tests: how many videos were shown
  }
  const play = () => {
    const data = model.get("data")
    if (!data?.byteLength) return
    const turn = model.get("turn")
    const isFilm = model.get("film")
    const url = URL.createObjectURL(new Blob([data], { type: isFilm ? "video/mp4" : "image/webp" }))
    const make = isFilm ? makeFilm : makePreview
    const element = make(model.get("label"), loaded => {
      if (turn == model.get("turn")) swap(loaded)
      else URL.revokeObjectURL(loaded.src) // a newer one is on its way
    })
    element.onerror = () => { words.textContent = "This browser cannot play the video." }
    element.src = url
  }
  const tell = () => {
    const progress = model.get("progress")
    bar.style.visibility = progress < 0 ? "hidden" : "visible"
    bar.value = Math.max(progress, 0)
    words.textContent = model.get("note")
  }

  bar.setAttribute("aria-label", "progress of the video")
  words.setAttribute("role", "status")
  el.append(stage, bar, words)
  el.classList.add("sas-screen")
  model.on("change:turn", play)
  model.on("change:progress", tell)
  model.on("change:note", tell)
  play()
  tell()
  model.send({ drawn: true })
}

export default { render }
