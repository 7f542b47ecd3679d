"""Tables and pictures from the committed results of several seeds.

    python docs/results/make.py collect runs/tiny-0 runs/tiny-1 runs/tiny-2     copy what is quoted into docs/results/tiny/
    python docs/results/make.py                                                write the table, the pictures and the README's copy
"""
import json
import shutil
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from r1.page import line_chart  # noqa: E402
from r1.report import PAPER  # noqa: E402

TINY = HERE / "tiny"
README = HERE.parents[1] / "README.md"


def put(file: Path, command: str, text: str) -> None:
    """Replace the table in `file` that `command` makes."""
    begin, end = f"<!-- table: {command} -->\n", "<!-- end of table -->"
    head, rest = file.read_text(encoding="utf-8").split(begin)
    file.write_text(head + begin + text + end + rest.split(end, 1)[1], encoding="utf-8")


def collect(runs: list[str]) -> None:
    """Copy results.json and the metrics of every RL stage of each run."""
    for run in map(Path, runs):
        results = json.loads((run / "results.json").read_text())
        to = TINY / f"seed{results['seed']}"
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        shutil.copy(run / "results.json", to)
        for stage in results["stages"]:
            if stage["kind"] in ("grpo", "reject"):
                shutil.copy(run / stage["name"] / "metrics.jsonl", to / f"{stage['name']}.jsonl")


def load() -> list[dict]:
    return [json.loads((d / "results.json").read_text()) for d in sorted(TINY.glob("seed*"))]


def values(results: list[dict], stage: str, domain: str, key: str) -> list[float]:
    return [s["eval"][domain][key] for r in results for s in r["stages"] if s["name"] == stage and "eval" in s]


def spread(v: list[float], percent: bool = True) -> str:
    """Mean, and standard deviation over seeds."""
    if not v:
        return ""
    scale, digits = (100, 1) if percent else (1, 0)
    sd = f" ± {scale * statistics.stdev(v):.{digits}f}" if len(v) > 1 else ""
    return f"{scale * statistics.mean(v):.{digits}f}{sd}"


def table(results: list[dict]) -> str:
    """One row per evaluated stage: mean ± standard deviation over seeds."""
    k = results[0]["stages"][0]["eval"]["k"]
    head = ["checkpoint", "reasoning pass@1", f"cons@{k}", "length", "language", "format", "code pass@1", "other domains", "the paper: AIME 2024"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in [s["name"] for s in results[0]["stages"] if "eval" in s]:
        get = lambda key, domain="reasoning", name=name: values(results, name, domain, key)  # noqa: E731
        rows.append([f"`{name}`", spread(get("pass@1")), spread(get(f"cons@{k}")), spread(get("length"), False),
                     spread(get("language")), spread(get("format")), spread(get("pass@1", "code")), spread(get("pass@1", "general")), PAPER.get(name, "")])
    minutes = [sum(s["done"]["seconds"] for s in r["stages"]) / 60 for r in results]
    judging = [sum(s["eval"]["seconds"] for s in r["stages"] if "eval" in s) / 60 for r in results
               if all("seconds" in s["eval"] for s in r["stages"] if "eval" in s)]
    h, problems = results[0]["hardware"], results[0]["stages"][0]["eval"]["reasoning"]["problems"]
    note = (f"Per cent, mean ± standard deviation over {len(results)} seeds; {problems} held-out problems in each of the three sets (reasoning, "
            f"code, other domains), {k} samples each at T 0.6, "
            f"top-p 0.95. {h['threads']} thread(s) of a machine with {h['cpus']} CPU cores, three runs side by side, torch {h['torch']}: "
            f"training took {spread(minutes, False)} minutes a seed, evaluation {spread(judging, False)}. "
            "The last column is another model on another task: compare directions, not values.")
    return "\n".join("| " + " | ".join(r) + " |" for r in rows) + f"\n\n{note}\n"


def pictures() -> dict[str, str]:
    """R1-Zero's rise: accuracy and length over steps, one line per seed."""
    curves = {d.name: [json.loads(line) for line in (d / "zero.jsonl").read_text().splitlines()] for d in sorted(TINY.glob("seed*"))}
    series = lambda key: {seed: [(m["step"], m[key]) for m in rows] for seed, rows in curves.items()}  # noqa: E731
    return {"zero-accuracy.svg": line_chart(series("accuracy"), "R1-Zero: accuracy on training problems", "share right"),
            "zero-length.svg": line_chart(series("length"), "R1-Zero: response length", "tokens")}


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        collect(sys.argv[2:])
    text = table(load())
    (TINY / "table.md").write_text(text)
    for name, svg in pictures().items():
        (TINY / name).write_text(svg)
    put(README, "python docs/results/make.py", text)


if __name__ == "__main__":
    main()
