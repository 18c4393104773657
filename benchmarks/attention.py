"""Attention over pages beside dense attention over contiguous K and V, and beside what the memory can deliver."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

import paged_core
from benchmarks.bandwidth import reader
from benchmarks.timing import medians
from paged_core import PagedPool, available_executors, paged_attention
from paged_core.executors import native

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Case:
    """Random K and V in a pool whose blocks lie in random order, and the same K and V dense."""

    def __init__(self, num_seqs: int, context: int, num_q_heads: int, num_kv_heads: int, head_dim: int, block_size: int,
                 dtype: mx.Dtype, queries: int = 1) -> None:  # fmt: skip
        blocks_per_seq = -(-context // block_size)
        num_blocks = num_seqs * blocks_per_seq
        self.pool = PagedPool(
            num_layers=1, num_blocks=num_blocks, num_kv_heads=num_kv_heads, block_size=block_size, head_dim=head_dim,
            dtype=dtype,
        )  # fmt: skip
        tables = np.random.default_rng(0).permutation(num_blocks).reshape(num_seqs, blocks_per_seq)
        self.block_tables = mx.array(tables, mx.int32)
        self.context_lens = mx.full((num_seqs,), context, mx.int32)
        self.query_start_loc = None if queries == 1 else mx.arange(0, num_seqs * queries + 1, queries, mx.int32)
        self.q = mx.random.normal((num_seqs * queries, num_q_heads, head_dim)).astype(dtype)
        slots = mx.arange(num_blocks * block_size, dtype=mx.int32)
        k, v = (mx.random.normal((slots.size, num_kv_heads, head_dim)).astype(dtype) for _ in range(2))
        self.pool.write(0, k, v, slots, check=False)
        shape = (num_seqs, blocks_per_seq * block_size, num_kv_heads, head_dim)
        dense = [self.pool.gather(0, row.tolist(), blocks_per_seq * block_size) for row in tables]
        self.k, self.v = (mx.stack(x).reshape(shape).swapaxes(1, 2)[..., :context, :] for x in zip(*dense, strict=True))
        self.k, self.v = mx.contiguous(self.k), mx.contiguous(self.v)
        self.q_dense = mx.contiguous(self.q.reshape(num_seqs, queries, num_q_heads, head_dim).swapaxes(1, 2))
        mx.eval(self.q, self.q_dense, self.k, self.v, self.block_tables, self.context_lens, self.query_start_loc)

    def paged(self, executor: str) -> mx.array:
        output = paged_attention(
            self.q, self.pool.k(0), self.pool.v(0), self.block_tables, self.context_lens,
            query_start_loc=self.query_start_loc, executor=executor, check=False,
        )  # fmt: skip
        mx.eval(output)
        return output

    def mlx_dense(self) -> mx.array:
        mask = None if self.query_start_loc is None else "causal"
        output = mx.fast.scaled_dot_product_attention(
            self.q_dense, self.k, self.v, scale=self.q.shape[-1] ** -0.5, mask=mask
        )
        mx.eval(output)
        return output

    def torch_dense(self):
        """The same in PyTorch, where that is installed; None where it is not."""
        try:
            import torch
        except ImportError:
            return None
        q, k, v = (torch.from_numpy(np.array(x.astype(mx.float32))) for x in (self.q_dense, self.k, self.v))
        dtype = getattr(torch, str(self.q.dtype).rsplit(".", 1)[-1])
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        causal = self.query_start_loc is not None
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def decode(rounds: int) -> None:
    print("\nDecode: 8 sequences x 2048 tokens, 32 query and 8 KV heads, head_dim 128, blocks of 16")
    cases = {name: Case(8, 2048, 32, 8, 128, 16, dtype) for name, dtype in DTYPES.items()}
    read, nbytes = reader()
    candidates = {"reading 256 MiB": read}
    for name, case in cases.items():
        candidates[f"native, {name}"] = lambda case=case: case.paged("native")
        candidates[f"MLX dense, {name}"] = case.mlx_dense
        if torch_dense := case.torch_dense():
            candidates[f"PyTorch dense, {name}"] = torch_dense
    taken = medians(candidates, rounds)
    bandwidth = nbytes / taken["reading 256 MiB"]
    print(f"{'':26}{'ms':>8}  {'GB/s':>6}  of the read bandwidth ({bandwidth / 1e9:.1f} GB/s)   of native's float32")
    for name, seconds in taken.items():
        if name.startswith("reading"):
            continue
        rate = cases[name.split(", ")[1]].pool.nbytes / seconds
        ratio = seconds / taken["native, float32"]
        print(f"  {name:24}{seconds * 1e3:8.2f}  {rate / 1e9:6.1f}  {rate / bandwidth:22.2f}   {ratio:33.2f}")


def prompt(rounds: int) -> None:
    print("\nA causal prompt: 1 x 1024 tokens, 32 query and 8 KV heads, head_dim 128, blocks of 16")
    candidates = {}
    for name, dtype in DTYPES.items():
        case = Case(1, 1024, 32, 8, 128, 16, dtype, queries=1024)
        candidates[f"native, {name}"] = lambda case=case: case.paged("native")
        if torch_dense := case.torch_dense():
            candidates[f"PyTorch dense, {name}"] = torch_dense
        if dtype == mx.float32:
            candidates[f"MLX dense, {name}"] = case.mlx_dense
    flops = 2 * 2 * 32 * 128 * 1024 * 1025 / 2
    for name, seconds in medians(candidates, rounds).items():
        print(f"  {name:24}{seconds * 1e3:10.2f} ms {flops / seconds / 1e9:8.1f} GFLOP/s")


def overhead(rounds: int) -> None:
    print("\nAround the kernel: a decode of one empty context, check=False")
    candidates = {}
    # One KV head is one threadgroup, which the calling thread runs by itself; eight are shared out.
    for what, num_kv_heads in (("Python and pointers alone", 1), ("waking the other threads, too", 8)):
        case = Case(1, 16, 8, num_kv_heads, 64, 16, mx.float32)
        case.context_lens = mx.zeros((1,), mx.int32)
        mx.eval(case.context_lens)

        def hundred(case: Case = case) -> None:
            for _ in range(100):
                paged_attention(
                    case.q, case.pool.k(0), case.pool.v(0), case.block_tables, case.context_lens, executor="native",
                    check=False,
                )  # fmt: skip

        candidates[what] = hundred
    for what, seconds in medians(candidates, rounds).items():
        print(f"  native, {what:30} {seconds / 100 * 1e6:8.1f} microseconds a call")


def simulator(rounds: int) -> None:
    if "simulator" not in available_executors():
        return
    print("\nThe simulator, tracing: a decode of 4 sequences x 200 tokens, 8 query and 8 KV heads, blocks of 16")
    for head_dim in (64, 128):
        case = Case(4, 200, 8, 8, head_dim, 16, mx.float32)
        arguments = (case.q, case.pool.k(0), case.pool.v(0), case.block_tables, case.context_lens)
        records = len(paged_core.trace(*arguments).records)
        seconds = medians({"": lambda arguments=arguments: paged_core.trace(*arguments)}, max(3, rounds // 5))[""]
        print(f"  head_dim {head_dim:3} {seconds:10.2f} s  {records} loads and stores")


def main(rounds: int = 15) -> None:
    print(f"{native.num_threads()} threads; medians of {rounds} rounds, the candidates of a table taken in turns")
    decode(rounds)
    prompt(max(3, rounds // 3))
    overhead(rounds)
    simulator(rounds)
