"""What was done to runs to break them, and what came of it: python docs/results/reliability/measure.py

Runs the tests that ROWS name, the slow ones too (about 17 minutes on two cores), and writes measured.json beside itself and
the table of docs/reliability.md. Figures that a test records (`record_property`) are kept with it. `measure.py cost` makes what the
saving of states costs in configs/tiny.yaml (cost.json, about 5 minutes), `measure.py table` the table alone.
"""
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(HERE.parent)]

from make import put  # noqa: E402

from r1.files import write_text  # noqa: E402
from r1.runtime import hardware  # noqa: E402

# What happens; what is to come of it; the tests (regular expressions of file::name) that do it.
ROWS = [
    ("kill -9 at any moment: in a step, in saving, in evaluation, between stages, at the start",
     "the same command ends with the same bits: weights, metrics, samples, results",
     "faults::.*kill run_state::.*kill checkpoint::.*kill"),
    ("SIGTERM, Ctrl-C", "the step is finished and saved, 143 and 130; a second signal leaves at once; outside of steps at once",
     "faults::.*(signal|interrupt|ctrl_c)"),
    ("kill -9 of one rank, or one raises", "all end, one sentence names the rank and what it was doing, no process is left, the run goes on",
     "ranks::.*(lose_each|is_lost)"),
    ("one rank hangs", "the same, after `timeout` seconds and torchrun's 30", "ranks::.*hangs"),
    ("a signal to torchrun", "the step is finished and saved on all ranks", "ranks::.*signal"),
    ("two ranks in place of one, or the other way round", "same samples, loss and gradient (1e-6), the run goes on either way",
     "ranks::.*(dealt|tell|samples_are|gradient|unequally|adam|muon|state_goes|pieces|saved|run_of_one|two_ranks)"),
    ("a damaged state: cut off, a byte changed, missing, empty, foreign", "the state before, with one sentence; none whole: an error that names all",
     "faults::.*(harmed|no_byte|beside|plain_file|none_is_whole|state_before|piece_is_made) run_state::.*(damaged|no_state) ranks::.*damaged"),
    ("a damaged model", "an error that names file and tensor", "checkpoint::.*(bad_|damaged) pipeline::.*not_as_the_stage"),
    ("disk full, folder read-only", "a sentence with the path and the bytes it takes, what was saved is whole, the run goes on",
     "faults::.*(full_disk|may_not_be|file_where|small_file) pipeline::.*written"),
    ("another config at resume", "refused by the names of the keys; those that change only the cost pass", "config::.*(changed|half_done|changes_only)"),
    ("two runs in one folder", "the second is refused and names the first; a lock left behind is none", "faults::.*lock faults::.*second_run"),
    ("a gradient that is not finite, on one micro-batch or rank", "the step is skipped everywhere and counted; ten in a row end the stage",
     "optim::.*not_finite faults::.*(ten_steps|nine_do) ranks::.*nan"),
    ("groups of one mind, nothing to train on, everything cut off", "gradient exactly 0, no NaN, counted", "grpo::.*(one_mind|truncated) losses::.*(identical|nothing)"),
    ("a reward that raises, is None, NaN or of the wrong kind", "counted by its reason, the others are as before", "rewards::.*(own_reward|load_reward)"),
    ("an answer made to stop the verifier", "false, within milliseconds", "verify::.*(bombs|bounded)"),
    ("a program made to cheat or to stay", "fails, leaves no process, no file and no descriptor", "sandbox::.*(attacks|functions_are|five_hundred|forty|much_input)"),
    ("a program that does odd things and is right", "passes", "sandbox::.*(harmless|programs)"),
    ("a kernel that protects nothing", "refused, or said", "sandbox::.*(refusal|no_kernel|said_once)"),
    ("the trainer dies while programs run", "they die with it", "sandbox::.*trainer_dies"),
    ("a bad line, an empty file, a prompt too long", "an error with file and line, or with the row", "tasks::.*(bad_line|without_problems|byte_order) sampler::.*refused"),
    ("logits that are not finite, no tokens allowed, a full context", "an error with the row; empty; cut at the end", "sampler::.*(not_finite|limit_of_zero|end_of_the_context)"),
    ("another batch, another order, finished rows, more ranks", "the same tokens", "sampler::.*(alone|order|at_once|leave_early|group_read) ranks::.*samples_are"),
    ("no memory left on the GPU", "a sentence with the settings to lower, which may change at resume", "faults::.*no_memory"),
    ("no terminal, nobody reads the output", "the run goes on to its end", "faults::.*(nobody_reads|odd_streams)"),
    ("other threads, ranks, GPU or torch at resume", "goes on, with a note that the bits will differ", "faults::.*other_conditions"),
    ("global random generators seeded otherwise", "the same bits", "faults::.*generators"),
    ("no network", "the same run", "faults::.*no_network"),
    ("a late step is resumed", "its first step begins within 10 s", "faults::.*late_step"),
]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -math.inf


OUTCOMES = ("passed", "failure", "error", "skipped")


def run(files: set[str]) -> list[dict]:
    """One entry for each test of these files: how many of its cases passed, its seconds, its figures."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", f"--junitxml={report}",
                        *(f"tests/test_{f}.py" for f in sorted(files))], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        tests: dict[str, dict] = {}
        for case in xml.parse(report).iter("testcase"):
            name = f"{case.get('classname').removeprefix('tests.test_')}::{case.get('name').partition('[')[0]}"
            test = tests.setdefault(name, {"name": name, "seconds": 0.0, "figures": {}, **dict.fromkeys(OUTCOMES, 0)})
            test[([c.tag for c in case if c.tag in OUTCOMES] or ["passed"])[0]] += 1
            test["seconds"] = round(test["seconds"] + float(case.get("time")), 1)
            for p in case.iter("property"):          # of several cases the largest
                test["figures"][p.get("name")] = max(p.get("value"), test["figures"].get(p.get("name"), ""), key=number)
        return list(tests.values())


def table(cases: list[dict]) -> str:
    lines = ["| what happens | what is to come of it | tests | came of it |", "|---|---|---|---|"]
    for what, then, patterns in ROWS:
        mine = [c for c in cases if any(re.match(p, c["name"]) for p in patterns.split())]
        counts = {o: sum(c[o] for c in mine) for o in OUTCOMES}
        files = ", ".join(f"[{f}](../tests/test_{f}.py)" for f in dict.fromkeys(c["name"].partition("::")[0] for c in mine))
        figures = "; ".join(f"{k} {v}" for c in mine for k, v in c["figures"].items())
        lines.append(f"| {what} | {then} | {files} | {', '.join(f'{n} {o}' for o, n in counts.items() if n)}"
                     f"{'; ' + figures if figures else ''} |")
    return "\n".join(lines) + "\n"


def cost() -> dict:
    """Seconds of two stages of tiny.yaml, and of those in saving, at the default interval."""
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("base", "zero"):
            subprocess.run([sys.executable, "train.py", "configs/tiny.yaml", f"out={folder}/out", "--only", stage, "base.steps=401", "zero.steps=21",
                            "evaluate.domains={}"], cwd=ROOT, check=True)
        done = {stage: json.loads((Path(folder) / "out" / stage / "done.json").read_text()) for stage in ("base", "zero")}
    return {"hardware": hardware(), **{stage: {k: d[k] for k in ("seconds", "saving")} for stage, d in done.items()}}


def main() -> None:
    if sys.argv[1:] == ["cost"]:
        write_text(HERE / "cost.json", json.dumps(cost(), indent=1))
    elif sys.argv[1:] != ["table"]:
        cases = run({p.partition("::")[0] for _, _, patterns in ROWS for p in patterns.split()})
        used = [c for c in cases if any(re.match(p, c["name"]) for *_, ps in ROWS for p in ps.split())]
        write_text(HERE / "measured.json", json.dumps({"hardware": {**hardware(), "system": platform.platform(), "date": time.strftime("%Y-%m-%d")},
                                                       "cases": used}, indent=1))
    found, saving = json.loads((HERE / "measured.json").read_text()), json.loads((HERE / "cost.json").read_text())
    spent = ", ".join(f"{stage}: {saving[stage]['saving']} s of {saving[stage]['seconds']} s" for stage in ("base", "zero"))
    put(ROOT / "docs/reliability.md", "python docs/results/reliability/measure.py", table(found["cases"]) +
        f"| states are saved at the default interval | at most 3% of the time | `measure.py cost` | {spent} |\n")


if __name__ == "__main__":
    main()
