"""The timeline and its charts draw what the service did."""

import numpy as np
import pytest

from paged_core import BlockAllocator, Preemption, Scheduler
from paged_core.serving import Arrival, StepCost, serve
from paged_core.viz import timeline as tl
from paged_core.viz.style import ANYONE_COLOR, sequence_style
from paged_core.viz.svg import TITLE_HEIGHT
from tests.test_serving import four_blocks
from tests.test_viz import SVG, assert_well_drawn, fills, parse, words


@pytest.fixture(scope="module")
def crowd():
    """Forty requests, ten milliseconds apart, in a pool for about six of them."""
    coming = [Arrival(i, 10_000 * i, range(100 * i, 100 * i + 40), 60) for i in range(40)]
    scheduler = Scheduler(BlockAllocator(40), block_size=16, max_running=64, max_tokens_per_step=64, watermark=0)
    return serve(scheduler, coming, StepCost(8000, 80), watch=range(400))


def test_every_doing_of_the_small_example_is_drawn_and_told():
    recompute = four_blocks(Preemption.RECOMPUTE)
    picture = tl.timeline(recompute, "ABC", 4, title="By hand", step_is_unit=True)
    assert_well_drawn(picture)
    said = words(picture)
    assert "Step 4: A gets a token; B and C wait, their blocks lost. 3 of 4 blocks in use." in said
    assert {"A: block 0", "A: block 1", "A: block 3", "block 2", "step 0", "8"} <= set(said)
    assert {"computes its prompt", "gave way: blocks lost", "computes again", "arrival", "first token"} <= set(said)
    assert "gave way: blocks on the host" not in said
    assert fills(picture, sequence_style(0).color) == 1 + 2 + 3  # A's name, its prompt and its tokens, its blocks
    assert fills(picture, sequence_style(1).color) == 1 + 2 + 2  # B's name, what it did, and once more
    assert fills(picture, ANYONE_COLOR) == 3  # the legend is nobody's
    swapped = tl.timeline(four_blocks(Preemption.SWAP, 4), "ABC", 6, title="By hand", step_is_unit=True)
    assert_well_drawn(swapped)
    assert {"C: block 0", "B: block 1", "gave way: blocks on the host"} <= set(words(swapped))


def test_a_row_is_in_its_requests_colour_and_the_shape_says_what_it_does():
    def marks(preemption, num_host_blocks, row):
        """Of the boxes of a row: their fill or pattern, and their height."""
        picture = tl.timeline(four_blocks(preemption, num_host_blocks), "ABC", 4, title="By hand", step_is_unit=True)
        middle, found = TITLE_HEIGHT + 22 + 30 * (row + 0.5), {}
        for box in parse(picture).iter(f"{SVG}rect"):
            x, y, height = (float(box.get(name, "0").rstrip("%")) for name in ("x", "y", "height"))
            if x >= tl._LEFT and y + height / 2 == pytest.approx(middle, abs=0.1) and box.get("rx") == "2":
                found.setdefault((x, height), []).append(box.get("fill") or box.get("class"))
        return [(height, *fills) for (_, height), fills in sorted(found.items())]

    b = sequence_style(1)
    own, striped = (b.color, "url(#rising-000000)"), (b.color, "url(#stripes-000000)")
    tall, slim = 21.6, 12.6
    work = [(tall, *own), (slim, *own)]
    assert marks(Preemption.RECOMPUTE, 0, row=1) == [*work, (tall, *striped), (slim, *own)]
    assert marks(Preemption.SWAP, 4, row=1) == [*work, (slim, "f-paper s-ink"), (slim, *own)]
    assert marks(Preemption.RECOMPUTE, 0, row=0) == [(tall, sequence_style(0).color), (slim, sequence_style(0).color)]


def test_a_film_has_its_cursor_at_each_step_and_its_words_outside():
    recompute = four_blocks(Preemption.RECOMPUTE)
    film = tl.film(recompute, "ABC", range(2, 9), start=4, title="By hand", step_is_unit=True)
    assert len(film.frames) == 7 and film.start == 2 and film.title == "By hand"
    for step, (caption, picture) in zip(range(2, 9), film.frames, strict=True):
        assert caption == tl.what_happens(recompute, step, "ABC", step_is_unit=True)
        assert caption in picture.alt and not any(said.startswith("Step ") for said in words(picture))
        assert_well_drawn(picture)
    with pytest.raises(ValueError, match="1 is not in"):
        tl.film(recompute, "ABC", range(2, 9), start=1, title="By hand")


def test_a_crowded_pool_is_a_bar_to_scale(crowd):
    picture = tl.timeline(crowd, [30, 31], 60, title="Two of many")
    tables = crowd.steps[60].tables
    others = sum(len(blocks) for id, blocks in tables.items() if id not in (30, 31))
    bar = [box for box in parse(picture).iter(f"{SVG}rect") if box.get("height") == "32"]
    (free,) = [float(box.get("width")) for box in bar if box.get("stroke-dasharray")]
    assert float(bar[-1].get("width")) == pytest.approx(free * others / 40, abs=1)


@pytest.mark.parametrize("step", [0, 30, 150])
def test_a_crowd_keeps_to_its_rows_and_its_window(crowd, step):
    picture = tl.timeline(crowd, list(range(32)), step, first_step=0, last_step=200, title="A crowd")
    assert_well_drawn(picture)
    assert {"A", "AF", "seconds", "pool"} <= set(words(picture))
    assert "of 40 blocks in use" in picture.alt
    later = tl.timeline(crowd, list(range(32)), step + 1, first_step=0, last_step=200, title="A crowd")
    assert str(later) != str(picture)


def test_requests_without_a_row_are_named_as_such(crowd):
    picture = tl.timeline(crowd, [30, 31], 60, title="Two of many")
    assert_well_drawn(picture)
    assert "requests without a row" in words(picture)


def test_what_happens_is_counted(crowd):
    step = next(i for i, step in enumerate(crowd.steps) if step.preempted)
    doing = {s.id: s.what for s in crowd.spans if s.begin_us <= crowd.steps[step].begin_us < s.end_us}
    said = tl.what_happens(crowd, step)
    decodes = list(doing.values()).count("decode")
    assert f"{decodes} get a token" in said
    assert "blocks lost" in said and said.endswith(f"{crowd.steps[step].blocks_in_use} of 40 blocks in use.")


def test_charts_draw_the_services_own_numbers(crowd):
    picture = tl.first_tokens({"small": crowd, "again": crowd}, title="First tokens")
    line = picture.figure.axes[0].lines[0]
    waits = sorted(served.first_token_us for served in crowd.served.values())
    np.testing.assert_allclose(line.get_xdata() * 1e6, waits)
    assert line.get_ydata()[-1] == 100 and "small, " in picture.alt

    picture = tl.pressure({"small": crowd}, title="Pressure")
    running = picture.figure.axes[0].lines[0].get_ydata()
    first_second = [step.running for step in crowd.steps if step.begin_us < 1_000_000]
    assert running[0] == pytest.approx(sum(first_second) / len(first_second))
    assert f"{max(step.waiting for step in crowd.steps)} wait" in picture.alt

    picture = tl.trade({0: crowd, 5: crowd}, against="preempted", xlabel="free", title="Trade")
    left, right = picture.figure.axes
    assert left.lines[0].get_ydata() == pytest.approx([crowd.first_token_us(99) / 1e6] * 2)
    assert [bar.get_height() for bar in right.patches] == [crowd.total("preempted")] * 2
    picture = tl.trade({0: crowd}, against="next token", xlabel="budget", title="Trade")
    assert picture.figure.axes[1].lines[1].get_ydata() == pytest.approx([crowd.gap_us(50) / 1e3])
    with pytest.raises(KeyError):
        tl.trade({0: crowd}, against="nothing", xlabel="budget", title="Trade")


def test_many_steps_are_not_all_numbered():
    """43 of them: every third one, which leaves room for "step 0"."""
    scheduler = Scheduler(BlockAllocator(40), block_size=4)
    service = serve(scheduler, [Arrival("a", 0, range(4), 43)], StepCost(step_us=1), watch=range(50))
    assert len(service.steps) == 43
    said = words(tl.timeline(service, "a", 0, title="Long", step_is_unit=True))
    assert [word for word in said if word == "step 0" or (word.isdigit() and int(word) in range(1, 43))][:15] == [
        "step 0", *(str(i) for i in range(3, 43, 3))
    ]  # fmt: skip
