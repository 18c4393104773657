"""The prefix cache: full blocks stay findable by what they hold, shared while in use, evicted when space is short."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from paged_core.allocator import BlockAllocator
from paged_core.errors import InvalidBlock, PoolExhausted
from paged_core.scalars import integer, positive

if TYPE_CHECKING:
    from pathlib import Path

    from paged_core.pool import PagedPool


def _sha256(data: bytes) -> bytes:
    return sha256(data).digest()


class BlockChain:
    """The tokens of one sequence as the cache knows them: a key for each full block, made of the block's tokens and of
    the key before it, so that equal keys mean equal tokens *from the first one on*.

        key[i] = hash(key[i-1] + tokens of block i),    key[-1] = the salt

    Grows with the sequence; each block is hashed once. Chains with different salts (tenants, adapters, images) never
    meet. Source: the automatic prefix caching of vLLM.
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
        self.salt = bytes(salt)
        self.num_tokens = 0
        self.keys: list[bytes] = []  # one for each full block
        self.contents: list[bytes] = []  # the tokens of each full block, int64
        self.entries: list[Entry] = []  # the cache's, for the first of them: as far as it was matched or registered
        self._hash = hash_function
        self._last_key = hash_function(b"paged_core prefix\0" + self.salt)
        self._tail = array("q")  # the tokens after the last full block
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        added = tokens if isinstance(tokens, array) else array("q", tokens)
        self.num_tokens += len(added)
        self._tail.extend(added)
        full = len(self._tail) // self.block_size * self.block_size
        for start in range(0, full, self.block_size):
            content = self._tail[start : start + self.block_size].tobytes()
            self._last_key = self._hash(self._last_key + content)
            self.keys.append(self._last_key)
            self.contents.append(content)
        del self._tail[:full]


class Entry(NamedTuple):
    """A findable block: what it holds, and after what."""

    key: bytes
    block: int
    content: bytes
    before: Entry | bytes  # the entry of the block before it; the salt for the first


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

    A hit compares tokens, not only keys, so a hash collision can never serve another prompt's K and V. `hits`, `misses`
    (full blocks looked for) and `evictions` count blocks.
    """

    def __init__(
        self, allocator: BlockAllocator, *, block_size: int, hash_function: Callable[[bytes], bytes] = _sha256
    ) -> None:
        self.allocator = allocator
        self.block_size = positive("block_size", block_size)
        self.hits = self.misses = self.evictions = 0
        self._hash = hash_function
        self._by_key: dict[bytes, Entry] = {}
        self._key_of: dict[int, bytes] = {}  # findable block -> its key
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
        """Blocks that `match` can find, cached or in use."""
        return len(self._key_of)

    @property
    def eviction_order(self) -> tuple[int, ...]:
        """The cached blocks, the next to be evicted first. A copy, for whoever looks on."""
        return tuple(self._cached)

    @property
    def findable_blocks(self) -> tuple[int, ...]:
        """The blocks that `match` can find, in the order of their registration. A copy, for whoever looks on."""
        return tuple(self._key_of)

    def ref_count(self, block: int) -> int:
        """References besides the cache's own."""
        return self.allocator.ref_count(block) - (block in self._key_of)

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
        """One more reference to each; InvalidBlock, and nothing changed, when one is not live."""
        blocks = list(blocks)
        self.allocator.share(blocks)
        for block in blocks:
            self._cached.pop(block, None)
        self._peak_in_use = max(self._peak_in_use, self.in_use)

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each. A findable block without users stays, cached, until it is evicted.

        All or none: InvalidBlock when a block is not live, or listed more often than its users hold it.
        """
        blocks = list(blocks)
        listed: dict[int, int] = {}
        for block in blocks:
            listed[block] = listed.get(block, 0) + 1
            if block in self._key_of and listed[block] > self.ref_count(block):
                raise InvalidBlock(
                    f"block {block} is freed more often than it is referenced ({self.ref_count(block)} reference(s) "
                    "besides the cache's own)"
                )
        self.allocator.free(blocks)
        for block in reversed(blocks):  # a sequence's last block is evicted first
            if block in self._key_of and self.ref_count(block) == 0:
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
        return self._find_up_to(_findable(chain), chain)

    def match(self, chain: BlockChain) -> list[int]:
        """The blocks that `find` finds, a reference to each for the caller; counted as hits, the rest as misses."""
        found = self.find(chain)
        self.share(found)
        self.hits += len(found)
        self.misses += _findable(chain) - len(found)
        return found

    def register(self, chain: BlockChain, blocks: Sequence[int]) -> None:
        """Make the full blocks of `chain` findable that are not yet. `blocks` are the sequence's, in its order, with K
        and V written. A block whose content is findable elsewhere stays as it is, and is freed with its sequence.
        InvalidBlock for a block that is not live, or findable as something else.
        """
        self._check(chain)
        while chain.entries and self._by_key.get(chain.entries[-1].key) is not chain.entries[-1]:
            chain.entries.pop()  # evicted in the meantime
        for block in blocks[len(chain.entries) : len(chain.keys)]:
            entry = self._find(chain)
            if entry is None:
                entry = self._add(chain, block)
            if entry is None:
                return
            chain.entries.append(entry)

    def find_whole(self, chain: BlockChain) -> list[int]:
        """As `find`, the block of the last token included: for whoever wants the blocks, and computes nothing."""
        return self._find_up_to(len(chain.keys), chain)

    def _find_up_to(self, num_blocks: int, chain: BlockChain) -> list[int]:
        self._check(chain)
        chain.entries = []
        while len(chain.entries) < num_blocks and (entry := self._find(chain)):
            chain.entries.append(entry)
        return [entry.block for entry in chain.entries]

    def _find(self, chain: BlockChain) -> Entry | None:
        """The entry of the block of `chain` that comes after its known entries."""
        i = len(chain.entries)
        before = chain.entries[-1] if chain.entries else chain.salt
        entry = self._by_key.get(chain.keys[i])
        if entry is None or entry.content != chain.contents[i]:
            return None
        if entry.before is before or (i == 0 and entry.before == before):
            return entry
        # The block before was evicted and came back as another entry, or two keys collide: compare all that is before.
        older = entry.before
        for content in reversed(chain.contents[:i]):
            if not isinstance(older, Entry) or older.content != content:
                return None
            older = older.before
        if older != chain.salt:
            return None
        entry = self._by_key[entry.key] = entry._replace(before=before)
        return entry

    def _add(self, chain: BlockChain, block: int) -> Entry | None:
        """Make `block` findable as the next one of `chain`; None when the key is another content's."""
        i = len(chain.entries)
        key = chain.keys[i]
        if key in self._by_key:
            return None
        if block in self._key_of:
            raise InvalidBlock(
                f"block {block} is findable already, as other tokens than those at {i * self.block_size}"
            )
        self.allocator.share([block])
        before = chain.entries[-1] if chain.entries else chain.salt
        entry = self._by_key[key] = Entry(key, block, chain.contents[i], before)
        self._key_of[block] = key
        return entry

    def prompts(self) -> list[list[Entry]]:
        """What can be found, as the longest findable beginnings: each the entries of its blocks, in order."""
        paths = {}
        for entry in self._by_key.values():
            path = [entry]
            while isinstance(path[-1].before, Entry) and path[-1].before.key in self._by_key:
                path.append(self._by_key[path[-1].before.key])
            if not isinstance(path[-1].before, Entry):  # else what comes before was evicted, and it is not found
                paths[entry.key] = path[::-1]
        inner = {entry.key for path in paths.values() for entry in path[:-1]}
        return [path for key, path in paths.items() if key not in inner]

    def save(self, path: str | Path, pool: PagedPool, *, model: str) -> int:
        """Write what can be found, with its K and V, to a safetensors file: see prefix_file.save."""
        from paged_core import prefix_file  # the only place where this wing meets a tensor

        return prefix_file.save(self, path, pool, model=model)

    def load(self, path: str | Path, pool: PagedPool, *, model: str) -> int:
        """Make what `save` wrote findable here, as far as free blocks go: see prefix_file.load."""
        from paged_core import prefix_file

        return prefix_file.load(self, path, pool, model=model)

    def forget(self) -> None:
        """Make every cached block free, and no block findable: for weights that have changed."""
        while self._cached:
            self._evict()
        for block in list(self._key_of):
            del self._by_key[self._key_of.pop(block)]
            self.allocator.free([block])

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        del self._by_key[self._key_of.pop(block)]
        self.allocator.free([block])
        self.evictions += 1

    def _check(self, chain: BlockChain) -> None:
        if chain.block_size != self.block_size:
            raise ValueError(f"chain: expected blocks of {self.block_size} tokens, got {chain.block_size}")


def _findable(chain: BlockChain) -> int:
    """The full blocks of `chain` that leave its last token to be computed."""
    return max(0, chain.num_tokens - 1) // chain.block_size
