"""Model folders: against transformers in both directions, killed while being written, and every bad one named."""
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import Killed, die_at
from safetensors.torch import load_file, save_file

from r1.checkpoint import load_model, save_model
from r1.hf_config import eos_ids, load_config
from r1.context import KVCache
from r1.model import ModelConfig, Transformer
from r1.types import UserError

TINY = ModelConfig(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, max_position_embeddings=96, rope_theta=5000.0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
KINDS = {
    "llama": TINY,
    "llama-untied": replace(TINY, tie_word_embeddings=False, num_key_value_heads=4),
    "llama3-rope": replace(TINY, rope_scaling=LLAMA3),
    "qwen2": replace(TINY, attention_bias=True, rms_norm_eps=1e-6),
    "qwen2-untied": replace(TINY, attention_bias=True, tie_word_embeddings=False),
    "qwen3": replace(TINY, qk_norm=True, head_dim=20, tie_word_embeddings=False),
    "qwen3-tied": replace(TINY, qk_norm=True, head_dim=20),
}
IDS = torch.tensor([[5, 11, 3, 90, 42, 42, 7, 0, 66, 12, 31, 8]])


def random_model(cfg, seed=0):
    """Every parameter random, norms and biases too, and large enough for clear-cut logits."""
    g = torch.Generator().manual_seed(seed)
    model = Transformer(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
    return model


@torch.no_grad()
def greedy(model, ids, steps):
    cache = KVCache(model.cfg, 1, ids.shape[1] + steps)
    out = []
    for _ in range(steps):
        ids = model(ids, cache)[:, -1:].argmax(-1)
        out.append(ids.item())
    return out


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---- against transformers ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


@torch.no_grad()
def assert_same_model(ours, theirs):
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)
    generated = theirs.generate(IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=64,
                                min_new_tokens=64, pad_token_id=0)
    assert greedy(ours, IDS, 64) == generated[0, IDS.shape[1]:].tolist()


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 30_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_ours(transformers, tmp_path, kind, shard_bytes):
    ours = random_model(KINDS[kind])
    save_model(tmp_path / "m", ours, eos_ids=[3, 4], pad_id=0, shard_bytes=shard_bytes)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes < 100_000)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == ours.cfg.tie_word_embeddings
    assert theirs.generation_config.eos_token_id == [3, 4] and theirs.config.pad_token_id == 0
    assert theirs.config.bos_token_id is None
    theirs.generation_config.eos_token_id = None       # both must run on for all 64 steps
    assert_same_model(ours, theirs)
    assert equal(load_model(tmp_path / "m"), ours)


def hf_config(transformers, cfg):
    kind = "Qwen3" if cfg.qk_norm else "Qwen2" if cfg.attention_bias else "Llama"
    rope = {"rope_type": "default", **(cfg.rope_scaling or {}), "rope_theta": cfg.rope_theta}
    sizes = {k: getattr(cfg, k) for k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")}
    return getattr(transformers, kind + "Config")(
        **sizes, rope_parameters=rope, bos_token_id=None, eos_token_id=None, pad_token_id=None)


@pytest.mark.parametrize("shard", ["5GB", "30KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_loads_transformers(transformers, tmp_path, kind, shard):
    theirs = transformers.AutoModelForCausalLM.from_config(hf_config(transformers, KINDS[kind]))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    ours = load_model(tmp_path)
    assert ours.cfg == KINDS[kind]
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == ours.cfg.tie_word_embeddings
    assert_same_model(ours, theirs.eval())


# ---- our own round trip ------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "m", random_model(TINY), eos_ids=[3])
    return tmp_path / "m"


class FakeTokenizer:
    def save(self, path):
        (path / "tokenizer.json").write_text("{}")


def test_save_replaces_a_model_and_nothing_else(tmp_path):
    a, b = random_model(TINY, 1), random_model(TINY, 2)
    save_model(tmp_path / "m", a, tokenizer=FakeTokenizer(), shard_bytes=30_000)
    save_model(tmp_path / "m", b, eos_ids=[7])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"]
    assert equal(load_model(tmp_path / "m"), b) and [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "m" / "notes").mkdir()
    for precious in (tmp_path / "m", tmp_path):
        with pytest.raises(UserError, match="holds other things than a model.*give a new folder"):
            save_model(precious, a)


def test_save_survives_a_kill_at_any_call(tmp_path, monkeypatch):
    old, new = random_model(TINY, 1), random_model(TINY, 2)
    for n in range(1, 50):
        save_model(tmp_path / "m", old)
        try:
            with monkeypatch.context() as patch:
                die_at(patch, n)
                save_model(tmp_path / "m", new)
            break
        except Killed:
            got = load_model(tmp_path / "m")
            assert equal(got, old) or equal(got, new)
    assert 8 < n < 49 and equal(load_model(tmp_path / "m"), new) and not list(tmp_path.glob(".*"))


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "m", random_model(TINY), tokenizer=FakeTokenizer(), shard_bytes=30_000)
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 4 and {p.stat().st_mode & 0o777 for p in files} == {0o640}


def test_dtype_and_no_random_draws(folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = load_model(folder, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.lm_head.weight is model.embed_tokens.weight and model.norm.weight.dtype == torch.bfloat16
    assert model.rope_freq.dtype == torch.float32      # angles in bf16 would be wrong beyond position 256
    assert torch.equal(model.rope_freq, Transformer(TINY).rope_freq)
    save_model(folder, model)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert equal(load_model(folder, dtype=torch.bfloat16), model)


def test_loaded_weights_do_not_hang_on_the_file(folder):
    model = load_model(folder)
    with open(folder / "model.safetensors", "r+b") as f:
        f.truncate(100)
    assert model(IDS).isfinite().all()


def edit(file, **changes):
    raw = json.loads(file.read_text())
    raw.update(changes)
    file.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def test_eos_ids(folder):
    assert eos_ids(folder) == [3]
    edit(folder / "generation_config.json", eos_token_id=[5, 6])
    assert eos_ids(folder) == [5, 6]
    edit(folder / "generation_config.json", eos_token_id=None)
    assert eos_ids(folder) == [3]
    (folder / "generation_config.json").unlink()
    assert eos_ids(folder) == [3]
    edit(folder / "config.json", eos_token_id="</s>")
    with pytest.raises(UserError, match="eos_token_id must be a token id"):
        eos_ids(folder)
    edit(folder / "config.json", eos_token_id=None)
    with pytest.raises(UserError, match="names no eos_token_id"):
        eos_ids(folder)


def test_old_keys_of_config_json(folder):
    """As transformers 4 and the first Llama checkpoints wrote it."""
    edit(folder / "config.json", rope_parameters="absent", rope_scaling=None, rope_theta=250000.0, head_dim="absent")
    assert load_config(folder) == replace(TINY, rope_theta=250000.0)
    edit(folder / "config.json", rope_scaling=LLAMA3, architectures="absent")
    assert load_config(folder) == replace(TINY, rope_theta=250000.0, rope_scaling=LLAMA3)
    edit(folder / "config.json", use_sliding_window=True, max_window_layers=2)    # no layer is beyond them
    assert load_config(folder).num_hidden_layers == 2
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert equal(load_model(folder), random_model(TINY))


# ---- bad folders -------------------------------------------------------------------------------

@pytest.mark.parametrize("changes, words", [
    ({"architectures": ["MambaForCausalLM"]},
     "MambaForCausalLM is not supported; supported are LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"),
    ({"architectures": None, "model_type": "gemma"}, "gemma is not supported"),
    ({"hidden_size": "48"}, "hidden_size must be a positive whole number, not '48'"),
    ({"vocab_size": "absent"}, "vocab_size must be a positive whole number, not None"),
    ({"num_attention_heads": 0}, "num_attention_heads must be"),
    ({"num_key_value_heads": 3}, "num_attention_heads .4. must be a multiple of num_key_value_heads .3."),
    ({"head_dim": 11}, "head_dim .11. must be even"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a positive number"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn.* not supported; supported are"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear.* not supported"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor must be a positive number"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor.*not supported"),
    ({"rope_parameters": "default"}, "RoPE settings must be an object"),
    ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding-window attention"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"attention_bias": True}, "a bias on o_proj"),
    ({"hidden_act": "gelu"}, "the activation 'gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantised weights"),
])
def test_bad_config(folder, changes, words):
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=words) as e:
        load_model(folder)
    assert str(folder / "config.json") in str(e.value)


def test_bad_folders(tmp_path, folder):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty/config.json does not exist"):
        load_model(tmp_path / "empty")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-7B"}')
    with pytest.raises(UserError, match="holds an adapter of Qwen/Qwen2.5-7B, not a model; merge"):
        load_model(tmp_path / "adapter")
    for text, words in (('{"a": ', "cannot be read as JSON"), ("[1]", "must hold a JSON object"),
                        ("[" * 100_000, "cannot be read as JSON")):
        (tmp_path / "empty" / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="neither model.safetensors nor model.safetensors.index.json"):
        load_model(folder)
    with pytest.raises(UserError, match="both qk_norm and attention_bias"):
        save_model(tmp_path / "x", Transformer(replace(TINY, qk_norm=True, attention_bias=True)))


def drop(t): del t["model.norm.weight"]
def drop_two(t): del t["model.layers.1.mlp.up_proj.weight"], t["model.norm.weight"]
def add(t): t["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
def narrow(t): t["model.layers.0.mlp.down_proj.weight"] = torch.zeros(48, 79)
def poison(t): t["model.layers.1.self_attn.k_proj.weight"][3, 5] = float("nan")
def quantise(t): t["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
def untie(t): t["lm_head.weight"] = t["model.embed_tokens.weight"] + 1


@pytest.mark.parametrize("change, words", [
    (drop, "tensor model.norm.weight is missing"),
    (drop_two, "tensor model.layers.1.mlp.up_proj.weight and 1 more is missing"),
    (add, "model.safetensors: tensor model.layers.2.mlp.up_proj.weight has no place"),
    (narrow, r"tensor model.layers.0.mlp.down_proj.weight has shape \[48, 79\], but .* expects \[48, 80\]"),
    (poison, "tensor model.layers.1.self_attn.k_proj.weight holds NaN"),
    (quantise, "tensor model.norm.weight is stored as torch.int8; use weights that are not quantised"),
    (untie, "lm_head.weight differs from the embedding.*set tie_word_embeddings to false"),
])
def test_bad_tensors(folder, change, words):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=words) as e:
        load_model(folder)
    assert str(folder) in str(e.value)


def test_damaged_weights(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for bad in (b"", data[:5], data[:300], data[:-1], b"\xff" * 8 + data[8:], data[:8] + b"[" + data[9:]):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="model.safetensors is damaged or not a safetensors file"):
            load_model(folder)


def test_bad_shards(folder):
    save_model(folder, random_model(TINY), shard_bytes=30_000)
    index, name = folder / "model.safetensors.index.json", "model.norm.weight"
    good = json.loads(index.read_text())
    shard = folder / good["weight_map"][name]
    shard.rename(folder / "aside")
    with pytest.raises(UserError, match=f"puts tensor .* in {shard.name}, but the folder has no such file"):
        load_model(folder)
    (folder / "aside").rename(shard)
    tensors = load_file(shard)
    save_file({k: v for k, v in tensors.items() if k != name}, shard)
    with pytest.raises(UserError, match=f"{shard.name} lacks tensor {name}"):
        load_model(folder)
    for bad, words in (({"weight_map": {}}, "no weight_map"), ({"weight_map": {name: "../x"}}, "no such file"),
                       ({"weight_map": {name: 3}}, "no such file"), ({}, "no weight_map")):
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=words):
            load_model(folder)
