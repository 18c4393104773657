"""The prefix cache: full blocks stay findable by what they hold, shared while in use, evicted when space is short."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from paged_core.allocator import BlockAllocator
from paged_core.errors import InvalidBlock, PoolExhausted
from paged_core.scalars import integer, positive

if TYPE_CHECKING:
    from pathlib import Path

    from paged_core.pool import PagedPool


def _sha256(data: bytes) -> bytes:
    return sha256(data).digest()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Entry:
    """What a block holds, and after what. It is what chains and later entries point to, so it outlives its block: they
    are the same tokens after the same tokens when another block holds them."""

    key: bytes
    content: bytes  # the block's tokens, int64
    before: Entry | bytes  # the entry of the block before it; the salt for the first
    block: int | None = None  # None when it was evicted, or has not come yet


class BlockChain:
    """The tokens of one sequence as the cache knows them: a key for each full block, made of the block's tokens and of
    the key before it, so that equal keys mean equal tokens *from the first one on*.

        key[i] = hash(key[i-1] + tokens of block i),    key[-1] = hash(salt)

    Grows with the sequence; each block is hashed once. Tokens are any 64-bit integers. Chains with different salts
    (models, tenants, adapters, images) never meet. Source: the automatic prefix caching of vLLM.

    TypeError for a token that is no integer, OverflowError for one of more than 64 bits; then nothing was appended.
    """

    def __init__(
        self,
        tokens: Iterable[int] = (),
        *,
        block_size: int,
        salt: bytes = b"",
        hash_function: Callable[[bytes], bytes] = _sha256,
    ) -> None:
        self.block_size = positive("block_size", block_size)
        if not isinstance(salt, bytes):
            raise TypeError(f"salt: expected bytes, got {salt!r}")
        self.salt = salt
        self.num_tokens = 0
        self.keys: list[bytes] = []  # one for each full block
        self.contents: list[bytes] = []  # the tokens of each full block, int64
        self.entries: list[Entry] = []  # the cache's, for the first of them: as far as it was matched or registered
        self._hash = hash_function
        self._last_key = hash_function(b"paged_core prefix\0" + salt)
        self._tail = array("q")  # the tokens after the last full block
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        added = array("q", list(tokens))  # through a list: the bytes of a `bytes` would be taken for whole numbers
        self.num_tokens += len(added)
        self._tail.extend(added)
        full = len(self._tail) // self.block_size * self.block_size
        for start in range(0, full, self.block_size):
            content = self._tail[start : start + self.block_size].tobytes()
            self._last_key = self._hash(self._last_key + content)
            self.keys.append(self._last_key)
            self.contents.append(content)
        del self._tail[:full]


class PrefixCache:
    """A BlockAllocator that remembers. It offers the allocator's verbs, so whatever takes the one takes the other.

    A block is in one of three states, counted apart:

        free      on the allocator's free list; holds nothing
        cached    findable, and nobody uses it: the only reference is the cache's own
        in use    somebody else holds a reference, whether it is findable or not

    `register` makes full blocks findable, and the cache takes a reference of its own to each; `match` finds the longest
    known beginning of a prompt and shares its blocks. When the allocator runs short, cached blocks are evicted, the one
    whose last user left longest ago first, and of a sequence's blocks the last one first, since none is found without
    those before it. Everything is O(1) a block.

    A hit compares tokens, not only keys: the block's own, and through the entry before it all those that came earlier.
    So a hash collision can never serve another prompt's K and V; it costs a miss. `hits`, `misses` (full blocks looked
    for) and `evictions` count blocks.

    Two models over one budget of blocks, each with a pool of its own, share one cache and give each its own salt.

    Source: the block pool of vLLM v1, where free and cached blocks wait in one queue; here free ones go first.
    """

    def __init__(
        self, allocator: BlockAllocator, *, block_size: int, hash_function: Callable[[bytes], bytes] = _sha256
    ) -> None:
        self.allocator = allocator
        self.block_size = positive("block_size", block_size)
        self.hits = self.misses = self.evictions = 0
        self._hash = hash_function
        self._entry_of: dict[int, Entry] = {}  # of each findable block
        # Every entry that a findable block, a chain or a later entry points to; gone with the last of them.
        self._by_key: WeakValueDictionary[bytes, Entry] = WeakValueDictionary()
        self._cached: OrderedDict[int, None] = OrderedDict()  # the next to be evicted first
        self._peak_in_use = allocator.in_use

    def __repr__(self) -> str:
        return (
            f"PrefixCache({self.in_use} in use, {self.cached_count} cached, {self.free_count} free of {self.capacity} "
            f"blocks; {self.hits} hits, {self.misses} misses, {self.evictions} evictions)"
        )

    @property
    def capacity(self) -> int:
        """Blocks in all: free + cached + in use."""
        return self.allocator.capacity

    @property
    def free_count(self) -> int:
        """Blocks that hold nothing."""
        return self.allocator.free_count

    @property
    def cached_count(self) -> int:
        """Findable blocks that nobody uses. `allocate_n` can hand out these and the free ones."""
        return len(self._cached)

    @property
    def available_count(self) -> int:
        """Blocks that `allocate_n` can hand out."""
        return self.free_count + self.cached_count

    @property
    def in_use(self) -> int:
        """Blocks that somebody besides the cache holds a reference to."""
        return self.allocator.in_use - self.cached_count

    @property
    def peak_in_use(self) -> int:
        """The most blocks ever in use at once."""
        return self._peak_in_use

    @property
    def findable_count(self) -> int:
        """Blocks that the cache keeps findable, cached or in use."""
        return len(self._entry_of)

    @property
    def findable_blocks(self) -> tuple[int, ...]:
        """Those blocks, in the order in which they were registered. A copy, for whoever looks on."""
        return tuple(self._entry_of)

    @property
    def eviction_order(self) -> tuple[int, ...]:
        """The cached blocks, the next to be evicted first. A copy, for whoever looks on."""
        return tuple(self._cached)

    def ref_count(self, block: int) -> int:
        """References besides the cache's own; 0 when the block is free or cached. InvalidBlock when there is none."""
        return self.allocator.ref_count(block) - (block in self._entry_of)

    def is_shared(self, block: int) -> bool:
        """Whether a write into `block` would be seen by somebody besides the one who holds it: another user, or whoever
        finds it later."""
        return self.allocator.is_shared(block)  # the cache's own reference included

    # ------------------------------------------------------------------------------------- the allocator's own verbs

    def allocate(self) -> int:
        """One block; PoolExhausted when none is free and none can be evicted."""
        return self.allocate_n(1)[0]

    def allocate_n(self, n: int) -> list[int]:
        """`n` blocks, all or none, evicting no more than is needed. PoolExhausted evicts nothing."""
        n = integer("n", n, at_least=0)
        if n > self.available_count:
            raise PoolExhausted(needed=n, free=self.available_count, capacity=self.capacity)
        for _ in range(n - self.free_count):
            self._evict()
        blocks = self.allocator.allocate_n(n)
        self._peak_in_use = max(self._peak_in_use, self.in_use)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each; a cached block is in use again. InvalidBlock, and nothing changed, when one is
        free."""
        blocks = _several(blocks)
        self.allocator.share(blocks)
        for block in blocks:
            self._cached.pop(block, None)
        self._peak_in_use = max(self._peak_in_use, self.in_use)

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each. A findable block without users stays, cached, until it is evicted.

        All or none: InvalidBlock when a block is not live, or listed more often than its users hold it.
        """
        blocks = _several(blocks)
        listed: dict[int, int] = {}
        for block in blocks:
            listed[block] = listed.get(block, 0) + 1
            if block in self._entry_of and listed[block] > self.ref_count(block):
                raise InvalidBlock(
                    f"block {block} is freed more often than it is referenced ({self.ref_count(block)} reference(s) "
                    "besides the cache's own)"
                )
        self.allocator.free(blocks)
        for block in reversed(blocks):  # a sequence's last block is evicted first
            if block in self._entry_of and self.ref_count(block) == 0:
                self._cached[block] = None

    # ---------------------------------------------------------------------------------------------------- the cache

    def chain(self, tokens: Iterable[int] = (), salt: bytes = b"") -> BlockChain:
        """A chain that fits this cache."""
        return BlockChain(tokens, block_size=self.block_size, salt=salt, hash_function=self._hash)

    def find(self, chain: BlockChain) -> list[int]:
        """The blocks of the longest beginning of `chain` that is known. Only a look: nothing is shared or counted.

        Never the last token: it has to be computed, for its logits are the answer. So a prompt of exactly n blocks
        finds n - 1 at the most.
        """
        return _blocks(self._known(chain, _findable(chain)))

    def find_whole(self, chain: BlockChain) -> list[int]:
        """As `find`, the block of the last token included: for whoever wants the blocks, and computes nothing."""
        return _blocks(self._known(chain, len(chain.keys)))

    def match(self, chain: BlockChain) -> list[int]:
        """The blocks that `find` finds, a reference to each for the caller; counted as hits, the rest as misses."""
        chain.entries = self._known(chain, _findable(chain))
        found = _blocks(chain.entries)
        self.share(found)
        self.hits += len(found)
        self.misses += _findable(chain) - len(found)
        return found

    def register(self, chain: BlockChain, blocks: Sequence[int]) -> None:
        """Make the full blocks of `chain` findable that are not yet, as far as `blocks` go: the sequence's, in its
        order, with K and V written.

        Content that is findable elsewhere stays there; this block of it is only freed with its sequence. Content whose
        key collides with another's is not findable, nor is what comes after it. InvalidBlock, and nothing changed, for
        a block that nobody uses, is listed twice, or is findable as something else.
        """
        self._check(chain)
        while chain.entries and chain.entries[-1].block is None:
            chain.entries.pop()  # evicted in the meantime
        known = len(chain.entries)
        blocks = blocks[known : len(chain.keys)]
        for i, block in enumerate(blocks, known):
            if self.ref_count(block) == 0:
                raise InvalidBlock(f"blocks[{i}]: block {block} is not in use, so nothing says what it holds")
            entry = self._entry_of.get(block)
            if entry and (entry.key, entry.content) != (chain.keys[i], chain.contents[i]):
                raise InvalidBlock(f"blocks[{i}]: block {block} is findable already, as other tokens")
        if len(set(blocks)) < len(blocks):
            raise InvalidBlock(f"blocks: expected each block once, got {list(blocks)}")
        for i, block in enumerate(blocks, known):
            before = chain.entries[-1] if chain.entries else chain.salt
            entry = self._by_key.get(chain.keys[i])
            if entry is None:
                entry = self._by_key[chain.keys[i]] = Entry(chain.keys[i], chain.contents[i], before)
            elif entry.content != chain.contents[i] or entry.before != before:
                return  # a collision
            if entry.block is None:
                self.allocator.share([block])
                entry.block = block
                self._entry_of[block] = entry
            chain.entries.append(entry)

    def prompts(self) -> list[list[Entry]]:
        """What can be found, as the longest findable beginnings, the newest first: each the entries of its blocks."""
        inner = {entry.before for entry in self._entry_of.values()}
        paths = []
        for entry in reversed(self._entry_of.values()):
            if entry in inner:
                continue
            path = [entry]
            while isinstance(path[-1].before, Entry):
                path.append(path[-1].before)
            if all(entry.block is not None for entry in path):  # else what comes before was evicted: it is not found
                paths.append(path[::-1])
        return paths

    def save(self, path: str | Path, pool: PagedPool, *, model: str, salts: Collection[bytes] | None = None) -> int:
        """Write what can be found, with its K and V, to a safetensors file: see prefix_file.save."""
        from paged_core import prefix_file  # the only place where this wing meets a tensor

        return prefix_file.save(self, path, pool, model=model, salts=salts)

    def load(self, path: str | Path, pool: PagedPool, *, model: str) -> int:
        """Make what `save` wrote findable here, as far as free blocks go: see prefix_file.load."""
        from paged_core import prefix_file

        return prefix_file.load(self, path, pool, model=model)

    def forget(self) -> None:
        """Make every cached block free: for weights that have changed. InvalidBlock, and nothing changed, while a block
        is in use: its sequence would go on to make K and V of the old weights findable."""
        if self.in_use:
            raise InvalidBlock(f"{self.in_use} block(s) are in use: what they hold cannot be forgotten")
        while self._cached:
            self._evict()

    def _known(self, chain: BlockChain, num_blocks: int) -> list[Entry]:
        """The entries of the longest known beginning of `chain`, of `num_blocks` at the most."""
        self._check(chain)
        known: list[Entry] = []
        before: Entry | bytes = chain.salt
        for key, content in zip(chain.keys[:num_blocks], chain.contents, strict=False):
            entry = self._by_key.get(key)
            if entry is None or entry.block is None or entry.content != content or entry.before != before:
                break
            known.append(entry)
            before = entry
        return known

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        self._entry_of.pop(block).block = None
        self.allocator.free([block])
        self.evictions += 1

    def _check(self, chain: BlockChain) -> None:
        if chain.block_size != self.block_size:
            raise ValueError(f"chain: expected blocks of {self.block_size} tokens, got {chain.block_size}")


def _findable(chain: BlockChain) -> int:
    """The full blocks of `chain` that leave its last token to be computed."""
    return max(0, chain.num_tokens - 1) // chain.block_size


def _blocks(entries: Iterable[Entry]) -> list[int]:
    return [entry.block for entry in entries if entry.block is not None]


def _several(blocks: Iterable[int]) -> list[int]:
    if not isinstance(blocks, Iterable):
        raise TypeError(f"blocks: expected several block ids, got {blocks!r}")
    return list(blocks)
