// A video, a progress bar and a line of text. The model's traits are those of `Screen` in widgets.py. The
// next video is loaded out of sight and swapped in when it can play, at the same moment of the dance.

const TYPES = { true: "video/mp4", false: "image/webp" }

function makeFilm(url, label) {
  const video = document.createElement("video")
  Object.assign(video, { muted: true, loop: true, playsInline: true, className: "sas-film", src: url })
  video.setAttribute("aria-label", label)
  return new Promise((resolve, reject) => {
    video.onloadeddata = () => {
      const at = globalThis.sasClock ? performance.now()/1000 - globalThis.sasClock.lost : 0
      if (!(video.duration > 0)) return resolve(video)
      video.onseeked = () => resolve(video)
      video.currentTime = at % video.duration
    }
    video.onerror = reject
  })
}

function makePicture(url, label) {
  const image = document.createElement("img")
  image.alt = label
  return new Promise((resolve, reject) => {
    image.onload = () => resolve(image)
    image.onerror = reject
    image.src = url
  })
}

// A preview's frames on a canvas can be played in step; where a browser cannot take it apart it plays alone.
async function makePreview(url, label, data) {
  if (!globalThis.ImageDecoder) return makePicture(url, label)
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice()
  const decoder = new ImageDecoder({ data: bytes, type: "image/webp" })
  await Promise.all([decoder.tracks.ready, decoder.completed])
  const frames = []
  for (let i = 0; i < decoder.tracks.selectedTrack.frameCount; i++) {
    const { image } = await decoder.decode({ frameIndex: i })
    frames.push(image)
  }
  const [first] = frames
  const canvas = document.createElement("canvas")
  Object.assign(canvas, { width: first.displayWidth, height: first.displayHeight, className: "sas-strip" })
  canvas.getContext("2d").drawImage(first, 0, 0)
  const rate = Math.round(1e6/(first.duration || 1e5)) // before it was rounded to milliseconds
  canvas.dataset.fps = Math.max(rate, 1)
  canvas.frames = await Promise.all(frames.map(frame => createImageBitmap(frame)))
  for (const frame of frames) frame.close()
  canvas.setAttribute("role", "img")
  canvas.setAttribute("aria-label", label)
  return canvas
}

// Frames side by side in one picture, as the page without a kernel has them.
async function makeStrip(url, label, frames, fps) {
  await makePicture(url, label)
  const strip = document.createElement("span")
  strip.className = "sas-strip"
  strip.style.backgroundImage = `url(${url})`
  strip.style.backgroundSize = `${100*frames}% 100%`
  Object.assign(strip.dataset, { frames, fps })
  strip.setAttribute("role", "img")
  strip.setAttribute("aria-label", label)
  return strip
}

function render({ model, el }) {
  const stage = document.createElement("div")
  const note = document.createElement("strong")
  const sign = document.createElement("span") // moves until there is a first video
  const bar = document.createElement("progress")
  const words = document.createElement("div")
  let url

  const play = async () => {
    const data = model.get("data")
    if (!data?.byteLength) return
    const turn = model.get("turn")
    const isFilm = model.get("film")
    const frames = model.get("frames")
    const next = URL.createObjectURL(new Blob([data], { type: TYPES[isFilm] ?? TYPES[false] }))
    const label = model.get("label")
    const first = frames ? makeStrip(next, label, frames, model.get("fps"))
      : isFilm ? makeFilm(next, label) : makePreview(next, label, data)
    const element = await first.catch(() => isFilm ? null : makePicture(next, label)).catch(() => null)
    if (!element || turn != model.get("turn")) URL.revokeObjectURL(next) // a newer one is on its way
    if (turn != model.get("turn")) return
    if (!element) {
      words.textContent = "This browser cannot play the video."
      return
    }
    stage.replaceChildren(element, note)
    if (url) URL.revokeObjectURL(url)
    url = next
    el.dataset.shown = +(el.dataset.shown || 0) + 1 // for tests: how many videos were shown
  }
  const tell = () => {
    const progress = model.get("progress")
    const old = model.get("old")
    stage.classList.toggle("sas-old", Boolean(old))
    stage.style.setProperty("--shape", model.get("shape"))
    note.textContent = old
    sign.hidden = !model.get("busy")
    bar.style.visibility = progress < 0 ? "hidden" : "visible"
    bar.value = Math.max(progress, 0)
    words.textContent = model.get("note")
    words.title = model.get("details")
  }

  stage.className = "sas-stage"
  sign.className = "sas-turns"
  stage.append(sign, note)
  bar.setAttribute("aria-label", "progress of the video")
  words.setAttribute("role", "status")
  el.append(stage, bar, words)
  el.classList.add("sas-screen")
  model.on("change:turn", play)
  const traits = ["progress", "note", "old", "shape", "details", "busy"]
  for (const trait of traits) model.on(`change:${trait}`, tell)
  play()
  tell()
  model.send({ drawn: true })
}

export default { render }
