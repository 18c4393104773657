"""Draws the README's picture from a live pool: `python tools/picture.py` writes docs/pages.svg."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from paged_core import BlockAllocator, PagedPool, PagedSeqState, viz

PATH = Path(__file__).resolve().parent.parent / "docs" / "pages.svg"


def picture() -> viz.Svg:
    """Sequence A, which grew around B and C and then into a block that B gave back before it began anew."""
    pool = PagedPool(num_layers=1, num_blocks=12, num_kv_heads=2, block_size=4, head_dim=64, dtype=mx.float16)
    allocator = BlockAllocator(pool.num_blocks)
    a, b, c = seqs = [PagedSeqState(pool.block_size, max_blocks_per_seq=8) for _ in range(3)]
    for seq, tokens in ((b, 6), (a, 10), (c, 5), (a, 14), (b, 0), (a, 19), (b, 3)):
        if tokens == 0:
            seq.release(allocator)
        seq.ensure_capacity(allocator, tokens)
        seq.len = tokens
    return viz.table_lens(viz.snapshot(allocator, seqs), seqs, 0, pool, token=17)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(f"{picture()}\n", encoding="utf-8")
    print(f"{PATH.relative_to(PATH.parent.parent)}: {PATH.stat().st_size // 1024} KB")
