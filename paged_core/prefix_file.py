"""A prefix cache in a file: the K and V of findable blocks, so that another process starts warm."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from paged_core.errors import CacheFileError
from paged_core.pool import PagedPool
from paged_core.prefix import Entry, PrefixCache

FORMAT = "paged_core prefix cache 1"


def save(cache: PrefixCache, path: str | Path, pool: PagedPool, *, model: str) -> int:
    """Write every block that `cache` can find from its prompt's beginning on, with its K and V in `pool`; how many.

    `model` names the weights that computed them: K and V of other weights are other numbers. A safetensors file, put in
    place in one step.
    """
    prompts = cache.prompts()
    rows: dict[bytes, tuple[int, Entry]] = {}  # entry's key -> its row in the file, parents first
    for entry in (entry for prompt in prompts for entry in prompt):
        rows.setdefault(entry.key, (len(rows), entry))
    entries = [entry for _, entry in rows.values()]
    contents = pool.read_blocks([entry.block for entry in entries])
    tokens = np.array([np.frombuffer(entry.content, np.int64) for entry in entries], np.int64)
    arrays = {f"pool.{i}": mx.array(content) for i, content in enumerate(contents)}
    arrays["tokens"] = mx.array(tokens.reshape(len(entries), cache.block_size))
    about = {
        "fingerprint": json.dumps(_fingerprint(cache, pool, model)),
        "prompts": json.dumps([[rows[entry.key][0] for entry in prompt] for prompt in prompts]),
        "salts": json.dumps([cast(bytes, prompt[0].before).hex() for prompt in prompts]),
    }
    about["sha256"] = _digest(arrays, about)
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished.safetensors")
    try:
        mx.save_safetensors(str(unfinished), arrays, about)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise CacheFileError(f"path: cannot write {path}: {error}") from error
    return len(entries)


def load(cache: PrefixCache, path: str | Path, pool: PagedPool, *, model: str) -> int:
    """Make the blocks of a file findable, as far as free blocks go; how many there came. Nothing is evicted for them.

    CacheFileError, and nothing loaded, when the file is not there, truncated, altered, or of another model, layout,
    dtype, geometry or block size.
    """
    try:
        loaded = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, about = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
        whole = about.get("sha256") == _digest(
            arrays, {name: about[name] for name in ("fingerprint", "prompts", "salts")}
        )
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise CacheFileError(f"{path}: no prefix cache that can be read: {error}") from error
    if not whole:
        raise CacheFileError(f"{path}: altered or truncated: its contents do not have the checksum it names")
    theirs, ours = json.loads(about["fingerprint"]), _fingerprint(cache, pool, model)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise CacheFileError(f"{path}: made for another cache: {name} is {theirs.get(name)!r}, here {value!r}")
    tokens = np.array(arrays["tokens"])
    rows: list[int] = []
    blocks: list[int] = []
    for prompt, salt in zip(json.loads(about["prompts"]), json.loads(about["salts"]), strict=True):
        chain = cache.chain(tokens[prompt].reshape(-1).tolist(), bytes.fromhex(salt))
        known = cache.find_whole(chain)
        missing = prompt[len(known) :][: cache.free_count]
        added = cache.allocate_n(len(missing))
        rows += missing
        blocks += added
        cache.register(chain, [*known, *added])
    pool.write_blocks(blocks, [np.array(arrays[f"pool.{i}"])[rows] for i in range(len(pool.arrays))])
    cache.free(blocks)
    return len(blocks)


def _fingerprint(cache: PrefixCache, pool: PagedPool, model: str) -> dict:
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


def _digest(arrays: dict[str, mx.array], about: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(about):
        digest.update(f"{name}={about[name]}\n".encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}\n".encode())
        digest.update(np.ascontiguousarray(np.array(arrays[name])).data)
    return digest.hexdigest()
