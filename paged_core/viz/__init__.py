"""Pictures of what really happened: pure functions from state to `Svg` or `Chart`; widgets only steer them.

style     one colour and one mark per sequence, the same in every figure
svg       drawn figures, legible in light and dark, in a trusted notebook or a fresh clone
figure    measured figures: matplotlib as PNG with alternative text
"""

from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import SequenceStyle, sequence_style
from paged_core.viz.svg import Svg

__all__ = ["Chart", "SequenceStyle", "Svg", "chart", "sequence_style"]
