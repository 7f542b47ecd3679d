"""A run's figures, curves and samples -> report.md and one report.html that needs no network.

Everything is read from the run's folder, and whatever is not there yet is left out, so a report can be written at
any moment of a run. Completions are text by a model: they are escaped and cut, never trusted.
"""
from __future__ import annotations

import html
import json
import math
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

# AIME 2024 pass@1 of the paper's checkpoints (R1 v1 figure 2 and tables 2 and 6, v2 table 3).
PAPER = {"base": "15.6, R1-Zero's first step", "zero": "71.0 (v1), 77.9 (v2); cons@64 86.7", "dev1": "59.0", "dev2": "74.0",
         "dev3": "78.1", "r1": "79.8", "student": "72.6, Distill-Qwen-32B", "student_rl": "47.0, Qwen-32B-Zero"}
PAPER_NOTE = ("The paper column is AIME 2024 pass@1 of the paper's checkpoint in the same role (671B parameters, the students "
              "32B): another model on another task, there for orientation. Only the order of its rows can be compared.")
ROLE = {"base": "pretrained", "zero": "R1-Zero: RL straight on the base", "dev1": "cold start: SFT on R1-Zero's readable traces",
        "dev2": "RL with the language reward", "dev3": "base again: SFT on the curated set", "r1": "RL on all scenarios",
        "student_base": "small, pretrained", "student": "small, distilled", "student_rl": "small, RL straight on it"}
STEPS = [("base", "zero"), ("base", "dev1"), ("dev1", "dev2"), ("dev2", "dev3"), ("dev3", "r1"), ("student_rl", "student")]
CHARTS = [("Reward parts", "share", {"accuracy": "accuracy", "format": "format", "language": "language"}),
          ("Length", "tokens", {"length": "all", "length_right": "right", "length_wrong": "wrong"}),
          ("Entropy", "nats per token", {"entropy": "entropy"}), ("KL to the reference", "nats per token", {"kl": "KL"}),
          ("Sampler against trainer", "|Δ log p|", {"gap": "gap"}),
          ("Nothing to learn, or cut off", "share", {"flat_groups": "flat groups", "truncated": "truncated"}),
          ("Gradient norm", "", {"grad_norm": "gradient norm"}), ("Loss", "nats per token", {"loss": "loss"})]
COUNTS = ("problems", "sampled", "right", "readable_right", "kept", "others")
COLOURS = ("#3f82cc", "#d97b29", "#35976b", "#b25bab", "#cc5050", "#85898f")
CONTROL = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"}     # made visible; some are not allowed in HTML
SAMPLE_BYTES = 1_000_000                                                  # of all samples in the page together


def write_report(root: Path) -> None:
    """Write `root`/report.md and `root`/report.html from what lies in `root`."""
    root = Path(root)
    run = read_run(root)
    for name, text in (("report.md", markdown(root, run)), ("report.html", page(root, run))):
        aside = root / f"{name}.tmp"
        aside.write_text(text, encoding="utf-8", errors="replace")       # a model may emit half of a surrogate pair
        aside.replace(root / name)


# Reading

def load_json(file: Path) -> dict:
    """The file's object; {} if it is missing or half written."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(file: Path) -> Iterator[dict]:
    """The objects of a JSONL file, one at a time; lines that do not parse are skipped."""
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as f:
            for line in f:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row


def read_run(root: Path) -> dict:
    """results.json brought up to date with the stage folders, those of unfinished stages included."""
    run = load_json(root / "results.json")
    known = {s["name"]: s for s in run.get("stages", [])}
    marks = ("config.yaml", "metrics.jsonl", "done.json", "eval.json")
    started = {f.parent.name: f.stat().st_mtime for mark in reversed(marks) for f in root.glob(f"*/{mark}")}
    stages = []
    for name in [*known, *(n for n in sorted(started, key=started.get) if n not in known)]:
        config = root / name / "config.yaml"
        text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
        plain = {k: v for k, v in re.findall(r"^(kind|init): *'?([^'\n]*)", text, re.M)}
        stage = {"name": name, "kind": "", "init": "", **plain, **known.get(name, {})}
        for key in ("done", "eval"):
            stage[key] = load_json(root / name / f"{key}.json") or stage.get(key) or {}
        stages.append(stage)
    return {**run, "stages": stages}


def number(value) -> float:
    """A finite float, or NaN for whatever else a metric may hold."""
    ok = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if ok else math.nan


# Tables

def percent(value) -> str:
    return "–" if math.isnan(number(value)) else f"{100 * value:.1f}"


def domains(stage: dict) -> dict[str, dict]:
    """The parts of an evaluation that hold figures."""
    return {k: v for k, v in stage.get("eval", {}).items() if isinstance(v, dict) and "pass@1" in v}


def all_domains(run: dict) -> list[str]:
    return list(dict.fromkeys(d for s in run.get("stages", []) for d in domains(s)))


def figures(row: dict, k) -> list[str]:
    """pass@1 with its standard error, cons@k, pass@k, format, language, length."""
    error = "" if math.isnan(number(row.get("se"))) else f" ± {percent(row['se'])}"
    length = number(row.get("length"))
    return [percent(row.get("pass@1")) + error,
            *(percent(row.get(key)) for key in (f"cons@{k}", f"pass@{k}", "format", "language")),
            "–" if math.isnan(length) else f"{length:.1f}"]


def minutes(stage: dict) -> str:
    seconds = number((stage.get("done") or {}).get("seconds"))
    return "–" if math.isnan(seconds) else f"{seconds / 60:.1f}"


def samples_k(run: dict) -> str:
    """The k of cons@k, if all evaluations share it."""
    ks = {str(s["eval"].get("k", "k")) for s in run.get("stages", []) if domains(s)}
    return ks.pop() if len(ks) == 1 else "k"


def stage_table(results: dict) -> str:
    """The evaluated stages of a results.json as a Markdown table; figures in percent, lengths in tokens."""
    k, names = samples_k(results), all_domains(results)
    head = ["stage"]
    for name in names:
        head += [f"{name}: pass@1 ± se", f"cons@{k} / pass@{k}", "format / language", "length"]
    rows = []
    for s in results.get("stages", []):
        if domains(s):
            row = [f"`{s['name']}`"]
            for name in names:
                f = figures(domains(s).get(name, {}), s["eval"].get("k"))
                row += [f[0], f"{f[1]} / {f[2]}", f"{f[3]} / {f[4]}", f[5]]
            rows.append([*row, minutes(s), PAPER.get(s["name"], "")])
    return markdown_table([*head, "minutes", "paper: AIME 2024"], rows)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    line = lambda cells: "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)])


def h(text) -> str:
    return html.escape(str(text).translate(CONTROL))


def html_table(head: list[str], rows: list[list[str]], groups: str = "", bars: tuple[int, ...] = ()) -> str:
    """`groups` is a ready row above the head; a cell of a column in `bars` is shaded by its percentage."""
    out = [f'<div class="wide"><table><thead>{groups}<tr>', *(f"<th>{h(c)}</th>" for c in head), "</tr></thead><tbody>"]
    for row in rows:
        out.append("<tr>")
        for i, cell in enumerate(row):
            shade = re.match(r"[\d.]+", cell) if i in bars else None
            out.append(f'<td class="bar" style="--v:{shade[0]}%">{h(cell)}</td>' if shade else f"<td>{h(cell)}</td>")
        out.append("</tr>")
    return "".join([*out, "</tbody></table></div>"])


def counts_rows(root: Path, run: dict) -> list[list[str]]:
    """What each rejection sampling stage kept."""
    found = [(s, m) for s in run["stages"] for m in read_lines(root / s["name"] / "metrics.jsonl") if "readable_right" in m]
    return [[s["name"], s["init"], *(f"{m[c]:,}" if isinstance(m.get(c), int) else "–" for c in COUNTS)] for s, m in found]


COUNTS_HEAD = ["stage", "sampled from", *(c.replace("_", " and ") for c in COUNTS)]


def headlines(run: dict) -> list[str]:
    """What changed between checkpoints, as sentences."""
    by_name, out = {s["name"]: domains(s) for s in run["stages"]}, []
    for a, b in STEPS:
        for d in by_name.get(b, {}):
            x, y = by_name.get(a, {}).get(d), by_name[b][d]
            if x:
                out.append(f"{a} → {b}, {d}: pass@1 {percent(x['pass@1'])} → {percent(y['pass@1'])}, length "
                           f"{number(x.get('length')):.0f} → {number(y.get('length')):.0f} tokens, language "
                           f"{percent(x.get('language'))} → {percent(y.get('language'))}")
    return out


# Charts

def line_chart(series: dict[str, list[tuple[float, float]]], title: str, y_label: str = "", x_label: str = "step") -> str:
    """Lines over x as one SVG, also for a file of its own. NaN breaks a line; long series are drawn as bucket means."""
    lines = {name: thin(points) for name, points in series.items()}
    flat = [p for points in lines.values() for p in points if math.isfinite(p[1])] or [(0.0, 0.0)]
    x0, x1 = min(x for x, _ in flat), max(x for x, _ in flat)
    ys = ticks(min(0.0, min(y for _, y in flat)), max(y for _, y in flat))
    left, right, top, bottom = 46, 392, 46, 196
    at = lambda x: left + (right - left) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)   # noqa: E731
    up = lambda y: bottom - (bottom - top) * (y - ys[0]) / (ys[-1] - ys[0])             # noqa: E731
    out = ['<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 226" role="img" font-size="11.5" '
           f'font-family="system-ui,sans-serif" fill="currentColor" aria-label="{h(title)}">'
           "<style>.chart{color:#333}@media(prefers-color-scheme:dark){.chart{color:#ccc}}</style>"
           f'<text x="2" y="13" font-size="13" font-weight="600">{h(title)}</text>'
           f'<text x="{right}" y="13" text-anchor="end" opacity=".65">{h(y_label)}</text>']
    for y in ys:
        out.append(f'<path d="M{left} {up(y):.1f}H{right}" stroke="currentColor" opacity="{".5" if y == 0 else ".14"}"/>'
                   f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end" opacity=".75">{y:.4g}</text>')
    for x in [x for x in ticks(x0, x1) if x0 <= x <= x1 and (x == int(x) or x1 - x0 < 2)]:
        out.append(f'<path d="M{at(x):.1f} {bottom}v4" stroke="currentColor" opacity=".5"/><text x="{at(x):.1f}" '
                   f'y="{bottom + 17}" text-anchor="middle" opacity=".75">{x:.6g}</text>')
    out.append(f'<text x="{right}" y="{bottom + 29}" text-anchor="end" opacity=".65">{h(x_label)}</text>')
    key = left
    for i, (name, points) in enumerate(lines.items()):
        colour, path, pen = COLOURS[i % len(COLOURS)], "", "M"
        for x, y in points:
            path, pen = (f"{path}{pen}{at(x):.1f} {up(y):.1f}", "L") if math.isfinite(y) else (path, "M")
        path = re.sub(r"(M[^ML]+)(?=M|$)", r"\1h0", path)                # a point between two gaps becomes a dot
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round" '
                   'stroke-linecap="round"/>')
        if len(lines) > 1:
            out.append(f'<path d="M{key} 29h14" stroke="{colour}" stroke-width="3"/><text x="{key + 19}" y="33">{h(name)}</text>')
            key += 34 + 6.4 * len(name)
    return "".join([*out, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    size *= next(m for m in (1, 2, 2.5, 5, 10) if m * size >= span / 4 * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil((low + span) / size - 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def thin(points: list[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` points: means of neighbours, over the finite ones."""
    size, out = -(-len(points) // most) or 1, []
    for i in range(0, len(points), size):
        good = [p for p in points[i:i + size] if math.isfinite(p[1])]
        out.append((sum(x for x, _ in good) / len(good), sum(y for _, y in good) / len(good)) if good else (points[i][0], math.nan))
    return out


def curve(rows: list[dict], key: str) -> list[tuple[float, float]]:
    """One metric over steps; NaN where a step lacks it."""
    nothing = 0.0 if key in ("length_right", "length_wrong") else None    # no completion was right: no length
    return [(number(m["step"]), math.nan if m.get(key) == nothing else number(m.get(key))) for m in rows if "step" in m]


def charts(rows: list[dict], kind: str) -> list[str]:
    """Every chart for which a stage has figures that are not all zero."""
    out = []
    for title, unit, keys in CHARTS if kind == "grpo" else CHARTS[-1:]:
        series = {name: curve(rows, key) for key, name in keys.items()}
        series = {name: c for name, c in series.items() if any(math.isfinite(y) for _, y in c)}
        if title != "Loss" or kind != "grpo":
            if any(y and math.isfinite(y) for c in series.values() for _, y in c):
                out.append(line_chart(series, title, unit))
    return out
