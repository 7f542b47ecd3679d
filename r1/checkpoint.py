"""Models as Hugging Face folders, both ways, and the run state that a stage resumes from.

Both are written aside, synced to disk and renamed, so that a reader never meets a half-written one.
A model folder holds config.json, model.safetensors (or shards of it with an index), generation_config.json
and the tokenizer's files, as transformers reads and writes them.
"""

import json
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from r1 import ranks, stop
from r1.files import digest, discard, make_aside, publish, recover, writing
from r1.hf_config import config_json, load_config, read_json
from r1.model import ModelConfig, Transformer, rope_frequencies
from r1.types import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors none of which share memory: safetensors refuses others."""
    out, seen = {}, set()
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        out[name] = t.clone() if t.untyped_storage().data_ptr() in seen else t
        seen.add(out[name].untyped_storage().data_ptr())
    return out


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else "model." + name


def _write_weights(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    shards, size = [{}], 0
    for name, t in tensors.items():
        if shards[-1] and size + t.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = t
        size += t.nbytes
    if len(shards) == 1:
        return save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
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

    A model already at `path` is replaced, with all that lies beside it; UserError if that is no model, or the disk is full.
    All ranks take part, and the first writes."""
    path, tensors, layers = Path(os.path.realpath(path)), {}, dict(model.named_modules())
    for name, p in model.named_parameters():           # names a tied weight once
        layer, _, part = name.rpartition(".")
        if hasattr(layers[layer], "merged") and part != "bias":         # an adapter goes into the weight that it belongs to
            if part != "weight":
                continue
            p = layers[layer].merged()
        full = ranks.whole(p.detach())
        if ranks.rank() == 0:
            tensors[_hf_name(name)] = full.cpu()
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    ranks.lead(lambda: _save_model(path, tensors, config_json(model.cfg, dtype, list(eos_ids), pad_id), tokenizer, shard_bytes))


def _save_model(path: Path, tensors: dict[str, Tensor], config: dict, tokenizer, shard_bytes: int) -> None:
    recover(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir()) and not (path / "config.json").exists()
                          or any(p.is_dir() for p in path.iterdir())):
        raise UserError(f"{path} holds other things than a model and would be replaced; give a new folder")
    with writing(path, sum(t.nbytes for t in tensors.values())):
        aside = make_aside(path)
        write_json(aside / "config.json", config)
        write_json(aside / "generation_config.json", {k: config[k] for k in ("bos_token_id", "pad_token_id", "eos_token_id")})
        _write_weights(aside, _plain(tensors), shard_bytes)
        if tokenizer is not None:
            tokenizer.save(aside)
        publish(aside, path)


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
            raise UserError(f"{path / INDEX} puts tensor {name} in {shard}, but the folder has no such file; fetch it")
        files.setdefault(path / shard, set()).add(name)
    return files


def _stored(path: Path):
    """Yield (file, name, tensor) of every stored tensor, one at a time."""
    for file, promised in _weight_files(path).items():
        try:
            with safe_open(file, "pt") as f:
                lost = sorted(promised - set(f.keys()))
                if lost:
                    raise UserError(f"{file} lacks tensor {lost[0]}, which {INDEX} puts there; fetch the file again")
                for name in f.keys():
                    if not name.endswith("rotary_emb.inv_freq"):    # old Llama files store what we compute
                        yield file, name, f.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} is damaged or not a safetensors file ({e}); fetch or save it again") from None


def _fits(t: Tensor, param: Tensor | None, name: str, file: Path, config: Path) -> None:
    if param is None:
        raise UserError(f"{file}: tensor {name} has no place in the model of {config}; they belong to different models")
    if t.shape != param.shape:
        raise UserError(f"{file}: tensor {name} has shape {list(t.shape)}, but {config} expects "
                        f"{list(param.shape)}; they belong to different models")
    if not t.is_floating_point() or t.element_size() < 2:
        raise UserError(f"{file}: tensor {name} is stored as {t.dtype}; use weights that are not quantised")
    if not t.isfinite().all():
        raise UserError(f"{file}: tensor {name} holds NaN or infinity; fetch or train the model again")


def empty_model(cfg: ModelConfig, device="cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A model whose weights are still to come: no random draws, and no memory but its own."""
    with torch.device("meta"):
        model = Transformer(cfg).to(dtype)
    model.to_empty(device=device)
    if cfg.tie_word_embeddings:                        # to_empty gives both ends of the tie their own memory
        model.lm_head.weight = model.embed_tokens.weight
    model.rope_freq = rope_frequencies(cfg).to(device)
    return model


@torch.no_grad()
def load_model(path, device="cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a Hugging Face folder, its weights cast to `dtype`; UserError names what does not fit."""
    path = Path(path)
    recover(path)
    cfg = load_config(path)
    model = empty_model(cfg, device, dtype)
    want = {_hf_name(name): p for name, p in model.named_parameters()}
    missing, head = set(want), None
    for file, name, t in _stored(path):
        if name == "lm_head.weight" and cfg.tie_word_embeddings:
            head = t                                   # some checkpoints store both ends
            continue
        _fits(t, want.get(name), name, file, path / "config.json")
        want[name].copy_(t)
        missing.discard(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path}: tensor {min(missing)}{more} is missing from the weights; "
                        "fetch the model again or correct its config.json")
    if head is not None and not torch.equal(head.to(device, dtype), model.embed_tokens.weight):
        raise UserError(f"{path}: tensor lm_head.weight differs from the embedding it should be tied to; "
                        "set tie_word_embeddings to false in config.json")
    return model


# ---- run state ---------------------------------------------------------------------------------

def _steps(folder: Path) -> dict[int, Path]:
    """State folders by step, the newest first."""
    found = {int(p.name[5:]): p for p in folder.glob("step-*") if p.name[5:].isdecimal()}
    return dict(sorted(found.items(), reverse=True))


def save_state(folder, step: int, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write `folder/step-00000012` with a manifest of hashes; of the others keep only the one before.

    Every rank writes the rows it holds to a file of its own; numbers (no dimension) are the same on all. UserError
    if the disk is full."""
    path = Path(folder).absolute() / f"step-{step:08d}"
    index, count, original = ranks.part()
    with writing(path, sum(t.nbytes for t in tensors.values())):
        aside = ranks.lead(lambda: make_aside(path))
        written = ranks.together(lambda: _write_piece(aside / _piece(index, count), tensors) if original else {})
        ranks.lead(lambda: _finish_state(path, aside, {k: v for files in written for k, v in files.items()}, step, meta))


def _piece(index: int, count: int) -> str:
    return f"state-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_piece(file: Path, tensors: dict[str, Tensor]) -> dict[str, dict]:
    save_file(_plain(tensors), file)
    return _vouch(file)


def _vouch(file: Path) -> dict[str, dict]:
    return {file.name: {"size": file.stat().st_size, "sha256": digest(file)}}


def _finish_state(path: Path, aside: Path, pieces: dict[str, dict], step: int, meta: dict) -> None:
    write_json(aside / "meta.json", meta)
    write_json(aside / "MANIFEST.json", {"step": step, "files": pieces | _vouch(aside / "meta.json")})    # last: it vouches
    publish(aside, path)
    steps = _steps(path.parent)
    kept = [s for s in steps if s <= step][:2]         # later ones are of a run that was rolled back
    for s in steps:
        if s not in kept:
            discard(steps[s])


def _verified(path: Path, step: int) -> tuple[list[Path], dict]:
    """The pieces and the meta of one state folder, or an exception that tells why it is not as it was written."""
    manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    pieces = [_piece(i, len(manifest["files"]) - 1) for i in range(len(manifest["files"]) - 1)]
    if manifest["step"] != step or set(manifest["files"]) != {"meta.json", *pieces} or not pieces:
        raise ValueError("MANIFEST.json belongs to something else")
    for name, entry in manifest["files"].items():
        if (path / name).stat().st_size != entry["size"] or digest(path / name) != entry["sha256"]:
            raise ValueError(f"{name} is not as it was written")
    return [path / name for name in pieces], json.loads((path / "meta.json").read_text(encoding="utf-8"))


def load_state(folder) -> tuple[int, dict[str, Tensor], dict] | None:
    """The newest state that verifies as (step, tensors, meta), or None where none was saved: of every tensor the rows
    that this rank holds, however many ranks wrote them. Warns on stderr if it fell back; UserError if nothing is whole."""
    found = ranks.lead(lambda: _newest(Path(folder)))
    if not found:
        return None
    step, files, meta = found
    with ExitStack() as stack:
        pieces = [stack.enter_context(safe_open(file, "pt")) for file in files]
        return step, {name: _own_rows(pieces, name) for name in pieces[0].keys()}, meta


def _own_rows(pieces: list, name: str) -> Tensor:
    slices = [p.get_slice(name) for p in pieces]
    if not slices[0].get_shape():
        return pieces[0].get_tensor(name).clone()      # off the mapped file
    sizes, own, at = [s.get_shape()[0] for s in slices], [], 0
    first, last = ranks.rows(sum(sizes))
    for s, n in zip(slices, sizes, strict=True):
        own.append(s[min(max(first - at, 0), n):min(max(last - at, 0), n)])
        at += n
    return torch.cat(own)


def _newest(folder: Path) -> tuple[int, list[Path], dict] | None:
    broken, found = [], None
    for left in [p for kind in ("tmp", "trash", "old") for p in folder.glob(f".{kind}-step-*")]:
        shutil.rmtree(left, ignore_errors=True)        # of a save that was killed
    for step, path in _steps(folder).items():
        try:
            found = (step, *_verified(path, step))
            break
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            broken.append(f"{path} ({e})")
    if broken and not found:
        raise UserError(f"no saved state is whole: {'; '.join(broken)}. Put it back from a copy, or delete {folder.parent} "
                        f"to start that stage from its beginning")
    if broken:
        stop.say(f"warning: saved state {' and '.join(broken)} is damaged; continuing from step {found[0]}", sys.stderr)
    return found


def _moved(model: nn.Module, optimizer) -> list[tuple[torch.optim.Optimizer, list[tuple[str, Tensor]]]]:
    """Each optimiser with the parameters that it moves, by name and in its own order."""
    name_of = {p: n for n, p in model.named_parameters()}
    return [(o, [(name_of[p], p) for group in o.param_groups for p in group["params"]]) for o in getattr(optimizer, "parts", (optimizer,))]


def optimizer_tensors(model: nn.Module, optimizer) -> dict[str, Tensor]:
    """Adam's state as `optim.exp_avg.<name>`, `optim.exp_avg_sq.<name>`, `optim.step.<name>`, Muon's as `optim.momentum_buffer.<name>`."""
    return {f"optim.{key}.{name}": ranks.local(value) for o, named in _moved(model, optimizer) for name, p in named
            for key, value in o.state.get(p, {}).items()}


def load_optimizer(model: nn.Module, optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back, exactly, what `optimizer_tensors` gave; tensors of other names are left alone."""
    for o, named in _moved(model, optimizer):
        state = {}
        for i, (name, p) in enumerate(named):
            mine = {key: tensors[f"optim.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")
                    if f"optim.{key}.{name}" in tensors}
            state |= {i: {k: ranks.like(p, v) if v.dim() else v for k, v in mine.items()}} if mine else {}
        o.load_state_dict({**o.state_dict(), "state": state})
