"""config.json and generation_config.json of a Hugging Face folder <-> `ModelConfig`.

Field names as in transformers (`LlamaConfig`, `Qwen2Config`, `Qwen3Config`); whatever the model would not
run exactly is refused.
"""

import json
from pathlib import Path

from r1.model import ModelConfig
from r1.types import UserError

MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_json(file: Path) -> dict:
    """The object in a JSON file; UserError if it is missing, broken or not an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; give a folder in the Hugging Face layout") from None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{file} cannot be read as JSON ({e}); repair it or fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(value).__name__}")
    return value


def config_json(cfg: ModelConfig, dtype: str, eos: list[int], pad_id: int | None) -> dict:
    """What transformers 4 and 5 need to read in config.json for weights of this `ModelConfig`."""
    if cfg.qk_norm and cfg.attention_bias:
        raise UserError("a model with both qk_norm and attention_bias has no Hugging Face architecture to be saved as")
    name = "Qwen3ForCausalLM" if cfg.qk_norm else "Qwen2ForCausalLM" if cfg.attention_bias else "LlamaForCausalLM"
    raw = {"architectures": [name], "model_type": MODEL_TYPES[name], **{key: getattr(cfg, key) for key in SIZES},
           "rms_norm_eps": cfg.rms_norm_eps, "tie_word_embeddings": cfg.tie_word_embeddings,
           "rope_theta": cfg.rope_theta, "rope_scaling": cfg.rope_scaling,            # transformers 4
           "rope_parameters": {"rope_type": "default", **(cfg.rope_scaling or {}), "rope_theta": cfg.rope_theta},
           "hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True, "dtype": dtype, "torch_dtype": dtype,
           "bos_token_id": None, "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "pad_token_id": pad_id}
    if name != "LlamaForCausalLM":
        raw.update(use_sliding_window=False, sliding_window=None)
    if name != "Qwen2ForCausalLM":                     # which always has its biases, and no key for them
        raw.update(attention_bias=False, mlp_bias=False)
    return raw


def _number(raw: dict, key: str, file: Path, default=None, kinds=int):
    value = default if raw.get(key) is None else raw[key]
    if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{file}: {key} must be a positive {'whole ' * (kinds is int)}number, not {value!r}")
    return value


def _rope(raw: dict, file: Path) -> tuple[float, dict | None]:
    """Theta and scaling, from the keys of transformers 4 or of transformers 5."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: the RoPE settings must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{file}: RoPE settings {rope} are not supported; supported are the types default and llama3")
    theta = _number({"rope_theta": raw.get("rope_theta"), **rope}, "rope_theta", file, 10000.0, (int, float))
    scaling = {key: _number(rope, key, file, kinds=(int, float)) for key in LLAMA3 if kind == "llama3"}
    return float(theta), {"rope_type": "llama3", **scaling} if scaling else None


def _refuse(raw: dict, name: str, file: Path) -> None:
    """Name what the model needs and `Transformer` does not have."""
    windowed = raw.get("use_sliding_window") and (raw.get("max_window_layers") or 0) < raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or ["sliding_attention" if windowed else "full_attention"]
    found = {"quantised weights (quantization_config)": raw.get("quantization_config"),
             "sliding-window attention": any(kind != "full_attention" for kind in kinds),
             "biases in the MLP (mlp_bias)": raw.get("mlp_bias"),
             "a bias on o_proj (attention_bias)": raw.get("attention_bias") and name != "Qwen2ForCausalLM",
             f"the activation {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu"}
    if used := [what for what, present in found.items() if present]:
        raise UserError(f"{file}: the model uses {used[0]}, which is not supported; choose another model")


def load_config(path) -> ModelConfig:
    """The `ModelConfig` of a Hugging Face folder. UserError if it asks for something we would not run exactly."""
    if not Path(path).is_dir():
        raise UserError(f"model folder {path} does not exist; give a folder with config.json and model.safetensors")
    if (adapter := Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise UserError(f"{path} holds an adapter of {read_json(adapter).get('base_model_name_or_path')}, not a model; merge the two (merge_and_unload of peft) "
                        f"and name the folder of the sum")
    raw = read_json(file := Path(path) / "config.json")
    names = raw.get("architectures") or [k for k, v in MODEL_TYPES.items() if v == raw.get("model_type")]
    name = str(names[0] if isinstance(names, list) and names else raw.get("model_type"))
    if name not in MODEL_TYPES:
        raise UserError(f"{file}: architecture {name} is not supported; supported are {', '.join(MODEL_TYPES)}")
    if raw.get("head_dim") is None and name == "Qwen3ForCausalLM":
        raw["head_dim"] = 128                          # its default in transformers is not C / H
    defaults = {"num_key_value_heads": raw.get("num_attention_heads"), "max_position_embeddings": 2048}
    sizes = {key: _number(raw, key, file, defaults.get(key)) for key in SIZES if key != "head_dim" or raw.get(key) is not None}
    _refuse(raw, name, file)
    theta, scaling = _rope(raw, file)
    try:
        return ModelConfig(**sizes, rope_theta=theta, rope_scaling=scaling,
                           rms_norm_eps=_number(raw, "rms_norm_eps", file, 1e-6, (int, float)),
                           tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                           attention_bias=name == "Qwen2ForCausalLM", qk_norm=name == "Qwen3ForCausalLM")
    except ValueError as e:
        raise UserError(f"{file}: {e}") from None


def eos_ids(path) -> list[int]:
    """The ids that end a completion: those of generation_config.json, else of config.json. Raises UserError without any."""
    for file in (Path(path) / "generation_config.json", Path(path) / "config.json"):
        value = read_json(file).get("eos_token_id") if file.exists() else None
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(i) is int and i >= 0 for i in ids):
                raise UserError(f"{file}: eos_token_id must be a token id or a list of them, not {value!r}")
            return ids
    raise UserError(f"{path} names no eos_token_id, in generation_config.json or config.json: without one no answer would end")
