"""The player: what it saves is a picture with a script behind it, small, the same every time, and safe to inline."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_core.viz import Player, Svg, sequence_style
from paged_core.viz.player import decode, encode, script
from paged_core.viz.style import DARK, LIGHT
from paged_core.viz.svg import PLAYER_STYLE

HOSTILE = "</script><script>alert('1')</script> <!-- & \"quoted\" 'too' \\u003c \u2028 <b>é</b>"


def picture(number, *, title="Cells", alt=None):
    svg = Svg(600, 160, title=title, alt=alt or f"{number} of twelve cells are taken.")
    for i in range(12):
        svg.cell(10 + 45 * i, 60, 40, 40, sequence_style(i) if i < number else "free", i, chosen=i == number)
    return svg


@pytest.fixture
def player():
    return Player([(f"Cell {i} is looked at.", picture(i)) for i in range(12)], title="Twelve cells", start=3)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text that is inside each."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag != "img":
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def only(self, tag):
        (found,) = [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]
        return found

    def texts(self, tag):
        return ["".join(text) for name, _, text in self.elements if name == tag]


def film_of(html):
    """(the class of the still picture, the film, the frame) that the script is called with."""
    _, text = Page(html).only("script")
    assert text.startswith(f"\n{script('player.js')}")
    call = text[text.rindex("\ncomeAlive(") :]
    name, film, frame = re.fullmatch(r'\ncomeAlive\("([\w-]+)", (\{.*\}), (\d+)\);\n', call).groups()
    return name, json.loads(film), int(frame)


def test_every_frame_comes_back_exactly(player):
    film = player.film
    assert [decode(film["pieces"], runs) for runs in film["frames"]] == [str(svg) for _, svg in player.frames]
    assert film["captions"] == [caption for caption, _ in player.frames]
    assert len(set(film["pieces"])) == len(film["pieces"])


@given(st.lists(st.lists(st.sampled_from(['<a b="\'"/>', "'", '"', "x", "</g>", ""]), max_size=9), max_size=6))
def test_any_pieces_come_back_exactly(documents):
    pieces, runs = encode(documents)
    assert [decode(pieces, each) for each in runs] == ["".join(document) for document in documents]


def test_a_frame_is_what_a_browser_parses_with_the_other_quotation_marks(player):
    film = player.film
    for runs, (_, svg) in zip(film["frames"], player.frames, strict=True):
        text = "".join(
            piece for i in range(0, len(runs), 2) for piece in film["pieces"][runs[i] : runs[i] + runs[i + 1]]
        )
        there, here = ElementTree.fromstring(text), ElementTree.fromstring(str(svg))
        assert there.get("aria-label") == here.get("aria-label") == repr(svg)
        assert [element.text for element in there.iter()] == [element.text for element in here.iter()]
        assert there.find("{*}style") is not None  # the browser takes it out: it would reach the whole page


def test_without_scripts_it_is_the_picture_and_its_caption(player):
    page = Page(player.html)
    caption, svg = player.frames[3]
    attributes, _ = page.only("img")
    assert attributes["alt"] == repr(svg)
    assert unquote(attributes["src"].split(",", 1)[1]) == str(svg)
    assert [words for words in page.texts("p") if words] == [caption]
    assert page.texts("em") == ["In JupyterLab, run this cell: then the picture steps."]
    assert page.only("script")[0] == {"type": "module"}
    name, film, frame = film_of(player.html)
    assert page.elements[0][:2] == ("div", {"class": name})
    assert film == json.loads(json.dumps(player.film)) and frame == 3
    assert repr(player) == f"Twelve cells: step 4 of 12. {caption} {svg!r}"


def test_the_same_film_is_the_same_bytes_and_another_has_another_name(player):
    again = Player([(f"Cell {i} is looked at.", picture(i)) for i in range(12)], title="Twelve cells", start=3)
    assert again.html == player.html
    other = Player(player.frames[:-1], title="Twelve cells", start=3)
    assert film_of(other.html)[0] != film_of(player.html)[0]


def test_what_is_saved_beside_the_widget_has_no_trace_of_it(player):
    bundle = player._repr_mimebundle_()
    assert bundle["text/html"] == player.html and bundle["text/plain"] == repr(player)
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == player.widget.model_id
    assert not any(view["model_id"] in bundle[mime] for mime in ("text/html", "text/plain"))


def test_the_widget_runs_the_same_module_on_the_same_film(player):
    widget = player.widget
    assert widget is player.widget
    state = widget.get_state()
    assert state["_esm"] == script("player.js")
    assert state["film"] == player.film and state["frame"] == 3
    widget.frame = 5
    assert widget.get_state(["frame"]) == {"frame": 5}


def test_nothing_that_is_said_gets_out_of_the_script():
    player = Player([(HOSTILE, picture(1, title=HOSTILE, alt=HOSTILE)), ("tame", picture(2))], title=HOSTILE)
    page = Page(player.html)
    assert [name for name, _, _ in page.elements] == ["div", "div", "img", "p", "p", "em", "script"]
    assert page.texts("p")[0] == HOSTILE
    script = page.only("script")[1]
    assert "<!--" not in script.lower() and "</script" not in script.lower()
    _, film, _ = film_of(player.html)
    assert film["title"] == film["captions"][0] == HOSTILE
    document = ElementTree.fromstring(decode(film["pieces"], film["frames"][0]))
    assert document.find("{*}title").text == HOSTILE and document.find("{*}desc").text == HOSTILE


def test_many_frames_cost_little_more_than_what_differs():
    one, sixty = (Player([("Look.", picture(i % 13)) for i in range(n)], title="Cells") for n in (1, 60))
    assert len(sixty.html) < len(one.html) + 20_000
    pieces = sixty.film["pieces"]  # hardly a mark has to be escaped, and escaped again
    assert len(json.dumps(json.dumps(pieces))) < 1.1 * sum(map(len, pieces))


def test_light_and_dark_follow_the_page_and_reach_nothing_else():
    rules = re.findall(r"([^{}]+)\{([^{}]+)\}", PLAYER_STYLE)
    assert "".join(f"{selector}{{{body}}}" for selector, body in rules) == PLAYER_STYLE
    assert all(selector.startswith(".pc-player .") for selector, _ in rules)
    for name, light, dark in zip(LIGHT._fields, LIGHT, DARK, strict=True):
        assert dict(rules)[f".pc-player .f-{name}"] == f"fill:{light};fill:light-dark({light},{dark})"
        assert dict(rules)[f".pc-player .s-{name}"] == f"stroke:{light};stroke:light-dark({light},{dark})"


@pytest.mark.parametrize(
    "frames, start, words",
    [([], 0, "frames: .* got none"), ([1], 1, "start: .* 0 to 0, got 1"), ([1, 2], -1, "start: .* 0 to 1, got -1")],
)
def test_no_frames_or_no_such_frame_are_refused(frames, start, words):
    with pytest.raises(ValueError, match=words):
        Player([("Look.", picture(i)) for i in frames], title="Cells", start=start)


@pytest.mark.parametrize("name", ["player.js", "slider.js"])
def test_the_module_asks_the_network_for_nothing(name):
    text = script(name)
    assert not re.search(r"\b(import|require|fetch|XMLHttpRequest|WebSocket)\b|https?:", re.sub(r"//.*", "", text))
    assert len(re.findall(r"^export default \{ render \};$", text, re.M)) == 1
    assert "</" not in re.sub(r"</(svg|path)>", "", text)  # inlined, it must not end its script


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", ["player.js", "slider.js"])
def test_the_module_parses(tmp_path, name):
    copy = tmp_path / "module.mjs"
    copy.write_text(script(name), encoding="utf-8")
    done = subprocess.run(["node", "--check", copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
