"""What breaks a run in the middle: kills, signals, a second run, damage, a full disk. The same command goes on to the same bits."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from r1 import checkpoint, config, evaluate, grpo, pipeline, reject, report, runtime, stop, supervised
from r1.checkpoint import load_state, save_state
from r1.files import jsonl, write_text
from r1.runtime import Folder, locked
from r1.tokenizer import Tokenizer
from r1.types import UserError

ROOT = Path(__file__).parent.parent
STAGES = ("base", "taught", "zero", "cold", "dev1", "dev2")
# Every kind of stage: Muon across a block of the corpus; a model that has learned to say 7; RL with KL, reference and a reward of the
# user's; rejection in two pieces, of which about half is right; RL in mini-batches.
CONFIG = """
templates: {{zero: "Think in <think></think>, answer in <answer></answer>.\\n{{prompt}}\\n"}}
threads: 1
evaluate:
  domains: {{own: {{"jsonl:{d}/own.jsonl": 1}}, general: {{fact: 1}}}}
  problems: 16
  k: 2
  sample: {{temperature: 0.6, top_p: 0.95, max_new_tokens: 24}}
stages:
  - name: base
    kind: pretrain
    vocab_size: 512
    model: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1}}
    steps: 60
    rows: 4
    row_tokens: 64
    save_every: 7
    optim: {{lr: 3e-3, muon_lr: 0.02}}
  - {{name: taught, kind: sft, init: base, template: zero, data: ["{d}/taught.jsonl"], epochs: 8, batch: 16, save_every: 9,
      optim: {{lr: 1e-2}}}}
  - &rl
    name: zero
    kind: grpo
    init: taught
    data: &mix {{"jsonl:{d}/own.jsonl": 1}}
    steps: 8
    problems: 2
    group: 3
    save_every: 2
    reward: {{accuracy: 1, format: 1, custom: 0.5}}
    reward_function: "{d}/mine.py:share"
    sample: {{max_new_tokens: 24}}
    optim: {{lr: 1e-3}}
    kl_coef: 0.01
    ref_every: 3
  - {{name: cold, kind: reject, init: taught, data: *mix, problems: 800, group: 1, others: {{fact: 1}}, others_problems: 20,
      sample: {{max_new_tokens: 24}}}}
  - {{name: dev1, kind: sft, init: base, data: [cold], epochs: 1, batch: 32, save_every: 3, optim: {{lr: 1e-3}}}}
  - {{<<: *rl, name: dev2, init: dev1, template: chat, minibatches: 2, inner_epochs: 2, steps: 4}}
"""
# The user's reward is where a test gets hold of a step: at its call number AT it says so and waits until it may go on.
REWARD = """
import os, time
calls = 0
def share(problem, completion):
    global calls
    calls += 1
    where = os.environ.get("HOLD")
    if where and calls == int(os.environ["AT"]):
        open(where + "/begun", "w").close()
        while not os.path.exists(where + "/go"):
            time.sleep(0.005)
    return sum(c in "aeiou" for c in completion) / max(1, len(completion))
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(config file, folder) of a run that nothing disturbed."""
    d = tmp_path_factory.mktemp("faults")
    (d / "mine.py").write_text(REWARD)
    own = [{"id": str(i), "prompt": f"Which is {'七' if i % 3 else 'seven'}, {i}?", "answer": 7 + i % 2} for i in range(1000)]
    write_text(d / "own.jsonl", jsonl(own))
    taught = "<think>it is seven</think><answer>7</answer>"
    write_text(d / "taught.jsonl", jsonl([{"prompt": f"Which is seven, {i}?", "completion": taught} for i in range(64)]))
    (d / "run.yaml").write_text(CONFIG.format(d=d))
    go_on(d / "run.yaml", d / "straight")
    return d / "run.yaml", d / "straight"


def go_on(file, out, *more, only=""):
    """The same command, in this process."""
    pipeline.run(config.load(file, [f"out={out}", *more]), only)


def at(straight, out, stage, *also):
    """A copy of the undisturbed run that stands before `stage`."""
    shutil.copytree(straight[1], out, ignore=lambda _, names: {*STAGES[STAGES.index(stage):], "report.md", "report.html", *also} & {*names})
    return out


def begin(file, out, *more, patch="", **env):
    """The command in a process of its own; with `patch`, lines of Python run before it."""
    code = f"import sys\nsys.path.insert(0, '.')\nsys.argv[0] = 'train.py'\n{patch}\nimport train\nsys.exit(train.main())"
    return subprocess.Popen([sys.executable, *(["-c", code] if patch else ["train.py"]), str(file), f"out={out}", *more], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed,
                            env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}})


def heed():
    signal.signal(signal.SIGINT, signal.SIG_DFL)       # a shell's "&" ignores it, and so would the child


def wait_for(sign, process, seconds=60):
    """Until sign() is true; a process that has ended shows none."""
    end = time.monotonic() + seconds
    while not sign():
        assert process.poll() is None, f"ended with {process.returncode}: {process.stderr.read()}"
        assert time.monotonic() < end, "nothing seen"
        time.sleep(0.002)


def ended(process, code, seconds=60):
    """Its stderr, once it has ended with this code."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == code and "Traceback" not in err, (process.returncode, out, err)
    return err


# ---- what a run has left -----------------------------------------------------------------------

CLOCK = ("seconds", "saving", "date", "tokens_per_second")


def timeless(value):
    """Without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in CLOCK and not k.startswith("time_")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def rows(file):
    return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.is_file() else []


def left(root):
    """Everything there is: folders, files by their bytes, weights among them; JSON with times in it without these."""
    out = {}
    for f in sorted(root.rglob("*")):
        name = str(f.relative_to(root))
        if f.is_dir():
            out[name + "/"] = None
        elif f.parent.name != "model" and f.suffix == ".json":
            out[name] = timeless(json.loads(f.read_text()))
        elif f.name == "metrics.jsonl":
            out[name] = timeless(rows(f))
        elif f.name not in ("lock", "report.md", "report.html"):
            out[name] = f.read_bytes()
    return out


def assert_same(straight, root, stage=""):
    """Of the whole run, or of one stage."""
    a, b = ({k: v for k, v in left(each).items() if k.startswith(stage)} for each in (straight[1], root))
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    assert not [k for k in a if a[k] != b[k]]


def states(root, stage):
    return sorted(int(p.name[5:]) for p in (root / stage / "state").glob("step-*"))


def test_the_undisturbed_run_has_in_it_what_the_others_are_measured_by(straight):
    _, root = straight
    for stage, steps in (("base", 60), ("taught", 32), ("zero", 8), ("dev2", 4)):
        assert [r["step"] for r in rows(root / stage / "metrics.jsonl")] == list(range(steps))
    kept = rows(root / "cold/metrics.jsonl")[0]
    assert 512 < kept["problems"] and 100 < kept["kept"] < 500 and len(rows(root / "cold/examples.jsonl")) > kept["kept"]
    assert any(r["advantage"] for r in rows(root / "zero/samples.jsonl")) and rows(root / "zero/metrics.jsonl")[-1]["kl"] > 0
    assert b"\xe4\xb8\x83" in (root / "zero/samples.jsonl").read_bytes()      # more than ASCII
    assert not [f for f in root.rglob("*") if f.name.startswith(".") or f.name == "state" or f.suffix == ".tmp"]


# ---- kill -9 -----------------------------------------------------------------------------------

def seen(root, *patterns):
    return [p for pattern in patterns for p in root.glob(pattern)]


def size(root):
    return sum(p.stat().st_size for p in seen(root, "*/metrics.jsonl"))


def landed(root, before):
    """Where a kill has hit, by what lies on the disk."""
    if seen(root, "*/state/.tmp-step-*", "*/state/.trash-step-*", "*/state/.old-step-*"):
        return "saving"
    if seen(root, "*/.tmp-model", "*/.old-model"):
        return "model"
    if before == shot(root):
        return "start"
    here = ["", *(s for s in STAGES if (root / s).is_dir())][-1]
    if (root / here / "done.json").is_file():
        evaluating = here != "cold" and not (root / here / "eval.json").is_file() and not states(root, here)
        return "evaluation" if evaluating else "between"
    return "pieces" if seen(root, "*/state/piece-*") else "step" if rows(root / here / "metrics.jsonl") else "loading"


def shot(root):
    return {str(p): p.stat().st_size for p in root.rglob("*") if p.name != "lock"}


def kill_at(process, root, kind, rng):
    """SIGKILL at a moment of this kind, if the run comes to one. False if it came to its end instead."""
    count, was, done = rng.randint(1, 6), size(root) if root.is_dir() else 0, set(seen(root, "*/done.json", "*/eval.json"))
    soon = time.monotonic() + rng.random() * {"start": 1.5, "anywhere": 6}.get(kind, 0)

    def sign():
        nonlocal count, was
        if kind in ("start", "anywhere"):
            return time.monotonic() > soon
        if kind in ("step", "loading"):
            grown, was = size(root) != was, size(root)
            count -= grown
            return grown and (kind == "loading" or count <= 0)
        return {"saving": lambda: seen(root, "*/state/.tmp-step-*"), "model": lambda: seen(root, "*/.tmp-model"),
                "pieces": lambda: seen(root, "cold/state/piece-0.json"), "evaluation": lambda: seen(root, "*/state/eval-*.json"),
                "between": lambda: set(seen(root, "*/done.json", "*/eval.json")) - done}[kind]()

    while process.poll() is None:
        try:
            hit = sign()
        except OSError:                                # what was listed is gone again
            continue
        if hit:
            time.sleep(rng.random() * 0.003 if kind in ("saving", "model") else 0)
            process.kill()
            break
        time.sleep(0 if kind in ("saving", "model") else 0.001)
    _, err = process.communicate()
    assert process.returncode in (0, -9) and "Traceback" not in err, err
    return process.returncode != 0


def test_nothing_is_left_of_a_kill_after_the_end(straight, tmp_path):
    """Between done.json or eval.json and the removal of what only a broken-off run needs."""
    root = shutil.copytree(straight[1], tmp_path / "out")
    for stage, piece in (("cold", "piece-0.json"), ("dev1", "eval-own.json")):
        (root / stage / "state").mkdir()
        (root / stage / "state" / piece).touch()
    go_on(straight[0], root)
    assert not list(root.glob("*/state"))


def test_kill_at_four_moments(straight, tmp_path):
    rng, root, tally = random.Random(1), at(straight, tmp_path / "out", "zero"), Counter()
    for kind in ("step", "saving", "evaluation", "pieces"):
        before, p = shot(root), begin(straight[0], root)
        assert kill_at(p, root, kind, rng), tally
        tally[landed(root, before)] += 1
    print(dict(tally))
    assert (root / "lock").read_text().startswith(f"process {p.pid} on ")
    go_on(straight[0], root)                           # the lock has gone with its process
    assert_same(straight, root)
    assert (root / "lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.slow
def test_kill_at_forty_moments_and_more(straight, tmp_path, capsys, record_property):
    """Until every kind of moment was hit, where a kill has landed being read off the disk."""
    rng, tally, runs, root = random.Random(0), Counter(), 0, tmp_path / "0"
    kinds = ["start", "loading", "step", "step", "saving", "saving", "model", "evaluation", "between", "pieces", "anywhere"]
    wanted = set(kinds) - {"anywhere", "loading"}
    for n in range(200):
        if sum(tally.values()) >= 50 and wanted <= tally.keys():
            break
        kind = rng.choice(sorted(wanted - tally.keys()) * (n > 50) or kinds)
        before = shot(root)
        if kill_at(begin(straight[0], root), root, kind, rng):
            tally[landed(root, before)] += 1
        else:
            assert_same(straight, root)
            runs += 1
            root = tmp_path / str(runs)
    with capsys.disabled():
        print(f"\n{sum(tally.values())} kills over {runs + 1} runs: {dict(tally)}")
    record_property(f"{sum(tally.values())} kills over {runs + 1} runs", ", ".join(f"{k} {n}" for k, n in tally.most_common()))
    assert wanted <= tally.keys() and sum(tally.values()) >= 40
    ended(begin(straight[0], root), 0)
    assert_same(straight, root)


# ---- signals -----------------------------------------------------------------------------------

@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_signal_in_a_step_finishes_it_and_saves(straight, tmp_path, number, code):
    root = at(straight, tmp_path / "out", "zero")
    p = begin(straight[0], root, "zero.save_every=100", HOLD=tmp_path, AT=20)        # 6 samples a step: in step 3
    wait_for((tmp_path / "begun").exists, p)
    p.send_signal(number)
    assert "stopping after this step" in p.stderr.readline() + p.stderr.readline()
    (tmp_path / "go").touch()
    err = ended(p, code)
    assert err.strip() == f"stopped; the same command continues: python train.py {straight[0]} out={root} zero.save_every=100"
    assert states(root, "zero") == [4] and [r["step"] for r in rows(root / "zero/metrics.jsonl")] == [0, 1, 2, 3]
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


def test_a_second_signal_leaves_at_once_and_a_second_run_is_refused_until_then(straight, tmp_path):
    root = at(straight, tmp_path / "out", "zero")
    p = begin(straight[0], root, HOLD=tmp_path, AT=20)
    wait_for((tmp_path / "begun").exists, p)
    other = begin(straight[0], root)
    err = ended(other, 2)
    assert err.startswith(f"error: {root} is in use by process {p.pid} on ") and err.count("\n") == 1
    with pytest.raises(UserError, match=f"in use by process {p.pid} on "):
        go_on(straight[0], root)
    p.send_signal(signal.SIGINT)
    assert "once more leaves at once" in p.stderr.readline() + p.stderr.readline()
    p.send_signal(signal.SIGTERM)
    ended(p, 143, 10)                                  # while the step still waits
    assert states(root, "zero") == [2] and len(rows(root / "zero/metrics.jsonl")) == 3
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


# Where no step is under way a test holds the process by a patch: at the call number AT of this function.
PATCH = """
import importlib, os, time
def hold(module, *names):
    owner = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    real, left = getattr(owner, names[-1]), [int(os.environ["AT"])]
    def call(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            open(os.environ["HOLD"] + "/begun", "w").close()
            time.sleep(60)
        return real(*args, **kwargs)
    setattr(owner, names[-1], call)
"""


@pytest.mark.parametrize("stage, patch, n, there", [
    ("taught", "hold('r1.checkpoint', 'load_model')", 1, "taught/config.yaml"),                # before the first step
    ("dev1", "hold('r1.rollout', 'generate')", 2, "dev1/state/eval-own.json"),                 # in the second domain
    pytest.param("cold", "hold('r1.rollout', 'generate')", 2, "cold/state/piece-0.json", marks=pytest.mark.slow),
], ids=["loading", "evaluation", "reject"])
def test_a_signal_outside_of_steps_ends_at_once(straight, tmp_path, stage, patch, n, there):
    root = at(straight, tmp_path / "out", stage)
    p = begin(straight[0], root, patch=PATCH + patch, HOLD=tmp_path, AT=n)
    wait_for((tmp_path / "begun").exists, p)
    p.send_signal(signal.SIGTERM)
    assert "the same command continues" in ended(p, 143, 20)
    assert (root / there).is_file() and not (root / stage / "eval.json").exists()
    go_on(straight[0], root, only=stage)
    assert_same(straight, root, stage)


@pytest.mark.slow
def test_an_ignored_interrupt_stays_ignored(straight, tmp_path):
    """As a shell's "&" and nohup have it."""
    root = at(straight, tmp_path / "out", "dev2")
    p = begin(straight[0], root, patch="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", HOLD=tmp_path, AT=8)
    wait_for((tmp_path / "begun").exists, p)
    p.send_signal(signal.SIGINT)
    p.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()
    assert "stop" not in ended(p, 0)
    assert_same(straight, root)


JUDGE = """
import sys, time
sys.path.insert(0, ".")
from r1 import sandbox, stop
def work():
    stop.patient = True                # as inside a step
    gold = {"entry": "f", "calls": [[[1], 2]]}
    jobs = [("def f(x):\\n    import time\\n    time.sleep(2)\\n    return x + %d" % (i % 2), gold) for i in range(4)]
    sandbox.require()
    print("begun", flush=True)
    print([v.reason for v in sandbox.judge_all(jobs, 4)])
sys.exit(stop.ends(work))
"""


def test_ctrl_c_of_a_terminal_does_not_reach_the_sandbox():
    """It goes to the whole process group."""
    p = subprocess.Popen([sys.executable, "-c", JUDGE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True, preexec_fn=heed)
    assert p.stdout.readline() == "begun\n"
    time.sleep(1)                                      # until the programs run
    os.killpg(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert out == "['wrong', 'ok', 'wrong', 'ok']\n" and "stopping after this step" in err and p.returncode == 0


# ---- one run per folder ------------------------------------------------------------------------

def test_the_lock_is_held_by_the_run_alone(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*another out=DIR"), locked(tmp_path):
            pass
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with pytest.raises(KeyError), locked(tmp_path):    # let go, though a child of the run still lives
        raise KeyError
    with locked(tmp_path):
        pass
    child.kill()
    child.wait()


# ---- damaged states ----------------------------------------------------------------------------

PIECE, FILES = "state-00001-of-00001.safetensors", ("state-00001-of-00001.safetensors", "meta.json", "MANIFEST.json")


def saved(folder, *steps):
    for step in steps:
        save_state(folder, step, {"w": torch.arange(9.0) * step, "n": torch.tensor(step)}, {"seconds": step / 7, "name": "größer"})
    return folder / f"step-{step:08d}"


def assert_loads(folder, step):
    found, tensors, meta = load_state(folder)
    assert found == step == int(tensors["n"]) and torch.equal(tensors["w"], torch.arange(9.0) * step) and meta["seconds"] == step / 7


def empty(state):
    shutil.rmtree(state)
    state.mkdir()


def to_file(state):
    shutil.rmtree(state)
    state.write_bytes(b"step")


def to_dangling(state):
    shutil.rmtree(state)
    state.symlink_to("nowhere")


def of_another_step(state): shutil.copy(state.with_name("step-00000002") / "MANIFEST.json", state)
def all_emptied(state): [(state / f).write_bytes(b"") for f in FILES]


def cut(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[:keep] if keep < 1 else data[:int(len(data) * keep)] if keep < 2 else data + b"\0")


HARM = {f"{file} {name}": (lambda state, file=file, harm=harm: harm(state / file)) for file in FILES for name, harm in {
    "emptied": lambda f: cut(f, 0), "cut": lambda f: cut(f, -2), "half": lambda f: cut(f, 0) or f.write_bytes(b"{"),
    "longer by a byte": lambda f: cut(f, 2), "gone": lambda f: f.unlink(), "a folder": lambda f: f.unlink() or f.mkdir(),
    "zeros": lambda f: f.write_bytes(bytes(f.stat().st_size))}.items()}
HARM |= {f.__name__: f for f in (empty, to_file, of_another_step, all_emptied)}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_harmed_state_is_passed_over_with_one_warning(tmp_path, capsys, harm):
    harm(saved(tmp_path, 2, 4))
    assert_loads(tmp_path, 2)
    err = capsys.readouterr().err
    assert err.startswith(f"warning: saved state {tmp_path}/step-00000004 (") and err.endswith("continuing from step 2\n")
    assert err.count("\n") == 1
    saved(tmp_path, 4)                                 # the run comes by again
    assert_loads(tmp_path, 4)
    assert states_of(tmp_path) == [2, 4] and not capsys.readouterr().err


def states_of(folder):
    return sorted(int(p.name[5:]) for p in folder.glob("step-*"))


def test_no_byte_of_a_state_can_change_unseen(tmp_path, capsys):
    state, n = saved(tmp_path, 2, 4), 0
    for file in FILES:
        whole = (state / file).read_bytes()
        for i in range(len(whole)):
            (state / file).write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1:])
            assert load_state(tmp_path)[0] == 2, (file, i)
            n += 1
        (state / file).write_bytes(whole)
    assert capsys.readouterr().err.count("\n") == n > 500
    assert_loads(tmp_path, 4)


def foreign_files(folder):
    for name in ("notes.txt", "step-", "step-old", "step-00000004.bak", "step--1"):
        (folder / name).write_text("x")
    (folder / "step-00000004/notes.txt").write_text("x")
    (folder / "step-latest").mkdir()


def folders_left(folder): [shutil.copytree(folder / "step-00000002", folder / f".{kind}-step-00000006") for kind in ("tmp", "trash", "old")]
def digit_of_another_kind(folder): (folder / "step-²").mkdir()


@pytest.mark.parametrize("more", [foreign_files, folders_left, digit_of_another_kind])
def test_what_lies_beside_a_state_is_no_state(tmp_path, capsys, more):
    saved(tmp_path, 2, 4)
    more(tmp_path)
    assert_loads(tmp_path, 4)
    saved(tmp_path, 6)
    assert_loads(tmp_path, 6)
    assert not capsys.readouterr().err and (tmp_path / "step-00000004").is_dir() and not (tmp_path / "step-00000002").exists()


def test_a_plain_file_by_the_name_of_a_later_state(tmp_path, capsys):
    saved(tmp_path, 2, 4)
    (tmp_path / "step-00000099").write_text("x")
    assert_loads(tmp_path, 4)
    assert "step-00000099" in (err := capsys.readouterr().err) and "continuing from step 4" in err and err.count("\n") == 1
    saved(tmp_path, 6)
    assert_loads(tmp_path, 6)
    assert states_of(tmp_path) == [4, 6] and not capsys.readouterr().err


def test_if_none_is_whole_every_one_is_named(tmp_path):
    state = saved(tmp_path, 2, 4)
    cut(state / PIECE, 0)
    (tmp_path / "step-00000002/meta.json").unlink()
    (tmp_path / "step-00000009").mkdir()
    with pytest.raises(UserError) as e:
        load_state(tmp_path)
    assert all(f"step-0000000{n} (" in str(e.value) for n in (2, 4, 9)) and str(e.value).count("\n") == 0


# ---- a run broken off in this process, and what is done to it then -----------------------------

class Broken(BaseException):
    pass


@contextmanager
def broken_off(owner, name, n, error=Broken):
    """`owner.name` raises at its n-th call, and something is to be broken off by that."""
    calls = iter(range(1, n + 1))

    def failing(*args, **kwargs):
        if next(calls, 0) == n:
            raise error("CUDA out of memory.\nTried to allocate more")
        return real(*args, **kwargs)

    real = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(error):
            yield


def test_a_run_goes_on_from_the_state_before_a_damaged_one(straight, tmp_path, capsys):
    root = at(straight, tmp_path / "out", "zero")
    with broken_off(grpo, "optimise", 6):
        go_on(straight[0], root, only="zero")
    assert states(root, "zero") == [2, 4] and len(rows(root / "zero/metrics.jsonl")) == 5
    whole = root / "zero/state/step-00000004"
    cut(whole / PIECE, -1)
    shutil.copytree(root, tmp_path / "worse")
    capsys.readouterr()
    go_on(straight[0], root, only="zero")
    assert capsys.readouterr().err.count("\n") == 1
    assert_same(straight, root, "zero")
    root = tmp_path / "worse"
    empty(root / "zero/state/step-00000002")
    with pytest.raises(UserError, match=f"no saved state is whole.*or delete {root}/zero to start"):
        go_on(straight[0], root, only="zero")
    shutil.rmtree(root / "zero")                       # as it says
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


WORK = [("cold", reject, "piece-0.json"), ("dev1", evaluate, "eval-own.json")]
HURT = {"whole": None, "emptied": lambda b: b"", "cut": lambda b: b[:-1], "its sum": lambda b: b"x" + b[1:],
        "no text": lambda b: b"\xff\x00" * 9, "a byte": lambda b: b[:2000] + bytes([b[2000] ^ 1]) + b[2001:]}


@pytest.fixture(scope="module")
def half_done(straight, tmp_path_factory):
    """Runs that were broken off in the second piece of rejection and in the second domain of an evaluation."""
    out = {}
    for stage, owner, _ in WORK:
        out[stage] = at(straight, tmp_path_factory.mktemp(stage) / "out", stage)
        with broken_off(owner, "roll_out", 2):
            go_on(straight[0], out[stage], only=stage)
    return out


@pytest.mark.parametrize("stage, owner, piece", WORK)
@pytest.mark.parametrize("hurt", HURT)
def test_a_damaged_piece_is_made_again(straight, half_done, tmp_path, capsys, monkeypatch, stage, owner, piece, hurt):
    root, calls, real = shutil.copytree(half_done[stage], tmp_path / "out"), [], owner.roll_out
    file = root / stage / "state" / piece
    if hurt != "whole":
        file.write_bytes(HURT[hurt](file.read_bytes()))
    monkeypatch.setattr(owner, "roll_out", lambda *a, **k: calls.append(1) or real(*a, **k))
    capsys.readouterr()
    go_on(straight[0], root, only=stage)
    assert capsys.readouterr().err == ("" if hurt == "whole" else f"warning: {file} is damaged; it is made again\n")
    assert len(calls) == 1 + (hurt != "whole")         # what is whole is not made again
    assert_same(straight, root, stage)


def test_a_half_written_line_in_the_middle_of_a_letter(straight, tmp_path):
    """What a kill or a full disk may leave at the end of a log that holds more than ASCII."""
    root = at(straight, tmp_path / "out", "zero")
    with broken_off(grpo, "optimise", 6):
        go_on(straight[0], root, only="zero")
    with (root / "zero/samples.jsonl").open("ab") as f:
        f.write('{"step": 5, "prompt": "七'.encode()[:-1])
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


def test_a_line_that_holds_other_kinds_of_line_ends(tmp_path):
    """A byte-level model can say any of them, and JSON leaves them as they are."""
    folder = Folder(tmp_path, "stage", 0, "cpu", {})
    folder.path.mkdir()
    for step in range(3):
        folder.log_samples([{"step": step, "completion": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\n"}])
    before = (folder.path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    folder.start_logs(2)
    assert (folder.path / "samples.jsonl").read_bytes() == b"".join(before[:2])


# ---- a full disk, a folder that cannot be written ----------------------------------------------

def small(limit):
    """Files may grow to so many bytes: what a write meets that is cut off in its middle, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def full(owner, name, limit, when=lambda *args: True, n=1):
    """Within the n-th call of owner.name for which `when` holds, files may have `limit` bytes and no more."""
    calls = iter(range(1, n + 1))

    def limited(*args, **kwargs):
        if not when(*args) or next(calls, 0) != n:
            return real(*args, **kwargs)
        small(limit(*args) if callable(limit) else limit)
        try:
            return real(*args, **kwargs)
        finally:
            small(resource.RLIM_INFINITY)

    real = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, limited)
        yield


def within(folder, rows):
    """So that samples.jsonl is cut off in the middle of a letter."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return (folder.path / "samples.jsonl").stat().st_size + text.encode().index("七".encode()) + 1


def grown(folder, *_, **__):
    return (folder.path / "metrics.jsonl").stat().st_size + 100


NAMED = lambda name: lambda path, text: str(path).endswith(name)  # noqa: E731
DISK = {
    "state": ("zero", checkpoint, "_write_piece", 1000, {"n": 2}, "step-00000004"),
    "manifest": ("zero", checkpoint, "_finish_state", 10, {"n": 2}, "step-00000004"),
    "weights": ("zero", checkpoint, "_write_weights", 10_000, {}, "zero/model"),
    "tokenizer": ("zero", Tokenizer, "save", 10, {}, "zero/model"),
    "metrics": ("zero", Folder, "log", grown, {"n": 4}, "metrics.jsonl"),
    "samples": ("zero", Folder, "log_samples", within, {"n": 3, "when": lambda _, rows: "七" in str(rows)}, "samples.jsonl"),
    "config": ("zero", runtime, "write_text", 10, {"when": NAMED("config.yaml")}, "zero/config.yaml"),
    "done": ("zero", runtime, "write_text", 10, {"when": NAMED("done.json")}, "zero/done.json"),
    "figures": ("zero", runtime, "write_text", 10, {"when": NAMED("eval.json")}, "zero/eval.json"),
    "eval piece": ("zero", runtime, "write_text", 10, {"when": NAMED("eval-general.json")}, "eval-general.json"),
    "piece": ("cold", runtime, "write_text", 10, {"when": NAMED("piece-512.json")}, "piece-512.json"),
    "examples": ("cold", runtime, "write_text", 10, {"when": NAMED("examples.jsonl")}, "examples.jsonl"),
    "results": ("zero", pipeline, "write_text", 10, {"n": 2}, "results.json"),
    "report": ("zero", report, "write_text", 10, {"when": NAMED("report.html")}, "report.html"),
}


@pytest.mark.parametrize("what", DISK)
def test_a_full_disk_is_a_sentence_and_costs_nothing(straight, tmp_path, what):
    stage, owner, name, limit, how, said = DISK[what]
    root = at(straight, tmp_path / "out", stage)
    try:
        with full(owner, name, limit, **how), pytest.raises(UserError, match=f"{said} could not be written .*File too large.* MB") as e:
            go_on(straight[0], root, only=stage)
    finally:
        small(resource.RLIM_INFINITY)
    assert "\n" not in str(e.value)
    for state in root.glob("*/state"):
        assert not seen(state, ".tmp-*") and len(states_of(state)) <= 2
        for step in states_of(state):
            checkpoint._verified(state / f"step-{step:08d}", step)
    assert not seen(root, "*/.tmp-model") and not seen(root, "*.tmp", "*/*.tmp", "*/state/*.tmp")
    go_on(straight[0], root, only=stage)
    assert_same(straight, root, stage)
    assert (root / "report.html").read_bytes().endswith(b"</html>")


def test_a_lock_without_a_name_in_it_is_one_too(straight, tmp_path):
    """Twenty bytes for the words of the next one's error are not worth a run."""
    root = at(straight, tmp_path / "out", "zero")
    try:
        with full(runtime, "_lock", 5):
            go_on(straight[0], root, only="zero")
    finally:
        small(resource.RLIM_INFINITY)
    assert_same(straight, root, "zero")


def one_sentence(process, code=2):
    """Its only line on stderr."""
    said = ended(process, code).splitlines()
    assert len(said) == 1 and said[0].startswith("error: "), said
    return said[0]


def test_a_full_disk_ends_the_script_with_2(straight, tmp_path):
    root = at(straight, tmp_path / "out", "zero")
    report_size = (straight[1] / "zero/model/model.safetensors").stat().st_size * 2
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({report_size}, {report_size}))"
    assert f"{root}/zero/state/step-00000002 could not be written (" in one_sentence(begin(straight[0], root, patch=limit))
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


def in_namespace(script, *args):
    """A shell with mounts of its own; skips where that is not allowed."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("may not mount")
    return subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)


def test_a_folder_that_may_not_be_written(straight, tmp_path):
    root = at(straight, tmp_path / "out", "zero")
    if os.geteuid():
        root.chmod(0o555)
        out = subprocess.run([sys.executable, "train.py", straight[0], f"out={root}"], cwd=ROOT, capture_output=True, text=True)
        root.chmod(0o755)
    else:                                              # nothing is forbidden to root, but nobody writes here
        out = in_namespace('mount --bind "$3" "$3" && mount -o remount,bind,ro "$3" && exec "$1" train.py "$2" out="$3"',
                           sys.executable, straight[0], root)
    assert out.returncode == 2 and out.stderr.startswith(f"error: {root}/") and "could not be written (" in out.stderr
    assert out.stderr.count("\n") == 1
    go_on(straight[0], root, only="zero")
    assert_same(straight, root, "zero")


@pytest.mark.parametrize("place", ["", "zero"])
def test_a_file_where_a_folder_should_be(straight, tmp_path, place):
    root = tmp_path / "out" if not place else at(straight, tmp_path / "out", "zero")
    (root / place).write_text("mine")
    with pytest.raises(UserError, match=f"{root}"):
        go_on(straight[0], root)
    assert (root / place).read_text() == "mine"


@pytest.mark.slow
def test_a_small_file_system_that_grows(straight, tmp_path, record_property):
    """A real one, full at every size from almost nothing on: a sentence each time, and in the end the same bits."""
    script = """
mount -t tmpfs -o size=4k none "$3" || exit 9
n=0
for kb in $(seq 40 60 6000); do
    mount -o remount,size=${kb}k "$3"
    "$1" train.py "$2" out="$3"/out > /dev/null 2> "$4"/err; code=$?
    if [ $code = 0 ]; then cp -r "$3"/out "$4"/out; echo "$n full, enough with $kb kB"; exit 0; fi
    n=$((n + 1)); cat "$4"/err >> "$4"/said
    [ $code = 2 ] && [ $(wc -l < "$4"/err) = 1 ] || { echo "code $code with $kb kB"; cat "$4"/err; exit 8; }
done
exit 7
"""
    (tmp_path / "small").mkdir()
    out = in_namespace(script, sys.executable, straight[0], tmp_path / "small", tmp_path)
    record_property("a file system that grows", out.stdout.strip())
    print(Counter(line.split(" could not")[0].split("/")[-1] for line in (tmp_path / "said").read_text().splitlines()))
    assert out.returncode == 0, out.stdout + out.stderr
    assert all("No space left on device" in line and line.startswith("error: ") for line in (tmp_path / "said").read_text().splitlines())
    assert_same(straight, tmp_path / "out")


# ---- steps without a finite gradient -----------------------------------------------------------

def poison(monkeypatch, steps):
    """The loss of these calls is not a number, and a skipped step must leave weights and both optimisers as they are."""
    calls, real, whole, skipped = iter(range(10_000)), supervised.cross_entropy, supervised.optimise, []

    def kept(model, optimizer):
        parts, params = getattr(optimizer, "parts", (optimizer,)), list(model.parameters())
        return [t.detach().clone() for t in (*params, *(v for part in parts for p in params for v in part.state.get(p, {}).values()))]

    def optimise(model, optimizer, *args):
        before, out = kept(model, optimizer), whole(model, optimizer, *args)
        after = kept(model, optimizer)
        if out["skipped"]:
            skipped.append(len(before))
            assert len(before) == len(after) and all(map(torch.equal, before, after))
        return out

    monkeypatch.setattr(supervised, "cross_entropy", lambda *a: real(*a) * (float("nan") if next(calls) in steps else 1))
    monkeypatch.setattr(supervised, "optimise", optimise)
    return skipped


def test_ten_steps_in_a_row_without_a_finite_gradient_end_a_stage(straight, tmp_path, monkeypatch):
    root = at(straight, tmp_path / "out", "taught")
    with monkeypatch.context() as patch:
        skipped = poison(patch, range(3, 13))
        with pytest.raises(UserError, match="^taught: the gradient was not finite in 10 steps in a row, the last was step 12; .* rate$"):
            go_on(straight[0], root, only="taught")
    assert len(skipped) == 10 and [r["skipped"] for r in rows(root / "taught/metrics.jsonl")] == [0] * 3 + [1] * 10
    assert not (root / "taught/model").exists()
    shutil.rmtree(root / "taught/state")               # of step 9, six steps of which were skipped
    go_on(straight[0], root, only="taught")
    assert_same(straight, root, "taught")


def test_nine_do_not_with_muon_too(straight, tmp_path, monkeypatch):
    root, bad = at(straight, tmp_path / "out", "taught"), {*range(9), *range(10, 19), *range(20, 29)}
    skipped = poison(monkeypatch, bad)
    go_on(straight[0], root, "taught.optim.muon_lr=0.02", only="taught")
    assert {r["step"] for r in rows(root / "taught/metrics.jsonl") if r["skipped"]} == bad and len(skipped) == 27
    assert len(set(skipped)) > 1 and (root / "taught/done.json").is_file()      # before the first step there is no state to keep


# ---- what the surroundings must not matter to --------------------------------------------------

def test_no_stage_hears_of_the_global_generators(straight, tmp_path, monkeypatch):
    """Seeded differently before every stage and evaluation, and left where they stood."""
    seeds, drew = iter(range(1000, 2000)), []

    def stand():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def seeded(name, real):
        def call(*args):
            seed = next(seeds)
            for f in (random.seed, np.random.seed, torch.manual_seed):
                f(seed)
            before = stand()
            real(*args)
            drew.extend((name, args[-1].name, i) for i, (a, b) in enumerate(zip(before, stand(), strict=True)) if a != b)
        return call

    for name in ("train", "run_evaluation"):
        monkeypatch.setattr(pipeline, name, seeded(name, getattr(pipeline, name)))
    go_on(straight[0], tmp_path / "out")
    assert_same(straight, tmp_path / "out")
    assert next(seeds) == 1000 + 2 * len(STAGES) - 1   # rejection is not evaluated
    assert set(drew) <= {("train", "base", 2)}          # torch's, by the layers that are made before init_weights fills them


@pytest.mark.parametrize("streams", ["stdout", pytest.param("both", marks=pytest.mark.slow)])
def test_nobody_reads_any_more(straight, tmp_path, streams):
    """`| head -1`, and `2>&1 | head -1` with a warning to come: the run goes on to its end."""
    root = shutil.copytree(straight[1], tmp_path / "out")
    for stage in ("base", "dev1", "dev2"):
        (root / stage / "eval.json").unlink()
    if streams == "both":
        (root / "dev1/state").mkdir()
        (root / "dev1/state/eval-own.json").write_text("damaged")
    p = begin(straight[0], root, patch="import os; os.dup2(1, 2)" if streams == "both" else "")
    assert p.stdout.readline().startswith("base: own")
    p.stdout.close()
    err = p.stderr.read()
    assert p.wait(60) == 0 and not err, err
    assert_same(straight, root)


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-", "2>&-", "2> /dev/full"])
def test_odd_streams(straight, tmp_path, redirect):
    root = at(straight, tmp_path / "out", "dev2")
    out = subprocess.run(["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "train.py", straight[0], f"out={root}", "--only=dev2"],
                         cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert out.returncode == 0 and not out.stderr, out.stderr
    assert_same(straight, root, "dev2")


def test_other_conditions_at_resume_are_noted(straight, tmp_path, capsys, monkeypatch):
    root, version = at(straight, tmp_path / "out", "zero"), torch.__version__
    with broken_off(grpo, "optimise", 6):
        go_on(straight[0], root, only="zero")
    capsys.readouterr()
    real = runtime.hardware
    monkeypatch.setattr(runtime, "hardware", lambda: {**real(), "torch": "2.99"})
    try:
        go_on(straight[0], root, "threads=2", only="zero")
    finally:
        torch.set_num_threads(1)
    note = f"note: zero goes on with torch {version} -> 2.99, threads 1 -> 2: right, but not to the same bits\n"
    assert capsys.readouterr().err == note
    assert [r["step"] for r in rows(root / "zero/metrics.jsonl")] == list(range(8)) and (root / "zero/eval.json").is_file()


def test_no_memory_left_names_what_to_lower(straight, tmp_path, capsys, monkeypatch):
    root, codes = at(straight, tmp_path / "out", "zero"), []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    calls, real = iter(range(1, 100)), grpo.optimise

    def once(*args):
        if next(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore of that")
        return real(*args)

    monkeypatch.setattr(grpo, "optimise", once)
    capsys.readouterr()
    try:
        for more in ([], ["zero.optim.micro_tokens=64", "zero.sample.max_rows=2"]):
            codes.append(stop.ends(lambda more=more: go_on(straight[0], root, *more, only="zero")))
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    err = capsys.readouterr().err
    assert codes == [2, 0] and err.count("\n") == 1 and err.startswith("error: zero: no memory is left")
    assert "Tried to allocate 2 GiB.)" in err and "sample.max_rows or optim.micro_tokens" in err
    ours, theirs = rows(root / "zero/metrics.jsonl"), rows(straight[1] / "zero/metrics.jsonl")
    assert timeless(ours[:2]) == timeless(theirs[:2]) and [r["step"] for r in ours] == list(range(8))
    assert [r["reward"] for r in ours] == pytest.approx([r["reward"] for r in theirs], abs=1e-5)
    assert [r["grad_norm"] for r in ours] == pytest.approx([r["grad_norm"] for r in theirs], rel=1e-3)


def test_a_run_needs_no_network(straight, tmp_path):
    """None at all: not even the loopback is up."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("may not leave the network")
    out = subprocess.run(["unshare", "-rn", sys.executable, "train.py", straight[0], f"out={tmp_path}/out"], cwd=ROOT, capture_output=True,
                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert out.returncode == 0, out.stderr
    assert_same(straight, tmp_path / "out")


@pytest.mark.slow
def test_a_late_step_is_resumed_at_once(straight, tmp_path, record_property):
    """What the 900,000 steps before have read is not read again."""
    late, took, long = 900_000, [], ["base.steps=1000000", "base.save_every=5"]
    for first in (0, late):
        root = tmp_path / str(first)
        if first:
            with broken_off(supervised, "optimise", 7):
                go_on(straight[0], root, *long)
            _, tensors, meta = load_state(root / "base/state")
            save_state(root / "base/state", late, tensors, meta)
        began = time.monotonic()
        p = begin(straight[0], root, *long)
        metrics = root / "base/metrics.jsonl"
        wait_for(lambda metrics=metrics, first=first: metrics.is_file() and [r for r in rows(metrics) if r["step"] >= first], p)
        took.append(time.monotonic() - began)
        p.kill()
        p.communicate()
    record_property("seconds from the start of the process to its first step", f"{took[1]:.1f}, at the beginning of a stage {took[0]:.1f}")
    assert took[1] < max(10, 2 * took[0]) and [r["step"] for r in rows(metrics)][:7] == [0, 1, 2, 3, 4, 5, late]
