"""A Llama-family model (Llama, Mistral, Qwen2, Qwen3) whose keys and values lie in a `PagedPool`.

It computes a `Batch`: the new tokens of many sequences end to end, decodes, prompts and chunks of prompts, with no
padding. Everything but attention works token by token and does not know whose token it has; attention finds each
sequence's past through the block tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import mlx.core as mx
import numpy as np

from paged_core.arguments import check_pool_dtype
from paged_core.attention import paged_attention
from paged_core.batch import Batch
from paged_core.errors import CheckpointError
from paged_core.layouts import PoolLayout
from paged_core.models.arrays import Array, Linear, blas_threads, from_mlx, namespace, to_mlx
from paged_core.models.config import LlamaConfig
from paged_core.models.rope import rotation
from paged_core.pool import PagedPool


@dataclass(slots=True)
class Layer:
    """One layer's weights. What goes through the same activations is one product: q, k and v; gate and up."""

    attention_norm: Array  # [hidden_size]
    qkv: Linear  # [(num_q_heads + 2 num_kv_heads) * head_dim, hidden_size]
    q_norm: Array | None  # [head_dim]
    k_norm: Array | None  # [head_dim]
    output: Linear  # [hidden_size, num_q_heads * head_dim]
    mlp_norm: Array  # [hidden_size]
    gate_up: Linear  # [2 intermediate_size, hidden_size]
    down: Linear  # [hidden_size, intermediate_size]
    sliding_window: int | None


class Llama:
    """`weights` are named and shaped as in a Hugging Face checkpoint; CheckpointError for one that is missing, is left
    over, or has another shape than `config` says. `dtype` (default: the weights') is what K, V and, on a GPU, the
    weights are kept in.
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, mx.array], dtype: mx.Dtype | None = None) -> None:
        found = _Weights(weights)
        self.config = config
        embedding = found.take("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), keep=True)
        self.dtype: mx.Dtype = dtype or embedding.dtype
        check_pool_dtype("dtype", self.dtype)
        self.xp: ModuleType = namespace()
        hidden = config.hidden_size
        self._embedding = self._linear(found, {"model.embed_tokens": config.vocab_size}, hidden)
        self.layers = [self._layer(found, i) for i in range(config.num_layers)]
        self._norm = self._vector(found, "model.norm.weight", hidden)
        self._head = self._embedding
        if not config.tied:
            self._head = self._linear(found, {"lm_head": config.vocab_size}, hidden)
        elif "lm_head.weight" in found and not mx.array_equal(found.take("lm_head.weight", embedding.shape), embedding):
            raise CheckpointError("lm_head.weight: expected the embedding, as tie_word_embeddings says, got another")
        found.check_all_taken()
        turn = rotation(config.head_dim, config.rope_theta, config.rope_scaling, config.max_positions)
        self._rope_scale = turn.scale
        # The plain variant's periods MLX works out itself: so our angles are those of all who ask it, bit for bit.
        self._rope_base = config.rope_theta if turn.is_plain else None
        self._rope_periods = None if turn.is_plain else mx.array(turn.periods)
        self._turn_table = self._turn_table_for(256)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Llama({c.num_layers} layers x {c.hidden_size}, {c.num_q_heads} query and {c.num_kv_heads} KV heads x "
            f"{c.head_dim}, {c.vocab_size} tokens, {self.dtype}, in {self.xp.__name__})"
        )

    def pool(self, num_blocks: int, block_size: int = 16, layout: PoolLayout = PoolLayout.HND) -> PagedPool:
        """A pool of the shape that this model needs."""
        c = self.config
        return PagedPool(
            num_layers=c.num_layers, num_blocks=num_blocks, num_kv_heads=c.num_kv_heads, block_size=block_size,
            head_dim=c.head_dim, dtype=self.dtype, layout=layout,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 to vocab_size - 1."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """How many tokens a sequence may have, as the model was trained."""
        return self.config.max_positions

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Those that end an answer, as config.json names them."""
        return self.config.stop_tokens

    def check_pool(self, pool: PagedPool) -> None:
        """ValueError or TypeError for a pool that this model cannot keep its keys and values in."""
        c = self.config
        expected = (c.num_layers, c.num_kv_heads, c.head_dim)
        if (got := (pool.num_layers, pool.num_kv_heads, pool.head_dim)) != expected:
            raise ValueError(f"pool: expected (layers, KV heads, head_dim) {expected}, got {got}; Llama.pool makes one")
        if pool.dtype != self.dtype:
            raise TypeError(f"pool: expected dtype {self.dtype}, got {pool.dtype}")

    def __call__(self, batch: Batch, pool: PagedPool, *, executor: str = "auto") -> Array:
        """Write the K and V of the batch's tokens to the pool, and return the logits that are wanted.

        Returns float32 [len(batch.logits_of), vocab_size]: for each of these tokens, what the next one may be.
        """
        # exp(-gate) may be infinite, and gate / (1 + exp(-gate)) is then the 0 that it should be.
        with blas_threads(len(batch.tokens)), np.errstate(over="ignore"):
            return self._logits(batch, pool, executor)

    def _logits(self, batch: Batch, pool: PagedPool, executor: str) -> Array:
        xp, c = self.xp, self.config
        h = self._embed(batch.tokens)
        cos, sin = self._turns(batch.positions)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(self._normed(h, layer.attention_norm)).reshape(len(h), -1, c.head_dim)
            q, k, v = qkv[:, : c.num_q_heads], qkv[:, c.num_q_heads : -c.num_kv_heads], qkv[:, -c.num_kv_heads :]
            if layer.q_norm is not None:
                q, k = self._normed(q, layer.q_norm), self._normed(k, layer.k_norm)
            q, k = self._turned(q, cos, sin), self._turned(k, cos, sin)
            pool.write(i, to_mlx(k, pool.dtype), to_mlx(v, pool.dtype), batch.slot_mapping, check=False)
            attended = [
                paged_attention(
                    to_mlx(q[part.rows], pool.dtype), pool.k(i), pool.v(i), part.block_tables, part.context_lens,
                    query_start_loc=part.query_start_loc, layout=pool.layout, sliding_window=layer.sliding_window,
                    executor=executor, check=False,
                )
                for part in batch.parts
            ]  # fmt: skip
            attended = xp.concatenate([from_mlx(xp, x) for x in attended])
            h = h + layer.output(attended.reshape(len(h), -1))
            gate, up = _halves(layer.gate_up(self._normed(h, layer.mlp_norm)))
            h = h + layer.down(gate / (1 + xp.exp(-gate)) * up)
        if batch.logits_of.size == 0:  # a chunk of a prompt; arrays without elements crash MLX 0.32.4 on CUDA
            return np.zeros((0, c.vocab_size), np.float32)
        return self._head(self._normed(self._rows(h, batch.logits_of), self._norm))

    def _embed(self, tokens: np.ndarray) -> Array:
        if self.xp is np:
            return self._embedding.weight[tokens]
        return self._embedding.weight[mx.array(tokens)].astype(mx.float32)

    def _normed(self, x: Array, weight: Array) -> Array:
        """RMSNorm over the last axis."""
        mean_square = (x * x).sum(axis=-1, keepdims=True) / x.shape[-1]
        return x / self.xp.sqrt(mean_square + self.config.rms_norm_eps) * weight

    def _rows(self, x: Array, numbers: np.ndarray) -> Array:
        return x[numbers if self.xp is np else mx.array(numbers)]

    def _turns(self, positions: np.ndarray) -> tuple[Array, Array]:
        """The cosines and sines of every token's angles, float32 [tokens, 1, head_dim / 2], from a table that grows
        with the longest sequence."""
        longest = int(positions.max()) + 1
        if longest > len(self._turn_table):
            self._turn_table = self._turn_table_for(1 << (longest - 1).bit_length())
        return _halves(self._rows(self._turn_table, positions))

    def _turn_table_for(self, num_positions: int) -> Array:
        """What becomes of unit vectors when MLX turns them, float32 [num_positions, 1, head_dim]: cosines, sines."""
        half = self.config.head_dim // 2
        unit = (mx.arange(2 * half) < half).astype(mx.float32) * self._rope_scale
        # Spread over the positions in memory: of a broadcast array MLX 0.32.4 on CUDA turns something else. And as one
        # sequence: of a batch of so many short vectors its CUDA kernel cannot be started.
        units = mx.contiguous(mx.broadcast_to(unit, (num_positions, 2 * half)))
        turned = mx.fast.rope(
            units[None], 2 * half, traditional=False, base=self._rope_base, scale=1.0, offset=0,
            freqs=self._rope_periods,
        )  # fmt: skip
        return from_mlx(self.xp, turned.swapaxes(0, 1))

    def _turned(self, x: Array, cos: Array, sin: Array) -> Array:
        """Rotary position embedding: dims i and i + head_dim/2 of every head, turned by the token's i-th angle."""
        a, b = _halves(x)
        return self.xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _layer(self, found: _Weights, index: int) -> Layer:
        c, name = self.config, f"model.layers.{index}"
        q_size, kv_size = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        qkv = {f"{attention}.{x}_proj": kv_size if x in "kv" else q_size for x in "qkv"}
        gate_up = {f"{mlp}.{x}_proj": c.intermediate_size for x in ("gate", "up")}
        return Layer(
            self._vector(found, f"{name}.input_layernorm.weight", c.hidden_size),
            self._linear(found, qkv, c.hidden_size, c.qkv_bias),
            self._vector(found, f"{attention}.q_norm.weight", c.head_dim) if c.qk_norm else None,
            self._vector(found, f"{attention}.k_norm.weight", c.head_dim) if c.qk_norm else None,
            self._linear(found, {f"{attention}.o_proj": c.hidden_size}, q_size, c.output_bias),
            self._vector(found, f"{name}.post_attention_layernorm.weight", c.hidden_size),
            self._linear(found, gate_up, c.hidden_size, c.mlp_bias),
            self._linear(found, {f"{mlp}.down_proj": c.hidden_size}, c.intermediate_size, c.mlp_bias),
            c.sliding_windows[index] if c.sliding_windows else None,
        )

    def _linear(self, found: _Weights, sizes: Mapping[str, int], num_inputs: int, has_bias: bool = False) -> Linear:
        """One product for several, one below the other: by name, the number of outputs of each."""
        weights = [found.take(f"{name}.weight", (size, num_inputs)) for name, size in sizes.items()]
        biases = [found.take(f"{name}.bias", (size,)) for name, size in sizes.items()] if has_bias else None
        bias = None if biases is None else mx.concatenate(biases)
        return Linear(self.xp, mx.concatenate(weights).astype(self.dtype), bias)

    def _vector(self, found: _Weights, name: str, size: int) -> Array:
        return from_mlx(self.xp, found.take(name, (size,)))


def _halves(x: Array) -> tuple[Array, Array]:
    """Of the last axis."""
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


class _Weights:
    """A checkpoint's tensors, each to be taken once."""

    def __init__(self, tensors: Mapping[str, mx.array]) -> None:
        # Old checkpoints carry a table of frequencies, which follows from config.json.
        self._left = {name: x for name, x in tensors.items() if not name.endswith("rotary_emb.inv_freq")}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, shape: tuple[int, ...], *, keep: bool = False) -> mx.array:
        if name not in self._left:
            raise CheckpointError(f"weights: expected {name!r} among them")
        x = self._left[name] if keep else self._left.pop(name)
        if x.shape != shape:
            raise CheckpointError(f"{name}: expected shape {list(shape)}, got {list(x.shape)}")
        if not mx.issubdtype(x.dtype, mx.floating):
            raise CheckpointError(f"{name}: expected float weights, got {x.dtype}")
        return x

    def check_all_taken(self) -> None:
        if self._left:
            listed = ", ".join(sorted(self._left)[:3])
            raise CheckpointError(f"weights: {len(self._left)} that a model of this kind does not have: {listed}")
