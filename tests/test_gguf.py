"""GGUF import: small files written here, and SmolLM2-135M against what transformers makes of the same file."""
import argparse
import random
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from r1.checkpoint import eos_ids, load_model
from r1.gguf import find_gguf, import_gguf
from r1.model import ModelConfig, Transformer
from r1.tokenizer import Tokenizer
from r1.types import UserError

gguf = pytest.importorskip("gguf")

BASE = ModelConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, max_position_embeddings=64, rope_theta=5000.0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
MODELS = {
    "llama": BASE,
    "llama-untied": replace(BASE, tie_word_embeddings=False),
    "llama3-rope": replace(BASE, rope_scaling=LLAMA3, rope_theta=500000.0),
    "qwen2": replace(BASE, attention_bias=True, rms_norm_eps=1e-6),
    "qwen3": replace(BASE, qk_norm=True, head_dim=32, tie_word_embeddings=False),
}
LEAF = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def random_model(cfg):
    g = torch.Generator().manual_seed(0)
    model = Transformer(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
    return model


def byte_letters():
    """The 256 letters that stand for bytes in a byte-level vocabulary, in the order of GPT-2's."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def vocabulary():
    """(tokens, types, merges): bytes, a few merges, control tokens, one user-defined, and unused rows."""
    merges = [("Ġ", "Ġ"), ("a", "b"), ("Ġ", "ab"), ("1", "2"), ("Ã", "©")]
    tokens = byte_letters() + [a + b for a, b in merges]
    types = [1] * len(tokens)
    for token, kind in (("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<｜User｜>", 3), ("<think>", 4)):
        tokens.append(token)
        types.append(kind)
    while len(tokens) < 300:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    return tokens, types, [" ".join(m) for m in merges]


def tensors_of(model, arch):
    """Name and array of every tensor, as llama.cpp's converter lays them out."""
    for name, p in model.named_parameters():
        stem, kind = name.rsplit(".", 1)
        array = p.detach().numpy()
        if stem in TOP:
            yield f"{TOP[stem]}.{kind}", array
            continue
        _, layer, stem = stem.split(".", 2)
        if arch == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):    # halves -> neighbours
            rows, width = array.shape
            array = array.reshape(-1, 2, model.cfg.head_dim // 2, width).swapaxes(1, 2).reshape(rows, width)
        yield f"blk.{layer}.{LEAF[stem]}.{kind}", array
    scaling = model.cfg.rope_scaling
    if scaling:
        plain = Transformer(replace(model.cfg, rope_scaling=None)).rope_freq
        yield "rope_freqs.weight", (plain / model.rope_freq).numpy()


def write_gguf(file, model, arch, pre="gpt-2", quant="F32", drop=(), override=(), extra=None):
    """A file as llama.cpp's converter would write it for `model`. `override` replaces or adds metadata."""
    cfg = model.cfg
    w = gguf.GGUFWriter(file, arch)
    meta = {
        f"{arch}.block_count": cfg.num_hidden_layers, f"{arch}.context_length": cfg.max_position_embeddings,
        f"{arch}.embedding_length": cfg.hidden_size, f"{arch}.feed_forward_length": cfg.intermediate_size,
        f"{arch}.attention.head_count": cfg.num_attention_heads,
        f"{arch}.attention.head_count_kv": cfg.num_key_value_heads,
        f"{arch}.attention.key_length": cfg.head_dim, f"{arch}.rope.freq_base": cfg.rope_theta,
        f"{arch}.attention.layer_norm_rms_epsilon": cfg.rms_norm_eps,
        "tokenizer.ggml.bos_token_id": 262, "tokenizer.ggml.eos_token_id": 263, "tokenizer.ggml.padding_token_id": 261,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | dict(override)
    for key, value in meta.items():
        add = {int: w.add_uint32, float: w.add_float32, str: w.add_string, bool: w.add_bool}
        if value is not None:
            add[type(value)](key, value)
    tokens, types, merges = vocabulary()
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    for name, array in [*tensors_of(model, arch), *(extra or {}).items()]:
        kind = gguf.GGMLQuantizationType[quant if array.ndim > 1 else "F32"]
        if name not in drop:
            w.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return file


# ---- small files -------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", MODELS)
def test_weights_and_config(tmp_path, kind):
    model = random_model(MODELS[kind])
    folder = import_gguf(write_gguf(tmp_path / "m.gguf", model, kind.split("-")[0].replace("3", "", kind == "llama3-rope")),
                         tmp_path / "out")
    got = load_model(folder)
    assert got.cfg == model.cfg and eos_ids(folder) == [263]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), got.parameters(), strict=True))
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids), got(ids))


@pytest.mark.parametrize("quant, error", [("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 6e-3), ("Q4_0", 0.12)])
def test_quantised(tmp_path, quant, error):
    model = random_model(BASE)
    got = load_model(import_gguf(write_gguf(tmp_path / "m.gguf", model, "llama", quant=quant), tmp_path / "out"))
    gaps = [(a - b).abs().max().item() for a, b in zip(model.parameters(), got.parameters()) if a.dim() > 1]
    assert 0 < max(gaps) < error


@pytest.mark.parametrize("pre, pieces", [
    ("gpt-2", "ab| |Ġ12345|'s|Ġ|Ġx|Ċ|Ċ|y|'|LL"),
    ("default", "ab| |Ġ12345|'s|Ġ|Ġx|Ċ|Ċ|y|'|LL"),
    ("smollm", "ab|ĠĠ|1|2|3|4|5|'s|ĠĠ|x"),
    ("llama-bpe", "ab|Ġ|Ġ"),
    ("qwen2", "ab"),
])
def test_pre_tokenizers(tmp_path, pre, pieces):
    pass


def test_tokenizer(tmp_path):
    text = "<|im_start|>ab  ab<think>é<｜User｜>[PAD299]<|im_end|>"
    tokenizer = Tokenizer.load(import_gguf(write_gguf(tmp_path / "m.gguf", random_model(BASE), "llama"), tmp_path / "out"))
    tokens = vocabulary()[0]
    got = [tokens[i] for i in tokenizer.encode(text)]
    assert got == ["<|im_start|>", "ab", "Ġ", "Ġab", "<think>", "Ã©", "<｜User｜>", *"[PAD299]", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == 263 and tokenizer.vocab_size == 300
    assert tokenizer.render_prompt([{"role": "user", "content": "hi"}]) == "hi"
