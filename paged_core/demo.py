"""Ten seconds in a terminal: a pool fills, sequences grow, and attention over the pages equals dense attention.

Everything shown is read from the allocator and the sequences at that moment. In a terminal the picture moves; in a file
or a pipe it is the few frames that tell the story, at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import mlx.core as mx
import numpy as np

from paged_core import executors
from paged_core.allocator import BlockAllocator
from paged_core.attention import paged_attention
from paged_core.errors import PoolExhausted
from paged_core.pool import PagedPool, slot_mapping
from paged_core.reference import attention_error_bound, dense_attention
from paged_core.sequence import PagedSeqState, batch_tables

NUM_BLOCKS, BLOCK_SIZE = 20, 4
NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 64
BLOCKS_PER_LINE = 10
COLUMNS = 78
CAPTION_LINES = 2
COLOURS = {"A": 214, "B": 75, "C": 36}  # of the terminal's 256, as in every figure; the letter says the same without
SECONDS_PER_FRAME = 0.05
SECONDS_TO_READ = 0.7


class Scene:
    """A pool of one layer, its allocator, and the sequences that live in them by name."""

    def __init__(self, seed: int = 0) -> None:
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.pool = PagedPool(
            num_layers=1,
            num_blocks=NUM_BLOCKS,
            num_kv_heads=NUM_KV_HEADS,
            block_size=BLOCK_SIZE,
            head_dim=HEAD_DIM,
            dtype=mx.float32,
        )
        self.seqs: dict[str, PagedSeqState] = {}
        self.kv: dict[
            str, np.ndarray
        ] = {}  # float32 [2, len, num_kv_heads, head_dim]: what each was given, for the oracle
        self._random = np.random.default_rng(seed)

    def append(self, name: str, num_tokens: int = 1) -> None:
        """Give a sequence, new or old, the K and V of `num_tokens` more tokens. PoolExhausted leaves it as it was."""
        seq = self.seqs.get(name) or PagedSeqState(BLOCK_SIZE, NUM_BLOCKS)
        seq.ensure_capacity(self.allocator, seq.len + num_tokens)
        seq.len += num_tokens
        seq.sync_context_len()
        slots = slot_mapping(seq.block_table[None], seq.context_lens, BLOCK_SIZE, mx.array([0, num_tokens], mx.int32))
        new = self._random.standard_normal((2, num_tokens, NUM_KV_HEADS, HEAD_DIM), np.float32)
        self.pool.write(0, mx.array(new[0]), mx.array(new[1]), slots)
        self.seqs[name] = seq
        self.kv[name] = np.concatenate([self.kv[name], new], axis=1) if name in self.kv else new

    def release(self, name: str) -> None:
        self.seqs.pop(name).release(self.allocator)
        del self.kv[name]

    def poison(self) -> int:
        """NaN into every slot that no sequence has a token in, and how many those are."""
        held = {
            seq.blocks[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE
            for seq in self.seqs.values()
            for i in range(seq.len)
        }
        slots = [slot for slot in range(NUM_BLOCKS * BLOCK_SIZE) if slot not in held]
        nan = mx.full((len(slots), NUM_KV_HEADS, HEAD_DIM), mx.nan)
        self.pool.write(0, nan, nan, mx.array(slots, mx.int32))
        return len(slots)

    def query(self) -> mx.array:
        """A query token for each sequence: float32 [num_seqs, num_q_heads, head_dim]."""
        shape = (len(self.seqs), NUM_Q_HEADS, HEAD_DIM)
        return mx.array(self._random.standard_normal(shape, np.float32))

    def compare(self, executor: str, q: mx.array) -> Comparison:
        """Decode every sequence from the pages with `executor`, and from its dense K and V with the float64 oracle."""
        tables = batch_tables([*self.seqs.values()])
        paged = np.array(paged_attention(q, self.pool.k(0), self.pool.v(0), *tables, executor=executor), np.float64)
        errors, shares = [], []
        for row, name in enumerate(self.seqs):
            dense_arguments = np.array(q)[row : row + 1], *self.kv[name]
            error = np.abs(paged[row] - dense_attention(*dense_arguments)[0])
            errors.append(error.max())
            shares.append((error / attention_error_bound(*dense_arguments, dtype="float32")[0]).max())
        return Comparison(float(np.max(errors)), float(np.max(shares)))  # np.max: a NaN stays a NaN


class Comparison(NamedTuple):
    error: float  # the largest absolute difference from float64
    share: float  # the largest share of its derived bound that an element uses up; 1 is all of it

    @property
    def equal(self) -> bool:
        return self.share <= 1  # not so for NaN


class Frame(NamedTuple):
    caption: str
    is_key: bool = False  # one of the few that tell the story by themselves


def story(scene: Scene) -> Iterator[Frame]:
    """Change the scene step by step, and say after each what happened."""
    yield Frame(f"A pool of {NUM_BLOCKS} blocks, {BLOCK_SIZE} tokens each. Nothing is reserved for anybody.", True)
    scene.append("A", 9)
    yield Frame("A arrives with a prompt of 9 tokens: 3 blocks.", True)
    scene.append("B", 5)
    yield Frame("B arrives with 5 tokens: 2 blocks. Nobody's memory needs to be contiguous.", True)
    try:
        while True:
            for name in ("A", "B"):
                scene.append(name)
                halfway = name == "B" and scene.seqs["B"].len == 16
                yield Frame("Both grow, a token at a time, and take a block when the last one is full.", halfway)
    except PoolExhausted as refusal:
        yield Frame(f"The pool is full. {type(refusal).__name__}: {refusal}.", True)
    scene.release("B")
    yield Frame("B has finished, and every block of it is free again. A has not moved.", True)
    for _ in range(6):
        scene.append("A")
        yield Frame("A grows on. The block that was freed last is the next one out.", scene.seqs["A"].len == 47)
    scene.append("C", 7)
    yield Frame("C arrives, and what B left behind in its blocks is C's to overwrite.", True)


def draw(allocator: BlockAllocator, seqs: dict[str, PagedSeqState], *, colour: bool) -> list[str]:
    """The pool and the block tables as lines of text: a letter for each token, in the block and slot where it lies."""
    tokens: dict[int, tuple[str, int]] = {}  # physical block -> whose it is, and how many tokens it carries
    for name, seq in seqs.items():
        for i, block in enumerate(seq.blocks):
            tokens[block] = name, min(seq.block_size, seq.len - i * seq.block_size)
    cells = []
    for block in range(allocator.capacity):
        if allocator.ref_count(block) == 0:
            cells.append(f"{'':>{BLOCK_SIZE}}")
        else:
            name, count = tokens[block]
            cells.append(paint(name * count, name, colour) + "." * (BLOCK_SIZE - count))
    lines = [
        f"pool   {allocator.capacity} blocks of {BLOCK_SIZE}   in use {allocator.in_use:2}"
        f"   free {allocator.free_count:2}   peak {allocator.peak_in_use:2}",
        "",
    ]
    for start in range(0, allocator.capacity, BLOCKS_PER_LINE):
        line = range(start, min(start + BLOCKS_PER_LINE, allocator.capacity))
        lines.append(" ".join(f"{block:^{BLOCK_SIZE + 2}}" for block in line).rstrip())
        lines.append(" ".join(f"[{cells[block]}]" for block in line))
    lines.append("")
    for name in COLOURS:
        seq = seqs.get(name)
        if seq is None:
            lines.append("")
        else:
            table = " ".join(map(str, seq.blocks))
            lines.append(f"{paint(name, name, colour)} {seq.len:3} tokens   block table {table}")
    return lines


def paint(text: str, name: str, colour: bool) -> str:
    return f"\033[1;38;5;{COLOURS[name]}m{text}\033[0m" if colour else text


def show(scene: Scene, out: TextIO, *, moving: bool, colour: bool, pace: float) -> None:
    """Play the story: `moving`, redrawn in place, with `pace` times its pauses; or as key frames one after another."""
    height = 0
    for frame in story(scene):
        if not (moving or frame.is_key):
            continue
        caption = textwrap.wrap(frame.caption, COLUMNS)
        if moving:  # every frame covers the one before
            caption += [""] * (CAPTION_LINES - len(caption))
        lines = [*caption, "", *draw(scene.allocator, scene.seqs, colour=colour)]
        if moving:
            if height:
                out.write(f"\033[{height}A")
            out.write("".join(f"\033[K{line}\n" for line in lines))
            out.flush()
            height = len(lines)
            time.sleep(pace * (SECONDS_TO_READ if frame.is_key else SECONDS_PER_FRAME))
        else:
            out.write("\n".join(lines).rstrip() + "\n\n")


def verdict(scene: Scene, out: TextIO, names: list[str], auto: str) -> bool:
    """Decode with each executor and tell how far from dense it came. True when every element lies within its bound."""
    num_poisoned = scene.poison()
    q = scene.query()
    lengths = " and ".join(f"{name}'s {seq.len}" for name, seq in scene.seqs.items())
    question = (
        f"Paged against dense: one query token over {lengths} tokens, {NUM_Q_HEADS} query heads, {NUM_KV_HEADS} KV "
        f"heads, head_dim {HEAD_DIM}, float32. The {num_poisoned} slots that hold nobody's token are now NaN."
    )
    out.write("\n" + textwrap.fill(question, COLUMNS) + "\n\n")
    out.write("  executor    largest error   of its bound, at most\n")
    equal = True
    for name in names:
        out.write(f"  {name:<11}")
        out.flush()  # a kernel may have to be compiled first
        result = scene.compare(name, q)
        equal = equal and result.equal
        remark = "  <- auto" if name == auto else ""
        out.write(f"{result.error:14.1e}{result.share:24.1%}{remark}\n")
    for name in executors.NAMES:
        if name not in names and (reason := executors.why_not(name)):
            out.write(f"  {name:<11}  cannot run here: {reason}\n")
    out.write(
        "\nEqual: every element lies within the bound derived for it (attention_error_bound).\n"
        if equal
        else "\nNOT equal: an element lies further from float64 than rounding explains.\n"
    )
    return equal


def auto_executor() -> str:
    """The executor that "auto" stands for here, without the warning of a fallback: the callers list the reasons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return executors.choose("auto").__name__.rpartition(".")[2]


def run(executor: str | None = None, *, fast: bool = False, out: TextIO | None = None) -> bool:
    """The whole demo, with one executor or, if None, with all that can run here. True when paged equals dense.

    ValueError or ExecutorUnavailable for an executor that does not exist or cannot run.
    """
    out = out or sys.stdout
    auto = auto_executor()
    if executor is not None:
        executors.choose(executor)
    names = executors.available_executors() if executor is None else [executor]
    terminal = out.isatty() and os.environ.get("TERM") != "dumb"
    moving = terminal and shutil.get_terminal_size().columns > COLUMNS  # a line that wraps cannot be redrawn in place
    scene = Scene()
    show(scene, out, moving=moving, colour=terminal and not os.environ.get("NO_COLOR"), pace=0.0 if fast else 1.0)
    return verdict(scene, out, names, auto)
