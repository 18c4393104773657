"""What a picture costs: a step of the controls and films on a pool of 4,096 blocks; the first figure of a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import medians
from paged_core import BlockAllocator, viz
from paged_core.viz.recorder import Recorder, moment_picture

NUM_BLOCKS, BLOCK_SIZE, NUM_SEQS = 4096, 16, 8
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def crowded_lab() -> viz.PoolLab:
    """Eight sequences that took turns at growing by a block each, so that nobody's blocks lie in a row."""
    turns = tuple((i % NUM_SEQS, BLOCK_SIZE) for i in range(NUM_BLOCKS - 64))
    return viz.PoolLab(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_blocks_per_seq=1024, num_seqs=NUM_SEQS, story=turns
    )  # fmt: skip


def steps() -> dict[str, Callable[[], object]]:
    """What a press, a drag or a step does in the kernel, up to the text that goes to the browser."""
    lab = crowded_lab()
    explorer = viz.explore(lab)
    state = viz.snapshot(lab.allocator, lab.seqs)
    pool = Recorder(BlockAllocator(NUM_BLOCKS), held := [[] for _ in range(NUM_SEQS)])
    for turn in range(32):
        held[turn % NUM_SEQS] += pool.allocate_n(100)
    pool.say("")  # ends the last moment
    tokens = iter(range(1000))

    def follow() -> None:
        explorer.token.value = next(tokens)

    return {
        "the pool as a picture": lambda: viz.pool_map(viz.snapshot(lab.allocator, lab.seqs)).html,
        "a token through the lens": lambda: viz.table_lens(state, lab.seqs, 1, lab.pool, 4000).html,
        "host and device tables": lambda: viz.mirrors(lab.seqs).html,
        "explorer: follow a token": follow,
        "explorer: append": lambda: explorer.buttons["append"].click(),
        "a moment of a film": lambda: moment_picture(pool.moments, 16, title="One of many").html,
    }


def first_figure(path: Path) -> float:
    """Seconds from a kernel's start to the first picture of a notebook, the cells before it included."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    start = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
            shown = [output.get("data", {}) for output in cell.get("outputs", [])]
            if any("image/png" in data or "<img" in data.get("text/html", "") for data in shown):
                break
        return time.perf_counter() - start


def main(rounds: int = 15) -> None:
    print(f"\nA step in a pool of {NUM_BLOCKS:,} blocks, in ms: the median of {rounds}; the limit is 100")
    for name, seconds in medians(steps(), rounds).items():
        print(f"  {name:28}{seconds * 1e3:8.1f}")
    print("\nFrom the start of a kernel to the first picture of a notebook, in s, the better of two: 3 is the limit")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"  {path.stem:28}{min(first_figure(path) for _ in range(2)):8.1f}", flush=True)
