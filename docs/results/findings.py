"""Tables, pictures and verdicts of docs/findings.md, from the committed results of configs/findings.

    python docs/results/findings.py collect runs/findings     copy what is quoted into docs/results/findings/
    python docs/results/findings.py                           write the tables, the pictures and the README's copy

A figure is a mean over seeds. Its standard error joins two: over seeds, and over problems (each problem's mean over the seeds; a
difference is paired by problem). A difference counts beyond two standard errors.
"""
import json
import math
import re
import statistics
import sys
from pathlib import Path

from make import HERE, README, put
from r1.page import line_chart
from r1.report import markdown_table

DATA, DOC = HERE / "findings", HERE.parents[1] / "docs/findings.md"
METRICS = ("step reward accuracy format language custom length reflections entropy kl clip_fraction sampled_tokens trained_tokens prm prm_sum "
           "steps_each right readable_right sampled kept").split()
Mean = tuple[float, float]       # and its standard error


def collect(root: Path) -> None:
    """Evaluations, and of the metrics what is quoted."""
    for stage in sorted(p for p in root.glob("seed*/*") if p.is_dir()):
        (to := DATA / stage.parent.name / f"{stage.name}.json").unlink(missing_ok=True)
        found = {}
        for file in (f for f in (stage / "eval.json", stage / "result.json", stage / "prm.json") if f.is_file()):
            found[file.stem] = json.loads(file.read_text())
        found["steps"] = {f.parent.name[4:]: json.loads(f.read_text()) for f in sorted(stage.glob("step*/eval.json"))}
        for each in [found.get("eval", {}), *found["steps"].values()]:
            each.pop("settings", None)
        if (stage / "done.json").is_file():
            found["seconds"] = json.loads((stage / "done.json").read_text())["seconds"]
        if (stage / "metrics.jsonl").is_file() and stage.name not in ("base", "student_base"):
            found["metrics"] = [{k: m[k] for k in METRICS if k in m} for m in map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())]
        if found.keys() & {"eval", "result"} or "readable_right" in found.get("metrics", [{}])[0]:      # else it is not done yet
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(json.dumps(found, ensure_ascii=False))


def load() -> list[dict[str, dict]]:
    return [{f.stem: json.loads(f.read_text()) for f in d.glob("*.json")} for d in sorted(DATA.glob("seed*"))]


ALL = load()
SEEDS = ALL[:]      # those that one finding is made of: the seeds that have all it needs


def have(*stages: str) -> list[dict]:
    """The seeds that have all of these."""
    return [s for s in SEEDS if all(name in s for name in stages)]


def evals(seed: dict, stage: str, domain: str, step: str = "") -> dict:
    return (seed[stage]["steps"][step] if step else seed[stage]["eval"])[domain]


def joined(by_seed: list[float], by_problem: list[float]) -> Mean:
    se = lambda v: statistics.stdev(v) / math.sqrt(len(v)) if len(v) > 1 else 0.0  # noqa: E731
    return statistics.mean(by_seed), math.hypot(se(by_seed), se(by_problem))


def right(stage: str, against: str = "", domain: str = "reasoning", vote: bool = False) -> Mean:
    """pass@1 (or the majority's) in per cent, or its difference from another stage's, or that of the vote from pass@1 (`against` "pass")."""
    seeds = have(stage) if against in ("", "pass") else have(stage, against)
    rows = []
    for s in seeds:
        mine, other = evals(s, stage, domain)["each"], evals(s, against, domain)["each"] if against not in ("", "pass") else {}
        rows.append({id: 100 * (x[vote] - (x[0] if against == "pass" else other[id][vote] if against else 0)) for id, x in mine.items() if not other or id in other})
    shared = set.intersection(*(set(r) for r in rows))
    return joined([statistics.mean(r.values()) for r in rows], [statistics.mean(r[id] for r in rows) for id in shared])


def value(key: str, stage: str, against: str = "", domain: str = "reasoning", step: str = "", part: str = "") -> Mean:
    """Any figure of an evaluation, or its difference: the standard error is over seeds alone."""
    get = lambda s, name: (evals(s, name, domain, step) if not part else evals(s, name, domain, step)[part.split("/")[0]][part.split("/")[1]])[key]  # noqa: E731
    seeds = have(stage, against) if against else have(stage)
    return joined([get(s, stage) - (get(s, against) if against else 0) for s in seeds], [])


def spent(stage: str) -> str:
    """Tokens sampled in training, in thousands."""
    rows = [sum(m.get("sampled_tokens", 0) for m in s[stage].get("metrics", [])) for s in have(stage)]
    return f"{statistics.mean(rows) / 1000:.0f}k" if any(rows) else ""


def seconds(stage: str) -> str:
    """Of training, where there was any."""
    rows = [s[stage]["seconds"] for s in have(stage) if "metrics" in s[stage]]
    return f"{statistics.mean(rows):.0f}" if rows else ""


def show(m: Mean, scale: float = 1, digits: int = 1, sign: str = "") -> str:
    return f"{scale * m[0]:{sign}.{digits}f} ± {scale * m[1]:.{digits}f}"


def verdict(*tests: tuple[Mean, int]) -> str:
    """Of differences and the sign that the paper leads one to expect."""
    sure = [d * sign > 2 * se for (d, se), sign in tests]
    reverse = [d * sign < -2 * se for (d, se), sign in tests]
    if all(sure):
        return "replicated"
    if any(reverse):
        return "**mixed**" if any(sure) else "**the reverse**"
    return "partly" if any(sure) else "**not replicated**"


def compared(stages: dict[str, str], against: str) -> str:
    """One row per stage; `stages` maps them to what they are called."""
    few = lambda s: f" ({len(have(s))} of {len(SEEDS)} seeds)" if len(have(s)) < len(SEEDS) else ""  # noqa: E731
    rows = [[label + few(s), show(right(s)), show(right(s, vote=True)), show(value("length", s), digits=0), show(value("language", s), 100), show(value("format", s), 100),
             show(value("reflections", s), digits=2), spent(s), seconds(s), "" if s == against else show(right(s, against), sign="+")] for s, label in stages.items() if have(s)]
    return markdown_table(["", "pass@1", "cons@16", "length", "language", "format", "reflections", "sampled in training", "training, s", f"pass@1 against {stages[against]}"], rows) + "\n"


def curves(name: str, title: str, y: str, key: str, stages: dict[str, str]) -> str:
    """A metric of training over its steps: the mean over seeds of each stage."""
    series = {}
    for stage, label in stages.items():
        by_step: dict[int, list[float]] = {}
        for s in have(stage):
            for m in s[stage].get("metrics", []):
                by_step.setdefault(m["step"], []).append(m[key])
        series[label] = [(step, statistics.mean(v)) for step, v in by_step.items()]
    return picture(name, line_chart(series, title, y))


def picture(name: str, svg: str) -> str:
    (DATA / f"{name}.svg").write_text(svg)
    return f"![{name}](results/findings/{name}.svg)"


def trained(stage: str, key: str, last: int = 0, first: int = 0) -> list[float]:
    """Each seed's mean of a metric over its last, or its first steps."""
    rows = [[m[key] for m in s[stage]["metrics"]] for s in have(stage)]
    return [statistics.mean(r[-last:] if last else r[:first]) for r in rows]


# ---- the findings: each returns what was measured in a sentence, the verdict, and what stands in docs/findings.md ----

def zero() -> tuple[str, str, str]:
    rise, vote = right("zero", "base"), right("zero_vote", "pass", vote=True)
    rows = [[name, show(right(s)), show(right(s, vote=True)), show(right(v, vote=True)) if v else "", show(value("length", s), digits=0)]
            for s, v, name in (("base", "base_vote", "base"), ("base_thinks", "", "base, made to think (`<think>` prefilled)"), ("zero", "zero_vote", "R1-Zero")) if have(s)]
    body = markdown_table(["", "pass@1", "cons@16", "cons@64", "length"], rows) + f"\n\nA majority of 64 adds {show(vote)} points to one sample. R1-Zero against the base made to think: {show(right('zero', 'base_thinks'), sign='+')}.\n"
    pictures = curves("zero-accuracy", "R1-Zero: accuracy on training problems", "share right", "accuracy", {"zero": "R1-Zero"})
    pictures += " " + curves("zero-length", "R1-Zero: response length", "tokens", "length", {"zero": "R1-Zero"})
    return (f"{show(right('base'))} → {show(right('zero'))}; majority of 64: {show(right('zero_vote', vote=True))}", verdict((rise, 1), (vote, 1)), body + "\n" + pictures + "\n")


def thinking_time() -> tuple[str, str, str]:
    steps = sorted({int(step) for s in have("zero") for step in s["zero"]["steps"]})
    levels = sorted({k for s in have("zero") for k in evals(s, "zero", "reasoning")["by_level"] if k.startswith(("chain", "word"))})
    head, rows, series = ["step", "all", *levels], [], {}
    for label, stage, step in [("0", "base", ""), *((str(n), "zero", str(n)) for n in steps), ("end", "zero", "")]:
        cells = [value("length", stage, step=step, part=f"by_level/{lv}") for lv in levels]
        scores = [value("pass@1", stage, step=step, part=f"by_level/{lv}") for lv in levels]
        rows.append([label, f"{value('length', stage, step=step)[0]:.0f} / {100 * value('pass@1', stage, step=step)[0]:.0f}",
                     *(f"{a[0]:.0f} / {100 * b[0]:.0f}" for a, b in zip(cells, scores, strict=True))])
        if label != "end":
            for lv, b in zip(levels, scores, strict=True):
                series.setdefault(lv, []).append((int(label), b[0]))
    growth = value("length", "zero", "base")
    grown = lambda s, level: evals(s, "zero", "reasoning")["by_level"][level]["length"] - evals(s, "base", "reasoning")["by_level"][level]["length"]  # noqa: E731
    more = joined([grown(s, "chain:5") - grown(s, "chain:2") for s in have("zero", "base")], [])
    body = "Length in tokens / per cent right.\n\n" + markdown_table(head, rows) + "\n\n" + picture("levels", line_chart(
        {k: v for k, v in series.items() if k.startswith("chain")}, "R1-Zero by level: held-out problems", "share right")) + "\n"
    later = joined([evals(s, "zero", "reasoning")["length"] - evals(s, "zero", "reasoning", str(steps[0]))["length"] for s in have("zero")], [])
    return (f"length +{show(growth, digits=0)} tokens, all of it in the first {steps[0]} steps (after: {show(later, sign='+')}); the longest chains grow "
            f"{show(more, digits=0)} more than the shortest", verdict((growth, 1), (more, 1), (later, 1)), body)


def aha() -> tuple[str, str, str]:
    early, pays = right("early_hot", "early_hot_unchecked"), right("zero_hot", "zero_hot_unchecked")
    words = lambda stage: [statistics.mean(evals(s, stage, "reasoning")["by_task"][task]["reflections"] for task in ("chain", "word")) for s in SEEDS]  # noqa: E731
    at = {stage: words(stage) for stage in ("base_hot", "early_hot", "zero_hot")}
    thinks = lambda stage: [statistics.mean(evals(s, stage, "reasoning")["by_task"][task]["format"] for task in ("chain", "word")) for s in SEEDS]  # noqa: E731
    a_thought = {stage: [w / t for w, t in zip(at[stage], thinks(stage), strict=True)] for stage in ("base_hot", "zero_hot")}
    more = joined([b - a for a, b in zip(*a_thought.values(), strict=True)], [])
    body = compared({"base": "base", "zero": "R1-Zero", "zero_unchecked": "R1-Zero, checks forbidden", "base_hot": "base, T 1", "early_hot": "after 20 steps, T 1", "early_hot_unchecked": "the same, checks forbidden",
                     "zero_hot": "at the end, T 1", "zero_hot_unchecked": "the same, checks forbidden"}, "zero")
    body += "\n" + curves("reflections", "Reflective words while R1-Zero is trained", "a completion", "reflections", {"zero": "R1-Zero"}) + "\n"
    rise, thought = (" → ".join(show(joined(v, []), digits=2) for v in each.values()) for each in (at, a_thought))
    return (f"reflective words an answer (base, after 20 steps, at the end; T 1): {rise}; a thought (base, end): {thought}; a model that may check is right {show(early, sign='+')}, "
            f"then {show(pays, sign='+')} points more often", verdict((more, 1), (pays, 1)), body)


def language() -> tuple[str, str, str]:
    mixes, cured, cost = value("language", "zero", "base"), value("language", "zero_language", "zero"), right("zero_language", "zero")
    body = compared({"base": "base", "zero": "R1-Zero", "zero_language": "with the language reward"}, "zero")
    body += "\n" + curves("language", "Reasoning in the question's language", "share", "language", {"zero": "R1-Zero", "zero_language": "with the reward"}) + "\n"
    return (f"{show(value('language', 'zero'), 100)}% in the question's language; with the reward {show(value('language', 'zero_language'), 100)}, accuracy {show(cost, sign='+')}",
            verdict((mixes, -1), (cured, 1)), body)


def stages() -> tuple[str, str, str]:
    names = ["base", "zero", "dev1", "dev2", "dev3", "r1", "dev1_light", "dev2_light"]
    rows = [[f"`{s}`", show(right(s)), show(right(s, vote=True)), show(right(s, domain="code")), show(right(s, domain="general")), show(value("format", s), 100),
             show(value("language", s), 100), show(value("length", s), digits=0)] for s in names if have(s)]
    body = markdown_table(["", "reasoning", "cons@16", "code", "other domains", "format", "language", "length"], rows) + "\n\n"
    steps = [("cold start: dev1 against zero", "dev1", "zero", "reasoning"), ("RL: dev2 against dev1", "dev2", "dev1", "reasoning"),
             ("curated set: dev3 against dev2, other domains", "dev3", "dev2", "general"), ("last RL: r1 against dev3", "r1", "dev3", "reasoning"),
             ("lighter cold start: dev1_light against zero", "dev1_light", "zero", "reasoning"), ("RL on it: dev2_light against dev1_light", "dev2_light", "dev1_light", "reasoning"),
             ("the same, code", "dev2_light", "dev1_light", "code"), ("what is left: dev2_light against dev2", "dev2_light", "dev2", "reasoning")]
    gaps = [(what, right(*pair)) for what, *pair in steps]
    cost, restored, added, kept, _, light, *_ = (gap for _, gap in gaps)
    least = [(d + 3, se) for d, se in (kept, right("r1", "dev3", "general"))]            # the last RL keeps all: not three points lower
    body += markdown_table(["", "points"], [[what, show(gap, sign="+")] for what, gap in gaps]) + "\n"
    said = [f"{what.split(': ')[1]} {show(gap, sign='+')}" for what, gap in gaps[:4]]
    said[1] += f" (after a lighter cold start {show(light, sign='+')})"
    return "; ".join(said), verdict((cost, -1), (restored, 1), (added, 1), (value("language", "dev1", "zero"), 1), *((gap, 1) for gap in least)), body


def cold_start() -> tuple[str, str, str]:
    each = {s: trained(s, "accuracy", first=20) for s in ("zero", "zero_from_dev1")}
    faster = joined([100 * (b - a) for a, b in zip(each["zero"], each["zero_from_dev1"], strict=True)], [])
    end = right("zero_from_dev1", "zero")
    body = curves("cold-start", "Accuracy while training", "share right", "accuracy", {"zero": "from the base", "zero_from_dev1": "from dev1"})
    body += "\n\n" + compared({"zero": "RL from the base", "dev1": "dev1", "zero_from_dev1": "RL from dev1"}, "zero")
    return (f"accuracy over the first 20 steps {show(faster, sign='+')} points; at the end {show(end, sign='+')}", verdict((faster, 1), (end, 1)), body)


def distillation() -> tuple[str, str, str]:
    names = {"student_base": "student's base", "student_rl": "RL", "student_rl_long": "RL, four times as long", "student": "distilled", "student_few": "distilled, 500 traces",
             "student_filtered": "2,000 traces of dev1, right ones", "student_unfiltered": "2,000 traces of dev1, unfiltered"}
    longer, clean = right("student", "student_rl_long"), right("student_filtered", "student_unfiltered")
    return (f"{show(right('student'))} against {show(right('student_rl'))} by RL ({show(right('student_rl_long'))} by four times as much); right traces against unfiltered {show(clean, sign='+')}",
            verdict((right("student", "student_rl"), 1), (longer, 1), (clean, 1)), compared(names, "student"))


def sft_or_rl() -> tuple[str, str, str]:
    names = {"zero": "GRPO", "sft_best": "SFT on the base's own best samples", "sft_answers": "SFT on answers alone"}
    return (f"own best samples {show(right('sft_best', 'zero'), sign='+')} points, answers alone {show(right('sft_answers', 'zero'), sign='+')}",
            verdict((right("sft_best", "zero"), -1), (right("sft_answers", "zero"), -1)), compared(names, "zero"))


def reward() -> tuple[str, str, str]:
    names = {"zero": "accuracy and format", "accuracy_only": "accuracy alone", "format_only": "format alone", "graded": "graded accuracy, and format",
             "weak_rule": "takes 19-4+3 for 18, and format", "lenient": "the right number anywhere, and format"}

    def fooled(stage: str) -> Mean:
        """How many points more completions such a rule holds to be right than are, at the end of the training."""
        return joined([100 * (a - b) for a, b in zip(trained(stage, "custom", last=5), trained(stage, "accuracy", last=5), strict=True)], [])
    hacked, unfound = show(fooled("lenient")), show(fooled("weak_rule"))
    body = compared(names, "zero") + f"\nAt the end of the training, of completions held to be right and not so: by the rule that takes 19-4+3 {unfound}%, by the one that looks anywhere {hacked}%.\n"
    return (f"format alone {show(right('format_only', 'zero'), sign='+')} points; a rule that looks for the right number anywhere {show(right('lenient', 'zero'), sign='+')}, fooled by {hacked}",
            verdict((right("format_only", "zero"), -1), (right("lenient", "zero"), -1)), body)


def prm() -> tuple[str, str, str]:
    made, base = ([s["prm"]["prm"][key] for s in have("prm")] for key in ("held_out_accuracy", "right_steps"))
    score = joined([b - a for a, b in zip(trained("prm", "prm", first=5), trained("prm", "prm", last=5), strict=True)], [])
    body = compared({"zero": "outcome by rule", "prm": "process reward model"}, "zero")
    body += "\n" + curves("prm-score", "What the process reward model says", "mean score of a step", "prm", {"prm": "process reward model"}) + " "
    body += curves("prm-accuracy", "What is right", "share right", "accuracy", {"zero": "outcome by rule", "prm": "process reward model"}) + "\n"
    body += (f"\nThe model judges {show(joined([100 * x for x in made], []))}% of held-out steps as the rule does, of which {show(joined([100 * x for x in base], []))}% are right; its mean score "
             f"rises by {show(score, digits=2)} in the training.\n")
    return (f"{show(right('prm', 'zero'), sign='+')} points against the outcome rule", verdict((right("prm", "zero"), -1)), body)


def search() -> tuple[str, str, str]:
    results = [s["mcts"]["result"] for s in have("mcts")]
    get = lambda f: joined([100 * f(r) for r in results], [])  # noqa: E731
    rows = [["base, made to think, pass@1", show(get(lambda r: r["start"]["pass@1"]))]]
    rows += [[f"actor after round {i + 1}, pass@1", show(get(lambda r, i=i: r["rounds"][i]["pass@1"]))] for i in range(len(results[0]["rounds"]))]
    better = get(lambda r: r["search"]["right"] - r["plain"]["vote"])
    rows += [["search", show(get(lambda r: r["search"]["right"]))], ["as many tokens of plain samples, majority", show(get(lambda r: r["plain"]["vote"]))]]
    return f"search {show(better, sign='+')} points against plain samples of as many tokens", verdict((better, -1)), markdown_table(["", "per cent right"], rows) + "\n"


def grpo_parts() -> tuple[str, str, str]:
    names = {"plain": "as it is", "no_std": "no division by std", "kl": "KL 0.04", "dr_grpo": "Dr. GRPO (no std, no length)", "dapo_tokens": "mean over tokens (DAPO)",
             "group4": "64 groups of 4", "group8": "32 of 8", "group32": "8 of 32", "four_updates": "four updates", "four_unclipped": "four, clip 10 (the paper's)",
             "four_clip_higher": "four, clip higher (DAPO)"}
    there = [n for n in names if have(n) and n != "plain"]
    differ = [n for n in there if abs((g := right(n, "plain"))[0]) > 2 * g[1]]
    return (f"{len(differ)} of {len(there)} changes make a difference beyond two standard errors" + (": " + ", ".join(names[n] for n in differ) if differ else ""), "see the table", compared(names, "plain"))


FINDINGS = [      # what is asked of the committed results, its title, what the paper says, the stages that must be there
    (zero, "R1-Zero", "RL alone: 15.6 → 71.0 (AIME), majority of 64: 86.7",
     "base base_thinks zero base_vote zero_vote"),
    (thinking_time, "More thinking time by itself", "thinks longer by itself, more on hard problems",
     "base zero"),
    (aha, "The aha moment", "reflective words 5 to 7 times as often",
     "base zero zero_unchecked base_hot early_hot early_hot_unchecked zero_hot zero_hot_unchecked"),
    (language, "Language mixing", "mixes languages; a reward cures it at a small cost",
     "base zero zero_language"),
    (stages, "The stages", "cold start costs reasoning, RL restores it, SFT adds domains, RL keeps all",
     "base zero dev1 dev2 dev3 r1 dev1_light dev2_light"),
    (cold_start, "The cold start helps RL", "a cold start makes RL faster",
     "zero dev1 zero_from_dev1"),
    (distillation, "Distillation against RL on the small model", "distilling beats RL on the small model: 72.6 against 47.0; only right traces are kept",
     "student student_rl student_base student_rl_long student_few student_filtered student_unfiltered"),
    (sft_or_rl, "Supervised fine-tuning against RL", "RL needs no supervised data to reason",
     "zero sft_best sft_answers"),
    (reward, "What is rewarded", "rules, because neural rewards are hacked",
     "zero accuracy_only format_only graded weak_rule lenient"),
    (prm, "What did not work: a process reward model", "labels are hard to get, and it is hacked",
     "zero prm"),
    (search, "What did not work: tree search", "the model does not improve by its own finds",
     "mcts"),
    (grpo_parts, "GRPO's parts", "GRPO (and what came after it)",
     "plain no_std"),
]


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        collect(Path(sys.argv[2]))
        ALL[:] = load()
    rows = []
    for i, (measure, title, claim, needs) in enumerate(FINDINGS, 1):
        anchor = re.sub(r"[^a-z0-9 -]", "", f"{i}. {title}".lower()).replace(" ", "-")
        SEEDS[:] = ALL
        SEEDS[:] = seeds = have(*needs.split())
        head = f"[{title}](docs/findings.md#{anchor})"
        if not seeds:
            rows.append([head, claim, "", "not run yet"])
            continue
        measured, found, body = measure()
        few = "" if len(seeds) > 2 else f" ({len(seeds)} seed{'s' * (len(seeds) > 1)})"
        rows.append([head, claim, measured, found + few])
        put(DOC, f"python docs/results/findings.py  # {measure.__name__}", f"{measured}: {found}{few}.\n\n{body}")
    put(README, "python docs/results/findings.py", markdown_table(["finding", "the paper", "here", "verdict"], rows).replace("---:", "---") + "\n")


if __name__ == "__main__":
    main()
