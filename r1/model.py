"""A decoder-only transformer of the Llama family: one forward for training and for decoding.

Covers Llama 2/3, SmolLM2, Qwen2/2.5 and Qwen3 by the options of `ModelConfig`; names of fields and
of weights are those of Hugging Face checkpoints. Knows torch and nothing else.
B batch, T time (new tokens), S time (cached and new), C width, H heads, K key/value heads, D head width.
"""
from __future__ import annotations

import math
import platform
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from r1.context import Causal

@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 1024
    hidden_size: int = 128                 # C
    intermediate_size: int = 384           # width inside the MLP
    num_hidden_layers: int = 4
    num_attention_heads: int = 4           # H
    num_key_value_heads: int = 4           # K; each serves H / K query heads
    head_dim: int = 0                      # D; 0 means C / H
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None       # None, or Llama 3's {"rope_type": "llama3", "factor": ..., ...}
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False           # biases on q, k and v (Qwen2)
    qk_norm: bool = False                  # RMSNorm on every query and key head (Qwen3)

    def __post_init__(self):
        if min(self.num_attention_heads, self.num_key_value_heads) < 1:
            raise ValueError("num_attention_heads and num_key_value_heads must be at least 1")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                             f"num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE turns pairs of channels")


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype == torch.bfloat16 else x
        return F.rms_norm(wide, x.shape[-1:], self.weight.to(wide.dtype), self.eps).to(x.dtype)


def rope_frequencies(cfg: ModelConfig) -> Tensor:
    """Angle per position of every channel pair, (D/2,); Llama 3.1 stretches the slow ones."""
    freq = cfg.rope_theta ** -(torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim)
    scaling = cfg.rope_scaling
    if not scaling:
        return freq
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)   # within the first context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)                         # 0: stretch, 1: leave
    return smooth * freq + (1 - smooth) * freq / factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i against channel i + D/2 (Llama's order). x (B, T, heads, D); cos, sin (B, T, 1, D), sin negative in the first half."""
    wide = x.float() if x.dtype == torch.bfloat16 else x       # products of mixed types are slow
    return (wide * cos).addcmul_(wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def linear(x: Tensor, ready: Callable | None, *layers: nn.Linear) -> Tensor:
    """All layers of x, their outputs beside each other, as one product; by what `lay_out` has made of them where there is that."""
    if ready is not None:
        return ready(x)
    if len(layers) == 1:
        return layers[0](x)
    if not torch.is_autocast_enabled(x.device.type) or any(hasattr(layer, "merged") for layer in layers):        # one product would keep a copy of the weights for the backward
        return torch.cat([layer(x) for layer in layers], dim=-1)
    dtype = torch.get_autocast_dtype(x.device.type)         # as autocast does anyway; cast before they are put together
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    return F.linear(x, torch.cat([layer.weight.to(dtype) for layer in layers]), bias)


@lru_cache
def fast_bf16(device: str) -> bool:
    """Whether there are instructions for bfloat16. Most laptops' CPUs have none: torch emulates them, with AVX2 alone number by number."""
    if device != "cpu":
        return True
    can = torch.cpu.get_capabilities()                      # of an unknown CPU its architecture alone
    if can["architecture"] == "x86_64":
        return can.get("avx512_bf16", False) or can.get("amx_bf16", False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def lay_out(layers: tuple[nn.Linear, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The product with these layers for many forwards without a backward: weights and biases are cast once, and on x86 CPUs put in the
    blocked order that oneDNN computes in, which it would otherwise make anew in every call."""
    weights = [(layer.merged() if hasattr(layer, "merged") else layer.weight).to(dtype) for layer in layers]
    weight = torch.cat(weights) if len(layers) > 1 else weights[0]
    bias = torch.cat([layer.bias for layer in layers]).to(dtype) if layers[0].bias is not None else None
    if weight.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available() and (
            dtype == torch.float32 or dtype == torch.bfloat16 and fast_bf16("cpu")):
        blocked, product = torch.ops.mkldnn._reorder_linear_weight(weight), torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x.to(dtype), blocked, bias, "none", [], "")
    return lambda x: F.linear(x.to(dtype), weight, bias)


class Attention(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        c, h, k, d = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        self.sizes = (h, k, d)
        self.q_proj = nn.Linear(c, h * d, bias=cfg.attention_bias)
        self.k_proj = nn.Linear(c, k * d, bias=cfg.attention_bias)
        self.v_proj = nn.Linear(c, k * d, bias=cfg.attention_bias)
        self.o_proj = nn.Linear(h * d, c, bias=False)
        self.qkv = self.out = None                          # laid out, while sampling
        self.q_norm = RMSNorm(d, cfg.rms_norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(d, cfg.rms_norm_eps) if cfg.qk_norm else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Causal, layer: int) -> Tensor:
        H, K, D = self.sizes
        heads = context.spread(linear(x, self.qkv, self.q_proj, self.k_proj, self.v_proj)).unflatten(-1, (H + 2 * K, D))
        qk, v = heads.split((H + K, K), dim=2)                                          # (B, T, H + K, D), (B, T, K, D)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :, :H]), self.k_norm(qk[:, :, H:])), dim=2)
        q, k = apply_rope(qk, *rope).split((H, K), dim=2)
        return linear(context.collect(context.attend(layer, q, k, v).flatten(2)), self.out, self.o_proj)


def swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of both beside each other (B, T, 2 F), which alone is kept for the backward: autograd would keep as much again."""

    @staticmethod
    def forward(ctx, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return swiglu(both)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        return torch.cat((torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)), dim=-1)


class MLP(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)
        self.gate_up = self.down = None                     # laid out, while sampling

    def forward(self, x: Tensor) -> Tensor:
        act = SwiGLU.apply if torch.is_grad_enabled() else swiglu
        return linear(act(linear(x, self.gate_up, self.gate_proj, self.up_proj)), self.down, self.down_proj)


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Causal, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, context, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.bf16 = False                                                               # matrix products in bfloat16
        self.recompute = False                                                          # activations again in the backward
        self.compiled = False                                                           # graph.compile_layers
        self.words = cfg.vocab_size                                                     # of V those that the tokenizer knows
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.head = None                                                                # laid out, while sampling
        self.register_buffer("rope_freq", rope_frequencies(cfg), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Transformer:
        """Normal(0, 0.02); what is added to the residual stream is scaled down by the depth (GPT-2)."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                p.copy_(torch.randn(p.shape, generator=g) * 0.02 / (math.sqrt(2 * len(self.layers)) if deep else 1))
            elif name.endswith("bias"):
                p.zero_()
        return self

    @contextmanager
    def laid_out(self):
        """Meanwhile for many forwards without a backward: see `lay_out`."""
        dtype = torch.bfloat16 if self.bf16 else self.embed_tokens.weight.dtype
        places = [(self, "head", (self.lm_head,))]
        for a, m in ((b.self_attn, b.mlp) for b in self.layers):
            places += [(a, "qkv", (a.q_proj, a.k_proj, a.v_proj)), (a, "out", (a.o_proj,)),
                       (m, "gate_up", (m.gate_proj, m.up_proj)), (m, "down", (m.down_proj,))]
        try:
            for module, name, layers in places:
                setattr(module, name, lay_out(layers, dtype))
            yield
        finally:
            for module, name, _ in places:
                setattr(module, name, None)

    def hidden(self, ids: Tensor, context: Causal) -> Tensor:
        """Final hidden states (B, T, C)."""
        T = ids.shape[1]
        if (last := context.reach(T)) > self.cfg.max_position_embeddings:
            raise ValueError(f"{last} positions, but the model was made for {self.cfg.max_position_embeddings}")
        angle = context.positions(T, ids.device)[..., None, None].float() * self.rope_freq      # (B or 1, T, 1, D/2)
        angle = torch.cat((-angle, angle), dim=-1)                                      # (B or 1, T, 1, D)
        rope = angle.cos(), angle.sin()
        x = self.embed_tokens(ids)                                                      # (B, T, C)
        for i, block in enumerate(self.layers):
            run = block if self.head is None else block.forward                         # compiled for training alone
            x = checkpoint(run, x, rope, context, i, use_reentrant=False, preserve_rng_state=False) if self.recompute and torch.is_grad_enabled() else run(x, rope, context, i)
        context.advance(T)
        return self.norm(x)

    def forward(self, ids: Tensor, context: Causal | None = None, at: Tensor | None = None, read: Callable | None = None):
        """Logits (B, T, V) of the token after each of `ids` (B, T), which stand as `context` says.

        With `at` (N,), those of N places in (B T) alone, (N, V). With `read` too, what it makes of hidden states (N, C)
        and the head's weight (V, C), so that (N, V) need never exist."""
        context = context or Causal()
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16 and self.head is None):   # laid out: cast already
            x = self.hidden(ids, context)
            if at is not None:
                x = x.flatten(0, 1).index_select(0, at)                                 # (N, C); [at] would add gradients in any order
            if read is None:
                return linear(x, self.head, self.lm_head)[..., :self.words]
            weight = self.lm_head.weight
            dtype = torch.bfloat16 if self.bf16 else weight.dtype
            return read(x.to(dtype), weight.to(dtype))
