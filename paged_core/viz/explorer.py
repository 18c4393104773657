"""A small pool to play with: grow, append, release, and follow a token to its byte.

`PoolLab` is the whole logic, without a browser: live objects, one verb per button, and a sentence on what happened.
`explore` puts buttons and sliders around it; they call the verbs and show `picture()`, and know nothing else.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from paged_core.allocator import BlockAllocator
from paged_core.errors import PoolExhausted, SequenceTooLong
from paged_core.layouts import PoolLayout
from paged_core.pool import PagedPool
from paged_core.sequence import PagedSeqState
from paged_core.viz.blocks import snapshot
from paged_core.viz.controls import box, saved, slider, spoken
from paged_core.viz.style import letter
from paged_core.viz.svg import Svg
from paged_core.viz.tables import table_lens
from paged_core.viz.words import blocks_named, counted

STORY = ((0, 3), (1, 13), (0, 4), (2, 2), (0, 3))  # (sequence, tokens): who grew by how much before the curtain rises


class PoolLab:
    """A pool, an allocator and a few sequences, with one sequence and one of its tokens looked at.

    The verbs never raise for a pool that is full or a table that is short: they leave everything as it was, and
    `message` says so in a sentence. A `selected` or `token` that does not exist is a ValueError.
    """

    def __init__(
        self, *, num_blocks: int = 16, block_size: int = 4, max_blocks_per_seq: int = 8, num_seqs: int = 3,
        num_kv_heads: int = 2, head_dim: int = 64, dtype: mx.Dtype = mx.float16, layout: PoolLayout = PoolLayout.HND,
        story: tuple[tuple[int, int], ...] = STORY,
    ) -> None:  # fmt: skip
        self.pool = PagedPool(
            num_layers=1, num_blocks=num_blocks, num_kv_heads=num_kv_heads, block_size=block_size, head_dim=head_dim,
            dtype=dtype, layout=layout,
        )  # fmt: skip
        self.max_blocks_per_seq, self.num_seqs, self.story = max_blocks_per_seq, num_seqs, story
        self.start_over()

    def start_over(self) -> None:
        """The opening scene: fresh objects, and the story played on them."""
        self.allocator = BlockAllocator(self.pool.num_blocks)
        self.seqs = [PagedSeqState(self.pool.block_size, self.max_blocks_per_seq) for _ in range(self.num_seqs)]
        self.selected, self.message, self.refused = 0, "", False
        self.token: int | None = None  # the position looked at; None while the sequence is empty
        for index, tokens in self.story:
            self.select(index)
            self.grow(tokens)
        self.select(0)
        if self.seq.len:
            self.follow(self.seq.len * 2 // 3)
        turns = ", ".join(f"{letter(index)} by {tokens}" for index, tokens in self.story)
        grew = f"{turns} tokens, in this order" if len(self.story) <= 8 else f"{len(self.story)} turns of growing"
        self.message = f"So far: {grew}. Each block went to whoever grew next." if self.story else ""

    @property
    def seq(self) -> PagedSeqState:
        """The sequence looked at."""
        return self.seqs[self.selected]

    def select(self, index: int) -> None:
        """Look at sequence number `index`, at its newest token."""
        if not 0 <= index < len(self.seqs):
            raise ValueError(f"index: expected a sequence from 0 to {len(self.seqs) - 1}, got {index}")
        self.selected = index
        self._to_newest()
        self.refused = False
        self.message = (
            f"{letter(index)} holds {counted(self.seq.len, 'token')} in {counted(len(self.seq.blocks), 'block')}."
        )

    def follow(self, token: int) -> None:
        """Look at the token at this position."""
        if not 0 <= token < self.seq.len:
            raise ValueError(f"token: expected a position from 0 to {self.seq.len - 1}, got {token}")
        self.token = token

    def append(self) -> None:
        """One token more, as each step of decoding does."""
        self.grow(1)

    def grow(self, tokens: int) -> None:
        """`tokens` more, as a prompt or a chunk of one does. All or none."""
        seq, name, held, self.refused = self.seq, letter(self.selected), len(self.seq.blocks), True
        try:
            seq.ensure_capacity(self.allocator, seq.len + tokens)
        except PoolExhausted as refusal:
            self.message = (
                f"Refused: {name} needs {counted(refusal.needed, 'more block')} and {refusal.free} of "
                f"{refusal.capacity} are free. Nothing was taken: release a sequence first."
            )
            return
        except SequenceTooLong:
            room = seq.max_blocks_per_seq * seq.block_size
            self.message = (
                f"Refused: {name} would hold {seq.len + tokens} tokens and its table has room for {room} "
                f"({seq.max_blocks_per_seq} entries of {seq.block_size}). Nothing was taken."
            )
            return
        self.refused = False
        seq.len += tokens
        seq.sync_context_len()
        self._to_newest()
        new = seq.blocks[held:]
        took = f"took {blocks_named(new)} from the top of the free list" if new else "took no block, having room"
        copied = f"{len(new) * 4} bytes of table and 4 of length"
        self.message = f"{name} grew by {counted(tokens, 'token')} and {took}; to the device: {copied}."

    def release(self) -> None:
        """Every block of the sequence back to the free list."""
        seq, name, held = self.seq, letter(self.selected), list(self.seq.blocks)
        seq.release(self.allocator)
        self.refused = False
        self._to_newest()
        if held:
            self.message = (
                f"{name} gave back {blocks_named(held)}; block {held[-1]}, the last one listed, is the next one out."
            )
        else:
            self.message = f"{name} holds no block: nothing to give back."

    def picture(self) -> Svg:
        """The state as it is now. The same state gives the same picture."""
        state = snapshot(self.allocator, self.seqs)
        return table_lens(
            state, self.seqs, self.selected, self.pool, self.token or 0, note=self.message, alarm=self.refused
        )

    def _to_newest(self) -> None:
        self.token = self.seq.len - 1 if self.seq.len else None


class Explorer:
    """The controls around a `PoolLab`. Displayed where no kernel runs, it is the picture it was saved with."""

    def __init__(self, lab: PoolLab) -> None:
        from ipywidgets import HTML, Button, Layout, ToggleButtons

        self.lab = lab
        self.picture = HTML()
        self.sequence = ToggleButtons(
            options=[(f"sequence {letter(i)}", i) for i in range(len(lab.seqs))],
            tooltips=[f"Look at sequence {letter(i)}" for i in range(len(lab.seqs))],
        )
        self.sequence.style.button_width = "104px"
        self.token = slider("Token", value=0, max=0, tooltip="Which token to follow", width="340px")
        self.tokens = slider("Grow by", value=5, min=1, max=16, tooltip="How many tokens Grow adds", width="260px")
        self.buttons = {
            verb: Button(description=words, tooltip=tip, icon=icon, layout=Layout(width="auto"))
            for verb, words, icon, tip in (
                ("grow", "Grow", "plus", "As many tokens more as the slider says: a prompt, or a chunk of one"),
                ("append", "Append 1", "angle-right", "One token more: a step of decoding"),
                ("release", "Release", "trash", "Give every block of this sequence back"),
                ("start_over", "Start over", "undo", "Back to the opening scene"),
            )
        }
        for verb, button in self.buttons.items():
            button.on_click(lambda _, verb=verb: self._press(verb))
        self.sequence.observe(lambda change: self._select(change.new), "value")
        self.token.observe(lambda change: self._follow(change.new), "value")
        self.widget = box(([self.sequence, self.token], [self.tokens, *self.buttons.values()]), self.picture)
        self._show()

    def __repr__(self) -> str:
        return repr(self.lab.picture())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return saved(self.widget, self.lab.picture())

    def _press(self, verb: str) -> None:
        self.lab.grow(self.tokens.value) if verb == "grow" else getattr(self.lab, verb)()
        self._show()

    def _select(self, index: int) -> None:
        if index != self.lab.selected:
            self.lab.select(index)
            self._show()

    def _follow(self, token: int) -> None:
        if self.lab.token is not None and token != self.lab.token:
            self.lab.follow(token)
            self._show()

    def _show(self) -> None:
        self.sequence.value = self.lab.selected
        newest, token = max(0, self.lab.seq.len - 1), self.lab.token
        self.token.max, self.token.disabled = newest, token is None
        self.token.value = token or 0  # said last: a new max may have clamped the value, and been followed
        self.picture.value = spoken(self.lab.picture(), self.lab.message)


def explore(lab: PoolLab | None = None) -> Explorer:
    """Controls for `lab`, or for a small pool with three sequences in it."""
    return Explorer(lab or PoolLab())
