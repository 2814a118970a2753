// Title, one sentence, examples to click, and help behind a fold. The model's traits are those of `Head` in
// widgets.py.

function render({ model, el }) {
  const title = document.createElement("h1")
  const sentence = document.createElement("p")
  const examples = document.createElement("div")
  const fold = document.createElement("details")
  const summary = document.createElement("summary")
  const help = document.createElement("ul")

  const show = () => {
    title.textContent = model.get("title")
    sentence.textContent = model.get("sentence")
    examples.replaceChildren(...model.get("examples").map((label, i) => {
      const button = document.createElement("button")
      button.type = "button"
      button.textContent = label
      button.addEventListener("click", () => model.send({ example: i }))
      return button
    }))
    help.replaceChildren(...model.get("help").map(text => {
      const line = document.createElement("li")
      line.textContent = text
      return line
    }))
  }

  examples.className = "sas-examples"
  examples.setAttribute("role", "group")
  examples.setAttribute("aria-label", "examples")
  summary.textContent = "Help"
  fold.append(summary, help)
  el.append(title, sentence, examples, fold)
  el.classList.add("sas-top")
  model.on("change:title", show)
  model.on("change:sentence", show)
  model.on("change:examples", show)
  model.on("change:help", show)
  show()
}

export default { render }
