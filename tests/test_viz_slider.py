"""The slider shows what its function draws, with a kernel and without."""

import pytest

from paged_core.viz import Svg
from paged_core.viz.slider import Slider


def draw(size):
    return Svg(300, 60, title=f"Blocks of {size}", alt=f"{24 // size} blocks.")


def test_the_slider_chooses_and_the_function_draws():
    slider = Slider(draw, [1, 4, 12], 4, description="block size")
    assert slider.picture.value == draw(4).html
    slider.choice.value = 12
    assert slider.picture.value == draw(12).html
    assert slider.choice.description == "block size" and slider.choice.options == (1, 4, 12)


def test_what_is_saved_is_the_picture():
    slider = Slider(draw, [1, 4, 12], 4, description="block size")
    bundle = slider._repr_mimebundle_()
    assert bundle["text/html"] == draw(4).html
    assert bundle["text/plain"] == repr(slider) == "Blocks of 4. 6 blocks."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_value_that_is_no_option_is_refused():
    with pytest.raises(Exception, match=r"[Ii]nvalid selection"):
        Slider(draw, [1, 4, 12], 5, description="block size")
