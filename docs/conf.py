"""The site that `make site` builds: the README, the tour as it was last run, the kernels and the package's docstrings.

Sphinx reads the repository as it stands, from its root, and runs no notebook. What it writes opens from disk, and
nothing is fetched from anywhere: so formulas are MathML, and search results come without excerpts.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "paged_core"
author = "the paged_core authors"
release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc"]

root_doc = "README"
include_patterns = [
    "README.md",
    "docs/*.md",
    "kernels/README.md",
    "notebooks/*.ipynb",
    "notebooks/data/README.md",
    "training/README.md",
]
exclude_patterns = [".*", "_site", "build", "dist", "screenshots"]  # folders not even to look into

nb_execution_mode = "off"  # what was committed is what is shown
nb_ipywidgets_js = {}  # a saved widget is its picture: no library for it from the network
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
maximum_signature_line_length = 100
python_display_short_literal_types = True

html_theme = "furo"
html_title = "paged_core"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_search_summary = False  # it would be fetched, which a page opened from disk may not do
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_domain_indices = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

REFERENCE = [
    "docs/api",
    "docs/kernels",
    "To change a kernel <kernels/README>",
    "The request lengths of notebook 01 <notebooks/data/README>",
    "training/README",
]
CONTENTS = """
```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""


def add_contents(app, docname: str, source: list[str]) -> None:
    """The README is the front page; its contents, which GitHub has no use for, are added here."""
    if docname == app.config.root_doc:
        tour = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
        source[0] += CONTENTS.format(caption="The tour", pages="\n".join(tour))
        source[0] += CONTENTS.format(caption="To look things up", pages="\n".join(REFERENCE))


def keep_alternative_texts(app, docname: str, source: list[str]) -> None:
    """A chart says in its output's metadata what it shows; MyST-NB looks for that in the cell's."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    source[0] = json.dumps(notebook)


def as_written(app, what, name, thing, options, lines: list[str]) -> None:
    """Docstrings are written for `help()`, not as reStructuredText: prose is prose, what is aligned stays aligned."""
    paragraphs = re.split(r"\n(?:\s*\n)+", "\n".join(lines).strip())
    lines.clear()
    for paragraph in paragraphs:
        if re.search(r"^ |\S  ", paragraph, re.M):
            lines += [".. code-block:: text", "", *("    " + line for line in paragraph.splitlines()), ""]
        else:
            pieces = re.split(r"`([^`]+)`", paragraph)  # prose, code, prose, code, ...
            pieces[::2] = [re.sub(r"([\\*|_])", r"\\\1", prose) for prose in pieces[::2]]
            pieces[1::2] = [f"``{code}``" for code in pieces[1::2]]
            lines += [*"".join(pieces).splitlines(), ""]


def open_at_the_index(app, exception) -> None:
    """Whoever opens the folder looks for index.html."""
    if exception is None:
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def visit_math(self, node: nodes.math) -> None:
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_displayed_math(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("source-read", add_contents)
    app.connect("source-read", keep_alternative_texts)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("build-finished", open_at_the_index)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displayed_math, None))
