"""How fast, beside whom, and how far from what the machine can do.

    python tests/benchmarks/bench.py sampler              own sampler and transformers' generate, fp32 and bf16, fixed lengths
    python tests/benchmarks/bench.py sampler --keep       the same, for docs/performance.md

Every measurement is a fresh process; contenders take turns, so that a machine that gets slower does so for all. Models have the
shape of SmolLM2-135M and random weights: with fixed lengths what they say makes no difference. Loading is not counted.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/results")]

SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 1e5}
PROMPTS, PROMPT = 4, 128


def prompts(count: int) -> list[list[int]]:
    import torch
    return torch.randint(0, 256, (count, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def ours(folder: str, dtype: str, group: int, new: int) -> dict:
    from r1.checkpoint import load_model
    from r1.config import Sample
    from r1.sampler import generate
    model = load_model(folder)
    model.bf16 = dtype == "bf16"
    generate(model, prompts(PROMPTS), group, Sample(max_new_tokens=2), 0, [])
    began = time.perf_counter()
    rows = generate(model, prompts(PROMPTS), group, Sample(max_new_tokens=new), 0, [])
    return {"tokens": sum(len(r.ids) for g in rows for r in g), "seconds": time.perf_counter() - began}


def theirs(folder: str, dtype: str, group: int, new: int) -> dict:
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[dtype]),
                                                 attn_implementation="sdpa").eval()
    ids = torch.tensor(prompts(PROMPTS)).repeat_interleave(group, 0)

    def go(n: int):
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                  min_new_tokens=n, max_new_tokens=n, pad_token_id=0)
    go(2)
    began = time.perf_counter()
    out = go(new)
    return {"tokens": out.numel() - ids.numel(), "seconds": time.perf_counter() - began}


def limit(folder: str, dtype: str, group: int, new: int) -> dict:
    """Every linear layer of one decode step and nothing else."""
    import torch
    import torch.nn.functional as F
    kind, rows, layers = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], PROMPTS * group, SHAPE["num_hidden_layers"]
    sizes = [(576 + 2 * 192, 576), (576, 576), (2 * 1536, 576), (576, 1536)] * layers + [(49152, 576)]
    weights = [torch.randn(size, dtype=kind) for size in sizes]
    x = {width: torch.randn(rows, width, dtype=kind) for width in (576, 1536)}

    def step():
        for w in weights:
            F.linear(x[w.shape[1]], w)
    step()
    began = time.perf_counter()
    for _ in range(new):
        step()
    return {"tokens": rows * new, "seconds": time.perf_counter() - began}


CONTENDERS = {"r1": ours, "transformers": theirs, "linear layers alone": limit}


def one(name: str, folder: str, dtype: str, group: int, new: int, threads: int) -> None:
    import torch
    torch.set_num_threads(threads)
    out = CONTENDERS[name](folder, dtype, group, new)
    print(json.dumps({**out, "tokens_per_second": out["tokens"] / out["seconds"],
                      "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def sampler(args) -> dict:
    from r1.checkpoint import save_model
    from r1.model import ModelConfig, Transformer
    found: dict[str, list] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "m", Transformer(ModelConfig(**SHAPE)).init_weights(0), eos_ids=[0])
        for _ in range(args.repeats):
            for dtype in ("fp32", "bf16"):
                for name in CONTENDERS:
                    command = [sys.executable, __file__, "--one", name, f"{folder}/m", dtype, str(args.group), str(args.new), str(args.threads)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.setdefault(f"{name}, {dtype}", []).append(json.loads(done.stdout.splitlines()[-1]))
    return found


def table(found: dict[str, list]) -> str:
    """Medians; what r1 has of each is the median of the ratios within one round."""
    lines = ["| what | tokens/s | from, to | r1 against it | peak MB |", "|---|---:|---:|---:|---:|"]
    for name, runs in found.items():
        speed, own = [r["tokens_per_second"] for r in runs], [r["tokens_per_second"] for r in found[f"r1, {name[-4:]}"]]
        ratio = statistics.median(a / b for a, b in zip(own, speed, strict=True))
        lines.append(f"| {name} | {statistics.median(speed):.0f} | {min(speed):.0f}, {max(speed):.0f} | "
                     f"{'' if name.startswith('r1') else f'{ratio:.2f}'} | {statistics.median(r['peak_mb'] for r in runs):.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sampler"], nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--keep", action="store_true", help="write docs/results/performance and the table of docs/performance.md")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one[:3], *map(int, args.one[3:]))
    found = sampler(args)
    print(table(found))
    if args.keep:
        from make import put

        from r1.runtime import hardware
        about = {"hardware": {**hardware(), "system": platform.platform()}, **vars(args)}
        (ROOT / "docs/results/performance/sampler.json").write_text(json.dumps({**about, "runs": found}, indent=1))
        put(ROOT / "docs/performance.md", "python tests/benchmarks/bench.py sampler --keep", table(found))


if __name__ == "__main__":
    main()
