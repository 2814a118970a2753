// Plays all clips of the page in step, and a button that stops them. A clip is a strip of frames (`.sas-
// strip`), a canvas that holds its frames, or a video (`.sas-film`). The model's trait is that of `Clock`
// in widgets.py.

const CALM = "(prefers-reduced-motion: reduce)"
const shared = globalThis.sasClock ??= {
  paused: matchMedia(CALM).matches, lost: 0, since: 0, buttons: new Set(),
}

function played() { // seconds, without those that the page was paused
  const now = performance.now()/1000
  return (shared.paused ? shared.since : now) - shared.lost
}

function pause(paused) {
  const now = performance.now()/1000
  if (paused) shared.since = now
  else shared.lost += now - shared.since
  shared.paused = paused
  for (const tell of shared.buttons) tell()
}

function showFrame(clip, seconds) {
  const count = clip.frames?.length ?? +clip.dataset.frames
  const frame = Math.floor(seconds*clip.dataset.fps) % count
  if (clip.shown === frame || !(count > 1)) return
  clip.shown = frame
  if (clip.frames) clip.getContext("2d").drawImage(clip.frames[frame], 0, 0, clip.width, clip.height)
  else clip.style.backgroundPositionX = `${100*frame/(count - 1)}%`
}

function steer(video, seconds) {
  if (shared.paused) {
    video.pause()
    return
  }
  if (video.paused) video.play().catch(() => {})
  const length = video.duration
  if (!(length > 0)) return
  let late = seconds % length - video.currentTime
  if (late > length/2) late -= length
  if (late < -length/2) late += length
  if (Math.abs(late) > .25) video.currentTime = seconds % length
  video.playbackRate = Math.abs(late) > .03 ? 1 + Math.max(-.2, Math.min(.2, late)) : 1
}

let steered = 0

function tick() {
  const seconds = played()
  for (const clip of document.querySelectorAll(".sas-strip")) showFrame(clip, seconds)
  if (performance.now() - steered > 200) {
    steered = performance.now()
    for (const video of document.querySelectorAll("video.sas-film")) steer(video, seconds)
  }
  if (shared.buttons.size) requestAnimationFrame(tick)
  else shared.ticking = false
}

function render({ model, el }) {
  const button = document.createElement("button")
  const tell = () => {
    button.textContent = shared.paused ? "Play" : "Pause"
    button.setAttribute("aria-label", `${button.textContent} all clips`)
    if (model.get("paused") == shared.paused) return
    model.set("paused", shared.paused)
    model.save_changes()
  }
  button.type = "button"
  button.addEventListener("click", () => pause(!shared.paused))
  el.append(button)
  el.classList.add("sas-clock")
  model.on("change:paused", () => {
    if (model.get("paused") != shared.paused) pause(model.get("paused"))
  })
  shared.since = shared.since || performance.now()/1000
  shared.buttons.add(tell)
  tell()
  if (!shared.ticking) {
    shared.ticking = true
    requestAnimationFrame(tick)
  }
  return () => shared.buttons.delete(tell)
}

export default { render }
