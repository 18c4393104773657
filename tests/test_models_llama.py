"""The model over pages against mlx-lm's own over its dense cache: the same folder, the same logits, token by token."""

import json
import warnings
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm, the peer, is not installed: pip install '.[models]'")

from mlx.utils import tree_flatten

from paged_core import (
    BlockAllocator,
    Engine,
    PagedPool,
    PoolLayout,
    Preemption,
    PrefixCache,
    Scheduler,
    available_executors,
)
from paged_core.batch import Batch
from paged_core.errors import CheckpointError
from paged_core.models import Llama, load, oracle
from paged_core.models.config import LlamaConfig
from paged_core.models.oracle import work_for
from paged_core.models.rope import rotation
from tests import model_cases
from tests.model_cases import CONFIGS, LLAMA, VOCABULARY, mlx_lm_model, save_folder

TOKENS = np.random.default_rng(5).integers(1, VOCABULARY, 40).tolist()
PROMPT = 23  # of them; the rest come one by one
BLOCK_SIZE = 4
BLOCKS = [7, 2, 11, 5, 0, 9, 3, 10, 1, 8]  # scattered, for 40 tokens; blocks 4, 6 and 12 are nobody's
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
pool_of_nan = partial(model_cases.pool_of_nan, num_blocks=13, block_size=BLOCK_SIZE)


def dense_logits(model, tokens=TOKENS, prompt=PROMPT):
    return oracle.mlx_lm_logits(model, tokens, prompt=prompt)


def paged_logits(model, layout=PoolLayout.HND, tokens=TOKENS, prompt=PROMPT, **options):
    """The same from pages. Every slot starts as NaN."""
    return oracle.paged_logits(model, pool_of_nan(model, layout=layout), BLOCKS, tokens, prompt=prompt, **options)


def share_of_bound(got, expected, dtype, num_layers=3, first=PROMPT):
    return oracle.share_of_bound(got, expected, dtype, num_layers=num_layers, first=first).max()


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tmp_path_factory):
    """(config, mlx-lm's model, ours), in float32, from one folder."""
    config = CONFIGS[request.param]
    theirs = mlx_lm_model(config)
    folder = save_folder(tmp_path_factory.mktemp(request.param), config, theirs)
    return config, theirs, load(folder).model


def test_model_gives_mlx_lm_s_logits_token_by_token(case):
    _, theirs, ours = case
    assert share_of_bound(paged_logits(ours), dense_logits(theirs), mx.float32) <= 1


def test_model_is_right_in_chunks(case):
    _, theirs, ours = case
    assert share_of_bound(paged_logits(ours, chunks=(5, 1, 10, 7)), dense_logits(theirs), mx.float32) <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "windows", "qwen2", "qwen3"])
def test_model_gives_mlx_lm_s_logits_in_halves_too(name, dtype, tmp_path):
    theirs = mlx_lm_model(CONFIGS[name], DTYPES[dtype])
    ours = load(save_folder(tmp_path, CONFIGS[name], theirs)).model
    assert ours.dtype == DTYPES[dtype]
    assert share_of_bound(paged_logits(ours), dense_logits(theirs), DTYPES[dtype]) <= 1


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    theirs = mlx_lm_model(LLAMA)
    return theirs, load(save_folder(tmp_path_factory.mktemp("llama"), LLAMA, theirs)).model


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["llama", "biases", "tied", "yarn-rope", "windows", "qwen3"])
def test_model_computes_in_mlx_as_it_does_on_a_gpu(name, dtype, monkeypatch):
    """All of its code that a CPU leaves to NumPy, with MLX's arrays, weights in their own dtype."""
    monkeypatch.setattr("paged_core.models.llama.namespace", lambda: mx)
    theirs = mlx_lm_model(CONFIGS[name], dtype)
    ours = Llama(LlamaConfig.from_dict(CONFIGS[name]), weights_of(theirs))
    assert isinstance(ours.layers[0].down.weight, mx.array) and ours.layers[0].down.weight.dtype == dtype
    assert share_of_bound(paged_logits(ours, chunks=(5, 1, 10, 7)), dense_logits(theirs), dtype) <= 1


@pytest.mark.parametrize("executor", available_executors())
def test_model_runs_in_every_executor(llama, executor):
    theirs, ours = llama
    tokens = TOKENS[:14]  # the simulator takes its time
    got = paged_logits(ours, executor=executor, tokens=tokens, prompt=11)
    expected = dense_logits(theirs, tokens, prompt=11)
    assert share_of_bound(got, expected, mx.float32) <= 1


@pytest.mark.parametrize("layout", PoolLayout)
def test_model_runs_in_every_layout(llama, layout):
    theirs, ours = llama
    assert share_of_bound(paged_logits(ours, layout=layout), dense_logits(theirs), mx.float32) <= 1


def test_model_computes_a_batch_as_it_computes_each_alone(llama):
    """A decode, a whole prompt and a chunk in one batch: three sequences in one pool, nobody sees anybody."""
    theirs, ours = llama
    pool = pool_of_nan(ours)
    ours(Batch.of([work_for(TOKENS, [0, 5, 9], 0, 9)], BLOCK_SIZE), pool)  # the decode's past
    batch = Batch.of(
        [
            work_for(TOKENS[3:], [1, 12], 0, 7),
            work_for(TOKENS, [0, 5, 9], 9, 1),
            work_for(TOKENS[20:], [6, 2, 4], 0, 10, samples=False),
        ],
        BLOCK_SIZE,
    )
    assert [work.num_tokens for work in batch.work] == [1, 7, 10]  # decodes first
    assert batch.positions.tolist() == [9, *range(7), *range(10)]
    assert batch.logits_of.tolist() == [0, 7]
    # position 9 is offset 1 of block 9: slot 37; then blocks 1 and 12, then 6, 2 and half of 4
    assert np.array(batch.slot_mapping).tolist() == [
        37,
        *range(4, 8),
        *range(48, 51),
        *range(24, 28),
        *range(8, 12),
        16,
        17,
    ]
    decode, prompt = np.array(ours(batch, pool), np.float64)
    assert share_of_bound(decode[None], dense_logits(theirs, TOKENS[:10], 10), mx.float32) <= 1
    assert share_of_bound(prompt[None], dense_logits(theirs, TOKENS[3:10], 7), mx.float32) <= 1


def test_model_goes_on_past_the_angles_it_began_with(llama):
    theirs, ours = llama
    tokens = np.random.default_rng(6).integers(1, VOCABULARY, 262).tolist()
    got = oracle.paged_logits(ours, ours.pool(70, BLOCK_SIZE), range(70), tokens, prompt=250)
    assert share_of_bound(got, dense_logits(theirs, tokens, 250), mx.float32, first=250) <= 1


def moved_by_one(batch):
    return batch._replace(positions=batch.positions + 1)


def neighbouring_slot(batch):
    return batch._replace(slot_mapping=batch.slot_mapping ^ 1)


def another_s_block(batch):
    tables = np.array(batch.parts[0].block_tables)
    tables[0, 0] = 4  # nobody's: NaN
    return batch._replace(parts=[batch.parts[0]._replace(block_tables=mx.array(tables))])


@pytest.mark.parametrize("spoil", [moved_by_one, neighbouring_slot, another_s_block])
def test_the_bound_would_notice(llama, spoil):
    """Each mistake in the last decode alone is a hundred bounds away, or NaN."""
    theirs, ours = llama
    pool = pool_of_nan(ours)
    ours(Batch.of([work_for(TOKENS, BLOCKS, 0, PROMPT)], BLOCK_SIZE), pool)
    batch = Batch.of([work_for(TOKENS, BLOCKS, PROMPT, 1)], BLOCK_SIZE)
    wrong = np.array(ours(spoil(batch), pool), np.float64)
    expected = dense_logits(theirs, TOKENS[: PROMPT + 1])[-1:]
    assert not share_of_bound(wrong, expected, mx.float32) < 100


def test_a_table_may_be_spoilt_after_the_prompt(llama):
    theirs, ours = llama
    dense = dense_logits(theirs)
    stale = [BLOCKS[1], *BLOCKS[1:]]
    got = paged_logits(ours, blocks_after_prompt=stale)
    assert share_of_bound(got[:1], dense[:1], mx.float32) <= 1
    rest = oracle.share_of_bound(got[1:], dense[1:], mx.float32, num_layers=3, first=PROMPT + 1)
    assert rest.min() > 10


def test_greedy_goes_on_by_the_likeliest(llama):
    _, ours = llama
    answer = oracle.greedy(ours, pool_of_nan(ours), BLOCKS, TOKENS[:PROMPT], 5)
    logits = paged_logits(ours, tokens=[*TOKENS[:PROMPT], *answer])
    assert logits.argmax(axis=1)[:-1].tolist() == answer
    other = oracle.greedy(ours, pool_of_nan(ours), BLOCKS, TOKENS[:PROMPT], 5, blocks_after_prompt=[4, *BLOCKS[1:]])
    assert other[0] == answer[0] and other != answer  # block 4 is nobody's: NaN from the second on


# ------------------------------------------------------------------------------------------------ what does not fit


def weights_of(model):
    return dict(tree_flatten(model.parameters()))


def test_a_model_refuses_weights_that_do_not_fit(llama):
    theirs, _ = llama
    config, weights = LlamaConfig.from_dict(LLAMA), weights_of(theirs)
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=f"weights: expected '{name}' among them"):
        Llama(config, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(CheckpointError, match=r"down_proj.weight: expected shape \[64, 96\], got \[96, 64\]"):
        Llama(config, weights | {name: weights[name].T})
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    with pytest.raises(CheckpointError, match=r"q_proj.weight: expected shape \[64, 64\], got \[32, 64\]"):
        Llama(config, weights | {q: weights[q][:32], k: weights[q]})  # as many rows in all as it should be
    with pytest.raises(CheckpointError, match=r"norm.weight: expected shape \[64\], got \[32\]"):
        Llama(config, weights | {"model.norm.weight": mx.ones(32)})
    with pytest.raises(CheckpointError, match=r"weights: 1 that a model of this kind does not have: model.vision"):
        Llama(config, weights | {"model.vision": mx.zeros(3)})
    with pytest.raises(CheckpointError, match=r"does not have: model.layers.0.self_attn.q_proj.bias"):
        Llama(config, weights | {"model.layers.0.self_attn.q_proj.bias": mx.zeros(64)})
    with pytest.raises(CheckpointError, match=r"weights: expected 'lm_head.weight' among them"):
        Llama(config, {k: v for k, v in weights.items() if k != "lm_head.weight"})
    for dtype, got in ((mx.int8, "mlx.core.int8"), ("float32", "'float32'")):
        with pytest.raises(TypeError, match=f"dtype: expected mx.float32, mx.float16 or mx.bfloat16, got {got}"):
            Llama(config, weights, dtype)
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.weight: expected float weights, got mlx.core.int8"):
        Llama(config, weights | {name: weights[name].astype(mx.int8)})
    Llama(config, weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros(8)})  # old ones carry it


def test_a_model_refuses_another_model_s_pool(llama):
    _, ours = llama
    sizes = {"num_layers": 3, "num_blocks": 8, "num_kv_heads": 2, "block_size": 4, "head_dim": 16}
    ours.check_pool(PagedPool(**sizes, dtype=mx.float32))
    with pytest.raises(TypeError, match=r"pool: expected dtype .*float32, got .*float16"):
        ours.check_pool(PagedPool(**sizes, dtype=mx.float16))
    with pytest.raises(ValueError, match=r"pool: expected .* \(3, 2, 16\), got \(2, 2, 16\)"):
        ours.check_pool(PagedPool(**sizes | {"num_layers": 2}, dtype=mx.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type: expected one of llama, mistral, qwen2, qwen3, got 'gpt2'"),
        ({"model_type": None}, "model_type: expected one of"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu, got 'gelu'"),
        ({"quantization": {"bits": 4}}, "quantized ones are not read"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_scaling: expected default, .* got 'longrope'",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: linear expects 'factor'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "rope_scaling: .* got 'mrope'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "the same for every layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected whole heads to be turned, got 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor: .* got 0.25"),
        ({"num_key_value_heads": 3}, "num_attention_heads: expected a multiple of the 3 KV heads, got 4"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: expected a positive integer, got '3'"),
        ({"eos_token_id": "<end>"}, "eos_token_id: expected an integer, got '<end>'"),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, "layer_types: expected 3 of full_attention, slid"),
        ({"sliding_window": 8, "layer_types": ["linear_attention"] * 3}, "layer_types: expected 3 of .* got"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: expected a positive integer, got 0"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps: expected 0 or more, got -1e-06"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, got 'linear'"),
        ({"rope_parameters": [1]}, r"rope_parameters: expected an object, got \[1\]"),
        ({"rope_theta": 0}, "rope_theta 0.0, .* not every period is above zero"),
        ({"rope_theta": -1e4}, "rope_theta -10000.0, .* not every period is above zero"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "not every period is above zero"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "not every period is above zero"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None}}, "rope_scaling: yarn cannot be worked out from"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": -1}}, "yarn cannot be worked out from"),
    ],
)
def test_a_config_that_cannot_be_done_is_refused(llama, change, message):
    with pytest.raises(CheckpointError, match=message):
        Llama(LlamaConfig.from_dict(LLAMA | change), weights_of(llama[0]))


def test_a_config_that_lacks_something_is_refused():
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps"):
        for config in ({key: value for key, value in LLAMA.items() if key != name}, LLAMA | {name: None}):
            with pytest.raises(CheckpointError, match=f"config.json: expected '{name}' in it"):
                LlamaConfig.from_dict(config)


def test_a_config_of_transformers_5_says_the_same_in_one_place():
    plain = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    for scaling in ({}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}):
        old = LlamaConfig.from_dict(plain | {"rope_theta": 500_000.0} | scaling)
        parameters = {"rope_theta": 500_000.0, "rope_type": "default"} | scaling.get("rope_scaling", {})
        new = LlamaConfig.from_dict(plain | {"rope_parameters": parameters})
        assert new.rope_theta == old.rope_theta == 500_000.0
        ours, theirs = (rotation(c.head_dim, c.rope_theta, c.rope_scaling, c.max_positions) for c in (new, old))
        assert np.array_equal(ours.periods, theirs.periods) and ours.is_plain == theirs.is_plain == (not scaling)


def test_a_theta_among_the_scaling_counts():
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    assert LlamaConfig.from_dict(LLAMA | {"rope_scaling": scaling}).rope_theta == 1e6


def test_null_in_a_config_is_what_is_not_there():
    optional = (
        "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings",
        "sliding_window", "layer_types", "eos_token_id", "quantization_config", "attention_bias", "hidden_act",
    )  # fmt: skip
    absent = {key: value for key, value in LLAMA.items() if key not in optional}
    assert LlamaConfig.from_dict(absent | dict.fromkeys(optional)) == LlamaConfig.from_dict(absent)


@pytest.mark.parametrize(
    "family, missing",
    [
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias"),
        ("biases", "model.layers.0.self_attn.o_proj.bias"),
        ("biases", "model.layers.0.mlp.down_proj.bias"),
    ],
)
def test_what_a_family_has_must_be_among_the_weights(family, missing):
    """A shard that got lost is not a model without norms or biases."""
    config = CONFIGS[family]
    weights = {
        k: v for k, v in weights_of(mlx_lm_model(config)).items() if not k.endswith(missing.split("layers.0")[1])
    }
    with pytest.raises(CheckpointError, match=f"weights: expected '{missing}' among them"):
        Llama(LlamaConfig.from_dict(config), weights)


def test_a_tied_head_is_the_embedding():
    theirs = mlx_lm_model(CONFIGS["tied"])
    config, weights = LlamaConfig.from_dict(CONFIGS["tied"]), weights_of(theirs)
    embedding = weights["model.embed_tokens.weight"]
    assert np.array_equal(Llama(config, weights)._head.weight, np.array(embedding))
    Llama(config, weights | {"lm_head.weight": embedding})  # said twice
    with pytest.raises(CheckpointError, match=r"lm_head.weight: expected the embedding, as tie_word_embeddings says"):
        Llama(config, weights | {"lm_head.weight": embedding + 1})


def test_weights_may_be_of_several_dtypes(llama):
    """As some checkpoints keep norms in float32: the model is of the embedding's."""
    theirs, _ = llama
    weights = weights_of(theirs)
    mixed = {k: v if "norm" in k or "q_proj" in k else v.astype(mx.bfloat16) for k, v in weights.items()}
    ours = Llama(LlamaConfig.from_dict(LLAMA), mixed)
    assert ours.dtype == mx.bfloat16 and ours.pool(4).dtype == mx.bfloat16
    assert share_of_bound(paged_logits(ours), dense_logits(theirs), mx.bfloat16) <= 1


def test_a_gate_far_below_zero_is_closed_without_a_word(llama):
    """exp(-gate) overflows there."""
    theirs, _ = llama
    weights = weights_of(theirs)
    name = "model.layers.0.mlp.gate_proj.weight"
    ours = Llama(LlamaConfig.from_dict(LLAMA), weights | {name: weights[name] * 200})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(paged_logits(ours)).all()


@pytest.mark.parametrize("layout", PoolLayout)
@pytest.mark.parametrize("preemption", Preemption)
def test_engine_with_sliding_layers_says_in_a_crowd_what_it_says_alone(layout, preemption):
    """Windows of 8 tokens, blocks of 4, a prefix of 12 that all share, and blocks for two and a half of the four."""
    theirs = mlx_lm_model(CONFIGS["windows"])
    ours = Llama(LlamaConfig.from_dict(CONFIGS["windows"]), weights_of(theirs))
    prompts = [TOKENS[:12] + TOKENS[20 + i : 28 + i] for i in range(4)]

    def answers(prompts, num_blocks):
        scheduler = Scheduler(
            PrefixCache(BlockAllocator(num_blocks), block_size=4), block_size=4, max_running=4, max_tokens_per_step=13,
            preemption=preemption, num_host_blocks=20,
        )  # fmt: skip
        engine = Engine(ours, ours.pool(num_blocks, 4, layout), scheduler)
        requests = [engine.add(i, prompt, 20, stop_tokens=()) for i, prompt in enumerate(prompts)]
        while scheduler.requests:
            engine.step()
        return [request.tokens[20:] for request in requests], sum(r.num_preemptions for r in requests), scheduler.blocks

    crowd, num_preemptions, blocks = answers(prompts, 25)
    assert num_preemptions > 0 and blocks.hits > 0
    assert crowd == [answers([prompt], 25)[0][0] for prompt in prompts]
    tokens = prompts[0] + crowd[0]
    assert dense_logits(theirs, tokens[:-1], 20).argmax(axis=1).tolist() == crowd[0]


def test_sliding_windows_are_read_as_each_family_means_them():
    def windows(**config):
        return LlamaConfig.from_dict(LLAMA | {"num_hidden_layers": 3, "sliding_window": 8} | config).sliding_windows

    assert windows() == windows(sliding_window=0) == (None, None, None)
    assert windows(model_type="qwen2", use_sliding_window=False, sliding_window=-1) == (None, None, None)
    assert windows(model_type="mistral") == (8, 8, 8)
    assert windows(model_type="qwen2", use_sliding_window=False) == (None, None, None)
    assert windows(model_type="qwen2", use_sliding_window=True, max_window_layers=2) == (None, None, 8)
    # not said: transformers' defaults are False, and layer 28
    assert windows(model_type="qwen3", max_window_layers=0) == (None, None, None)
    assert windows(model_type="qwen2", use_sliding_window=True, num_hidden_layers=30) == (None,) * 28 + (8, 8)
    assert windows(layer_types=["full_attention", "sliding_attention", "full_attention"]) == (None, 8, None)


# ------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_read_in_whatever_dtype_one_asks_for(tmp_path):
    folder = save_folder(tmp_path, LLAMA, mlx_lm_model(LLAMA, mx.float16))
    assert load(folder).model.dtype == mx.float16
    assert load(str(folder), dtype=mx.float32).model.dtype == mx.float32
    assert load(folder).model.stop_tokens == {0, 7}
    assert load(folder).tokenizer.decode(load(folder).tokenizer.encode("abc").ids) == "abc"


def test_a_folder_with_the_weights_twice_and_the_ends_of_answers_apart(tmp_path):
    """As Mistral's and Qwen's are: consolidated.safetensors has other names, generation_config.json more ends."""
    folder = save_folder(tmp_path, LLAMA, mlx_lm_model(LLAMA))
    mx.save_safetensors(str(folder / "consolidated.safetensors"), {"layers.0.attention.wq.weight": mx.zeros((64, 64))})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 9], "top_k": 20}))
    assert load(folder).model.stop_tokens == {0, 9}
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert load(folder).model.stop_tokens == {0, 7}
    (folder / "generation_config.json").write_text("{ not json")
    with pytest.raises(CheckpointError, match=r"generation_config.json: not readable as JSON"):
        load(folder)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = save_folder(tmp_path / "model", LLAMA, mlx_lm_model(LLAMA))
    weights = sorted(folder.glob("*.safetensors"))
    content = weights[1].read_bytes()
    weights[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: not readable as safetensors"):
        load(folder)
    weights[1].unlink()
    with pytest.raises(CheckpointError, match=r"model: weights: expected '.*' among them"):
        load(folder)
    weights[0].unlink()
    with pytest.raises(CheckpointError, match=r"expected a file model\*.safetensors"):
        load(folder)


@pytest.mark.parametrize("name, words", [("config.json", "configuration"), ("tokenizer.json", "tokenizer")])
def test_a_folder_s_small_files_are_looked_at(tmp_path, name, words):
    folder = save_folder(tmp_path, LLAMA, mlx_lm_model(LLAMA))
    (folder / name).write_text("{ not json")
    with pytest.raises(CheckpointError, match=f"{name}: not readable as"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: expected .* here; there is no such file"):
        load(folder)


def test_the_index_says_which_files_count(tmp_path):
    """Folders gather files: an older version, a half of a download, the same weights in another dtype."""
    theirs = mlx_lm_model(LLAMA)
    folder = save_folder(tmp_path, LLAMA, theirs)
    first, second = sorted(folder.glob("*.safetensors"))
    stray = {name: mx.zeros_like(x) for name, x in weights_of(theirs).items()}
    mx.save_safetensors(str(folder / "model_old.safetensors"), stray)
    with pytest.raises(CheckpointError, match=r"model_old.safetensors: '.*' is in another file of the folder, too"):
        load(folder)
    index = {name: file.name for file in (first, second) for name in mx.load(str(file))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load(folder).model.layers[0].attention_norm.any()
    second.rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{second.name}: model.safetensors.index.json names this file, and"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match=r"index.json: expected the names of files in its weight_map"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), weights_of(theirs))
    assert load(folder).model.layers[0].attention_norm.any()  # the file of this name is the whole of it


def test_a_name_that_is_nowhere_is_refused_with_what_to_do(monkeypatch):
    for name, words in (("nowhere", "nowhere: no"), ("nowhere/", "nowhere/: no"), ("", "'': no")):
        with pytest.raises(CheckpointError, match=f"^{words} such folder$"):
            load(name)
    with pytest.raises(TypeError, match="source: expected a folder, or a name on the hub, got 3"):
        load(3)

    def no_network(name, **_):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(CheckpointError, match=r"some/model: no such folder .* give it: no route\. "):
        load("some/model")


def test_a_hub_s_name_is_downloaded_and_read(monkeypatch, tmp_path):
    folder = save_folder(tmp_path, LLAMA, mlx_lm_model(LLAMA))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns)) or folder
    )
    assert load("some/model").folder == folder
    wanted = (
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model*.safetensors",
        "tokenizer.json",
    )
    assert asked == [("some/model", list(wanted))]


def test_the_shipped_model_is_small_and_in_float16():
    folder = load().folder
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000
    weights = mx.load(str(folder / "model.safetensors"))
    assert sum(x.size for x in weights.values()) == 2_885_888
    assert {x.dtype for x in weights.values()} == {mx.float16}


def test_the_shipped_model_gives_mlx_lm_s_logits():
    import mlx_lm

    checkpoint = load(dtype=mx.float32)
    theirs, _ = mlx_lm.load(str(checkpoint.folder))
    theirs.set_dtype(mx.float32)
    tokens = checkpoint.tokenizer.encode("In the beginning God created the heaven and the earth. And the earth was").ids
    got = paged_logits(checkpoint.model, tokens=tokens, prompt=4)
    expected = dense_logits(theirs, tokens, prompt=4)
    assert share_of_bound(got, expected, mx.float32, num_layers=4) <= 1
