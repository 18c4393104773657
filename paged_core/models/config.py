"""What a Hugging Face folder's config.json asks for, in this package's words, and refused where it cannot be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_core.errors import CheckpointError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model_type, as config.json spells it


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of a Llama-family model. Names are those of config.json, save where this package has its own.

    What a model has or has not (biases, norms of queries and keys, a head of its own) is read off its weights."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)  # its "rope_type" and that variant's numbers
    sliding_windows: tuple[int | None, ...] = ()  # of each layer; None sees everything
    stop_tokens: frozenset[int] = frozenset()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """CheckpointError for a model that this package does not compute, and for a key that is missing."""
        family = config.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(f"model_type: expected one of {', '.join(FAMILIES)}, got {family!r}")
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"hidden_act: expected silu, got {config['hidden_act']!r}")
        if "quantization" in config or "quantization_config" in config:
            raise CheckpointError("quantization: expected float weights; quantized ones are not read")
        try:
            num_layers, num_q_heads = config["num_hidden_layers"], config["num_attention_heads"]
            rope = config.get("rope_parameters") or {}  # transformers 5 keeps theta and scaling in one place
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=num_layers,
                num_q_heads=num_q_heads,
                num_kv_heads=config.get("num_key_value_heads") or num_q_heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // num_q_heads,
                rms_norm_eps=config["rms_norm_eps"],
                rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
                max_positions=config.get("max_position_embeddings", 2048),
                rope_scaling=config.get("rope_scaling") or rope,
                sliding_windows=_sliding_windows(config, num_layers),
                stop_tokens=_stop_tokens(config.get("eos_token_id")),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json: expected {error.args[0]!r} in it") from None


def _sliding_windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if window is None or not config.get("use_sliding_window", True):
        return (None,) * num_layers
    if kinds := config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if config["model_type"] == "llama":
        return (None,) * num_layers
    first = config.get("max_window_layers", 0)  # Qwen: those before it see everything
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _stop_tokens(eos: int | list[int] | None) -> frozenset[int]:
    return frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])
