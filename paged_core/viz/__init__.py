"""Pictures of what really happened: pure functions from state to `Svg` or `Chart`; widgets only steer them.

style     one colour and one pattern per sequence, the same in every figure; and the colours of all that is none
svg       drawn figures, legible in light and dark, in a trusted notebook or a fresh clone
player    a film of drawn frames that steps without a kernel, too
figure    measured figures: matplotlib as PNG with alternative text
blocks    the pool: who holds which block, the free list as the stack it is, the watermark
tables    block tables: a token followed to its byte, the host's truth against the device's copy
recorder  put in an allocator's place, it keeps a film of what happens to the blocks
controls  what steers a picture where a kernel runs: sliders, and what is heard and saved
explorer  a pool to play with
layouts   memory as it lies: which number a pool keeps where, and the cache lines an access touches
errors    how far an answer lies from the oracle
sharing   a prefix cache: keys in a chain; shared, cached and evicted blocks
answers   an answer to an exercise beside what was expected
timeline  a service over time: who waits, computes, gives way; and what a policy costs whom
words     numbers and block ids in words
"""

from paged_core.viz.blocks import PoolSnapshot, filmstrip, pool_map, snapshot
from paged_core.viz.explorer import PoolLab, explore
from paged_core.viz.figure import Chart, chart
from paged_core.viz.player import Player
from paged_core.viz.style import SequenceStyle, sequence_style
from paged_core.viz.svg import Svg
from paged_core.viz.tables import TokenAddress, locate, mirrors, table_lens

__all__ = [
    "Chart",
    "Player",
    "PoolLab",
    "PoolSnapshot",
    "SequenceStyle",
    "Svg",
    "TokenAddress",
    "chart",
    "explore",
    "filmstrip",
    "locate",
    "mirrors",
    "pool_map",
    "sequence_style",
    "snapshot",
    "table_lens",
]
