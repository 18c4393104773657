"""Small models of every family, made by mlx-lm and saved as a Hugging Face folder, so that both sides read the same."""

import importlib
import json

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from paged_core import PoolLayout
from tests.cases import nan_pool

VOCABULARY = 96
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": [0, 7],
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": LLAMA,
    "tied": LLAMA | {"tie_word_embeddings": True},
    "biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "wide-heads": LLAMA | {"head_dim": 24, "num_key_value_heads": 1},
    "no-groups": LLAMA | {"num_key_value_heads": 4, "rope_theta": 500_000.0},
    "linear-rope": LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3-rope": LLAMA | {"rope_scaling": LLAMA3_ROPE},
    "yarn-rope": LLAMA | {"rope_scaling": YARN},
    "windows": LLAMA
    | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen2": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
}


def mlx_lm_model(config, dtype=mx.float32, seed=0):
    """mlx-lm's own model of `config`, its weights drawn such that logits differ and no norm is plain."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    random = np.random.default_rng(seed)
    drawn = {
        name: random.normal(1.0 if "norm" in name else 0.0, 0.2 if x.ndim == 1 else 1.5 / x.shape[-1] ** 0.5, x.shape)
        for name, x in tree_flatten(model.parameters())
    }
    model.update(tree_unflatten([(name, mx.array(x.astype(np.float32)).astype(dtype)) for name, x in drawn.items()]))
    mx.eval(model.parameters())
    return model


def pool_of_nan(model, *, num_blocks, block_size, layout=PoolLayout.HND):
    """A pool for one of our models in which whatever nobody wrote is NaN."""
    c = model.config
    sizes = {"num_layers": c.num_layers, "num_kv_heads": c.num_kv_heads, "head_dim": c.head_dim}
    return nan_pool(**sizes, num_blocks=num_blocks, block_size=block_size, dtype=model.dtype, layout=layout)


def save_folder(folder, config, model):
    """What mlx-lm's model knows, as a Hugging Face folder with a tokenizer of single bytes."""
    folder.mkdir(exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    names = sorted(weights)  # in two files, as large checkpoints are
    for i, part in enumerate((names[::2], names[1::2]), 1):
        mx.save_safetensors(str(folder / f"model-0000{i}-of-00002.safetensors"), {name: weights[name] for name in part})
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 1]
    tokenizer = Tokenizer(models.BPE({"<|end|>": 0} | {letter: i for i, letter in enumerate(alphabet, 1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
