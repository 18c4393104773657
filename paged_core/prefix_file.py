"""A prefix cache in a file: the K and V of findable blocks, so that another process starts warm."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.errors import CacheFileError
from paged_core.pool import PagedPool
from paged_core.prefix import PrefixCache

FORMAT = "paged_core prefix cache 1"
BLANK = b"0" * 64  # stands in the file while its checksum is computed, and is then replaced by it
_NAME = b'"sha256":"'  # what comes before it; within other texts of the header a quotation mark has a backslash


def save(
    cache: PrefixCache, path: str | Path, pool: PagedPool, *, model: str, salts: Collection[bytes] | None = None
) -> int:
    """Write every block that `cache` can find from its prompt's beginning on, with its K and V in `pool`; how many.

    `model` names the weights that computed them: K and V of other weights are other numbers. `salts` are those of the
    prompts to be written, None for all: with two models in one cache, those of this pool's. A safetensors file, checked
    by its sha256 and put in place in one step; CacheFileError, and whatever was there untouched, when it cannot be
    written. It holds, with n blocks,

        tokens   int64 [n, block_size]
        pool.i   uint16 or uint32 [n, ...]    the bits of the blocks in the pool's i-th array
    """
    _check_fits(cache, pool)
    path = Path(path)
    prompts = [prompt for prompt in cache.prompts() if salts is None or prompt[0].before in salts]
    entries = list(dict.fromkeys(entry for prompt in prompts for entry in prompt))
    rows = {entry: row for row, entry in enumerate(entries)}
    tokens = np.array([np.frombuffer(entry.content, np.int64) for entry in entries], np.int64)
    contents = pool.read_blocks([cast(int, entry.block) for entry in entries])
    arrays = {f"pool.{i}": mx.array(content) for i, content in enumerate(contents)}
    arrays["tokens"] = mx.array(tokens.reshape(len(entries), cache.block_size))
    about = {
        "fingerprint": json.dumps(_fingerprint(cache, pool, model)),
        "prompts": json.dumps([[rows[entry] for entry in prompt] for prompt in prompts]),
        "salts": json.dumps([cast(bytes, prompt[0].before).hex() for prompt in prompts]),
        "sha256": BLANK.decode(),
    }
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.safetensors")
    try:
        mx.save_safetensors(str(unfinished), arrays, about)
        with unfinished.open("r+b") as file:
            checksum, _, place = _checksum(file)
            file.seek(place)
            file.write(checksum)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        raise CacheFileError(f"path: cannot write {path}: {error}") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return len(entries)


def load(cache: PrefixCache, path: str | Path, pool: PagedPool, *, model: str) -> int:
    """Make the blocks of a file findable, as far as free blocks go, the newest prompts first; how many there came.
    Nothing is evicted for them, and what is findable already stays where it is.

    CacheFileError, and nothing loaded, when the file is not there, truncated, altered, or of another model, layout,
    dtype, geometry or block size.
    """
    _check_fits(cache, pool)
    about, arrays = _read(Path(path))
    for name, value in _fingerprint(cache, pool, model).items():
        if (theirs := about["fingerprint"].get(name)) != value:
            raise CacheFileError(f"{path}: made for another cache: {name} is {theirs!r}, here {value!r}")
    prompts = [
        (cache.chain(arrays["tokens"][rows].reshape(-1).tolist(), bytes.fromhex(salt)), rows)
        for rows, salt in zip(about["prompts"], about["salts"], strict=True)
    ]
    findable = cache.findable_count
    known: list[list[int]] = []  # the blocks of each prompt that are here already
    block_of: dict[int, int] = {}  # row -> the block it goes to
    try:
        for tokens, rows in prompts:
            known.append(cache.find_whole(tokens))
            cache.share(known[-1])
            for row in rows[len(known[-1]) :]:
                if row not in block_of and cache.free_count:
                    block_of[row] = cache.allocate()
        # Written before it can be found: whatever goes wrong up to here leaves nothing but free blocks.
        contents = [arrays[f"pool.{i}"][list(block_of)] for i in range(len(pool.arrays))]
        pool.write_blocks(list(block_of.values()), contents)
        for (tokens, rows), here in zip(prompts, known, strict=True):
            come = takewhile(block_of.__contains__, rows[len(here) :])
            cache.register(tokens, [*here, *(block_of[row] for row in come)])
    finally:
        cache.free([*chain.from_iterable(known), *block_of.values()])
    return cache.findable_count - findable


def _check_fits(cache: PrefixCache, pool: PagedPool) -> None:
    if pool.block_size != cache.block_size or pool.num_blocks < cache.capacity:
        raise ValueError(
            f"pool: expected the cache's {cache.capacity} blocks of {cache.block_size} tokens, got {pool.num_blocks} "
            f"of {pool.block_size}"
        )


def _fingerprint(cache: PrefixCache, pool: PagedPool, model: str) -> dict[str, str | int]:
    """What must be the same for K and V to mean the same."""
    return {
        "format": FORMAT,
        "model": model,
        "layout": pool.layout.name,
        "dtype": str(pool.dtype),
        "num_layers": pool.num_layers,
        "num_kv_heads": pool.num_kv_heads,
        "block_size": cache.block_size,
        "head_dim": pool.head_dim,
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """What the file says about itself, and its arrays. CacheFileError when it is not there or not whole."""
    try:
        with path.open("rb") as file:
            checksum, stated, _ = _checksum(file)
            if checksum != stated:
                raise CacheFileError(f"{path}: altered or truncated: its contents do not have the checksum it names")
            file.seek(0)
            loaded = mx.load(file, format="safetensors", return_metadata=True)
            arrays, about = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
            about.pop("sha256")
            return {name: json.loads(x) for name, x in about.items()}, {name: np.array(x) for name, x in arrays.items()}
    except CacheFileError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise CacheFileError(f"{path}: no prefix cache that can be read: {error}") from error


def _checksum(file: BinaryIO) -> tuple[bytes, bytes, int]:
    """The sha256 of the file, BLANK standing in its place; what does stand there; and where that is.

    Taken over the bytes before anything interprets them, so that a damaged header meets no parser.
    """
    file.seek(0)
    size = file.read(8)  # a safetensors file: the size of its header, the header as JSON, the arrays
    header = file.read(min(int.from_bytes(size, "little"), os.fstat(file.fileno()).st_size))
    at = header.index(_NAME) + len(_NAME)
    digest = hashlib.sha256(size + header[:at] + BLANK + header[at + len(BLANK) :])
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest().encode(), header[at : at + len(BLANK)], len(size) + at
