"""What it costs to decide: steps of the scheduler, look-ups and operations of the prefix cache and the allocator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.timing import medians
from paged_core import BlockAllocator, Plan, PrefixCache, Scheduler

BLOCK_SIZE = 16
POOLS = (1_000, 10_000, 100_000, 1_000_000)  # blocks
NUM_RUNNING, NUM_STEPS = 256, 30


def steps() -> None:
    """A step is plan() and complete(), all requests decoding; one in 16 of them takes a new block in each step."""
    print(
        f"\nA step with {NUM_RUNNING} running sequences, in ms: the median of {NUM_STEPS} steps, pools taken in turns"
    )
    columns = {"allocator": BlockAllocator, "prefix cache": lambda n: PrefixCache(BlockAllocator(n), block_size=16)}
    rows = [(n, prompt) for prompt in (1, 4000) for n in POOLS if n * BLOCK_SIZE > NUM_RUNNING * (prompt + 46)]
    taken = medians({(row, name): decoding(make(row[0]), row[1]) for row in rows for name, make in columns.items()},
                    NUM_STEPS)  # fmt: skip
    print(f"  {'blocks':>9}{'tokens':>8}" + "".join(f"{name:>14}" for name in columns))
    for row in rows:
        print(f"  {row[0]:9,}{row[1] + 44:8,}" + "".join(f"{taken[row, name] * 1e3:14.3f}" for name in columns))


def decoding(blocks: BlockAllocator | PrefixCache, prompt: int) -> Callable[[], Plan]:
    """A scheduler whose requests, of `prompt` to `prompt` + 11 tokens, are past their prompts; each call is a step."""
    scheduler = Scheduler(blocks, block_size=BLOCK_SIZE, max_running=NUM_RUNNING, watermark=0)
    for i in range(NUM_RUNNING):
        scheduler.add(i, [i] * (prompt + i % 12), NUM_STEPS + 4)

    def step() -> Plan:
        plan = scheduler.plan()
        scheduler.complete(plan, {work.request.id: 7 for work in plan.work if work.samples})
        return plan

    scheduler.max_tokens_per_step = NUM_RUNNING * (prompt + 12)
    step()
    return step


def look_up(rounds: int) -> None:
    """From the tokens, hashes included: what a new request costs before its first chunk is planned."""
    prompt = list(range(4096))
    print(f"\nA prompt of {len(prompt):,} tokens, in ms; all of it is known but the last token")
    print(f"  {'blocks':>9}{'hashes':>10}{'look-up':>10}{'both':>10}")
    for n in POOLS:
        cache = PrefixCache(BlockAllocator(n), block_size=BLOCK_SIZE)
        chain = cache.chain(prompt)
        blocks = cache.allocate_n(len(prompt) // BLOCK_SIZE)
        cache.register(chain, blocks)
        cache.free(blocks)

        def found(chain=chain, cache=cache) -> None:
            cache.free(cache.match(chain))

        def both(cache=cache) -> None:
            cache.free(cache.match(cache.chain(prompt)))

        def hashes(cache=cache) -> None:
            cache.chain(prompt)

        taken = medians({"hashes": hashes, "look-up": found, "both": both}, 3 * rounds)
        print(f"  {n:9,}" + "".join(f"{seconds * 1e3:10.3f}" for seconds in taken.values()))


def operations(rounds: int) -> None:
    """Every operation on all blocks of a full pool, a thousand at a time; in the cache a thousand are a prompt."""
    print("\nOne operation on a full pool, in ns a block: the median over batches of 1,000, each met once, so that a")
    print("large cache is met where the processor's own caches end")
    rows = {n: {**allocator_operations(n), **cache_operations(n)} for n in POOLS}
    print(f"  {'blocks':26}" + "".join(f"{n:>12,}" for n in POOLS))
    for name in rows[POOLS[0]]:
        print(f"  {name:26}" + "".join(f"{rows[n][name]:12.0f}" for n in POOLS))


def allocator_operations(n: int) -> dict[str, float]:
    allocator = BlockAllocator(n)
    batches: list[list[int]] = []
    return {
        "allocator: allocate": per_block(n, lambda _: batches.append(allocator.allocate_n(1000))),
        "allocator: share": per_block(n, lambda i: allocator.share(batches[i])),
        "allocator: drop one of two": per_block(n, lambda i: allocator.free(batches[i])),
        "allocator: free": per_block(n, lambda i: allocator.free(batches[i])),
    }


def cache_operations(n: int) -> dict[str, float]:
    cache = PrefixCache(BlockAllocator(n), block_size=BLOCK_SIZE)
    chains = [cache.chain(range(i, i + 1000 * BLOCK_SIZE)) for i in range(0, n * BLOCK_SIZE, 1000 * BLOCK_SIZE)]
    batches = [cache.allocate_n(1000) for _ in chains]
    taken = {
        "cache: register": per_block(n, lambda i: cache.register(chains[i], batches[i])),
        "cache: free, keep": per_block(n, lambda i: cache.free(batches[i])),
        "cache: find": per_block(n, lambda i: cache.find(chains[i])),
        "cache: match": per_block(n, lambda i: cache.match(chains[i])),
    }
    for chain, blocks in zip(chains, batches, strict=True):
        cache.free(cache.find(chain))
        chain.entries.clear()
        del blocks[:]
    taken["cache: evict, allocate"] = per_block(n, lambda i: batches[i].extend(cache.allocate_n(1000)))
    return taken


def per_block(n: int, operation: Callable[[int], object]) -> float:
    """Nanoseconds a block: the median over the n / 1000 batches."""
    times = []
    for i in range(n // 1000):
        start = time.perf_counter_ns()
        operation(i)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def main(rounds: int = 15) -> None:
    steps()
    look_up(rounds)
    operations(rounds)
