// What the scripts of this folder have in common: it stands before each of them.

// JupyterLab would take arrows and Space for itself. With Ctrl or Command held it may: Ctrl+S is to save, wherever one is.
function keepKeys(element) {
  element.dataset.lmSuppressShortcuts = "true";
  for (const type of ["keydown", "keyup"])
    element.addEventListener(type, (event) => {
      element.dataset.lmSuppressShortcuts = String(!(event.ctrlKey || event.metaKey));
    });
}

