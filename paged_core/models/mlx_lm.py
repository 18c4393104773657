"""mlx-lm's own models on a paged pool: what its `generate` takes as `prompt_cache`. Nothing of mlx-lm is patched.

    conversation = paged_prompt_cache(model, num_blocks=256)
    mlx_lm.generate(model, tokenizer, prompt, prompt_cache=conversation, max_tokens=100)
    conversation.release()

What it costs: mlx-lm's attention takes K and V as dense arrays and offers no hook, so at every token each layer gathers
all that the conversation holds (a sliding layer, its window). K and V are read from the pool, written out in order, and
read again by attention, where `paged_attention` reads them once. And the pool settles every write, so MLX waits for
each layer before it hears of the next; mlx-lm's own preparing of the next token while this one is computed is lost.
`python -m benchmarks mlx_lm` measures both.

What it gives: no memory is reserved, many conversations share one pool and, with a PrefixCache, their beginnings;
forks share what they have in common; every model's cache can be trimmed, those with sliding windows included.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from paged_core.allocator import BlockAllocator
from paged_core.arguments import as_host_ints, check_dtype, check_shape
from paged_core.errors import PoolExhausted
from paged_core.layouts import PoolLayout
from paged_core.pool import PagedPool
from paged_core.prefix import BlockChain, PrefixCache
from paged_core.scalars import integer
from paged_core.sequence import PagedSeqState

try:
    from mlx_lm.models.base import create_causal_mask
    from mlx_lm.models.cache import KVCache, RotatingKVCache, create_attention_mask, make_prompt_cache
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"paged_core.models.mlx_lm needs mlx-lm, and there is no {missing.name} here: pip install mlx-lm",
        name=missing.name,
    ) from None


def paged_prompt_cache(
    model,
    *,
    num_blocks: int,
    block_size: int = 16,
    allocator: BlockAllocator | PrefixCache | None = None,
    layout: PoolLayout = PoolLayout.HND,
    salt: bytes = b"",
) -> PagedPromptCache:
    """A pool for `model` and an empty conversation in it; `another()` begins further ones in the same pool.

    Layers, KV heads, head_dim and dtype are read off the model. `allocator` hands out the pool's blocks: a new
    BlockAllocator, unless a BlockAllocator or PrefixCache is given. `salt` keeps models apart that share a PrefixCache.

    TypeError for a model with a layer that keeps anything but K and V of each token (a state space model's), ValueError
    when head_dim is not the same for K, V and all layers: one pool has one shape.
    """
    heads, dtype, windows = _shape(model)
    pool = PagedPool(
        num_layers=len(windows), num_blocks=num_blocks, num_kv_heads=heads[0], block_size=block_size, head_dim=heads[1],
        dtype=dtype, layout=layout,
    )  # fmt: skip
    if allocator is None:
        allocator = BlockAllocator(pool.num_blocks)
    if not isinstance(allocator, (BlockAllocator, PrefixCache)):
        raise TypeError(f"allocator: expected a BlockAllocator or a PrefixCache, got {type(allocator).__name__}")
    if allocator.capacity != pool.num_blocks:
        raise ValueError(f"allocator: expected one of {pool.num_blocks} blocks, got one of {allocator.capacity}")
    if isinstance(allocator, PrefixCache) and allocator.block_size != pool.block_size:
        raise ValueError(f"allocator: expected blocks of {pool.block_size} tokens, got {allocator.block_size}")
    return PagedPromptCache(pool, allocator, windows, salt)


def _shape(model) -> tuple[tuple[int, int], mx.Dtype, list[int | None]]:
    """(KV heads, head_dim), dtype, and the sliding window of each layer, None for one that sees everything.

    Models name their sizes as they please, but all of them fill mlx-lm's own cache. So one is filled with one token;
    MLX is lazy and nobody asks for the numbers: nothing is computed, and the shapes are known.
    """
    own = make_prompt_cache(model)
    for layer, cache in enumerate(own):
        if type(cache) is not KVCache and not (type(cache) is RotatingKVCache and cache.keep == 0):
            raise TypeError(
                f"model: layer {layer} keeps a {type(cache).__name__}, which no paged pool can stand in for: expected "
                "KVCache, or RotatingKVCache without tokens that it keeps for ever"
            )
    model(mx.zeros((1, 1), mx.int32), cache=own)
    shapes = set()
    for layer, cache in enumerate(own):
        if cache.keys is None:
            raise ValueError(f"model: expected every layer to store K and V, layer {layer} stored none")
        (_, heads, _, head_dim), value_dim = cache.keys.shape, cache.values.shape[3]
        if value_dim != head_dim:
            raise ValueError(f"model: layer {layer} has keys of {head_dim} and values of {value_dim}: one pool has one")
        shapes.add((heads, head_dim, cache.keys.dtype))
    if len(shapes) != 1:
        raise ValueError(f"model: expected layers that are alike, got (KV heads, head_dim, dtype) of {shapes}")
    ((heads, head_dim, dtype),) = shapes
    return (heads, head_dim), dtype, [getattr(cache, "max_size", None) for cache in own]


class PagedPromptCache(list):
    """One conversation: the list that mlx-lm wants, a cache for each layer, over one block table.

    `pool`, `allocator` and `seq` (a PagedSeqState: the blocks, and the tokens that every layer holds) may be looked at
    at any time. After `generate` it holds the prompt and every token that came out, the one that ended it included, and
    the next prompt continues from there. Room is made when the first layer writes: PoolExhausted then leaves every
    layer and the table as they were, and the conversation can be read, trimmed, released, or go on once there is room.
    mlx-lm computes one token ahead, so the token that was chosen but not yet shown when the pool ran out is lost.

    One conversation is one row: mlx-lm's batch_generate, quantized caches and saving are not offered.
    """

    def __init__(
        self,
        pool: PagedPool,
        allocator: BlockAllocator | PrefixCache,
        windows: Sequence[int | None],
        salt: bytes = b"",
    ) -> None:
        self._shared = _Shared(pool, allocator, len(windows))
        super().__init__(PagedLayerCache(self._shared, layer, window) for layer, window in enumerate(windows))
        self.pool, self.allocator, self.salt = pool, allocator, salt

    def __repr__(self) -> str:
        return f"PagedPromptCache({len(self)} layers, {self.seq!r}, {self.allocator!r})"

    @property
    def seq(self) -> PagedSeqState:
        """The blocks, and the tokens that every layer holds."""
        return self._shared.seq

    def another(self) -> PagedPromptCache:
        """An empty conversation in the same pool."""
        return PagedPromptCache(self.pool, self.allocator, [cache.window for cache in self], self.salt)

    def fork(self) -> PagedPromptCache:
        """A second conversation that has held the same tokens so far. It shares their blocks; the block that either of
        the two writes into next is copied first. InvalidBlock when this one holds no tokens."""
        other = self.another()
        other._shared.seq = self.seq.fork(self.allocator)
        other._shared.settle()
        return other

    def __deepcopy__(self, memo):
        raise TypeError("a paged cache is not copied, for its blocks are the pool's: use fork(), which shares them")

    def trim(self, num_tokens: int) -> int:
        """Forget the last tokens, as many of them as there are, and give back the blocks that held nothing else. How
        many were forgotten. trim(0) forgets a forward pass that was broken off between two layers."""
        num_tokens = min(integer("num_tokens", num_tokens, at_least=0), self.seq.len)
        self._shared.trim(self.seq.len - num_tokens)
        return num_tokens

    def release(self) -> None:
        """Give every block back and become empty."""
        self.seq.release(self.allocator)
        self._shared.settle()

    def match(self, tokens: Sequence[int] | mx.array) -> int:
        """Begin with as much of the prompt `tokens` as the PrefixCache knows. How many tokens that is: mlx-lm is to be
        given the rest. ValueError when the conversation holds tokens already."""
        if self.seq.blocks:
            raise ValueError(f"match: expected an empty conversation, this one holds {self.seq.len} tokens")
        cache, chain = self._chain("match", tokens)
        blocks = cache.match(chain)
        self.seq.adopt(blocks, len(blocks) * self.pool.block_size)
        self._shared.settle()
        return self.seq.len

    def register(self, tokens: Sequence[int] | mx.array) -> None:
        """Make full blocks findable. `tokens` are the conversation's, from the first one on, those generated included
        as far as they are to be found; any beyond those it holds are left out."""
        cache, chain = self._chain("register", tokens[: self.seq.len])
        cache.register(chain, self.seq.blocks)

    def _chain(self, verb: str, tokens: Sequence[int] | mx.array) -> tuple[PrefixCache, BlockChain]:
        if not isinstance(self.allocator, PrefixCache):
            raise TypeError(f"{verb}: expected a conversation whose allocator is a PrefixCache, got {self.allocator!r}")
        return self.allocator, self.allocator.chain(as_host_ints("tokens", tokens).tolist(), self.salt)


class _Shared:
    """What the layers of one conversation share. It knows none of them: with the last of them the pool is free to go,
    and waits for no garbage collector."""

    def __init__(self, pool: PagedPool, allocator: BlockAllocator | PrefixCache, num_layers: int) -> None:
        self.pool, self.allocator = pool, allocator
        self.seq = PagedSeqState(pool.block_size, pool.num_blocks)
        # Of each layer: the tokens held (within a forward pass, the layers that have written are ahead of the others),
        # and the first of those handed out last.
        self.offsets, self.firsts = [0] * num_layers, [0] * num_layers
        self._slots = mx.zeros((0,), mx.int32)  # of the tokens of this forward pass
        self._num_written = 0  # layers that have written them

    def settle(self) -> None:
        """Every layer holds what the sequence holds."""
        self._num_written = 0
        self.offsets[:] = [self.seq.len] * len(self.offsets)
        self.firsts[:] = [0] * len(self.firsts)

    def trim(self, target_len: int) -> None:
        self.seq.trim(self.allocator, target_len)
        self.settle()

    def append(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """One layer's K and V, [1, num_kv_heads, num_tokens, head_dim]. The sequence is longer once all have written.

        All that may be refused is refused before the first layer writes."""
        for name, x in (("keys", keys), ("values", values)):
            check_shape(name, x, (1, self.pool.num_kv_heads, "num_tokens", self.pool.head_dim))
            check_dtype(name, x, self.pool.dtype)
        if self.offsets[layer] != self.seq.len:
            raise RuntimeError(
                f"layer {layer} holds {self.offsets[layer]} tokens, the conversation {self.seq.len}: a forward pass "
                "was broken off; trim(0) forgets it, release() ends the conversation"
            )
        end = self.seq.len + keys.shape[2]
        if self._num_written == 0:
            self._slots = self._make_room(end)
        k, v = (x[0].transpose(1, 0, 2) for x in (keys, values))
        self.pool.write(layer, k, v, self._slots, check=False)
        self.offsets[layer] = end
        self._num_written += 1
        if self._num_written == len(self.offsets):
            self._num_written, self.seq.len = 0, end
            self.seq.sync_context_len()

    def _make_room(self, end: int) -> mx.array:
        """The slots of the tokens from here to `end`, in blocks that are this conversation's own. All or none."""
        seq, blocks, size = self.seq, self.allocator, self.pool.block_size
        entry, offset = divmod(seq.len, size)
        copies = offset > 0 and blocks.is_shared(seq.blocks[entry])
        needed = -(-end // size) - len(seq.blocks) + copies
        available = blocks.available_count if isinstance(blocks, PrefixCache) else blocks.free_count
        if needed > available:
            raise PoolExhausted(needed=needed, free=available, capacity=blocks.capacity)
        for shared, own in seq.unshare(blocks):
            self.pool.copy_blocks([shared], [own])
        seq.ensure_capacity(blocks, end)
        positions = np.arange(seq.len, end)
        return mx.array(np.array(seq.blocks)[positions // size] * size + positions % size, mx.int32)


class PagedLayerCache:
    """What one layer of an mlx-lm model sees of a conversation: mlx-lm's protocol for a cache.

    A sliding layer is handed what mlx-lm's RotatingKVCache would hand it, the window before the newest tokens, but in
    order; the mask says the rest. Its older tokens stay in the pool as long as the conversation does, for the blocks
    are shared with layers that see everything.
    """

    def __init__(self, shared: _Shared, layer: int, window: int | None) -> None:
        self.layer, self.window = layer, window
        self._shared = shared

    @property
    def offset(self) -> int:
        """Tokens held: the position of the next one."""
        return self._shared.offsets[self.layer]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store the newest tokens' K and V [1, num_kv_heads, num_tokens, head_dim]; all that the layer is to see."""
        first = self.offset - self._before
        self._shared.append(self.layer, keys, values)
        self._shared.firsts[self.layer] = first
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What was handed out last, gathered again: some models let several layers read the K and V of one."""
        pool, blocks = self._shared.pool, self._shared.seq.blocks
        entry, offset = divmod(self._shared.firsts[self.layer], pool.block_size)
        k, v = pool.gather(self.layer, blocks[entry:], self.offset - entry * pool.block_size)
        return k[offset:].transpose(1, 0, 2)[None], v[offset:].transpose(1, 0, 2)[None]

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False):
        """The mask for `N` new tokens, as mlx-lm's own cache of this kind of layer makes it: None, "causal" or an array
        [N, tokens handed out]."""
        if self.window is None:
            return create_attention_mask(N, self.offset, return_array, window_size)
        window = min(window_size or self.window, self.window)
        if self._before + N <= window and (N == 1 or not return_array):
            return None if N == 1 else "causal"
        return create_causal_mask(N, self._before, window_size=window)

    @property
    def _before(self) -> int:
        """Of the tokens held, those that the next ones are to see: the last window - 1 of them in a sliding layer."""
        return self.offset if self.window is None else min(self.offset, self.window - 1)

    @property
    def state(self) -> tuple:
        """K, V and how many tokens: for whoever waits for them."""
        return (*self.keys_and_values(), self.offset)

    def size(self) -> int:
        """Tokens held."""
        return self.offset

    def empty(self) -> bool:
        return self.offset == 0

    @property
    def nbytes(self) -> int:
        """This layer's share of the blocks held, those shared with others included."""
        pool = self._shared.pool
        return len(self._shared.seq.blocks) * (pool.nbytes // (pool.num_layers * pool.num_blocks))

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forget this layer's last `n` tokens. mlx-lm asks every layer in turn: the last one gives the blocks back."""
        n, shared = min(integer("n", n, at_least=0), self.offset), self._shared
        shared.offsets[self.layer] -= n
        if len(set(shared.offsets)) == 1:
            shared.trim(self.offset)
        return n

    def to_quantized(self, group_size: int = 64, bits: int = 4):
        raise NotImplementedError("a paged cache is not quantized: leave kv_bits out")
