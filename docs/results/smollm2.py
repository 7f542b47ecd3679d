"""Tables and the picture of docs/smollm2.md, from the committed results of configs/smollm2.yaml.

    python docs/results/smollm2.py collect runs/smollm2     copy what is quoted into docs/results/smollm2/
    python docs/results/smollm2.py                          write the tables and the picture
"""
import json
import math
import shutil
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from make import HERE, put
from r1.page import line_chart
from r1.report import markdown_table

DATA, DOC, COMMAND = HERE / "smollm2", HERE.parents[1] / "docs/smollm2.md", "python docs/results/smollm2.py"
NAMES = {"start": "as it comes, asked by its chat template", "start_shots": "with two worked examples before the question",
         "start_shots_t1": "the same at temperature 1", "sft": "cold start: fine-tuned on its own right answers",
         "rl/step30": "GRPO, 30 steps", "rl": "**GRPO, 60 steps**",
         "student": "the base, fine-tuned on GRPO's traces instead"}
METRICS = "step reward accuracy format length flat_groups entropy grad_norm time_sample time_update sampled_tokens trained_tokens right sampled kept problems loss".split()


def collect(root: Path) -> None:
    for name in (*NAMES, "cold2", "cold3", "traces"):
        stage, found = root / name, {}
        if not (stage / "eval.json").is_file() and not (stage / "done.json").is_file():
            continue
        if (stage / "eval.json").is_file():
            found = {"eval": json.loads((stage / "eval.json").read_text())}
            kinds = defaultdict(list)
            for row in map(json.loads, (stage / "eval_samples.jsonl").read_text().splitlines()):
                about = row["answer"]["entry"]
                kinds[f"{about['metadata']['num_terms']} terms, {('one digit', 'two digits')[about['metadata']['num_digits'] - 1]}, "
                      f"{'below zero' if int(about['answer']) < 0 else 'zero or more'}"].append(row["parts"]["accuracy"])
            found["kinds"] = {k: [len(v), statistics.mean(v)] for k, v in sorted(kinds.items())}
        if (stage / "done.json").is_file():
            found["done"] = json.loads((stage / "done.json").read_text())
        if (stage / "metrics.jsonl").is_file():
            found["metrics"] = [{k: m[k] for k in METRICS if k in m} for m in map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())]
        DATA.mkdir(exist_ok=True)
        (DATA / f"{name.replace('/', '-')}.json").write_text(json.dumps(found, ensure_ascii=False))
    shutil.copy(root / "report.md", DATA / "report.md")


def load(name: str) -> dict:
    file = DATA / f"{name.replace('/', '-')}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def gain(a: dict, b: dict) -> str:
    """Of b over a, in points, by problem, with its standard error."""
    each = [100 * (b["each"][k][0] - a["each"][k][0]) for k in a["each"]]
    return f"{statistics.mean(each):+.1f} ± {statistics.stdev(each) / math.sqrt(len(each)):.1f}"


def stages() -> str:
    rows, start = [], load("start_shots")["eval"]["single"]
    for name, what in NAMES.items():
        if found := load(name):
            e, done = found["eval"]["single"], found.get("done", {}).get("seconds", 0) * ("metrics" in found)
            rows.append([name, what, f"{100 * e['pass@1']:.1f} ± {100 * e['se']:.1f}", gain(start, e) if name not in ("start", "start_shots") else "",
                         f"{100 * e['format']:.0f}", f"{e['length']:.0f}", f"{100 * found['eval']['double']['pass@1']:.1f}" if "double" in found["eval"] else "",
                         f"{done / 60:.0f}" if done else ""])
    return markdown_table(["stage", "what it is", "right, %", "points over start_shots", "in the form, %", "tokens", "two digits: right, %", "minutes"], rows) + "\n"


def kinds() -> str:
    shown = [n for n in ("start_shots", "sft", "rl", "student") if load(n)]
    found = {n: load(n)["kinds"] for n in shown}
    return markdown_table(["", "answers", *shown], [[k, n, *(f"{100 * found[s][k][1]:.0f}%" for s in shown)] for k, (n, _) in found[shown[0]].items()]) + "\n"


def time() -> str:
    spent = {n: load(n).get("done", {}).get("seconds", 0) / 60 for n in ("cold2", "cold3", "sft", "rl")}
    total = sum(spent.values())
    return f"{total:.0f} minutes to the end of GRPO: " + ", ".join(f"{n} {m:.0f}" for n, m in spent.items()) + f" ({load('rl')['done']['threads']} threads)\n"


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        collect(Path(sys.argv[2]))
    mean = lambda rows, i: statistics.mean(r["accuracy"] for r in rows[max(0, i - 9):i + 1])  # noqa: E731
    rows = load("rl")["metrics"]
    (DATA / "rl.svg").write_text(line_chart({"training samples at temperature 1.1, mean of 10 steps": [(r["step"], mean(rows, i)) for i, r in enumerate(rows)]},
                                            "SmolLM2-135M learns sums by GRPO", "share right"))
    put(DOC, f"{COMMAND} (stages)", stages())
    put(DOC, f"{COMMAND} (kinds)", kinds())
    put(DOC, f"{COMMAND} (time)", time())


if __name__ == "__main__":
    main()
