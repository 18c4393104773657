// A slider of the browser's own with its name before it and its value behind: the one of ipywidgets has no name to be heard.

function render({ model, el }) {
  const label = document.createElement("label");
  const words = document.createElement("span");
  const input = document.createElement("input");
  const count = document.createElement("span");
  input.type = "range";
  keepKeys(input);
  count.ariaHidden = "true"; // the slider itself has said it
  label.append(words, input);
  el.classList.add("pc-slider");
  el.append(label, count);

  function show() {
    words.textContent = model.get("description");
    for (const name of ["min", "max", "disabled", "value"]) input[name] = model.get(name); // limits first: they clamp the value
    count.textContent = model.get("value");
  }

  input.addEventListener("input", () => {
    model.set("value", Number(input.value));
    model.save_changes();
  });
  model.on("change", show);
  show();
  return () => model.off("change", show);
}

export default { render };
