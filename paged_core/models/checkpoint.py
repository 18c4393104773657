"""From a Hugging Face folder, or a name on the hub, to a model and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from paged_core.errors import CheckpointError
from paged_core.models.config import LlamaConfig
from paged_core.models.llama import Llama

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS = (
    "model*.safetensors"  # some folders hold the same weights twice, under other names in consolidated*.safetensors
)
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files: which tensor lies in which
NEEDED = ["config.json", "generation_config.json", INDEX, WEIGHTS, "tokenizer.json"]


class Checkpoint(NamedTuple):
    """A trained model, its tokenizer (of the `tokenizers` library), and where they came from."""

    model: Llama
    tokenizer: Tokenizer
    folder: Path


def shipped() -> Path:
    """The folder of the model that comes with this package: 2.9 million parameters that have read the King James Bible
    and nothing else. See training/README.md."""
    package = Path(__file__).resolve().parent.parent
    beside, inside = package.parent / "checkpoint", package / "_checkpoint"  # in a checkout; in an installed package
    return inside if inside.exists() else beside


def load(source: str | Path | None = None, *, dtype: mx.Dtype | None = None) -> Checkpoint:
    """The checkpoint in a folder; of that name on the Hugging Face hub, such as "HuggingFaceTB/SmolLM2-135M", which is
    downloaded once, with a progress bar; or, by default, the one that is shipped.

    `dtype` is what weights and KV cache are kept in, by default the weights' own. CheckpointError when there is no such
    folder or name, when a file is missing or damaged, or when it is a model that this package does not compute.
    """
    if source is not None and not isinstance(source, str | Path):
        raise TypeError(f"source: expected a folder, or a name on the hub, got {source!r}")
    folder = shipped() if source is None else Path(source).expanduser()
    if not folder.is_dir() or source == "":
        folder = _download(str(source))
    config = _json(folder / "config.json")
    if (generation := folder / "generation_config.json").is_file():  # a chat model has its ends of answers here
        config |= {key: value for key, value in _json(generation).items() if key == "eos_token_id"}
    files = _weight_files(folder)
    weights: dict[str, mx.array] = {}
    for file in files:
        try:
            part: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]  # for this kind of file
        except RuntimeError as error:
            raise CheckpointError(f"{file}: not readable as safetensors: {error}") from None
        if twice := weights.keys() & part.keys():
            raise CheckpointError(f"{file}: {min(twice)!r} is in another file of the folder, too")
        weights |= part
    try:
        model = Llama(LlamaConfig.from_dict(config), weights, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return Checkpoint(model, _tokenizer(folder / "tokenizer.json"), folder)


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names; without one, the only file there should be; else all that look like parts."""
    if (folder / INDEX).is_file():
        named = _json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{folder / INDEX}: expected the names of files in its weight_map")
        files = sorted(folder / str(name) for name in set(named.values()))
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file}: {INDEX} names this file, and it is not there")
    elif (single := folder / "model.safetensors").exists():
        files = [single]
    else:
        files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise CheckpointError(f"{folder}: expected a file {WEIGHTS} with the weights")
    return files


def _tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise CheckpointError("tokenizers is not installed: pip install tokenizers") from None
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the tokenizer here; there is no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(f"{path}: not readable as a tokenizer: {error}") from None


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a model's configuration here; there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(f"{name or repr(name)}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{name}: no such folder; to look for it on the hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=NEEDED))
    except Exception as error:  # no network, no such name, no right to it: each library below has an error of its own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder here, and the Hugging Face hub does not give it: {reason}. Where there is no "
            f"network, name a folder with config.json, {WEIGHTS} and tokenizer.json."
        ) from None
