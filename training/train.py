"""Trains the language model that ships in `checkpoint/`: a small Llama that has read one book, the King James Bible.

    python training/train.py --out checkpoint

The text is public domain (see README.md beside this file). The model is mlx-lm's own Llama, trained in float32 and
saved in float16 as a Hugging Face folder, which `paged_core.models` and mlx-lm both read. Needs a GPU: two minutes on
an NVIDIA H100, days on two CPU cores. Interrupted, it goes on from where it was: give the same --out again.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

TEXT = Path(__file__).with_name("king_james.txt.xz")
END = "<|end|>"  # after each chapter
VOCABULARY = 2048
CONTEXT = 1024  # tokens
HELD_OUT = 40  # every 40th chapter is never trained on
EVERY = 100  # steps between two looks at the chapters held out

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def chapters() -> list[str]:
    """A verse a line, chapters apart by an empty line."""
    return lzma.decompress(TEXT.read_bytes()).decode("ascii").strip().split("\n\n")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text can be written in it, the King James Bible in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def as_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One row of tokens, END after each text."""
    return np.array([token for text in texts for token in [*tokenizer.encode(text).ids, 0]], np.int32)


def loss(model: Model, inputs: mx.array, targets: mx.array) -> mx.array:
    """Mean cross-entropy, nats a token. inputs, targets int32 [rows, tokens]."""
    return nn.losses.cross_entropy(model(inputs).astype(mx.float32), targets, reduction="mean")


def held_out_loss(model: Model, stream: np.ndarray) -> float:
    rows = stream[: len(stream) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    return float(np.mean([loss(model, mx.array(row[None, :-1]), mx.array(row[None, 1:])).item() for row in rows]))


def save(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    weights = {name: array.astype(mx.float16) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32, help=f"rows of {CONTEXT} tokens a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.8)
    parser.add_argument(
        "--noise", type=float, default=0.15, help="share of tokens that are misread, against rote learning"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    texts = chapters()
    held_out = texts[HELD_OUT - 1 :: HELD_OUT]
    read = [text for i, text in enumerate(texts, 1) if i % HELD_OUT]
    tokenizer = train_tokenizer(read)
    train_stream, held_out_stream = as_stream(tokenizer, read), as_stream(tokenizer, held_out)
    print(f"{len(train_stream):,} tokens to train on, {len(held_out_stream):,} held out")

    mx.random.seed(arguments.seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    print(f"{sum(array.size for _, array in tree_flatten(model.parameters())):,} parameters")
    warm_up = max(1, min(100, arguments.steps // 10))
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0, arguments.learning_rate, warm_up),
            optim.cosine_decay(arguments.learning_rate, arguments.steps - warm_up, arguments.learning_rate / 20),
        ],
        [warm_up],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=arguments.weight_decay)
    optimizer.init(model.trainable_parameters())

    first, best = 0, float("inf")
    progress_file = arguments.out / "training.safetensors"  # what it takes to go on; removed at the end
    if progress_file.exists():
        arrays, words = mx.load(str(progress_file), return_metadata=True)
        model.load_weights([(k.removeprefix("model/"), v) for k, v in arrays.items() if k.startswith("model/")])
        state = [(k.removeprefix("optimizer/"), v) for k, v in arrays.items() if k.startswith("optimizer/")]
        optimizer.state = tree_unflatten(state)
        first, best = int(words["step"]), float(words["best"])
        print(f"going on from step {first}")

    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(inputs: mx.array, targets: mx.array) -> mx.array:
        value, gradients = nn.value_and_grad(model, loss)(model, inputs, targets)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return value

    started, recent = time.perf_counter(), []
    progress = tqdm(range(first, arguments.steps), initial=first, total=arguments.steps, unit="step")
    for number in progress:
        random = np.random.default_rng([arguments.seed, number])  # the same rows, interrupted or not
        starts = random.integers(0, len(train_stream) - CONTEXT, arguments.batch)
        rows = train_stream[starts[:, None] + np.arange(CONTEXT + 1)]
        other = random.integers(0, VOCABULARY, rows.shape, np.int32)
        inputs = np.where(random.random(rows.shape) < arguments.noise, other, rows)[:, :-1]
        recent.append(step(mx.array(inputs), mx.array(rows[:, 1:])))
        mx.eval(state)
        if (number + 1) % EVERY and number + 1 < arguments.steps:
            continue
        value = held_out_loss(model, held_out_stream)
        progress.write(f"step {number + 1}: {mx.stack(recent).mean().item():.3f} trained, {value:.3f} held out")
        recent.clear()
        if value < best:
            best = value
            save(arguments.out, model, tokenizer)
        arrays = {f"model/{name}": array for name, array in tree_flatten(model.parameters())}
        arrays |= {f"optimizer/{name}": array for name, array in tree_flatten(optimizer.state)}
        mx.save_safetensors(str(progress_file), arrays, metadata={"step": str(number + 1), "best": str(best)})
    progress_file.unlink(missing_ok=True)
    print(f"{best:.3f} nats a token held out, in {time.perf_counter() - started:.0f} s: {arguments.out}")


if __name__ == "__main__":
    main()
