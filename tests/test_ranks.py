"""Several processes as one, against one: gradients, states, whole runs, and what happens when a rank is lost.

Everything here is fp32 on the CPU, where ranks differ by the order of additions alone: a millionth or two beside gradients of about 1."""
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_programs as programs
import torch
from conftest import random_model
from rank_programs import STEPS
from safetensors.torch import load_file
from test_pipeline import MINI

from r1 import checkpoint, config, pipeline, ranks
from r1.data import micro_batches
from r1.types import Example

ROOT = Path(__file__).parent.parent
PROGRAM = str(ROOT / "tests/rank_programs.py")


def processes(mark: str) -> list[str]:
    """The command lines of what runs and names `mark`, other than this process."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:                                        # it has ended meanwhile
            continue
        if mark in line and file.parent.name != str(os.getpid()):
            found.append(line)
    return found


def command(*args, n: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", *map(str, args)]


def launch(*args, n: int = 2, mark: str = "", **env) -> subprocess.CompletedProcess:
    """torchrun, which always comes to an end, and of which nothing that names `mark` is left then."""
    out = subprocess.run(command(*args, n=n), cwd=ROOT, capture_output=True, text=True, timeout=150, umask=0o027,
                         env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert not mark or not processes(mark)
    return out


def errors(text: str) -> list[str]:
    """The sentences that a run ends with; torchrun adds many lines of its own."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def apart(a: dict, b: dict) -> float:
    """The largest difference of any entry."""
    assert a.keys() == b.keys() and a
    return max((a[k] - b[k]).abs().max().item() for k in a)


# ---- how a batch is dealt ----------------------------------------------------------------------

def hands(monkeypatch, world: int, examples: list[Example], micro_tokens: int) -> list:
    monkeypatch.setattr(ranks, "world", lambda: world)
    dealt = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        dealt.append(ranks.deal(examples, micro_tokens))
    return dealt


def named(*lengths: int) -> list[Example]:
    return [Example([i] * n, [0] + [1] * (n - 1), adv=float(i), w=0.25) for i, n in enumerate(lengths)]


def test_a_batch_is_dealt_as_by_hand(monkeypatch):
    """By length 3 4 5 6 9, in turns: 3 5 9 and 4 6. Of 12 tokens a micro-batch: 3 5 | 9 and 4 6 | nothing to learn from."""
    first, second = hands(monkeypatch, 2, named(9, 4, 3, 6, 5), 12)
    assert [[len(e.ids) for e in group] for group in first] == [[3, 5], [9]]
    assert [[len(e.ids) for e in group] for group in second[:1]] == [[4, 6]]
    assert [[e.mask for e in group] for group in second[1:]] == [[[0, 0]]] and second[1][0].w == 0
    assert {e.w for group in first + second[:1] for e in group} == {0.5}          # FSDP divides by two again
    assert [e.adv for e in first[0]] == [2.0, 4.0]
    assert hands(monkeypatch, 1, named(9, 4, 3, 6, 5), 12) == [micro_batches(named(9, 4, 3, 6, 5), 12)]     # one rank: as ever
    assert hands(monkeypatch, 2, [], 12) == [[], []]
    one, none, nothing = hands(monkeypatch, 3, named(7), 12)
    assert one == [[dataclasses.replace(named(7)[0], w=0.75)]] and none == nothing and not any(none[0][0].mask)


def test_every_example_is_dealt_once(monkeypatch):
    rng = random.Random(0)
    for world in (2, 3, 5):
        for count in (1, 2, 4, 13):
            examples = named(*(rng.randint(2, 30) for _ in range(count)))
            dealt = hands(monkeypatch, world, examples, rng.choice([1, 40, 200]))
            trained = [e for hand in dealt for group in hand for e in group if any(e.mask)]
            assert sorted((e.ids, e.w) for e in trained) == sorted((e.ids, e.w * world) for e in examples)
            assert len({len(hand) for hand in dealt}) == 1 and len(dealt[0]) > 0      # or a rank would wait for ever


# ---- the same calculations on several ranks and on one -----------------------------------------

@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory) -> Path:
    """Two models whose dimensions are divided by neither 2 nor 3 (771, 47; 4 heads of 4: shards of 2, 2 and 0), and end tokens enough
    for completions of every length."""
    folder, eos = tmp_path_factory.mktemp("start"), list(range(60))
    shape = {"vocab_size": 771, "intermediate_size": 47, "max_position_embeddings": 256}
    checkpoint.save_model(folder / "tied", random_model(**shape, head_dim=4, num_key_value_heads=1, qk_norm=True), tokenizer, eos, 0)
    checkpoint.save_model(folder / "untied", random_model(**shape, attention_bias=True, tie_word_embeddings=False), tokenizer, eos, 0)
    return folder


@dataclasses.dataclass
class Found:
    folder: Path
    count: int = 1                     # of ranks
    pieces: int = 1                    # of a state
    err: str = ""

    def __post_init__(self):
        self.tensors, self.words = load_file(self.folder / "tensors.safetensors"), json.loads((self.folder / "words.json").read_text())

    def of(self, name: str) -> dict:
        return {k.removeprefix(name + "/"): v for k, v in self.tensors.items() if k.startswith(name + "/")}


@pytest.fixture(scope="module")
def one(start, tmp_path_factory) -> Found:
    folder = tmp_path_factory.mktemp("one")
    programs.measure(folder, start)
    return Found(folder)


@pytest.fixture(scope="module", params=[(2, 1), pytest.param((3, 1), marks=pytest.mark.slow), pytest.param((4, 2), marks=pytest.mark.slow)],
                ids=["2 ranks", "3 ranks", "2 nodes of 2 ranks"])
def many(request, start, one, tmp_path_factory) -> Found:
    folder, (n, nodes) = tmp_path_factory.mktemp("many"), request.param
    out = launch(PROGRAM, "measure", folder, start, one.folder, n=n, mark=str(folder), NODES=str(nodes))
    assert out.returncode == 0, out.stderr
    return Found(folder, n, n // nodes, out.stderr)


def test_ranks_tell_each_other(many):
    n = many.count
    assert many.words["gather"] == [list(range(0, 10 * k, 10)) for k in range(6)]
    assert many.words["total"] == pytest.approx({"a": 1.5, "b": 1.0})
    assert many.words["lead"] == [[r, 0] for r in range(n)]
    assert many.words["raised"] == [["UserError: first", "ValueError: last"]] * n


@pytest.mark.parametrize("which", ["plain", "dynamic"])
def test_samples_are_those_of_one_rank(one, many, which):
    """Five problems, which no number of ranks divides; `dynamic` samples twice more and takes what is mixed."""
    a, b = one.words[f"sampled/{which}"], many.words[f"sampled/{which}"]
    assert a["ids"] == b["ids"] and a["finish"] == b["finish"] and a["records"] == b["records"] and len(a["ids"]) == 15
    assert max(abs(x - y) for p, q in zip(a["logp"], b["logp"], strict=True) for x, y in zip(p, q, strict=True)) < 1e-5
    assert which == "dynamic" or len({len(p) for p in a["logp"]}) > 8 and set(a["finish"]) == {"eos", "length"}


GRPO = ["plain", "flat", "flat_kl", "kl", "small", "single", "few", "few_kl", "clipped", "token", "inner"]


@pytest.mark.parametrize("case", [*GRPO, "sft_plain", "sft_small", "sft_few"])
def test_loss_and_gradient_are_those_of_one_rank(one, many, case, record_property):
    steps = 4 if case == "inner" else 1
    for i in range(steps):
        a, b = one.of(f"grad/{case}/{i}"), many.of(f"grad/{case}/{i}")
        assert max(g.abs().max() for g in a.values()) > 5e-3
        record_property(f"largest difference of a gradient on {many.count} ranks", f"{apart(a, b):.1e}")
        assert apart(a, b) <= (2e-6 if i == 0 else 3e-6)     # later ones are at weights that moved by rounding too
    assert not one.of(f"grad/{case}/{steps}") and not many.of(f"grad/{case}/{steps}")
    a, b = one.words[f"update/{case}"], many.words[f"update/{case}"]
    assert a.keys() == b.keys() and b["loss"] == pytest.approx(a["loss"], abs=1e-6)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert {k: v for k, v in b.items() if k not in ("loss", "grad_norm", "entropy", "kl", "gap")} == \
        {k: v for k, v in a.items() if k not in ("loss", "grad_norm", "entropy", "kl", "gap")}
    for k in {"entropy", "kl", "gap"} & a.keys():
        assert b[k] == pytest.approx(a[k], abs=1e-5)


def test_the_cases_are_what_they_are_called(one, many):
    """A rank without any advantage, counts of micro-batches that differ until they are evened out, ranks that get nothing."""
    trained = lambda case: [sum(g["trained"] for g in hand[0]) for hand in many.words[f"hands/{case}"]]  # noqa: E731
    idle = lambda case: sum(g["trained"] == 0 for hand in many.words[f"hands/{case}"] for g in hand[0])  # noqa: E731
    assert all(len({len(hand[0]) for hand in many.words[f"hands/{case}"]}) == 1 for case in GRPO)
    if many.count == 2:
        assert [sum(g["adv"] for g in hand[0]) > 0 for hand in many.words["hands/flat_kl"]] == [True, False]
        assert idle("single") == 1 and len(many.words["hands/single"][0][0]) == 8
        assert len(many.words["hands/small"][0][0]) == 2
    for case in ("few", "few_kl"):
        assert trained(case) == [1] + [0] * (many.count - 1) and idle(case) == many.count - 1
    assert sum(trained("plain")) == 15 and min(trained("plain")) >= 15 // many.count
    assert one.words["update/none"] == many.words["update/none"] and not many.of("grad/none/0")
    norm = sum(g.square().sum().item() for g in many.of("grad/clipped/0").values()) ** 0.5
    assert norm == pytest.approx(0.05, rel=1e-4) and many.words["update/clipped"]["grad_norm"] > 1


def test_ranks_that_sampled_for_unequally_long_train_as_before(many):
    """One token on the others, forty on the last; then the very same gradient, and every weight in shards again."""
    lengths = many.words["alone/lengths"]
    assert lengths[-1] == [40] * 4 and all(each == [1, 1] for each in lengths[:-1])
    before, after = many.of("grad/plain/0"), many.of("grad/again/0")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert many.words["alone/kinds"] == [dict.fromkeys(("model", "forward", "after"), ["DTensor"])] * many.count
    for rows in zip(*many.words["alone/rows"], strict=True):                        # of one parameter, on every rank
        cut = [len(t) for t in torch.zeros(rows[0][1]).chunk(many.pieces)]
        assert [own for own, _ in rows] == (cut + [0] * (many.pieces - len(cut))) * (many.count // many.pieces)


def test_a_nan_on_one_rank_is_a_step_of_none(one, many):
    assert many.words["nan/skipped"] == [1] * many.count and many.words["nan/same"] == [True] * many.count
    assert one.words["nan/skipped"] == [1] and one.words["nan/same"] == [True]
    a, b = one.words["nan/next"], many.words["nan/next"]
    assert b["skipped"] == 0 and b["loss"] == pytest.approx(a["loss"], abs=1e-5)
    assert apart(one.of("nan"), many.of("nan")) < 4e-5                             # Adam at 1e-3: see below


def test_bf16_is_of_the_forward_alone(one, many):
    """Logits come in bfloat16; weights, gradients and Adam's state are fp32. Gradients are those of fp32 but for a few per cent."""
    for found in (one, many):
        assert found.words["bf16/kinds"] == [{"logits": ["torch.bfloat16"], "kept": ["torch.float32"]}] * found.count
        exact, rough = one.of("grad/sft_plain/0"), found.of("grad/bf16/0")
        off = sum((exact[k] - rough[k]).square().sum() for k in exact).sqrt() / sum(g.square().sum() for g in exact.values()).sqrt()
        assert 1e-4 < off < 0.03
        assert 1e-5 < found.words["bf16/gap"] < 0.01                               # between sampler and trainer, in nats


# ---- several steps, and states -----------------------------------------------------------------

def test_adam_goes_where_it_goes_on_one_rank(one, many, start):
    """Its first steps divide a gradient by itself, so where that is about nothing rounding is a share of the step: lr 1e-4."""
    for name in ("adam", "rl"):
        assert apart(one.of(f"straight/{name}"), many.of(f"straight/{name}")) < (3e-6 if many.count == 2 else 5e-6), name
        begin = {k.removeprefix("model."): v for k, v in load_file(start / "tied/model.safetensors").items()}
        assert apart(one.of(f"straight/{name}"), begin) > 3e-4, name
        a, b = (lines(f.folder / f"straight/{name}/metrics.jsonl") for f in (one, many))
        assert [x["step"] for x in b] == list(range(STEPS)) and [x["loss"] for x in b] == pytest.approx([x["loss"] for x in a], abs=3e-5)


def test_muon_adds_nothing_and_rounds_as_it_does_alone(one, many):
    """Given equal gradients it moves to equal bits. Its own gradients differ in the seventh digit; it makes them bfloat16 and
    orthogonal, which lifts what is small: one rank with other micro-batches ends 1e-3 apart as well, of steps of 0.02."""
    assert apart(one.of("pair"), many.of("pair")) < 1e-7
    a, b = one.of("straight/muon"), many.of("straight/muon")
    assert apart(a, b) < 5e-3 and sum((a[k] - b[k]).abs().sum() for k in a) / sum(v.numel() for v in a.values()) < 1e-4
    assert [x["loss"] for x in lines(many.folder / "straight/muon/metrics.jsonl")] == pytest.approx(
        [x["loss"] for x in lines(one.folder / "straight/muon/metrics.jsonl")], abs=1e-3)


@pytest.mark.parametrize("name", ["adam", "rl", "muon"])
def test_a_state_goes_on_with_as_many_ranks_to_the_same_bits(many, name):
    a, b = many.of(f"straight/{name}"), many.of(f"from_own/{name}")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["adam", "rl", "muon"])
def test_a_state_goes_on_with_more_ranks_and_with_one(one, many, start, tmp_path, name):
    """The last two of six steps. With Muon the weights are those of the run whose state it is, and its rounding as above."""
    close = 3e-6 if name != "muon" else 2e-3
    assert apart(one.of(f"straight/{name}"), many.of(f"from_other/{name}")) < close
    work = programs.reinforce if name == "rl" else programs.fine_tune
    assert apart(many.of(f"straight/{name}"), work(tmp_path, start, name, many.folder / "straight")) < close
    for root in (tmp_path, many.folder / "from_other", many.folder / "from_own"):
        assert [x["step"] for x in lines(root / name / "metrics.jsonl")] == list(range(STEPS))


@pytest.mark.parametrize("name", ["adam", "rl", "muon"])
def test_a_state_is_in_pieces_that_make_up_that_of_one_rank(one, many, name):
    folder, n = many.folder / f"straight/{name}/state/step-00000004", many.pieces
    pieces = [f"state-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    assert sorted(p.name for p in folder.iterdir()) == ["MANIFEST.json", "meta.json", *pieces]
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o640}                   # launched under the umask 027
    assert json.loads((folder / "meta.json").read_text())["made_on"]["ranks"] == many.count
    parts = [load_file(folder / p) for p in pieces]
    (alone,) = [load_file(p) for p in (one.folder / f"straight/{name}/state/step-00000004").glob("*.safetensors")]
    assert all(p.keys() == alone.keys() for p in parts)
    together = {k: torch.cat([p[k] for p in parts]) if alone[k].dim() else parts[-1][k] for k in alone}
    assert {k: (v.shape, v.dtype) for k, v in together.items()} == {k: (v.shape, v.dtype) for k, v in alone.items()}
    assert apart(together, alone) < (3e-6 if name != "muon" else 5e-3)
    moments = {k.split(".")[1] for k in alone if k.startswith("optim.")}
    assert moments == {"exp_avg", "exp_avg_sq", "step"} | ({"momentum_buffer"} if name == "muon" else set())
    if name == "rl":                                            # the reference is the policy of step 3, not that of step 4
        policy, reference = ({k.removeprefix(w): v for k, v in together.items() if k.startswith(w)} for w in ("model.", "reference."))
        assert apart(policy, reference) > 5e-5


def test_a_piece_that_is_damaged_takes_every_rank_to_the_state_before(many):
    """One sentence says so, and the run comes to the same bits."""
    said = [line for line in many.err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and f"of-{many.pieces:05d}" in said[0] and said[0].endswith("continuing from step 2")
    a, b = many.of("straight/adam"), many.of("damaged/adam")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert len([line for line in many.err.splitlines() if line.startswith("note: ")]) == 3        # one for each run on other ranks


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_saved_model_is_the_file_of_one_rank(one, many, start, name):
    files = sorted(p.name for p in (start / name).iterdir())
    assert sorted(p.name for p in (many.folder / "model" / name).iterdir()) == files
    for file in files:
        assert (many.folder / "model" / name / file).read_bytes() == (one.folder / "model" / name / file).read_bytes()
    a, b = (load_file(f / name / "model.safetensors") for f in (start, many.folder / "model"))
    assert all(torch.equal(a[k], b[k]) for k in a | b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_transformers_loads_what_several_ranks_saved(many, name):
    transformers = pytest.importorskip("transformers")
    folder = many.folder / "model" / name
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(0, 700, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_model(folder)(ids), theirs(ids).logits, atol=2e-5, rtol=0)


# ---- whole runs, and ranks that are lost -------------------------------------------------------

def mini(folder: Path, timeout: float = 10) -> Path:
    """The miniature recipe without Muon and with small steps, so that a run on two ranks can be compared with one on one."""
    text = MINI.format(out=folder / "out").replace(", muon_lr: 0.02", "").replace("lr: 1e-3", "lr: 1e-4")
    (folder / "mini.yaml").write_text(f"{text}timeout: {timeout}\nthreads: 1\n")
    return folder / "mini.yaml"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """An undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    pipeline.run(config.load(mini(folder)))
    return folder / "out"


STAGES = ["base", "zero", "cold", "dev1", "dev2"]
COST = re.compile("time_|tokens_per_second|seconds|saving|hardware|date|ranks|sha256")


def costless(figures: dict) -> dict:
    return {k: v for k, v in figures.items() if not COST.search(k)}


def assert_same_run(a: Path, b: Path, close: float = 2e-6):
    """Weights, metrics, samples and evaluations of two runs, apart from what they took and where they ran."""
    files = lambda root: sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())  # noqa: E731
    assert files(a) == files(b) and not list(b.rglob("state")) and not list(b.rglob(".*"))
    for stage in STAGES:
        x, y = lines(a / stage / "metrics.jsonl"), lines(b / stage / "metrics.jsonl")
        assert [m["step"] for m in x] == [m["step"] for m in y] == list(range(len(x)))      # each of them once
        for m, n in zip(x, y, strict=True):
            assert m.keys() == n.keys()
            assert costless(n) == pytest.approx(costless(m), rel=1e-3, abs=1e-5)
        if stage != "cold":
            assert apart(load_file(a / stage / "model/model.safetensors"), load_file(b / stage / "model/model.safetensors")) < close, stage
            e, f = (json.loads((root / stage / "eval.json").read_text()) for root in (a, b))
            assert costless(e) == costless(f)
            assert (a / stage / "eval_samples.jsonl").read_text() == (b / stage / "eval_samples.jsonl").read_text()
        if stage != "base" and (a / stage / "samples.jsonl").exists():
            x, y = lines(a / stage / "samples.jsonl"), lines(b / stage / "samples.jsonl")
            assert [s["completion"] for s in x] == [s["completion"] for s in y]
    assert (a / "cold/examples.jsonl").read_text() == (b / "cold/examples.jsonl").read_text()
    assert [s["name"] for s in json.loads((b / "results.json").read_text())["stages"]] == STAGES


def failing(what: str, where: str, count: int, file: Path, who: int = 1) -> subprocess.CompletedProcess:
    """A run of which rank `who` fails at the `count`-th call of `where`, the first time that the command is given."""
    return launch(PROGRAM, "fault", what, who, where, count, file.with_name(f"{what}-{where}"), file, mark=str(file))


def test_a_run_on_two_ranks_that_lose_each_other_twice_is_the_run_of_one(alone, tmp_path):
    """A rank raises while it samples, then one is killed in the midst of an update; every time the run ends by itself, with one
    sentence and no process left, and the same command goes on: to every file once and the weights of an undisturbed run."""
    file, out = mini(tmp_path), tmp_path / "out"
    first = failing("raise", "rollout.generate", 8, file)          # two domains of base, four steps, the second domain of zero
    assert first.returncode and (tmp_path / "raise-rollout.generate").exists()
    assert len(said := errors(first.stderr)) == 1 and "rank 1" in said[0] and "sampling" in said[0], first.stderr
    assert "out of cheese" in said[0] and "continues" in said[0] and first.stderr.count("ValueError: out of cheese\n") == 1
    assert (out / "zero/done.json").exists() and not (out / "zero/eval.json").exists()

    second = failing("kill", "optim.collate", 3, file)
    assert second.returncode and (tmp_path / "kill-optim.collate").exists()
    assert len(said := errors(second.stderr)) == 1 and "rank 1" in said[0] and "update" in said[0] and "dev1" in said[0], second.stderr
    assert second.stderr.count("Traceback") == 1                              # torchrun's own
    assert [p.name for p in (out / "dev1/state").glob("step-*")] == ["step-00000002"]

    last = failing("raise", "rollout.generate", 8, file)           # the same command: it fails no more
    assert last.returncode == 0 and not errors(last.stderr), last.stderr
    assert all(first.stdout.count(f"{s}: done in") == 1 for s in ("base", "zero"))
    assert all(last.stdout.count(f"{s}: done in") == 1 for s in ("dev1", "dev2")) and last.stdout.count("Report: ") == 1
    assert_same_run(alone, out)


def test_a_mistake_is_one_sentence_of_all_ranks(tmp_path):
    out = launch("train.py", "configs/tiny.yaml", "zero.stepz=3", f"out={tmp_path}/out", mark=str(tmp_path))
    assert out.returncode and len(said := errors(out.stderr)) == 1 and "did you mean 'steps'" in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_mistake_that_is_found_together_is_one_sentence(tmp_path):
    out = launch("train.py", mini(tmp_path), "zero.data={chian: 1}", mark=str(tmp_path))
    assert out.returncode and len(said := errors(out.stderr)) == 1 and "unknown data source" in said[0]
    assert out.stderr.count("Traceback") == 1                                # torchrun's own


@pytest.mark.slow
def test_an_undisturbed_run_on_two_ranks_is_the_run_of_one(alone, tmp_path):
    out = launch("train.py", mini(tmp_path), mark=str(tmp_path))
    assert out.returncode == 0 and not errors(out.stderr)
    assert all(out.stdout.count(f"{s}: done in") == 1 for s in STAGES) and out.stdout.count("Report: ") == 1
    assert_same_run(alone, tmp_path / "out")
    assert launch("train.py", mini(tmp_path)).returncode == 0                # again: nothing to do
    assert_same_run(alone, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("what, who, where, count, phase", [
    ("raise", 1, "optim.collate", 9, "update"), ("raise", 0, "rollout.score_all", 4, "rewards"),
    ("kill", 0, "rollout.generate", 5, "sampling"), ("kill", 1, "checkpoint.save_file", 2, "saving"),
    ("kill busy", 1, "rollout.generate", 1, "sampling"), ("kill busy", 1, "optim.collate", 9, "update")])
def test_wherever_a_rank_is_lost_the_run_ends_and_goes_on(alone, tmp_path, what, who, where, count, phase):
    file = mini(tmp_path)
    began, out = time.monotonic(), failing(what, where, count, file, who)
    assert out.returncode and time.monotonic() - began < 60 and list(tmp_path.glob(f"{what}-*"))
    assert len(said := errors(out.stderr)) == 1 and f"rank {who}" in said[0] and phase in said[0], out.stderr
    assert what.startswith("kill") or "out of cheese" in said[0]
    again = failing(what, where, count, file, who)
    assert again.returncode == 0, again.stderr
    assert_same_run(alone, tmp_path / "out")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_the_run_goes_on(alone, tmp_path):
    """The others wait for as long as the config says; torchrun then gives the one that hangs half a minute."""
    file = mini(tmp_path, timeout=6)
    began, out = time.monotonic(), failing("hang", "optim.collate", 9, file)
    assert out.returncode and time.monotonic() - began < 80
    assert len(said := errors(out.stderr)) == 1 and "rank 1" in said[0] and "update" in said[0] and "6 s" in said[0], out.stderr
    assert failing("hang", "optim.collate", 9, file).returncode == 0
    assert_same_run(alone, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_torchrun_ends_its_ranks_and_the_run_goes_on(tmp_path, number):
    """In the middle of a stage: one that can be answered saves first. To no other weights than those of a run in one process."""
    file, save = mini(tmp_path), 3 if number == signal.SIGKILL else 1000
    text = file.read_text().split("  - &rl")[0].replace("steps: 6", "steps: 400").replace("save_every: 2", f"save_every: {save}")
    file.write_text(text.replace("evaluate:", "#") + "timeout: 10\nthreads: 1\n")
    p = subprocess.Popen(command("train.py", file), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    metrics, deadline = tmp_path / "out/base/metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
        time.sleep(0.05)
    p.send_signal(number)
    _, err = p.communicate(timeout=60)                                       # the ranks hold its other end too
    assert p.returncode and not processes(str(file)), err
    states = sorted(int(s.name[5:]) for s in (tmp_path / "out/base/state").glob("step-*"))
    if number == signal.SIGKILL:
        assert len(states) == 2 and len(errors(err)) <= 2, err               # each rank for itself: nobody is left to ask
    else:
        assert not errors(err) and err.count("the same command continues") == 1, err
        assert len(states) == 1 and 5 < states[0] == len(lines(metrics)) < 400
    assert launch("train.py", file, mark=str(file)).returncode == 0
    assert [m["step"] for m in lines(metrics)] == list(range(400))
    pipeline.run(config.load(file, [f"out={tmp_path}/alone"]))
    assert apart(*(load_file(tmp_path / f"{o}/base/model/model.safetensors") for o in ("out", "alone"))) < 1e-4


@pytest.mark.slow
def test_a_signal_while_it_evaluates_is_no_fault(tmp_path):
    """There is no step to finish, and no rank is to blame: one sentence, and what was evaluated before stays."""
    file = mini(tmp_path)
    text = file.read_text().split("  - &rl")[0].replace("problems: 4, k: 2", "problems: 100, k: 8")
    file.write_text(text.replace("max_new_tokens: 8", "max_new_tokens: 200") + "timeout: 10\nthreads: 1\n")
    p = subprocess.Popen(command("train.py", file), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    done, deadline = tmp_path / "out/base/done.json", time.monotonic() + 60
    while time.monotonic() < deadline and not done.is_file():
        time.sleep(0.05)
    time.sleep(1)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=60)
    assert p.returncode and not processes(str(file)) and not (tmp_path / "out/base/eval.json").is_file()
    assert not errors(err) and err.count("the same command continues") == 1 and err.count("Traceback") == 1, err


@pytest.mark.slow
def test_every_stage_of_the_recipe_runs_on_two_ranks(tmp_path):
    out = launch("train.py", "configs/smoke.yaml", f"out={tmp_path}/out", mark=str(tmp_path))
    assert out.returncode == 0, out.stderr
    stages = [s.name for s in config.load(ROOT / "configs/smoke.yaml").stages]
    assert [s["name"] for s in json.loads((tmp_path / "out/results.json").read_text())["stages"]] == stages
    assert all((tmp_path / "out" / s / "done.json").is_file() for s in stages) and not list((tmp_path / "out").rglob("state"))
