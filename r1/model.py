"""A decoder-only transformer of the Llama family: one forward for training and for decoding.

Covers Llama 2/3, SmolLM2, Qwen2/2.5 and Qwen3 by the options of `ModelConfig`; names of fields and
of weights are those of Hugging Face checkpoints. Knows torch and nothing else.
B batch, T time (new tokens), S time (cached and new), C width, H heads, K key/value heads, D head width.
"""
from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                             f"num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE turns pairs of channels")


class KVCache:
    """Keys and values of everything read so far; made by the sampler, advanced once by `forward`.

    Rows are padded on the left, so that all of them write the same column. `start[b]` is the first
    real column of row b; a token's position is its column minus `start`.
    """

    def __init__(self, cfg: ModelConfig, batch: int, columns: int, device=None, dtype=torch.float32):
        shape = (cfg.num_hidden_layers, batch, cfg.num_key_value_heads, columns, cfg.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)   # zeros: a masked NaN would still poison
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.start = torch.zeros(batch, dtype=torch.long, device=device)
        self.length = 0                                           # columns written

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, K, T, D) behind what is there, return all keys and values (B, K, S, D)."""
        end = self.length + k.shape[2]
        if end > self.k.shape[3]:                                 # for all layers at once
            self.k, self.v = (F.pad(t, (0, 0, 0, max(64, end // 2))) for t in (self.k, self.v))
        self.k[layer, :, :, self.length:end] = k
        self.v[layer, :, :, self.length:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    @staticmethod
    def join(cfg: ModelConfig, parts: list[tuple[KVCache, Tensor]]) -> KVCache:
        """The named rows (repeats allowed) of each cache in one, all ending in the same column; columns of none are left out."""
        used = [c.length - int(c.start[rows].min()) for c, rows in parts]
        first, length, at = parts[0][0], max(used), 0
        new = KVCache(cfg, sum(len(rows) for _, rows in parts), length + 64, first.k.device, first.k.dtype)
        new.length = length
        for (c, rows), columns in zip(parts, used, strict=True):
            to = slice(at, at := at + len(rows))
            new.k[:, to, :, length - columns:length] = c.k[:, rows, :, c.length - columns:c.length]
            new.v[:, to, :, length - columns:length] = c.v[:, rows, :, c.length - columns:c.length]
            new.start[to] = c.start[rows] + length - c.length
        return new


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight.to(x.dtype)


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
    """Turn channel i against channel i + D/2 (the half-split order of Llama checkpoints). x (B, H, T, D)."""
    a, b = x.float().chunk(2, dim=-1)                       # (B, H, T, D/2) each
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def side_by_side(x: Tensor, beside: tuple | None, *layers: nn.Linear) -> list[Tensor]:
    """Each layer of x; as one product where their weights have been put beside each other."""
    if beside is None:
        return [layer(x) for layer in layers]
    return F.linear(x, *beside).split([layer.out_features for layer in layers], dim=-1)


class Attention(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        c, h, k, d = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(c, h * d, bias=cfg.attention_bias)
        self.k_proj = nn.Linear(c, k * d, bias=cfg.attention_bias)
        self.v_proj = nn.Linear(c, k * d, bias=cfg.attention_bias)
        self.o_proj = nn.Linear(h * d, c, bias=False)
        self.beside = None                                  # q, k and v as one matrix, while sampling
        self.q_norm = RMSNorm(d, cfg.rms_norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(d, cfg.rms_norm_eps) if cfg.qk_norm else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None,
                cache: KVCache | None, layer: int) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (y.view(B, T, -1, self.head_dim) for y in side_by_side(x, self.beside, self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))    # (B, H, T, D), (B, K, T, D) twice
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)                # (B, K, S, D)
        if T == 1:                                          # the H / K queries of a key head as so many positions of one head:
            q = q.view(B, k.shape[1], -1, self.head_dim)    # torch would repeat keys and values for each of them
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                             enable_gqa=q.shape[1] != k.shape[1]).view(B, -1, T, self.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)
        self.beside = None                                  # gate and up as one matrix, while sampling

    def forward(self, x: Tensor) -> Tensor:
        gate, up = side_by_side(x, self.beside, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x, rope, mask, cache, layer):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.bf16 = False                                                               # matrix products in bfloat16
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
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
    def packed(self):
        """Weights that read the same input beside each other meanwhile, and cast once: for many forwards without a backward."""
        groups = [(m, layers) for b in self.layers for m, layers in ((b.self_attn, (b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj)),
                                                                    (b.mlp, (b.mlp.gate_proj, b.mlp.up_proj)))]
        with torch.autocast(self.rope_freq.device.type, torch.bfloat16, enabled=self.bf16):
            for module, layers in groups:
                weight = torch.cat([layer.weight for layer in layers])
                bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
                module.beside = (weight.bfloat16() if self.bf16 else weight, bias)
            try:
                yield
            finally:
                for module, _ in groups:
                    module.beside = None

    def hidden(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """Final hidden states (B, T, C)."""
        T = ids.shape[1]
        past = cache.length if cache is not None else 0
        last = past + T - (int(cache.start.min()) if cache is not None else 0)         # positions of the longest row
        if last > self.cfg.max_position_embeddings:
            raise ValueError(f"{last} positions, but the model was made for {self.cfg.max_position_embeddings}")
        column = torch.arange(past, past + T, device=ids.device)                        # (T,)
        pos, mask = column[None], None                                                  # (1, T)
        if cache is not None:
            pos = (column - cache.start[:, None]).clamp(min=0)                          # (B, T)
            key = torch.arange(past + T, device=ids.device)                             # (S,)
            seen = (key <= column[:, None]) & (key >= cache.start[:, None, None])       # (B, T, S)
            mask = (seen | (key == column[:, None]))[:, None]    # padding sees itself: no empty softmax row
        angle = pos[..., None].float() * self.rope_freq                                 # (B or 1, T, D/2)
        rope = (angle.cos()[:, None], angle.sin()[:, None])
        x = self.embed_tokens(ids)                                                      # (B, T, C)
        for i, block in enumerate(self.layers):
            x = block(x, rope, mask, cache, i)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids` (B, T), which continue what the cache holds.

        With a mask `at` (B, T) those of its N positions alone, (N, V): the vocabulary is wide and most of it is not needed."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.hidden(ids, cache)
            return self.lm_head(x if at is None else x[at])
