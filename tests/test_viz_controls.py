"""What steers a picture: sliders within their limits, words to be heard with it, and a picture to be saved."""

import pytest

from paged_core.viz import Svg
from paged_core.viz.controls import box, saved, slider, spoken


@pytest.fixture
def svg():
    return Svg(300, 60, title="Blocks", alt="Six blocks.")


@pytest.mark.parametrize("wanted, got", [(-1, 2), (2, 2), (5, 5), (9, 9), (10, 9)])
def test_a_slider_stays_within_its_limits(wanted, got):
    control = slider("Token", value=3, min=2, max=9)
    control.value = wanted
    assert control.value == got


def test_words_are_heard_as_they_are(svg):
    assert spoken(svg, "a < b").endswith(f">a &lt; b</div>{svg.html}")


def test_what_is_saved_is_the_picture_and_how_to_bring_it_to_life(svg):
    widget = box([[slider("Token", value=3, max=9)]], slider("Block", value=0, max=1))
    bundle = saved(widget, svg)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert bundle["text/plain"] == repr(svg)
    assert bundle["text/html"].startswith(svg.html) and "With a running kernel" in bundle["text/html"]
    assert widget.model_id not in bundle["text/html"]
