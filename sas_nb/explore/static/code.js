// Text behind a fold, and a button that copies it. The model's trait is that of `Code` in widgets.py.

function render({ model, el }) {
  const button = document.createElement("button")
  const fold = document.createElement("details")
  const title = document.createElement("summary")
  const text = document.createElement("pre")

  const show = () => {
    text.textContent = model.get("text")
    button.textContent = "Copy code"
  }
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(model.get("text"))
      button.textContent = "Copied"
    } catch {
      fold.open = true
      getSelection().selectAllChildren(text)
      button.textContent = "Press Ctrl+C to copy"
    }
  }

  button.type = "button"
  button.addEventListener("click", copy)
  title.textContent = "Code that makes this"
  text.tabIndex = 0
  fold.append(title, text)
  el.append(button, fold)
  el.classList.add("sas-code")
  model.on("change:text", show)
  show()
}

export default { render }
