"""A browser without a window, at the two places where people meet the tour: JupyterLab, and the site opened from disk.

JupyterLab is the real one, started by the command of `make lab` on a copy of the notebooks. What the browser saw lies
in screenshots/ afterwards. Nothing here sleeps: it waits for what must come, and for long, as the machine may be busy.
"""

import io
import os
import re
import shutil
from types import SimpleNamespace

import nbformat
import pytest

from paged_core.viz import Player, Svg, sequence_style
from tests.doors import ROOT, build_site, lab_server

SCREENSHOTS = ROOT / "screenshots"
TOKEN = "secret"
PATIENCE = 120  # seconds; what takes one when the machine is free
WINDOW = {"width": 1280, "height": 900}
RUN = ("00_start_here", "03_block_tables", "06_inside_the_kernel", "09_running_out")
COMPLAINT = '[data-mime-type="application/vnd.jupyter.stderr"]'  # an error's traceback, or a warning
HOW_TO_WAKE_IT = re.compile("In JupyterLab, run this cell|in JupyterLab, run the cell")
WITH_PLAYERS = ("06_inside_the_kernel", "09_running_out")
ON_A_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def find_chromium():
    """The browser to take: $CHROMIUM, or the first that is on PATH."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else ["chromium", "chromium-browser", "google-chrome"]
    return next((path for path in map(shutil.which, [*names, ON_A_MAC]) if path), None)


CHROMIUM = find_chromium()
LEFT_OUT = "the browser tests were left out: "
playwright = pytest.importorskip(
    "playwright.sync_api", reason=f"{LEFT_OUT}Playwright is not here; `make test` installs it"
)
if not CHROMIUM:
    ways = "apt-get install chromium, or install Chrome, or name one in the variable CHROMIUM"
    pytest.skip(f"{LEFT_OUT}no Chromium was found; {ways}", allow_module_level=True)
expect = playwright.expect
expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def browser():
    quiet = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as playing:
        chromium = playing.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *quiet])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def new_page(browser):
    """Opens pages that must not complain: neither an uncaught error nor an error on the console, all the while."""
    complaints, contexts = [], []

    def new_page(color_scheme="light", **options):
        context = browser.new_context(**{"color_scheme": color_scheme, "viewport": WINDOW, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
        page.on("console", lambda said: complaints.append(f"{page.url}: {said.text}") if said.type == "error" else None)
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert not complaints


def shoot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def is_dark(locator):
    """Whether the paper of a picture is: its top left corner, as it is on the screen."""
    from PIL import Image

    locator.scroll_into_view_if_needed()
    red, green, blue = Image.open(io.BytesIO(locator.screenshot())).convert("RGB").getpixel((4, 4))
    return red + green + blue < 3 * 128


# ---- a player, wherever it stands


def step_through(player, page):
    """Every way to move it, and each time: the frame, its words and its picture are those of the frame."""
    picture = player.locator(".pc-player-picture svg")
    last = int(player.get_attribute("data-frames")) - 1
    assert last >= 2
    seen = {}

    def at(frame):
        expect(player).to_have_attribute("data-frame", str(frame))
        expect(player.locator(".pc-player-scrub")).to_have_value(str(frame))
        words = picture.get_attribute("aria-label"), player.locator(".pc-player-caption").inner_text()
        assert all(words)
        assert seen.setdefault(frame, words) == words

    player.scroll_into_view_if_needed()
    player.focus()
    page.keyboard.press("Home")
    at(0)
    page.keyboard.press("ArrowRight")
    at(1)
    page.keyboard.press("End")
    at(last)
    page.keyboard.press("ArrowRight")  # there is no further
    at(last)
    page.keyboard.press("ArrowLeft")
    at(last - 1)
    for button, frame in (("first", 0), ("next", 1), ("next", 2), ("back", 1), ("last", last)):
        player.locator(f".pc-player-{button}").click()
        at(frame)
    player.locator(".pc-player-scrub").fill("1")
    at(1)
    scrub = player.locator(".pc-player-scrub").bounding_box()
    page.mouse.move(scrub["x"] + scrub["width"] / 2, scrub["y"] + scrub["height"] / 2)
    page.mouse.down()
    page.mouse.move(scrub["x"] + scrub["width"] + 20, scrub["y"] + scrub["height"] / 2, steps=5)
    page.mouse.up()
    at(last)
    assert len({pictured for pictured, _ in seen.values()}) > 1


def play(player, page):
    """Space plays from the beginning; space again, and it rests."""
    player.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(player).to_have_attribute("data-frame", "1")
    page.keyboard.press("Space")


# ---- a player on a page of its own


def film(frames=6):
    """A small one, in which something is hatched: patterns have ids."""

    def picture(number):
        svg = Svg(900, 120, title="Cells", alt=f"{number} of {frames} cells are taken.")
        for i in range(frames):
            svg.cell(10 + 45 * i, 60, 40, 40, sequence_style(i) if i < number else "free", i)
        return svg

    return Player([(f"Cell {i} is next.", picture(i)) for i in range(frames)], title="A few cells", start=2)


@pytest.fixture
def film_page(new_page, tmp_path):
    """Opens a page longer than the window: the same player twice, and things that are none of its business."""
    outside = '<svg width="20" height="20"><rect class="f-danger" width="20" height="20"/></svg><button>Before</button>'
    path = tmp_path / "film.html"
    path.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="height: 3000px">{outside}{2 * film().html}</body>',
        encoding="utf-8",
    )
    pages = []

    def film_page(**options):
        page = new_page(**options)
        pages.append(page)
        page.clock.install(time=0)
        page.goto(path.as_uri())
        page.clock.pause_at(3600)  # from here on, time passes when the test says so
        expect(page.locator(".pc-player")).to_have_count(2)
        return page

    yield film_page
    for page in pages:
        page.close()


BUTTONS = ("First step", "One step back", "Play", "One step on", "Last step")


def player_of(page):
    return page.get_by_role("group", name="A few cells", exact=True).first


def expect_frame(player, frame, frames=6):
    """Everything that says where a film stands says the same."""
    where = f"{frame + 1} of {frames}"
    expect(player).to_have_attribute("data-frame", str(frame))
    expect(player.locator(".pc-player-count")).to_have_text(where)
    expect(player.locator(".pc-player-caption")).to_have_text(f"Cell {frame} is next.")
    expect(player.get_by_role("slider", name="Step")).to_have_value(str(frame))
    expect(player.get_by_role("slider", name="Step")).to_have_attribute("aria-valuetext", where)
    expect(player.get_by_role("img", name=f"Cells. {frame} of {frames} cells are taken.")).to_be_visible()
    for names, there in ((BUTTONS[:2], frame == 0), (BUTTONS[3:], frame == frames - 1)):
        for name in names:
            expect(player.get_by_role("button", name=name)).to_have_attribute("aria-disabled", str(there).lower())


def test_a_player_begins_where_it_was_told_to_and_says_so(film_page):
    page = film_page()
    player = player_of(page)
    expect_frame(player, 2)
    expect(player.locator(".pc-player-caption")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_text(HOW_TO_WAKE_IT)).to_have_count(0)


def test_tab_goes_from_control_to_control_and_shows_where_it_is(film_page):
    page = film_page()
    player = player_of(page)
    page.get_by_role("button", name="Before").focus()
    for control in (
        player,
        *(player.get_by_role("button", name=name, exact=True) for name in BUTTONS),
        player.get_by_role("slider", name="Step", exact=True),
    ):
        page.keyboard.press("Tab")
        expect(control).to_be_focused()
        assert control.get_attribute("aria-label")  # a title alone is not heard everywhere
        style, width = control.evaluate(
            "(it) => [getComputedStyle(it).outlineStyle, getComputedStyle(it).outlineWidth]"
        )
        assert style == "solid" and float(width.removesuffix("px")) >= 2


@pytest.mark.parametrize("where", ["player", "scrub", "button"])
def test_the_keys_step_once_and_leave_the_page_where_it_is(film_page, where):
    page = film_page()
    player = player_of(page)
    {
        "player": player,
        "scrub": player.get_by_role("slider", name="Step"),
        "button": player.get_by_role("button", name="Last step"),
    }[where].focus()
    at = page.evaluate("scrollY")
    for key, frame in (
        ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 5), ("ArrowRight", 5), ("Home", 0), ("ArrowLeft", 0),
        ("ArrowRight", 1), ("Space", 5 if where == "button" else 1),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect_frame(player, frame)
    page.clock.run_for(100)  # for a page that scrolls, but not in one go
    assert page.evaluate("scrollY") == at


def test_the_buttons_step_as_they_say(film_page):
    player = player_of(film_page())
    for name, frame in (("One step on", 3), ("One step back", 2), ("First step", 0), ("Last step", 5)):
        player.get_by_role("button", name=name).click()
        expect_frame(player, frame)


def test_it_plays_slowly_enough_to_read_up_to_the_end(film_page):
    page = film_page()
    player = player_of(page)
    player.get_by_role("button", name="Play").click()
    page.clock.run_for(1000)
    expect_frame(player, 2)
    page.clock.run_for(2000)
    expect_frame(player, 3)
    page.clock.run_for(60_000)
    expect_frame(player, 5)
    player.get_by_role("button", name="Play").click()  # once more, from the beginning
    expect_frame(player, 0)
    player.get_by_role("button", name="Pause").click()
    page.clock.run_for(60_000)
    expect_frame(player, 0)


@pytest.mark.parametrize("step", ["key", "button", "scrub"])
def test_a_step_by_hand_ends_the_playing(film_page, step):
    page = film_page()
    player = player_of(page)
    player.focus()
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    if step == "key":
        page.keyboard.press("ArrowRight")
    elif step == "button":
        player.get_by_role("button", name="One step on").click()
    else:
        player.get_by_role("slider", name="Step").fill("3")
    expect_frame(player, 3)
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    page.clock.run_for(60_000)
    expect_frame(player, 3)


def test_nothing_moves_by_itself_for_those_who_want_no_motion(film_page):
    page = film_page(reduced_motion="reduce")
    player = player_of(page)
    expect(player.get_by_role("button", name="Play")).to_have_count(0)
    player.focus()
    page.keyboard.press("Space")
    page.clock.run_for(60_000)
    expect_frame(player, 2)
    page.keyboard.press("ArrowRight")
    expect_frame(player, 3)


def test_two_players_and_their_page_keep_out_of_each_others_way(film_page):
    page = film_page()
    players = page.locator(".pc-player")
    players.last.get_by_role("button", name="Last step").click()
    expect_frame(players.first, 2)
    expect_frame(players.last, 5)
    ids = page.locator("[id]").evaluate_all("(all) => all.map((one) => one.id)")
    assert ids and len(set(ids)) == len(ids)
    assert players.locator("svg [fill^='url(#']").evaluate_all(
        "(all) => all.every((one) => one.closest('svg').querySelector(one.getAttribute('fill').slice(4, -1)))"
    )
    assert page.locator("svg style").count() == 0
    assert page.locator("rect.f-danger").first.evaluate("(it) => getComputedStyle(it).fill") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "normal"


def test_a_wide_film_scrolls_in_a_narrow_window(film_page):
    page = film_page(viewport={"width": 390, "height": 800})
    player = player_of(page)
    assert player.locator(".pc-player-picture svg").bounding_box()["width"] == 720
    view = player.locator(".pc-player-view")
    assert view.evaluate("(it) => it.scrollWidth >= 720 && it.clientWidth < 390 && it.scrollHeight == it.clientHeight")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- JupyterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab's address. It finds no setting of this machine's owner, and knows none of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = None  # so that a number says: this cell has run here
        nbformat.write(notebook, path)
    settings = {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell is on the page, not only those in view
        "apputils-extension/themes": '{"adaptive-theme": true}',  # light or dark as the browser is
    }
    for name, text in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    environment = {name: str(folder / name.lower()) for name in own}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTER_TOKEN": TOKEN}
    with lab_server(folder, folder / "log", **environment) as address:
        yield address


def open_notebook(page, lab, name):
    page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={TOKEN}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    saved = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(saved.cells))
    return saved


@pytest.fixture(scope="module")
def opened(request, lab, new_page):
    """A notebook as it is when one has just opened it."""
    page = new_page()
    saved = open_notebook(page, lab, request.param)
    yield SimpleNamespace(name=request.param, page=page, saved=saved)
    page.close()


@pytest.fixture(scope="module")
def ran(opened):
    """The same, after Run > Run All Cells."""
    page = opened.page
    wait_for_kernel(page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    number = re.compile(r"\[\d+\]")
    has_run = page.locator(".jp-CodeCell .jp-InputArea-prompt", has_text=number)
    cells = [cell for cell in opened.saved.cells if cell.cell_type == "code"]
    expect(has_run.nth(len(cells) - 1).or_(page.locator(f".jp-Notebook {COMPLAINT}")).first).to_be_attached()
    wait_for_kernel(page)
    return opened


def wait_for_kernel(page):
    """Until it says itself that it is idle. The toolbar's sign is idle before there is a kernel, too, and Run All Cells
    is then without effect."""
    page.locator('.jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    expect(page.locator(".jp-StatusBar-TextItem", has_text="| Idle")).to_be_visible()


def pictures_of(saved):
    """How many pictures of ours a notebook was saved with."""
    outputs = [output for cell in saved.cells for output in cell.get("outputs", []) if "data" in output]
    return sum(output["data"].get("text/html", "").count('src="data:image/svg+xml,') for output in outputs)


def widgets_of(saved):
    """How many of them get controls when they are run."""
    outputs = [output for cell in saved.cells for output in cell.get("outputs", []) if "data" in output]
    return sum(bool(HOW_TO_WAKE_IT.search(output["data"].get("text/html", ""))) for output in outputs)


every_notebook = pytest.mark.parametrize("opened", RUN, indirect=True, scope="module")


@every_notebook
def test_its_pictures_stand_there_before_anything_is_run(opened):
    """In a fresh clone, which JupyterLab does not trust: no script runs, and the pictures are there all the same."""
    page = opened.page
    pictures = page.locator('.jp-OutputArea-output img[alt][src^="data:image/svg"]')
    expect(pictures).to_have_count(pictures_of(opened.saved))
    page.wait_for_function(
        "(images) => images.every((image) => image.naturalWidth > 100)", arg=pictures.element_handles()
    )
    expect(page.locator(".pc-player, .jp-Notebook .jupyter-widgets")).to_have_count(0)
    for line in page.get_by_text(HOW_TO_WAKE_IT).all():
        expect(line).to_be_visible()
    expect(page.get_by_text(HOW_TO_WAKE_IT)).to_have_count(widgets_of(opened.saved))
    pictures.first.scroll_into_view_if_needed()
    shoot(page, f"lab-{opened.name}-fresh")


@every_notebook
def test_it_runs_from_top_to_bottom(ran):
    page = ran.page
    assert page.locator(f".jp-Notebook {COMPLAINT}").all_inner_texts() == []
    assert not re.search("Error displaying widget|Failed to load model", page.locator(".jp-Notebook").inner_text())
    expect(page.get_by_text(HOW_TO_WAKE_IT)).to_have_count(0)
    expect(page.locator(".pc-player, .pc-controls")).to_have_count(widgets_of(ran.saved))
    shoot(page, f"lab-{ran.name}-ran")


@pytest.mark.parametrize("opened", ["03_block_tables"], indirect=True, scope="module")
def test_a_dragged_slider_leads_to_another_token(ran):
    page = ran.page
    output = page.locator(".jp-OutputArea-output", has=page.locator(".pc-controls")).first
    slider = output.get_by_role("slider", name="Token", exact=True)
    slider.scroll_into_view_if_needed()

    def follows(token):
        expect(output.get_by_role("img", name=f"Where is token {token} of sequence A?")).to_be_visible()
        expect(slider).to_have_value(str(token))

    follows(6)
    box = slider.bounding_box()
    middle, knob = box["y"] + box["height"] / 2, 16
    page.mouse.move(box["x"] + knob / 2 + (box["width"] - knob) * 6 / 9, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + knob / 2 + (box["width"] - knob) * 2 / 9, middle, steps=8)
    page.mouse.up()
    follows(2)
    shoot(page, "lab-03_block_tables-dragged")
    slider.focus()
    page.keyboard.press("ArrowRight")
    follows(3)
    page.keyboard.press("End")
    follows(9)
    output.get_by_role("button", name="Append 1").click()
    follows(10)
    expect(output.get_by_role("alert")).to_contain_text("A grew by 1 token")
    output.get_by_role("button", name="Start over").click()
    follows(6)


@pytest.mark.parametrize("opened", ["04_pool_layouts"], indirect=True, scope="module")
def test_sliders_have_names_and_say_what_they_did(ran):
    page = ran.page
    output = page.locator(".jp-OutputArea-output", has=page.locator(".pc-controls")).first
    for name, value in (("head", "1"), ("token", "2"), ("dim", "3")):
        slider = output.get_by_role("slider", name=name, exact=True)
        expect(slider).to_have_value(value)
        slider.focus()
        page.keyboard.press("ArrowLeft")
        expect(slider).to_be_focused()
        assert slider.evaluate("(it) => getComputedStyle(it).outlineWidth") == "3px"
    expect(output.get_by_role("alert")).to_contain_text(
        "HND K [head, token, dim]; V likewise, in its own array: element 330"
    )
    page.set_viewport_size({"width": 900, "height": 900})
    picture = output.get_by_role("img")
    assert picture.bounding_box()["width"] >= 720
    assert picture.evaluate("(it) => it.parentElement.clientWidth < 720")  # it scrolls
    shoot(page, "lab-04_pool_layouts-narrow")


@pytest.mark.parametrize("opened", ["05_attention_correctness"], indirect=True, scope="module")
def test_a_saved_film_steps_when_its_kernel_is_gone(ran, lab, new_page):
    page = ran.page
    page.locator(".jp-Notebook .pc-player").first.focus()  # it keeps arrows for itself, and leaves this to JupyterLab
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0, timeout=60_000)  # after 120 s JupyterLab saves by itself
    page.close()
    api, asked = new_page().request, {"headers": {"Authorization": f"token {TOKEN}"}}
    for session in api.get(f"{lab}/api/sessions", **asked).json():
        if session["path"].endswith(f"{ran.name}.ipynb"):
            assert api.delete(f"{lab}/api/sessions/{session['id']}", **asked).ok
    again = new_page()
    open_notebook(again, lab, ran.name)
    player = again.locator(".jp-Notebook .pc-player").first
    step_through(player, again)
    expect(again.get_by_text("Error displaying widget")).to_have_count(0)
    shoot(again, f"lab-{ran.name}-again")
    again.close()


@pytest.mark.parametrize("opened", WITH_PLAYERS, indirect=True, scope="module")
def test_a_player_steps_in_a_running_notebook(ran):
    page = ran.page
    player = page.locator(".jp-Notebook .pc-player").first
    player.wait_for()
    step_through(player, page)
    shoot(page, f"lab-{ran.name}-player")
    play(player, page)
    assert not is_dark(player.locator(".pc-player-picture svg"))
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    assert is_dark(player.locator(".pc-player-picture svg"))
    shoot(page, f"lab-{ran.name}-player-dark")


def test_in_the_dark(lab, new_page):
    page = new_page("dark")
    open_notebook(
        page, lab, "02_block_allocator"
    )  # no other test's: two pages on one kernel hear of each other's widgets
    picture = page.locator('.jp-OutputArea-output img[src^="data:image/svg"]').first
    picture.wait_for()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    assert is_dark(picture)
    shoot(page, "lab-02_block_allocator-dark")
    page.close()


# ---- the site, from disk


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("site")).as_uri()


@pytest.fixture
def open_page(site, new_page):
    """Opens pages of the site, and lets none of them ask for anything but files of the site."""
    asked, pages = [], []

    def open_page(path, color_scheme="light", **options):
        page = new_page(color_scheme, **options)
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site}/{path}")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert asked
    assert [url for url in asked if not url.startswith((site, "data:"))] == []


def players_saved():
    """{notebook: how many players it was saved with}, of those that have any."""
    counts = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        counts[path.stem] = sum("pc-player" in data.get("text/html", "") for data in outputs)
    return {name: count for name, count in counts.items() if count}


def test_the_site_leads_from_its_front_page_through_the_tour(open_page):
    page = open_page("index.html")
    expect(page.get_by_role("img", name="One token followed from its position")).to_be_visible()
    shoot(page, "site-front")
    page.get_by_role("cell").get_by_role("link", name="03_block_tables").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("03 · Block tables")
    shoot(page, "site-03_block_tables")
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("04")


def test_the_site_is_searched_from_disk(open_page):
    page = open_page("index.html")
    page.get_by_role("textbox", name="Search").fill("watermark")
    page.keyboard.press("Enter")
    found = page.locator("#search-results").get_by_role("link", name="09 · Running out").first
    found.wait_for()
    shoot(page, "site-search")
    found.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("09 · Running out")


def test_the_site_fits_into_a_narrow_window(open_page):
    page = open_page("notebooks/03_block_tables.html", viewport={"width": 390, "height": 800})
    shoot(page, "site-narrow")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("window.scrollTo(0, 1400)")
    shoot(page, "site-narrow-picture")


@pytest.mark.parametrize("width", [1280, 1400])
def test_no_printed_line_is_cut_off(open_page, width):
    """It fits, or it scrolls."""
    page = open_page("index.html", viewport={"width": width, "height": 900})
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page.goto(page.url.rpartition("/")[0].removesuffix("/notebooks") + f"/notebooks/{path.stem}.html")
        cut_off = """(all) => all.filter((pre) => {
            for (let box = pre; box; box = box.parentElement) {
                const overflow = getComputedStyle(box).overflowX;
                if (box.scrollWidth > box.clientWidth && overflow !== "visible") return !/auto|scroll/.test(overflow);
            }
            return document.documentElement.scrollWidth > innerWidth;
        }).map((pre) => pre.innerText)"""
        assert page.locator("pre").evaluate_all(cut_off) == []


def test_pictures_are_light_or_dark_as_the_site_is(open_page):
    """As the system says, or against it, once the reader has pressed the switch."""
    page = open_page("notebooks/03_block_tables.html", "dark")
    picture = page.locator('img[src^="data:image/svg"]').first
    assert is_dark(picture)
    shoot(page, "site-03_block_tables-dark")
    for _ in range(3):  # the switch has three positions: as the system is, light, dark
        if page.locator("body").get_attribute("data-theme") != "light":
            page.locator(".content-icon-container .theme-toggle").click()
    expect(page.locator("body")).to_have_attribute("data-theme", "light")
    assert not is_dark(picture)


@pytest.mark.parametrize("name", sorted({*WITH_PLAYERS, *players_saved()}))
def test_every_player_steps_from_disk(open_page, name):
    page = open_page(f"notebooks/{name}.html")
    players = page.locator(".pc-player")
    expect(players).to_have_count(players_saved()[name])
    for player in players.all():
        step_through(player, page)
    shoot(page, f"site-{name}-player")


def test_a_player_plays_and_rests(open_page):
    """With the browser's clock in our hands: a step comes when it is due, and none after a pause."""
    page = open_page(f"notebooks/{WITH_PLAYERS[0]}.html")
    page.clock.install()
    page.reload()
    player = page.locator(".pc-player").first
    player.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    while player.get_attribute("data-frame") != "2":
        page.clock.run_for(100)
    page.keyboard.press("Space")
    page.clock.run_for(60_000)
    expect(player).to_have_attribute("data-frame", "2")
    page.keyboard.press("ArrowRight")
    expect(player).to_have_attribute("data-frame", "3")


def test_a_player_offers_no_motion_to_those_who_want_none(open_page):
    page = open_page(f"notebooks/{WITH_PLAYERS[0]}.html", "dark", reduced_motion="reduce")
    player = page.locator(".pc-player").first
    expect(player.locator(".pc-player-play")).to_be_hidden()
    step_through(player, page)
    assert is_dark(player.locator(".pc-player-picture svg"))
    shoot(page, "site-player-dark")
