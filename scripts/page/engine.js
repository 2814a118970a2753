// The model itself, in a thread of its own: text, sampling and decoding by onnxruntime-web on the CPU.
// It is told { load } once and then { id, steps, ... } for a clip, or { stop: id }; it answers with
// { loaded: share }, { id, share } while it works, and { id, strip, frames }.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs"

const LARGE = 127
let about, velocity, decoder, reader, zoo
let stopped = new Set()

async function* pieces(url) {
  const answer = await fetch(url)
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
  const stream = answer.body.getReader()
  for (let r = await stream.read(); !r.done; r = await stream.read()) yield r.value
}

const progress = { all: 1, had: 0 }

async function unpacked(url) { // gzip -> bytes
  const got = []
  for await (const piece of pieces(url)) {
    got.push(piece)
    progress.had += piece.length
    postMessage({ loaded: Math.min(progress.had/progress.all, .99) })
  }
  const bytes = new Blob(got).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Response(bytes).arrayBuffer()
}

function weights(buffer, shapes) { // steps, then whole numbers -> float32
  const count = shapes.reduce((n, [rows]) => n + rows, 0)
  const steps = new Float32Array(buffer, 0, count)
  const numbers = new Int8Array(buffer, 4*count)
  const out = new Float32Array(numbers.length)
  let [row, at] = [0, 0]
  for (const [rows, width] of shapes) {
    for (let r = 0; r < rows; r++, row++) {
      for (const end = at + width; at < end; at++) out[at] = numbers[at]*steps[row]
    }
  }
  return new Uint8Array(out.buffer)
}

async function session(name) {
  const [graph, packed] = await Promise.all(
    [unpacked(`model/${name}.graph`), unpacked(`model/${name}.weights`)])
  const data = weights(packed, about.model[name])
  const externalData = data.length ? [{ path: `${name}.weights`, data }] : []
  return ort.InferenceSession.create(new Uint8Array(graph), { externalData })
}

async function readZoo() {
  const buffer = await unpacked("model/concepts")
  const [n, { coefficients, width }] = [about.members.length, about.concepts]
  return {
    steps: new Float32Array(buffer, 0, 2*n), // of appearance and motion of each
    words: new Float32Array(buffer, 8*n, 2*n*width), // [v] and [u] of each
    numbers: new Int8Array(buffer, 8*n + 8*n*width), coefficients, width,
  }
}

async function load(said) {
  about = said
  progress.all = about.bytes
  ort.env.wasm.numThreads = 1 // more need headers that a plain host does not send
  ort.env.wasm.wasmBinary = await unpacked("runtime/wasm")
  zoo = await readZoo()
  reader = await session("reader")
  velocity = await session("velocity")
  decoder = await session("decoder")
  postMessage({ loaded: 1 })
}

const part = { appearance: 0, motion: 1 }

function mixed({ weights, strength, apart }) { // one row of coefficients
  const out = new Float32Array(zoo.coefficients)
  for (const [name, k] of Object.entries(part)) {
    const counts = countsOf(name, apart)
    weights[name].forEach((w, i) => {
      const by = w*strength[name]*zoo.steps[2*i + k]
      const from = (2*i + k)*zoo.coefficients
      if (by) for (let j = 0; j < out.length; j++) out[j] += counts[j]*by*zoo.numbers[from + j]
    })
  }
  return out
}

// How much each coefficient of a part counts, where look and dance are so much of different people.
function countsOf(name, apart) {
  const all = new Float32Array(zoo.coefficients)
  let from = 0
  for (const [n, strength] of about.layers[name]) {
    all.fill(1 + apart*(strength - 1), from, from + n)
    from += n
  }
  return all
}

function wordVector(weights, k) {
  const out = new Float32Array(zoo.width)
  weights.forEach((w, i) => {
    const from = (2*i + k)*zoo.width
    if (w) for (let j = 0; j < out.length; j++) out[j] += w*zoo.words[from + j]
  })
  return out
}

async function read(numbers, vectors) { // the words of the concept, then those of the prompt, then padding
  const ids = new BigInt64Array(about.length)
  numbers.forEach((n, i) => { ids[i] = BigInt(n) })
  const { out } = await reader.run({ words: new ort.Tensor("int64", ids, [1, about.length]) })
  const text = new Float32Array(about.length*zoo.width)
  vectors.forEach((v, i) => text.set(v, i*zoo.width))
  text.set(out.data.subarray(0, numbers.length*zoo.width), vectors.length*zoo.width)
  return new ort.Tensor("float32", text, [1, about.length, zoo.width])
}

const breathe = () => new Promise(resolve => setTimeout(resolve)) // lets a message to stop come in

async function sample(asked, tell) {
  const { steps, seed, numbers, placeholders } = asked
  const { times, sigmas } = about.schedules[steps]
  const ours = mixed(asked)
  const row = data => new ort.Tensor("float32", data, [1, data.length])
  const flat = data => new ort.Tensor("float32", data, [data.length])
  const vectors = placeholders.map(p => wordVector(asked.weights[p == "v" ? "appearance" : "motion"], +(p == "u")))
  const text = await read(numbers, vectors)
  const negative = await read(about.negative, [])
  const weaker = ours.map(x => x*about.negativeScale)
  const alone = new Float32Array(ours.length) // the base without a concept
  const edit = about.editGuidance && asked.edit
  const edited = edit && [await read(edit.asked, []), await read(edit.known, [])]
  const x = Float32Array.from(about.noise[seed])
  const nothing = new Float32Array(x.length)
  const go = async (t, text, coefficients) => {
    const feeds = { x: new ort.Tensor("float32", x, about.latents), t: flat(Float32Array.of(t)), text,
                    coefficients: flat(coefficients) }
    return (await velocity.run(feeds)).out.data
  }
  const changed = async t => { // by the words of an edit, in the base alone
    const [now, known] = [await go(t, edited[0], alone), await go(t, edited[1], alone)]
    return now.map((v, j) => about.editGuidance*(v - known[j]))
  }
  for (let i = 0; i < times.length; i++) {
    tell(i/(times.length + 1))
    await breathe()
    if (stopped.has(asked.id)) return null
    const v = await go(times[i], text, ours)
    const against = about.guidance == 1 ? v : await go(times[i], negative, weaker)
    const more = edited ? await changed(times[i]) : nothing
    const by = sigmas[i + 1] - sigmas[i]
    for (let j = 0; j < x.length; j++) x[j] += by*(against[j] + about.guidance*(v[j] - against[j]) + more[j])
  }
  const { out } = await decoder.run({ latents: new ort.Tensor("float32", x, about.latents) })
  return { data: out.data, dims: out.dims }
}

async function asStrip({ data, dims: [, frames, , height, width] }) { // frames side by side, as one picture
  const pixels = new Uint8ClampedArray(4*frames*height*width)
  for (let f = 0; f < frames; f++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const to = 4*((y*frames + f)*width + x)
        for (let c = 0; c < 3; c++) pixels[to + c] = 255*data[((f*3 + c)*height + y)*width + x]
        pixels[to + 3] = 255
      }
    }
  }
  const canvas = new OffscreenCanvas(frames*width, height)
  canvas.getContext("2d").putImageData(new ImageData(pixels, frames*width, height), 0, 0)
  const blob = await canvas.convertToBlob({ type: "image/webp", quality: .95 })
  return { strip: await blob.arrayBuffer(), type: blob.type, frames, shape: width/height }
}

async function make(asked) {
  const clip = await sample(asked, share => postMessage({ id: asked.id, share }))
  if (!clip) return postMessage({ id: asked.id, stopped: true })
  const strip = await asStrip(clip)
  const raw = asked.raw ? Float32Array.from(clip.data) : undefined
  postMessage({ id: asked.id, ...strip, raw }, [strip.strip])
}

onmessage = ({ data }) => {
  if (data.stop !== undefined) return void stopped.add(data.stop)
  const done = data.load ? load(data.load) : make(data)
  done.catch(error => postMessage({ id: data.id, error: String(error.message ?? error) }))
}
