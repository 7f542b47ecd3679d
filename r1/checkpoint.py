"""Models as Hugging Face folders, both ways, and the run state a stage resumes from.

Both are written aside, synced to disk and renamed, so that a reader never meets a half-written one.
The layout is that of transformers (`LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`).
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1.model import ModelConfig, Transformer, rope_frequencies
from r1.types import UserError

MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# ---- files and folders -------------------------------------------------------------------------

def read_json(file: Path) -> dict:
    """The object in a JSON file; UserError if it is missing, broken or not an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; give a folder in the Hugging Face layout") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read as JSON ({e}); repair it or fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(value).__name__}")
    return value


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(path: Path) -> Path:
    """A fresh `.tmp-` folder beside `path`, on the same file system so that a rename can publish it."""
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def _publish(aside: Path, path: Path, like: str) -> None:
    """Sync `aside` and rename it to `path`, replacing what is there; files get the mode of file `like`."""
    mode = (aside / like).stat().st_mode & 0o777       # safetensors writes 0600 whatever the umask says
    for file in aside.iterdir():
        os.chmod(file, mode)
        _sync(file)
    _sync(aside)
    trash = path.with_name(f".trash-{path.name}")
    if path.exists():
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)                         # a directory cannot be renamed over a full one
    os.rename(aside, path)
    _sync(path.parent)
    shutil.rmtree(trash, ignore_errors=True)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors none of which share memory: safetensors refuses others."""
    out, seen = {}, set()
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        if t.untyped_storage().data_ptr() in seen:
            t = t.clone()
        seen.add(t.untyped_storage().data_ptr())
        out[name] = t
    return out


# ---- config.json -------------------------------------------------------------------------------

def _config_json(cfg: ModelConfig, dtype: torch.dtype, eos: list[int], pad_id: int | None) -> dict:
    if cfg.qk_norm and cfg.attention_bias:
        raise UserError("a model with both qk_norm and attention_bias has no Hugging Face architecture to be saved as")
    name = "Qwen3ForCausalLM" if cfg.qk_norm else "Qwen2ForCausalLM" if cfg.attention_bias else "LlamaForCausalLM"
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    dtype = str(dtype).removeprefix("torch.")
    raw = {"architectures": [name], "model_type": MODEL_TYPES[name], **{f: getattr(cfg, f) for f in fields},
           "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
           "rope_theta": cfg.rope_theta, "rope_scaling": cfg.rope_scaling,            # transformers 4
           "rope_parameters": {"rope_type": "default", **(cfg.rope_scaling or {}), "rope_theta": cfg.rope_theta},
           "dtype": dtype, "torch_dtype": dtype,
           "bos_token_id": None, "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "pad_token_id": pad_id}
    if name != "Qwen2ForCausalLM":                     # Qwen2 always has its biases and no key for them
        raw["attention_bias"] = False
    if name == "LlamaForCausalLM":
        raw["mlp_bias"] = False
    else:
        raw.update(use_sliding_window=False, sliding_window=None)
    return raw


def _architecture(raw: dict, file: Path) -> str:
    names = raw.get("architectures") or [k for k, v in MODEL_TYPES.items() if v == raw.get("model_type")]
    name = names[0] if isinstance(names, list) and names else None
    if name not in MODEL_TYPES:
        raise UserError(f"{file}: architecture {name or raw.get('model_type')} is not supported; "
                        f"supported are {', '.join(MODEL_TYPES)}")
    return name


def _rope(raw: dict, file: Path) -> tuple[float, dict | None]:
    """Theta and scaling, from the keys of transformers 4 or of transformers 5."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: rope_parameters must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    if kind not in ("default", "llama3"):
        raise UserError(f"{file}: RoPE scaling {kind!r} is not supported; supported are 'default' and 'llama3'")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{file}: a partial_rotary_factor other than 1 is not supported")
    numbers = {"rope_theta": theta, **({k: rope.get(k) for k in LLAMA3} if kind == "llama3" else {})}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"{file}: {key} of the RoPE settings must be a positive number, not {value!r}")
    return float(numbers.pop("rope_theta")), {"rope_type": "llama3", **numbers} if kind == "llama3" else None


def _refuse(raw: dict, name: str, file: Path) -> None:
    """Name what the weights would need and `Transformer` does not have."""
    layers = raw.get("num_hidden_layers") or 0
    windowed = raw.get("use_sliding_window") and (raw.get("max_window_layers") or 0) < layers
    kinds = raw.get("layer_types") or ["sliding_attention" if windowed else "full_attention"]
    found = {
        "quantised weights (quantization_config)": raw.get("quantization_config"),
        "sliding-window attention": any(kind != "full_attention" for kind in kinds),
        "biases in the MLP (mlp_bias)": raw.get("mlp_bias"),
        "a bias on o_proj (attention_bias)": raw.get("attention_bias") and name != "Qwen2ForCausalLM",
        f"the activation {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
    }
    for what, present in found.items():
        if present:
            raise UserError(f"{file}: the model uses {what}, which is not supported; choose another model")


def load_config(path) -> ModelConfig:
    """The `ModelConfig` of a Hugging Face folder. UserError if it describes a model we cannot run exactly."""
    if not Path(path).is_dir():
        raise UserError(f"model folder {path} does not exist; give a folder with config.json and {WEIGHTS}")
    file = Path(path) / "config.json"
    raw = read_json(file)
    name = _architecture(raw, file)
    _refuse(raw, name, file)
    theta, scaling = _rope(raw, file)
    heads = raw.get("num_attention_heads")
    defaults = {"num_key_value_heads": heads, "head_dim": 128 if name == "Qwen3ForCausalLM" else None,
                "max_position_embeddings": 2048}
    sizes = {}
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = raw.get(key)
        value = defaults.get(key) if value is None else value
        if key == "head_dim" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{file}: {key} must be a positive whole number, not {value!r}")
        sizes[key] = value
    eps = raw.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise UserError(f"{file}: rms_norm_eps must be a number, not {eps!r}")
    try:
        return ModelConfig(**sizes, rope_theta=theta, rope_scaling=scaling, rms_norm_eps=eps,
                           tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                           attention_bias=name == "Qwen2ForCausalLM", qk_norm=name == "Qwen3ForCausalLM")
    except ValueError as e:
        raise UserError(f"{file}: {e}") from None


def eos_ids(path) -> list[int]:
    """The ids that end a completion: those of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        file = Path(path) / name
        value = read_json(file).get("eos_token_id") if file.exists() or name == "config.json" else None
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise UserError(f"{file}: eos_token_id must be a token id or a list of them, not {value!r}")
            return ids
    return []


# ---- weights -----------------------------------------------------------------------------------

def hf_name(name: str) -> str:
    """The name in a Hugging Face checkpoint of one of our parameters."""
    return name if name.startswith("lm_head.") else "model." + name


def _write_weights(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    shards, room = [{}], shard_bytes
    for name, t in tensors.items():
        if shards[-1] and t.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = t
        room -= t.nbytes
    if len(shards) == 1:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(t.nbytes for t in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def save_model(path, model: Transformer, tokenizer=None, eos_ids=(), pad_id: int | None = None,
               shard_bytes: int = 5_000_000_000) -> None:
    """Write `model` (and what `tokenizer.save(folder)` writes) as a Hugging Face folder, whole or not at all.

    A model already at `path` is replaced with everything beside it; any other full folder is refused.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a folder to save the model in")
    held = list(path.iterdir()) if path.exists() else []
    if held and (not (path / "config.json").exists() or any(p.is_dir() for p in held)):
        raise UserError(f"{path} holds other things than a model and would be replaced; give a new folder")
    eos = [int(i) for i in eos_ids]
    raw = _config_json(model.cfg, model.embed_tokens.weight.dtype, eos, pad_id)
    aside = _aside(path)
    try:
        write_json(aside / "config.json", raw)
        write_json(aside / "generation_config.json",
                   {"bos_token_id": None, "eos_token_id": eos or None, "pad_token_id": pad_id})
        tensors = {hf_name(name): p for name, p in model.named_parameters()}    # names a tied weight once
        _write_weights(aside, _plain(tensors), shard_bytes)
        if tokenizer is not None:
            tokenizer.save(aside)
        _publish(aside, path, like="config.json")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _weight_files(path: Path) -> dict[Path, set[str]]:
    """The files of a checkpoint, each with the tensors that its index promises to be in there."""
    if (path / WEIGHTS).exists():
        return {path / WEIGHTS: set()}
    if not (path / INDEX).exists():
        raise UserError(f"{path} has neither {WEIGHTS} nor {INDEX}; only safetensors weights can be loaded")
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path / INDEX} has no weight_map; fetch it again")
    files: dict[Path, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not (path / shard).is_file():
            raise UserError(f"{path / INDEX} puts tensor {name} in {shard}, which is not in the folder; "
                            "fetch that file")
        files.setdefault(path / shard, set()).add(name)
    return files


def _stored(path: Path):
    """Yield (file, name, tensor) of every stored tensor, one at a time."""
    for file, promised in _weight_files(path).items():
        try:
            with safe_open(file, "pt") as f:
                names = f.keys()
                lost = sorted(promised - set(names))
                if lost:
                    raise UserError(f"{file} lacks tensor {lost[0]}, which {INDEX} puts there; fetch the file again")
                for name in names:
                    yield file, name, f.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} is damaged or not a safetensors file ({e}); fetch or save it again") from None


@torch.no_grad()
def load_model(path, device="cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a Hugging Face folder, its weights cast to `dtype`; UserError names what does not fit."""
    path, cfg = Path(path), load_config(path)
    with torch.device("meta"):                         # no memory, no random draws
        model = Transformer(cfg).to(dtype)
    model.to_empty(device=device)
    if cfg.tie_word_embeddings:                        # to_empty gives both ends of the tie their own memory
        model.lm_head.weight = model.embed_tokens.weight
    model.rope_freq = rope_frequencies(cfg).to(device)
    want = {hf_name(name): p for name, p in model.named_parameters()}
    missing, head = set(want), None
    for file, name, t in _stored(path):
        if name.endswith("rotary_emb.inv_freq"):       # old Llama files store what we compute
            continue
        if cfg.tie_word_embeddings and name == "lm_head.weight":
            head = (file, t)
            continue
        if name not in want:
            raise UserError(f"{file}: tensor {name} has no place in the model of {path / 'config.json'}; "
                            "the two files belong to different models")
        if t.shape != want[name].shape:
            raise UserError(f"{file}: tensor {name} has shape {list(t.shape)}, but {path / 'config.json'} "
                            f"expects {list(want[name].shape)}; the two files belong to different models")
        if not t.is_floating_point() or t.element_size() < 2:
            raise UserError(f"{file}: tensor {name} is stored as {t.dtype}; use weights that are not quantised")
        if not t.isfinite().all():
            raise UserError(f"{file}: tensor {name} holds NaN or infinity; fetch or train the model again")
        want[name].copy_(t)
        missing.discard(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path}: tensor {min(missing)}{more} is missing from the weights; "
                        "fetch the model again or correct its config.json")
    if head and not torch.equal(head[1].to(device, dtype), model.embed_tokens.weight):
        raise UserError(f"{head[0]}: tensor lm_head.weight differs from the embedding it should be tied to; "
                        f"set tie_word_embeddings to false in {path / 'config.json'}")
    return model


# ---- run state ---------------------------------------------------------------------------------

def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _steps(folder: Path) -> list[Path]:
    """State folders, the newest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def save_state(folder, step: int, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write `folder/step-00000012` with a manifest of hashes; keep it and the one before."""
    path = Path(folder).absolute() / f"step-{step:08d}"
    aside = _aside(path)
    write_json(aside / "meta.json", meta)
    save_file(_plain(tensors), aside / "state.safetensors")
    files = {f.name: {"size": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(aside.iterdir())}
    for name in files:
        _sync(aside / name)
    write_json(aside / "MANIFEST.json", {"step": step, "files": files})    # last: it vouches for the others
    _publish(aside, path, like="meta.json")
    kept = [p for p in _steps(path.parent) if int(p.name[5:]) <= step][:2]
    for old in _steps(path.parent):                    # newer ones are of a run that was rolled back
        if old not in kept:
            trash = old.with_name(f".trash-{old.name}")
            shutil.rmtree(trash, ignore_errors=True)
            os.rename(old, trash)
            shutil.rmtree(trash, ignore_errors=True)


def _read_state(path: Path) -> tuple[int, dict[str, Tensor], dict]:
    """One state folder; ValueError or OSError if it is not what was written."""
    manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    if manifest["step"] != int(path.name[5:]) or not {"meta.json", "state.safetensors"} <= set(manifest["files"]):
        raise ValueError("MANIFEST.json is not of this step")
    for name, entry in manifest["files"].items():
        if (path / name).stat().st_size != entry["size"] or _sha256(path / name) != entry["sha256"]:
            raise ValueError(f"{name} is not as it was written")
    with safe_open(path / "state.safetensors", "pt") as f:
        tensors = {name: f.get_tensor(name).clone() for name in f.keys()}    # off the mapped file
    return manifest["step"], tensors, json.loads((path / "meta.json").read_text(encoding="utf-8"))


def load_state(folder) -> tuple[int, dict[str, Tensor], dict] | None:
    """The newest state that verifies as (step, tensors, meta); None if there is none. Says so if it fell back."""
    folder = Path(folder)
    for pattern in (".tmp-step-*", ".trash-step-*"):   # of a save that was killed
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
    broken = []
    found = None
    for path in _steps(folder):
        try:
            found = _read_state(path)
            break
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
            broken.append(f"{path} ({e})")
    if broken:
        then = f"continuing from step {found[0]}" if found else "no other is left, starting from the beginning"
        print(f"warning: saved state {', '.join(broken)} is damaged; {then}", file=sys.stderr)
    return found


# ---- optimiser ---------------------------------------------------------------------------------

def _parameters(optimizer, names: list[str]) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if len(params) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} names for {len(params)} parameters of the optimiser")
    return params


def optimizer_tensors(optimizer, names: list[str]) -> dict[str, Tensor]:
    """Adam's state as `exp_avg.<name>`, `exp_avg_sq.<name>`, `step.<name>`; names in the order of its parameters."""
    return {f"{key}.{name}": value for name, p in zip(names, _parameters(optimizer, names))
            for key, value in optimizer.state.get(p, {}).items()}


def load_optimizer(optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put back, exactly, what `optimizer_tensors` gave; other tensors in the dict are left alone."""
    state = {}
    for i, (name, p) in enumerate(zip(names, _parameters(optimizer, names))):
        mine = {k: tensors[f"{k}.{name}"] for k in ("exp_avg", "exp_avg_sq", "step") if f"{k}.{name}" in tensors}
        if len(mine) not in (0, 3) or any(mine[k].shape != p.shape for k in mine if k != "step"):
            raise UserError(f"the saved optimiser state of {name} does not fit its parameter; start the stage afresh")
        if mine:
            state[i] = {k: v.clone() for k, v in mine.items()}    # Adam writes into its state in place
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
