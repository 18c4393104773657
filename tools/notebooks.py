"""Runs notebooks in place and writes them the same way each time, so that a diff shows what changed and nothing else.

    python tools/notebooks.py notebooks/*.ipynb

Cells that carry the tag `nbval-ignore-output` show what differs between machines; everything else comes out byte for
byte as before.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE_INFO = {"name": "python"}  # no version: it would change with every machine
KEPT_CELL_METADATA = ("tags", "jupyter", "editable", "slideshow")
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SECONDS_PER_CELL = 120  # as in `make test`


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run every cell from the top in a fresh kernel, in `folder`. CellExecutionError where a cell raises."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name=KERNELSPEC["name"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    return client.execute()


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Only what a reader can see, or needs: the same for everyone who runs the same cells."""
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE)
    if not _widget_views(notebook):
        widgets = None
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE_INFO}
    if widgets and widgets["state"]:
        metadata["widgets"] = {WIDGET_STATE: widgets}
    notebook.metadata = nbformat.from_dict(metadata)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    return _rename_widgets(notebook)


def _widget_views(notebook: nbformat.NotebookNode) -> int:
    """How many outputs are left that show a widget and nothing else.

    Where an output brings a picture along, the picture is what is saved: without a kernel a widget is dead controls at
    best and an error message at worst. Running the cell brings the controls to life.
    """
    views = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
    ]
    for data in views:
        if "text/html" in data:
            del data[WIDGET_VIEW]
    return sum(WIDGET_VIEW in data for data in views)


def _join_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What a cell prints arrives in pieces, cut where the clock says; here it is one."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _rename_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Widgets get random ids; here they are numbered in the order in which they were made (which sorting keeps)."""
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    names = {old: f"{i:032x}" for i, old in enumerate(widgets)}
    if not names:
        return notebook
    text = re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], json.dumps(notebook))
    return nbformat.from_dict(json.loads(text))


def main(paths: list[str]) -> int:
    failed = []
    for path in map(Path, paths):
        started = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        try:
            notebook = execute(notebook, path.parent)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(path)
            print(f"{path}: left as it was\n{error}", file=sys.stderr)
            continue
        nbformat.write(normalise(notebook), path)
        seconds, kilobytes = time.perf_counter() - started, path.stat().st_size // 1024
        print(f"{path}: {len(notebook.cells)} cells, {seconds:.1f} s, {kilobytes} KB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
