"""What every notebook owes its reader, beyond running: nbval, in `make test`, compares what it shows."""

import copy
import re
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import normalise

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|Users|tmp|work|usr|opt|var|private|mnt|content)/[\w.]|[A-Z]:\\\\Users"
)
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}")


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """What a reader can read: sources, and every output that is text."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            for mime, content in output.get("data", {}).items():
                if mime.startswith("text/") or mime == "image/svg+xml":
                    yield content


def test_it_is_valid_and_written_by_make_notebooks(notebook):
    nbformat.validate(notebook)
    written = normalise(copy.deepcopy(notebook))
    assert notebook.metadata == written.metadata, "run `make notebooks`"
    assert notebook == written, "run `make notebooks`"


def test_it_was_run_from_top_to_bottom_without_an_error(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        assert "error" not in {output.output_type for output in cell.outputs}
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source


def test_it_is_short_enough_to_read_and_light_enough_to_load(path, notebook):
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    lines = sum(bool(line.strip()) for cell in code_cells(notebook) for line in cell.source.splitlines())
    assert words <= 2000
    assert lines <= 150
    plays = any("comeAlive(" in text for text in texts(notebook))  # a film is many pictures
    assert path.stat().st_size <= (600_000 if plays else 300_000)


def test_it_opens_with_its_title_and_ends_with_exercises(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    headings = re.findall(r"^#+ .*", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    assert any("xercise" in heading for heading in headings)


def test_from_02_on_two_exercises_or_more_check_themselves(path, notebook):
    """In cells below the heading whose ids say so: there everything may be a reader's own."""
    if path.stem[:2] < "02":
        return
    headings = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## Exercises")]
    assert len(headings) == 1
    assert all(cell.id.startswith("exercise-") for cell in notebook.cells[headings[0] :])
    assert sum(".show(" in cell.source for cell in code_cells(notebook) if cell.id.startswith("exercise-")) >= 2


def test_it_shows_nothing_of_the_machine_it_was_written_on(notebook):
    for text in texts(notebook):
        assert not MACHINE_PATH.search(text), MACHINE_PATH.search(text)
        assert not ADDRESS.search(text), ADDRESS.search(text)


def test_it_has_nothing_that_strict_comparison_trips_over(notebook):
    for cell in code_cells(notebook):
        assert not cell.source.rstrip().endswith(";")
        assert "@interact" not in cell.source
        assert not re.search(r"\bOutput\(", cell.source)
        assert "NBVAL" not in cell.source  # tags say it, where the reader need not see
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("nbval")]
        assert set(tags) <= {"nbval-ignore-output"}


def test_its_links_lead_somewhere(notebook):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if "://" not in link]
    assert not [link for link in links if not (FOLDER / link).exists()]
