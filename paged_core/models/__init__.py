"""Language models whose keys and values lie in a `PagedPool`.

config      what a Hugging Face folder's config.json asks for, checked
rope        the frequencies of rotary position embeddings, by variant
arrays      NumPy on a CPU, MLX on a GPU, and one code for both
llama       a Llama-family model over flattened batches of prompts and decodes
checkpoint  from a folder, or a name on the Hugging Face hub, to a model and its tokenizer
mlx_lm      the other way round: mlx-lm's own models on paged storage
"""

from paged_core.models.checkpoint import Checkpoint, load, shipped
from paged_core.models.llama import Llama

__all__ = ["Checkpoint", "Llama", "load", "shipped"]
