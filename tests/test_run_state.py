"""Run state: exact, two kept, killed while being written, broken ones passed over; and Adam's state with it."""
import os
import shutil

import pytest
import torch
from conftest import Killed, die_at

from r1.checkpoint import load_optimizer, load_state, optimizer_tensors, save_state
from r1.config import SFT
from r1.model import ModelConfig, Transformer
from r1.runtime import Folder
from r1.types import UserError

TENSORS = {"a": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "rng": torch.get_rng_state(),
           "count": torch.tensor(7), "flags": torch.tensor([True, False]), "none": torch.zeros(0)}
PIECE = "state-00001-of-00001.safetensors"
META = {"lr": 0.1 + 0.2, "name": "größer", "history": [1, None, True], "tiny": 5e-324}


def assert_state(found, step):
    assert found[0] == step and found[2] == META and found[1].keys() == TENSORS.keys()
    assert all(torch.equal(found[1][k], v) and found[1][k].dtype == v.dtype for k, v in TENSORS.items())


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_state_round_trip_keeps_two(tmp_path, capsys):
    assert load_state(tmp_path) is None and load_state(tmp_path / "nowhere") is None
    for step in (0, 2, 9, 12):
        save_state(tmp_path, step, TENSORS, META)
        assert_state(load_state(tmp_path), step)
    save_state(tmp_path, 12, TENSORS, META)            # the same step again
    assert_state(load_state(tmp_path), 12)
    assert names(tmp_path) == ["step-00000009", "step-00000012"]
    assert names(tmp_path / "step-00000012") == ["MANIFEST.json", "meta.json", "state-00001-of-00001.safetensors"]
    for left in (".tmp-step-00000013", ".trash-step-00000002"):
        shutil.copytree(tmp_path / "step-00000012", tmp_path / left)
    assert_state(load_state(tmp_path), 12)
    assert names(tmp_path) == ["step-00000009", "step-00000012"] and not capsys.readouterr().err


def test_save_survives_a_kill_at_any_call(tmp_path, monkeypatch, capsys):
    for n in range(1, 50):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        for step in (2, 4):
            save_state(tmp_path / "s", step, TENSORS, META)
        try:
            with monkeypatch.context() as patch:
                die_at(patch, n)
                save_state(tmp_path / "s", 6, TENSORS, META)
            break
        except Killed:
            found = load_state(tmp_path / "s")
            assert_state(found, found[0])
            assert found[0] in (4, 6) and not list((tmp_path / "s").glob(".*"))
    assert 8 < n < 49 and load_state(tmp_path / "s")[0] == 6 and not capsys.readouterr().err


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_state(tmp_path, 1, TENSORS, META)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.glob("step-*/*")} == {0o640}


def test_views_of_one_storage_and_sharing(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    save_state(tmp_path, 1, {"t": base.T, "row": base[1], "same": base, "again": base}, {})
    _, got, _ = load_state(tmp_path)
    assert torch.equal(got["t"], base.T) and torch.equal(got["row"], base[1])
    assert torch.equal(got["same"], base) and torch.equal(got["again"], base)


def truncate(path):
    os.truncate(path / PIECE, 200)


def flip(path):
    data = bytearray((path / PIECE).read_bytes())
    data[-3] ^= 1
    (path / PIECE).write_bytes(data)


def lose_tensors(path): (path / PIECE).unlink()
def lose_manifest(path): (path / "MANIFEST.json").unlink()
def empty_manifest(path): (path / "MANIFEST.json").write_text("")
def wrong_manifest(path): (path / "MANIFEST.json").write_text("[]")
def vouch_for_nothing(path): (path / "MANIFEST.json").write_text('{"step": 4, "files": {}}')
def edit_meta(path): (path / "meta.json").write_text("{}")
def other_step(path): shutil.copytree(path.with_name("step-00000002"), path, dirs_exist_ok=True)


@pytest.mark.parametrize("damage", [truncate, flip, lose_tensors, lose_manifest, empty_manifest, wrong_manifest,
                                    vouch_for_nothing, edit_meta, other_step])
def test_damaged_newest_state_falls_back(tmp_path, capsys, damage):
    for step in (2, 4):
        save_state(tmp_path, step, TENSORS, META)
    damage(tmp_path / "step-00000004")
    assert_state(load_state(tmp_path), 2)
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and "step-00000004" in err and "continuing from step 2" in err
    assert err.count("\n") == 1
    save_state(tmp_path, 3, TENSORS, META)             # the run goes on from 2, and 4 is no longer its future
    assert_state(load_state(tmp_path), 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_no_state_left(tmp_path):
    save_state(tmp_path, 2, TENSORS, META)
    flip(tmp_path / "step-00000002")
    with pytest.raises(UserError, match="no saved state is whole: .*step-00000002.*is not as it was written.*delete"):
        load_state(tmp_path)                           # a run of days does not begin again without being told to


# ---- optimiser ---------------------------------------------------------------------------------

TINY = ModelConfig(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2)


def train(model, optimizer, steps, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 97, (2, 8), generator=g)
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model, lr=1e-3):
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == big] for big in (True, False))
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=lr)


def test_resume_is_bit_exact(tmp_path):
    straight, resumed = Transformer(TINY).init_weights(0), Transformer(TINY).init_weights(0)
    optimizer = adam(straight)
    train(straight, optimizer, 3, seed=1)
    train(straight, optimizer, 3, seed=2)

    optimizer = adam(resumed)
    train(resumed, optimizer, 3, seed=1)
    weights = {f"model.{n}": p for n, p in resumed.named_parameters()}
    save_state(tmp_path, 3, weights | optimizer_tensors(resumed, optimizer), {})

    _, tensors, _ = load_state(tmp_path)
    resumed = Transformer(TINY)
    with torch.no_grad():
        for n, p in resumed.named_parameters():
            p.copy_(tensors[f"model.{n}"])
    optimizer = adam(resumed, lr=1e-3)
    load_optimizer(resumed, optimizer, tensors)
    train(resumed, optimizer, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters()))


def test_optimizer_state_by_name():
    model = Transformer(TINY).init_weights(0)
    optimizer = adam(model)
    load_optimizer(model, optimizer, optimizer_tensors(model, optimizer))    # before any step: nothing
    assert not optimizer.state
    train(model, optimizer, 1, seed=1)
    tensors = optimizer_tensors(model, optimizer)
    assert set(tensors) == {f"optim.{key}.{n}" for key in ("exp_avg", "exp_avg_sq", "step") for n, _ in model.named_parameters()}
    other = adam(model)
    load_optimizer(model, other, {"model.norm.weight": torch.zeros(3), **tensors})
    for p in model.parameters():
        assert all(torch.equal(other.state[p][k], v) for k, v in optimizer.state[p].items())


def test_a_stage_that_was_interrupted_counts_its_time_before(tmp_path):
    model = Transformer(TINY).init_weights(0)
    optimizer = adam(model)
    first = Folder(tmp_path, "stage", 0, "cpu", {})
    first.began -= 100                        # it has run for so many seconds
    first.resume(model, optimizer)
    first.save(1)
    second = Folder(tmp_path, "stage", 0, "cpu", {})
    started = second.began
    assert second.resume(model, optimizer) == 1
    assert 100 <= started - second.began < 110


@pytest.mark.parametrize("every, minutes, kept", [(3, 60, [3, 6]), (1000, 0, [5, 6]), (1000, 60, [])])
def test_states_are_saved_by_steps_and_by_minutes(tmp_path, every, minutes, kept):
    """Of seven steps; the last needs no state, because the model is saved then."""
    model = Transformer(TINY).init_weights(0)
    folder = Folder(tmp_path, "stage", 0, "cpu", {})
    folder.resume(model, adam(model))
    folder.path.mkdir()
    for step in folder.steps(SFT("stage", "sft", save_every=every, save_minutes=minutes), 0, 7):
        folder.log(step=step)
    assert sorted(int(p.name[5:]) for p in (tmp_path / "stage/state").glob("step-*")) == kept
