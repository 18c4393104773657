// What the scripts of this folder have in common: it stands before each of them.

// JupyterLab would take arrows and Space for itself. With Ctrl or Command held it may: Ctrl+S is to save, wherever one is.
function keepKeys(element) {
  const keep = (event) => element.toggleAttribute("data-lm-suppress-shortcuts", !(event?.ctrlKey || event?.metaKey));
  for (const type of ["focusin", "keydown", "keyup"]) element.addEventListener(type, keep);
  keep();
}

