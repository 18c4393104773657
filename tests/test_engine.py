"""Many requests, one pool, one model: whatever else is in the batch, each gets the answer it would get alone."""

import errno
import signal
import threading
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the tokenizer's library is not installed: pip install '.[models]'")

from paged_core import (
    BlockAllocator,
    Engine,
    HostBlocks,
    Preemption,
    PrefixCache,
    RequestRefused,
    Sampling,
    Scheduler,
)
from paged_core.batch import Batch
from paged_core.models import Llama, load
from paged_core.models.oracle import logit_bound, work_for
from tests.model_cases import pool_of_nan

BLOCK_SIZE = 8
PROMPTS = [
    "In the beginning God created the heaven and the earth.",
    "And Jesus said unto them,",
    "The LORD is my shepherd; I shall not want.",
    "And it came to pass in those days, that there went out a decree from Caesar Augustus,",
    "In the beginning God created the heaven and the earth. And the earth",
]
NEW = 30  # tokens for each


@pytest.fixture(scope="module")
def checkpoint():
    return load(dtype=mx.float32)


@pytest.fixture(scope="module")
def prompts(checkpoint):
    return [checkpoint.tokenizer.encode(prompt).ids for prompt in PROMPTS]


def engine_of(model, num_blocks=64, *, cache=False, executor="auto", host_blocks=None, **options):
    """Over a pool of NaN: what nobody wrote shows in the answer."""
    allocator = BlockAllocator(num_blocks)
    blocks = PrefixCache(allocator, block_size=BLOCK_SIZE) if cache else allocator
    options = {"max_running": 8, "max_tokens_per_step": 64} | options
    pool = pool_of_nan(model, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    return Engine(model, pool, Scheduler(blocks, block_size=BLOCK_SIZE, **options), executor=executor)


def answers(engine, prompts, new=NEW, **options):
    given = [[] for _ in prompts]
    for id, token, finished in engine.generate(prompts, max_new_tokens=new, **options):
        given[id].append(token)
        assert finished == (len(given[id]) == new or token in options.get("stop_tokens", engine.model.stop_tokens))
    assert engine.scheduler.blocks.in_use == 0 and not engine.scheduler.requests and not engine._sampling
    return given


@pytest.fixture(scope="module")
def alone(checkpoint, prompts):
    """Each prompt served with nobody beside it, its prompt in one piece."""
    return [answers(engine_of(checkpoint.model), [prompt])[0] for prompt in prompts]


def logits_after(model, tokens):
    pool = model.pool(32, BLOCK_SIZE)
    work = work_for(tokens, range(-(-len(tokens) // BLOCK_SIZE)), 0, len(tokens))
    return np.array(model(Batch.of([work], BLOCK_SIZE), pool))[0]


def check_same(model, prompts, got, expected):
    """Token by token; the first to differ may do so only where the two likeliest lie closer than rounding decides."""
    for prompt, a, b in zip(prompts, got, expected, strict=True):
        if a == b:
            continue
        i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        assert i is not None, "one of the answers ends too early"
        logits = logits_after(model, prompt + b[:i])
        second, first = np.sort(logits)[-2:]
        assert {a[i], b[i]} == set(np.argsort(logits)[-2:].tolist())
        assert first - second <= 2 * logit_bound(logits, model.dtype, model.config.num_layers, len(prompt) + i)


# ---------------------------------------------------------------------------------------- the same, whatever happens


def test_engine_says_what_mlx_lm_s_generate_says(checkpoint, prompts, alone):
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm, the peer, is not installed")
    from mlx_lm.generate import generate_step

    theirs, _ = mlx_lm.load(str(checkpoint.folder))
    theirs.set_dtype(mx.float32)
    said = []
    for prompt in prompts:
        said.append([])
        for token, _ in generate_step(mx.array(prompt), theirs, max_tokens=NEW):
            said[-1].append(int(token))
            if token in checkpoint.model.stop_tokens:
                break
    check_same(checkpoint.model, prompts, alone, said)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_running": 2},
        {"max_tokens_per_step": 8},  # prompts in chunks of 3 to 8
        {"max_tokens_per_step": 9, "max_running": 3},
        {"cache": True},
        {"cache": True, "max_running": 1},  # one after the other: the last prompt begins as the first did
        {"num_blocks": 11},
        {"num_blocks": 11, "cache": True},
        {"num_blocks": 11, "preemption": Preemption.SWAP, "num_host_blocks": 40},
        {"num_blocks": 11, "preemption": Preemption.SWAP, "num_host_blocks": 4, "max_tokens_per_step": 10},
        {"executor": "ops"},
    ],
    ids=lambda options: ",".join(f"{k}={getattr(v, 'name', v)}" for k, v in options.items()) or "batch",
)
def test_engine_greedy_answers_do_not_depend_on_the_company(checkpoint, prompts, alone, options):
    engine = engine_of(checkpoint.model, **options)
    preempted = []
    watch(engine, lambda step: preempted.extend(step.plan.preempted))
    check_same(checkpoint.model, prompts, answers(engine, prompts), alone)
    assert bool(preempted) == ("num_blocks" in options)
    if "max_running" in options and options.get("cache"):
        assert engine.scheduler.blocks.hits > 0


def watch(engine, look):
    """Have `look` see every step."""
    step = engine.step

    def watched():
        seen = step()
        look(seen)
        return seen

    engine.step = watched


def test_engine_draws_the_same_tokens_whatever_the_company(checkpoint, prompts):
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=11)
    together = answers(engine_of(checkpoint.model), prompts, sampling=sampling)
    assert answers(engine_of(checkpoint.model, 11), prompts, sampling=sampling) == together
    assert answers(engine_of(checkpoint.model), prompts[:1], sampling=sampling) == together[:1]
    assert answers(engine_of(checkpoint.model), prompts, sampling=Sampling(0.8, top_p=0.95, seed=12)) != together
    engine = engine_of(checkpoint.model)
    assert answers(engine, prompts[:1], sampling=sampling) == answers(engine, prompts[:1], sampling=sampling)
    twice = answers(engine_of(checkpoint.model), [prompts[0]] * 2, sampling=sampling)
    assert twice[0] == together[0] != twice[1]  # the same prompt and seed, and a stream of its own


def test_engine_serves_those_who_come_later(checkpoint, prompts, alone):
    engine = engine_of(checkpoint.model)
    said = {i: [] for i in range(len(prompts))}
    for step in range(NEW + 3 * len(prompts)):
        if step % 3 == 0 and step // 3 < len(prompts):
            engine.add(step // 3, prompts[step // 3], NEW)
        for id, token, _ in engine.step().tokens:
            said[id].append(token)
    check_same(checkpoint.model, prompts, [*said.values()], alone)
    assert engine.step().tokens == [] and engine.scheduler.blocks.in_use == 0


def test_engine_serves_a_fork(checkpoint, prompts, alone):
    """A continuation that shares every block says what its parent says, and copies what it writes into."""
    engine = engine_of(checkpoint.model)
    engine.add("a", prompts[0], NEW)
    said = {"a": [], "b": []}
    copies = 0
    while engine.scheduler.requests:
        step = engine.step()
        copies += len(step.plan.copies)
        for id, token, _ in step.tokens:
            said[id].append(token)
        if len(said["a"]) == 4 and not said["b"]:
            engine.fork("a", "b")
            said["b"] = list(said["a"])
    assert (copies, said["a"]) == (1, said["b"])
    check_same(checkpoint.model, prompts[:1], [said["a"]], alone[:1])


def test_engine_forks_draw_as_their_parent_does_and_each_in_its_own_stream(checkpoint, prompts):
    sampling = Sampling(temperature=1.0, seed=3)
    engine = engine_of(checkpoint.model)
    requests = [engine.add("a", prompts[0], NEW, sampling=sampling, stop_tokens=())]
    engine.step()
    requests += [engine.fork("a", id) for id in ("b", "c")]
    while engine.scheduler.requests:
        engine.step()
    a, b, c = (request.tokens for request in requests)
    assert len({tuple(tokens) for tokens in (a, b, c)}) == 3
    assert a[: len(prompts[0]) + 1] == b[: len(prompts[0]) + 1] == c[: len(prompts[0]) + 1]
    expected = answers(engine_of(checkpoint.model), prompts[:1], sampling=sampling, stop_tokens=())
    assert a == prompts[0] + expected[0]
    # b is number 1: what it draws is what a request of stream 1 draws from the same logits
    assert b[-1] == sampling.choose(logits_after(checkpoint.model, b[:-1]), 1, NEW - 1)


def test_engine_hands_on_priority_and_salt(checkpoint, prompts):
    engine = engine_of(checkpoint.model, cache=True, max_running=1, max_tokens_per_step=64)
    ids = ("a", {}), ("salted", {"salt": b"other"}), ("again", {}), ("urgent", {"priority": -9})
    ends, hits = [], []
    for id, options in ids:
        engine.add(id, prompts[0], 2, stop_tokens=(), **options)
    while engine.scheduler.requests:
        for token in engine.step().tokens:
            if token.finished:
                ends.append(token.request_id)
                hits.append(engine.scheduler.blocks.hits)
    assert ends == ["urgent", "a", "salted", "again"]
    assert hits == [0, 1, 1, 2]  # a block of 8 of the prompt's tokens, save for who has another salt


def test_engine_serves_as_many_tokens_as_there_are_positions(checkpoint, prompts):
    engine = engine_of(checkpoint.model, 128, max_tokens_per_step=1024)
    assert len(answers(engine, [[5] * 1020], 4, stop_tokens=())[0]) == 4


def test_engine_answers_differ_only_where_the_two_likeliest_lie_within_the_bound(checkpoint, prompts):
    """Every second row of the head is the row before it, but for a unit roundoff: rounding decides all the time."""
    weights = {k: v.astype(mx.float32) for k, v in mx.load(str(checkpoint.folder / "model.safetensors")).items()}
    head = np.array(weights["model.embed_tokens.weight"])
    signs = np.random.default_rng(0).choice([-1, 1], head[::2].shape).astype(np.float32)
    head[1::2] = head[::2] * (1 + signs * np.float32(2**-23))
    model = Llama(
        replace(checkpoint.model.config, tied=False), weights | {"lm_head.weight": mx.array(head)}, mx.float32
    )
    said = [answers(engine_of(model), [prompt], stop_tokens=(1,))[0] for prompt in prompts]
    crowd = answers(engine_of(model), prompts, stop_tokens=(1,))
    assert crowd != said
    check_same(model, prompts, crowd, said)


def test_engine_lets_nobody_find_a_block_that_is_half_written(checkpoint, prompts):
    """13 of a prompt's tokens are computed, then it is cancelled: of its blocks of 8 the first is whole, no other."""
    long = prompts[3] + prompts[0]
    engine = engine_of(checkpoint.model, cache=True, max_running=1, max_tokens_per_step=13)
    engine.add("a", long, NEW)
    engine.step()
    engine.cancel("a")
    assert engine.scheduler.blocks.findable_count == 1 and not engine._sampling
    expected = answers(engine_of(checkpoint.model), [long])
    check_same(checkpoint.model, [long], answers(engine, [long]), expected)


@pytest.mark.parametrize("kind", [tuple, np.array, mx.array, iter])
def test_engine_takes_prompts_in_whatever_they_come(checkpoint, prompts, alone, kind):
    engine = engine_of(checkpoint.model)
    said = [[] for _ in prompts]
    for id, token, _ in engine.generate((kind(prompt) for prompt in prompts), max_new_tokens=NEW):
        said[id].append(token)
    check_same(checkpoint.model, prompts, said, alone)


@pytest.mark.parametrize("kind", [list, set, np.array, mx.array])
def test_engine_stops_at_tokens_in_whatever_they_come(checkpoint, prompts, alone, kind):
    stops = kind([alone[0][4]])
    first = alone[0].index(alone[0][4])
    assert answers(engine_of(checkpoint.model), prompts[:1], stop_tokens=stops) == [alone[0][: first + 1]]


# -------------------------------------------------------------------------------------------------- when things fail


def interrupting(function, calls_until):
    """`function`, and after so many calls of it Control-C, in its middle as far as anybody outside can tell."""
    calls = []

    def call(*arguments, **options):
        calls.append(None)
        if len(calls) == calls_until:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("method", ["plan", "complete", "add"])
@pytest.mark.parametrize("calls_until", [1, 2, 3])
def test_engine_keeps_its_books_through_an_interrupt(checkpoint, prompts, alone, monkeypatch, method, calls_until):
    engine = engine_of(checkpoint.model, cache=True)
    function = getattr(engine.scheduler, method)
    monkeypatch.setattr(engine.scheduler, method, interrupting(function, calls_until))
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(prompts, max_new_tokens=NEW))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check_same(checkpoint.model, prompts, answers(engine, prompts), alone)


def test_an_interrupt_comes_at_once_while_a_model_computes(checkpoint, prompts):
    engine = engine_of(checkpoint.model)
    reached = []
    engine.carry_out = lambda plan: (signal.raise_signal(signal.SIGINT), reached.append(plan))
    engine.add("a", prompts[0], NEW)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert not reached and engine.scheduler.blocks.in_use == 0


def test_an_engine_in_another_thread_leaves_interrupts_alone(checkpoint, prompts, alone):
    said = []
    thread = threading.Thread(target=lambda: said.extend(answers(engine_of(checkpoint.model), prompts[:1])))
    thread.start()
    thread.join()
    check_same(checkpoint.model, prompts[:1], said, alone[:1])


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_engine_undoes_a_step_that_fails(checkpoint, prompts, alone, error):
    engine = engine_of(checkpoint.model, cache=True)
    model, calls = engine.model, []

    class Failing:
        def __getattr__(self, name):
            return getattr(model, name)

        def __call__(self, *arguments, **options):
            calls.append(None)
            logits = model(*arguments, **options)
            if len(calls) == 7:
                raise error  # the pool has been written, nobody was told
            return logits

    engine.model = Failing()
    said = [[] for _ in prompts]
    for i, prompt in enumerate(prompts):
        engine.add(i, prompt, NEW)
    while engine.scheduler.requests:
        try:
            for id, token, _ in engine.step().tokens:
                said[id].append(token)
        except type(error):
            assert len(calls) == 7
    assert len(calls) > NEW
    check_same(model, prompts, said, alone)
    assert engine.scheduler.blocks.in_use == 0


def test_engine_goes_on_without_the_swap_file_when_the_disk_is_full(checkpoint, prompts, alone, monkeypatch, tmp_path):
    engine = engine_of(checkpoint.model, 11, preemption=Preemption.SWAP, num_host_blocks=40)
    engine.host_blocks = HostBlocks(engine.pool, 40, tmp_path / "swap")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.warns(UserWarning, match="whoever gives way is computed again from now on: .*No space left"):
        check_same(checkpoint.model, prompts, answers(engine, prompts), alone)
    assert engine.scheduler.preemption is Preemption.RECOMPUTE


def test_engine_cancels_for_whoever_stops_listening(checkpoint, prompts, alone):
    engine = engine_of(checkpoint.model)
    stream = engine.generate(prompts, max_new_tokens=NEW)
    for _ in range(12):
        next(stream)
    assert engine.scheduler.blocks.in_use > 0
    stream.close()
    assert engine.scheduler.blocks.in_use == 0 and not engine.scheduler.requests
    check_same(checkpoint.model, prompts, answers(engine, prompts), alone)


def test_engine_goes_on_when_somebody_cancels_a_prompt_of_a_stream(checkpoint, prompts, alone):
    engine = engine_of(checkpoint.model)
    said = [[] for _ in prompts]
    for id, token, _ in engine.generate(prompts, max_new_tokens=NEW):
        said[id].append(token)
        if id == 0 and len(said[0]) == 5:
            engine.cancel(2)
    assert len(said[2]) == 4  # number 0's fifth came before number 2's
    check_same(checkpoint.model, prompts[:2], said[:2], alone[:2])
    stream = engine.generate(prompts, max_new_tokens=NEW)
    next(stream)
    engine.cancel(1)
    stream.close()  # the others
    assert engine.scheduler.blocks.in_use == 0 and not engine.scheduler.requests


def test_engine_loses_no_token_when_others_step_too(checkpoint, prompts, alone):
    """A stream, a request of its own beside it, and somebody who steps between two tokens of the stream."""
    engine = engine_of(checkpoint.model)
    other = engine.add("other", prompts[3], NEW)
    said, ends = [[] for _ in prompts[:3]], []
    for id, token, finished in engine.generate(prompts[:3], max_new_tokens=NEW):
        said[id].append(token)
        ends += [id] * finished
        engine.step()
    check_same(checkpoint.model, prompts[:4], [*said, other.tokens[len(prompts[3]) :]], alone[:4])
    assert sorted(ends) == [0, 1, 2]


def test_engine_says_so_when_nobody_can_go_on(checkpoint, prompts):
    engine = engine_of(checkpoint.model, 8)
    held = engine.scheduler.blocks.allocate_n(8)
    request = engine.add("a", prompts[0], 4)
    with pytest.raises(RuntimeError, match="nobody can go on, for somebody else holds the blocks: Scheduler"):
        engine.step()
    engine.scheduler.blocks.free(held)
    assert engine.step().tokens[0].token == request.tokens[-1]


def test_engine_does_not_take_what_is_no_number_for_a_token(checkpoint, prompts):
    """The likeliest of 2,048 NaN would be token 0, which ends the answer."""
    engine = engine_of(checkpoint.model)
    engine.add("a", prompts[0], NEW)
    engine.step()
    for array in engine.pool.arrays:
        array[:] = mx.nan
    with pytest.raises(ValueError, match="request 'a': logits: expected finite numbers, got nan for token"):
        engine.step()
    assert len(engine.step().tokens) == 1  # its blocks are computed again


def test_engine_refuses_all_when_it_refuses_one(checkpoint, prompts):
    engine = engine_of(checkpoint.model, 8)
    with pytest.raises(RequestRefused, match="request 1: a prompt of 100 and 30 new tokens need 17 blocks"):
        next(engine.generate([prompts[0], [5] * 100], max_new_tokens=NEW))
    assert not engine.scheduler.requests
    with pytest.raises(
        RequestRefused, match="request 0: a prompt of 1000 and 25 new tokens are 1025; the model has 1024"
    ):
        next(engine.generate([[5] * 1000], max_new_tokens=25))
    encoding = checkpoint.tokenizer.encode("In the beginning")
    for wrong in ("In the beginning", [1, 2, 3], np.array([1, 2, 3]), [[1.5]], [["a"]], [None], [encoding]):
        with pytest.raises(
            TypeError, match=r"prompt: expected a list of token ids, got .* encode\(text\).ids makes one"
        ):
            next(engine.generate(wrong))
    for options, error, message in (
        ({"max_new_tokens": None}, TypeError, "max_new_tokens: expected a positive integer, got None"),
        ({"sampling": 0.7}, TypeError, "sampling: expected a Sampling, got 0.7"),
        ({"stream": -1}, ValueError, "stream: expected an integer of 0 or more, got -1"),
        ({"stream": 2**64}, ValueError, r"stream: expected less than 2\*\*63, got 18446744073709551616"),
        ({"max_new_tokens": 4, "stop_tokens": "</s>"}, TypeError, "stop_tokens: expected an integer, got '<'"),
        ({"max_new_tokens": 4, "stop_tokens": [2.5]}, TypeError, "stop_tokens: expected an integer, got 2.5"),
    ):
        with pytest.raises(error, match=message):
            engine.add("a", prompts[0], **options)
    with pytest.raises(ValueError, match="prompt: expected one token or more, got none"):
        next(engine.generate([[]]))
    with pytest.raises(ValueError, match=r"prompt: expected tokens from 0 to 2047, got 2048"):
        next(engine.generate([[2048]]))
    with pytest.raises(ValueError, match="max_new_tokens: expected a positive integer, got 0"):
        next(engine.generate(prompts, max_new_tokens=0))
    assert list(engine.generate([])) == [] and not engine.scheduler.requests


def test_engine_refuses_parts_that_do_not_fit(checkpoint):
    model = checkpoint.model
    pool = model.pool(16, 8)
    with pytest.raises(ValueError, match="scheduler: expected the pool's block_size 8, got 16"):
        Engine(model, pool, Scheduler(BlockAllocator(16), block_size=16))
    with pytest.raises(ValueError, match="scheduler: hands out 17 blocks, and the pool has 16"):
        Engine(model, pool, Scheduler(BlockAllocator(17), block_size=8))
    with pytest.raises(TypeError, match="pool: expected dtype"):
        Engine(model, load().model.pool(16, 8), Scheduler(BlockAllocator(16), block_size=8))
    swapping = Scheduler(BlockAllocator(16), block_size=8, preemption=Preemption.SWAP, num_host_blocks=4)
    with pytest.raises(ValueError, match="room for 4 blocks of this engine's pool, got room for 3 of this one"):
        Engine(model, pool, swapping, host_blocks=HostBlocks(pool, 3))
    with pytest.raises(ValueError, match="room for 4 blocks of this engine's pool, got room for 4 of another one"):
        Engine(model, pool, swapping, host_blocks=HostBlocks(model.pool(16, 8), 4))
    assert Engine(model, pool, swapping).host_blocks.num_blocks == 4
    for make in (Engine.of, lambda model: Engine(model, pool, swapping)):
        with pytest.raises(TypeError, match=r"model: expected one such as load\(\).model, got Checkpoint"):
            make(checkpoint)
    with pytest.raises(ValueError, match="num_blocks: expected a positive integer, got -4"):
        Engine.of(model, num_blocks=-4)


def test_engine_shows_a_bar(checkpoint, prompts, capsys):
    answers(engine_of(checkpoint.model), prompts[:2], new=5, progress=True)
    assert "10/10" in capsys.readouterr().err
    answers(engine_of(checkpoint.model), prompts[:2], new=5)
    assert capsys.readouterr().err == ""
