// The model's thread as this page sees it: loaded when it is first needed; what is looked at goes first.

export class Engine {
  constructor(about) {
    this.about = about
    this.loaded = 0
    this.ready = false
    this.failed = about.model ? null : "this page was written without the model"
    this.onLoaded = () => {}
    this.urgent = []
    this.later = []
    this.now = null
    this.count = 0
  }
  start() { // resolves when the model is ready, or has failed
    if (this.failed) return Promise.resolve()
    this.starting ??= new Promise(resolve => {
      const fail = message => {
        this.failed = `the model does not run in this browser: ${message}`
        this.onLoaded()
        resolve()
      }
      try {
        this.worker = new Worker(new URL("./engine.js", import.meta.url), { type: "module" })
      } catch (error) {
        return fail(error.message)
      }
      this.worker.onerror = event => this.ready ? this.answer({ error: event.message }) : fail(event.message)
      this.worker.onmessage = ({ data }) => {
        if (data.loaded === undefined) return this.ready ? this.answer(data) : fail(data.error)
        this.loaded = data.loaded
        this.onLoaded()
        if (data.loaded < 1) return
        this.ready = true
        resolve()
      }
      this.worker.postMessage({ load: this.about })
    })
    return this.starting
  }
  make(asked, isUrgent, tell) { // a clip, or null where another one was wanted more
    return new Promise((resolve, reject) => {
      const job = { asked, isUrgent, tell, resolve, reject }
      if (isUrgent) {
        this.forget()
        this.urgent.push(job)
        if (this.now && !this.now.isUrgent) this.worker.postMessage({ stop: this.now.id })
      } else {
        this.later.push(job)
      }
      this.next()
    })
  }
  forget() { // nobody waits for what was urgent
    for (const job of this.urgent.splice(0)) job.resolve(null)
    if (this.now?.isUrgent) this.worker.postMessage({ stop: this.now.id })
  }
  next() {
    if (this.now) return
    this.now = this.urgent.shift() ?? this.later.shift() ?? null
    if (!this.now) return
    this.now.id = this.count++
    this.worker.postMessage({ id: this.now.id, ...this.now.asked })
  }
  answer(data) {
    const job = this.now
    if (!job || data.id !== undefined && data.id != job.id) return
    if (data.share !== undefined) return job.tell(data.share)
    this.now = null
    if (data.error) job.reject(new Error(data.error))
    else job.resolve(data.stopped ? null : { ...data, data: data.strip })
    this.next()
  }
}
