"""What a Hugging Face folder's config.json asks for, in this package's words, and refused where it cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_core.errors import CheckpointError
from paged_core.scalars import finite, integer, positive

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model_type, as config.json spells it
KINDS = ("full_attention", "sliding_attention")  # layer_types


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of a Llama-family model. Names are those of config.json, save where this package has its own."""

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
    tied: bool = False  # the embedding is the head, too
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # of every query's and key's head

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """CheckpointError for a model that this package does not compute, and for a key that is missing or makes no
        sense. What a key stands for and what its absence means follows transformers' class of each family, also where
        mlx-lm does otherwise (Mistral's and Qwen's windows, `rope_parameters`, what YaRN assumes); save that a Llama
        with layer_types and sliding_window has those windows, as in mlx-lm."""
        config = {key: value for key, value in config.items() if value is not None}  # null is absent
        family = config.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(f"model_type: expected one of {', '.join(FAMILIES)}, got {family!r}")
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"hidden_act: expected silu, got {config['hidden_act']!r}")
        if "quantization" in config or "quantization_config" in config:
            raise CheckpointError("quantization: expected float weights; quantized ones are not read")

        def number(name: str, check: Callable = positive, default: float | None = None) -> Any:
            if name not in config and default is None:
                raise CheckpointError(f"config.json: expected {name!r} in it")
            try:
                return check(name, config.get(name, default))
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"config.json: {error}") from None

        rope = config.get("rope_parameters", {})  # transformers 5 keeps theta and scaling in one place
        scaling = config.get("rope_scaling") or rope
        for name, value in (("rope_parameters", rope), ("rope_scaling", scaling)):
            if not isinstance(value, Mapping):
                raise CheckpointError(f"{name}: expected an object, got {value!r}")
        if any(isinstance(value, Mapping) for value in scaling.values()):
            raise CheckpointError("rope_parameters: expected the same for every layer, got some for each kind of layer")
        if (share := {**config, **scaling}.get("partial_rotary_factor") or 1) != 1:
            raise CheckpointError(f"partial_rotary_factor: expected whole heads to be turned, got {share} of them")
        if "rope_theta" in scaling:
            config["rope_theta"] = scaling["rope_theta"]
        num_layers, num_q_heads = number("num_hidden_layers"), number("num_attention_heads")
        num_kv_heads = number("num_key_value_heads", default=num_q_heads)
        if num_q_heads % num_kv_heads:
            raise CheckpointError(
                f"num_attention_heads: expected a multiple of the {num_kv_heads} KV heads, got {num_q_heads}"
            )
        attention_bias = family in ("llama", "qwen3") and config.get("attention_bias", False)
        return cls(
            vocab_size=number("vocab_size"),
            hidden_size=number("hidden_size"),
            intermediate_size=number("intermediate_size"),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=number("head_dim", default=number("hidden_size") // num_q_heads),
            rms_norm_eps=number("rms_norm_eps", _not_negative),
            rope_theta=number("rope_theta", finite, 10_000.0),
            max_positions=number("max_position_embeddings", default=2048),
            rope_scaling=scaling,
            sliding_windows=_sliding_windows(config, num_layers, number),
            stop_tokens=_stop_tokens(config.get("eos_token_id", [])),
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=attention_bias or family == "qwen2",
            output_bias=attention_bias,
            mlp_bias=family == "llama" and config.get("mlp_bias", False),
            qk_norm=family == "qwen3",
        )


def _sliding_windows(config: Mapping[str, Any], num_layers: int, number: Callable) -> tuple[int | None, ...]:
    family = config["model_type"]
    qwen = family.startswith("qwen")
    if "sliding_window" not in config or not config.get("use_sliding_window", not qwen):
        return (None,) * num_layers
    if kinds := config.get("layer_types"):
        if len(kinds) != num_layers or not set(kinds) <= set(KINDS):
            raise CheckpointError(f"layer_types: expected {num_layers} of {', '.join(KINDS)}, got {kinds}")
        slides = [kind == "sliding_attention" for kind in kinds]
    else:  # Qwen: the layers before this one see everything. Llama: all do.
        first = config.get("max_window_layers", 28) if qwen else 0 if family == "mistral" else num_layers
        slides = [layer >= first for layer in range(num_layers)]
    window = number("sliding_window") if any(slides) else None  # where no layer slides, whatever it says
    return tuple(window if one else None for one in slides)


def _not_negative(name: str, value: float) -> float:
    if (number := finite(name, value)) < 0:
        raise ValueError(f"{name}: expected 0 or more, got {value}")
    return number


def _stop_tokens(eos: int | list[int]) -> frozenset[int]:
    try:
        return frozenset(integer("eos_token_id", token) for token in (eos if isinstance(eos, list) else [eos]))
    except TypeError as error:
        raise CheckpointError(f"config.json: {error}") from None
