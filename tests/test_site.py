"""The site, built as `make site` builds it: complete, whole, and without a word from any other host."""

import json
import re
from collections import defaultdict
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import paged_core
from tests.doors import ROOT, build_site

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(
    not (find_spec("sphinx") and find_spec("myst_nb") and find_spec("furo")),
    reason="the site was left out: Sphinx is not here. `make test` and `make site` install it",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("site"))


class Page(HTMLParser):
    """What a page is made of: every tag with its attributes, its ids, and the text of its scripts and styles."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.path, self.tags, self.ids, self.inline = path, defaultdict(list), set(), ""
        self._inside = ""
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags[tag].append(attributes)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self._inside = tag

    def handle_data(self, data):
        if self._inside in ("script", "style"):
            self.inline += data

    def handle_endtag(self, tag):
        self._inside = ""


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def loads(page):
    """Every address that a browser asks for by itself when it opens the page."""
    for tag, name in (("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "srcset"), ("object", "data")):
        yield from (attributes[name] for attributes in page.tags[tag] if attributes.get(name))
    yield from (link["href"] for link in page.tags["link"] if link.get("rel") not in ("canonical", "next", "prev"))


def test_there_is_a_page_for_everything(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {"index.html", "README.html", "search.html", "docs/api.html", "docs/kernels.html"} <= names
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= names


def test_every_link_and_picture_leads_somewhere(pages):
    broken = []
    for page in pages.values():
        for address in {*loads(page), *(link["href"] for link in page.tags["a"] if link.get("href"))}:
            parts = urlsplit(address)
            if parts.scheme:  # to another host, or data that brings itself along
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not target.is_file():
                broken.append(f"{page.path.name}: {address}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{page.path.name}: {address}, no such place in it")
    assert not broken


def test_nothing_is_loaded_from_another_host(site, pages):
    for page in pages.values():
        assert {urlsplit(address).scheme for address in loads(page)} <= {"", "data"}, page.path.name
        assert not re.search(r"(?:import|fetch|src|href)\W{1,4}(?:https?:)?//", page.inline), page.path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_every_picture_says_what_it_shows(pages):
    for page in pages.values():
        silent = [image for image in page.tags["img"] if not image.get("alt") or image["alt"].endswith(".png")]
        assert not silent, page.path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_on_its_page(path, site, pages):
    """Pictures as they were saved, and players with their scripts, byte for byte; charts as files of their own."""
    page = pages[site / "notebooks" / f"{path.stem}.html"]
    outputs = [
        output["data"]
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    for data in outputs:
        assert data.get("text/html", "") in page.text
    charts = [image for image in page.tags["img"] if image["src"].startswith("../_images/")]
    assert len(charts) == sum("image/png" in data for data in outputs)
    assert [image["alt"] for image in charts] == [data["text/plain"] for data in outputs if "image/png" in data]


def test_formulas_are_set_without_a_library(site, pages):
    page = pages[site / "notebooks" / "07_long_contexts.html"]
    assert len(page.tags["math"]) > 5
    assert "$" not in re.sub(r"<(script|pre|code)\b.*?</\1>|src=\"[^\"]*\"", "", page.text, flags=re.DOTALL)


def test_the_search_finds_a_word(site):
    script = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").rstrip("; \n").removesuffix(")"))
    found = index["terms"]["watermark"]
    names = {index["docnames"][number] for number in (found if isinstance(found, list) else [found])}
    assert "notebooks/09_running_out" in names


def test_the_whole_interface_is_on_its_page(site, pages):
    ids = pages[site / "docs" / "api.html"].ids
    assert not [name for name in paged_core.__all__ if f"paged_core.{name}" not in ids]
