"""tools/notebooks.py: running a notebook twice writes the same bytes twice, and a cell that raises writes none."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.notebooks import KERNELSPEC, main, normalise


@pytest.fixture
def write(tmp_path):
    def write(*cells):
        notebook = new_notebook(cells=list(cells), metadata={"kernelspec": {**KERNELSPEC, "display_name": "Mine"}})
        notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
        path = tmp_path / "some.ipynb"
        nbformat.write(notebook, path)
        return path

    return write


PIECES = """import sys
for i in range(3):
    print(i)
    sys.stdout.flush()   """
WIDGETS = """import ipywidgets
box = ipywidgets.VBox([ipywidgets.IntSlider(value=3), ipywidgets.HTML("<b>three</b>")])
box"""


def test_twice_is_the_same_bytes(write):
    path = write(new_markdown_cell("# Pieces\n\n"), new_code_cell(PIECES), new_code_cell(WIDGETS))
    assert main([str(path)]) == 0
    first = path.read_bytes()
    assert main([str(path)]) == 0
    assert path.read_bytes() == first

    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec == KERNELSPEC
    assert notebook.metadata.language_info == {"name": "python"}
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2]
    assert [output.text for output in notebook.cells[1].outputs] == ["0\n1\n2\n"]
    assert all(not cell.metadata for cell in notebook.cells)  # no time stamps, no folded cells
    shown = notebook.cells[2].outputs[0].data["application/vnd.jupyter.widget-view+json"]["model_id"]
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert state[shown]["model_name"] == "VBoxModel"
    children = [child.removeprefix("IPY_MODEL_") for child in state[shown]["state"]["children"]]
    assert [state[child]["model_name"] for child in children] == ["IntSliderModel", "HTMLModel"]


PICTURED = """import ipywidgets
class Pictured:
    def _repr_mimebundle_(self, **_):
        picture = {"text/html": "<b>a picture</b>", "text/plain": "a picture"}
        return {**ipywidgets.IntSlider()._repr_mimebundle_(), **picture}
Pictured()"""


def test_a_widget_that_brings_a_picture_is_saved_as_the_picture(write):
    path = write(new_code_cell(PICTURED))
    assert main([str(path)]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].outputs[0].data == {"text/html": "<b>a picture</b>", "text/plain": "a picture"}
    assert "widgets" not in notebook.metadata


def test_a_notebook_that_fails_is_left_as_it_was(write, capsys):
    path = write(new_code_cell("1 / 0"))
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_normalising_keeps_what_an_author_chose(write):
    cell = new_code_cell("x = 1  \n\n", metadata={"tags": ["nbval-ignore-output"], "collapsed": False})
    cell.metadata["execution"] = {"iopub.execute_input": "now"}
    notebook = normalise(nbformat.read(write(cell), as_version=4))
    (written,) = notebook.cells
    assert written.source == "x = 1"
    assert written.metadata == {"tags": ["nbval-ignore-output"]}
    assert written.id == cell.id
    assert normalise(nbformat.from_dict(json.loads(json.dumps(notebook)))) == notebook
