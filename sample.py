"""Ask a model, chat with it, evaluate it, or ask why a completion was scored as it was.

    python sample.py runs/tiny/r1/model "What is 19-4+3?"            one answer; the thinking is shown apart
    python sample.py runs/tiny/r1/model "What is 19-4+3?" -n 16 --vote
    python sample.py runs/tiny/r1/model                              a chat; an empty line ends it
    python sample.py runs/tiny/r1/model --data chain,word -k 16      the paper's protocol on held-out problems
    python sample.py --explain runs/tiny/zero/samples.jsonl:7        why a sample got its reward
    python sample.py --explain chain "<think>..</think><answer>5</answer>"
    python sample.py --explain '{"prompt": "1+1?", "answer": "2"}' "\\boxed{2.0}"
"""
import argparse
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

from r1 import hub, sandbox
from r1.config import Evaluate, Sample
from r1.explain import explain, find
from r1.files import write_text
from r1.tasks import draw_distinct
from r1.types import UserError
from r1.verify import extract


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model folder, e.g. runs/tiny/r1/model; with --explain, a completion")
    parser.add_argument("prompt", nargs="?", help="a question; without one a chat begins")
    parser.add_argument("-n", type=int, default=1, help="answers to draw")
    parser.add_argument("--vote", action="store_true", help="count the answers and name the most frequent one")
    parser.add_argument("--data", metavar="SOURCE[,SOURCE]", help="evaluate on held-out problems of these sources")
    parser.add_argument("-k", type=int, default=16, help="with --data: samples per problem")
    parser.add_argument("--problems", type=int, default=100, help="with --data: problems per source")
    parser.add_argument("--json", metavar="FILE", help="with --data: write the figures there")
    parser.add_argument("--explain", metavar="PROBLEM", help="a problem as JSON, FILE.jsonl:LINE or a data source: print every part "
                        "of the reward of a completion, what was read and why it failed")
    parser.add_argument("--reward", default="", metavar="FILE.PY:FUNCTION", help="with --explain: a reward of your own")
    parser.add_argument("--sandbox", choices=("strict", "unprotected"), default="strict", help="unprotected: run programs also where "
                        "no kernel mechanism confines them")
    parser.add_argument("--template", default="", help="a text with {prompt} in place of the model's chat template")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.template and args.template.count("{prompt}") != 1:
        parser.error("--template must contain {prompt}, and once")
    if min(args.n, args.k, args.problems, args.max_new_tokens) < 1:
        parser.error("-n, -k, --problems and --max-new-tokens are at least 1")
    if not args.temperature >= 0 or not 0 < args.top_p <= 1:
        parser.error("--temperature is at least 0 (0: greedy), --top-p above 0 and at most 1")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder")
    if args.model is None and args.explain is None:
        parser.error("which model? Name a folder, e.g. runs/tiny/r1/model")
    sys.stdout.reconfigure(errors="replace")       # a model, or a file, may hold half a surrogate pair
    args.sample = Sample(args.max_new_tokens, args.temperature, args.top_p)
    try:
        if args.sandbox == "unprotected":
            sandbox.allow_unprotected()
        if args.explain is not None:
            print(explain(*find(args.explain, args.model), args.reward))
            return 0
        from r1.checkpoint import load_model       # here, so that --help needs no torch
        from r1.hf_config import eos_ids
        from r1.runtime import pick_device
        from r1.tokenizer import Tokenizer

        folder = hub.fetch_model(args.model) if hub.is_id(args.model) and not Path(args.model).is_dir() else Path(args.model)
        model = load_model(folder, pick_device("auto"))
        tokenizer, eos = Tokenizer.load(folder).with_template(args.template or None), eos_ids(folder)
        model.words = tokenizer.vocab_size
        if args.data:
            measure(args, model, tokenizer, eos)
        elif args.prompt is not None:
            answer(args, model, tokenizer, eos)
        else:
            chat(args, model, tokenizer, eos)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


DIM, PLAIN = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
HEADINGS = {"<think>": f"{DIM}[thinking] ", "</think>": f"{PLAIN}\n[answer] ", "<answer>": "", "</answer>": ""}


def show(piece: str, end: str = "") -> None:
    """Print what a model writes: the thinking dimmed on a terminal, tags as headings."""
    for tag, heading in HEADINGS.items():
        piece = piece.replace(tag, heading)
    print(piece, end=end, flush=True)


def stream(args, model, tokenizer, eos, prompt: str, seed: int) -> str:
    """Print one completion while it is drawn; returns its text."""
    from r1.sampler import generate
    ids, shown = [], ""

    def on_token(q: int, g: int, id: int) -> None:
        nonlocal shown
        if id in eos:
            return
        ids.append(id)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):             # a character may take several tokens
            show(text[len(shown):])
            shown = text

    show("<think>" if prompt.rstrip().endswith("<think>") else "")
    rollout = generate(model, [tokenizer.encode(prompt)], 1, args.sample, seed, eos, on_token=on_token)[0][0]
    print(PLAIN)
    if rollout.finish == "length":
        print(f"(cut at {len(rollout.ids)} tokens; --max-new-tokens raises the limit)", file=sys.stderr)
    return shown


def answer(args, model, tokenizer, eos) -> None:
    from r1.rollout import written
    from r1.sampler import generate

    prompt = tokenizer.render_prompt([{"role": "user", "content": args.prompt}])
    if args.n == 1 and not args.vote:
        stream(args, model, tokenizer, eos, prompt, args.seed)
        return
    rollouts = generate(model, [tokenizer.encode(prompt)], args.n, args.sample, args.seed, eos)[0]
    texts = [written(tokenizer, prompt, r) for r in rollouts]
    for i, text in enumerate(texts, 1):
        print(f"--- {i}")
        show(text, end=f"{PLAIN}\n")
    if args.vote:
        votes = Counter(a.strip() for a in map(extract, texts) if a and a.strip())
        print("votes: " + (", ".join(f"{a!r} {n}" for a, n in votes.most_common()) or "none gave an answer"))


def chat(args, model, tokenizer, eos) -> None:
    if args.template:
        raise UserError("a chat uses the model's own chat template; give a prompt to use --template")
    messages = []
    with contextlib.suppress(EOFError):
        while (line := input("> ")).strip():
            messages.append({"role": "user", "content": line})
            text = stream(args, model, tokenizer, eos, tokenizer.render_prompt(messages), args.seed + len(messages))
            messages.append({"role": "assistant", "content": text.split("</think>")[-1].strip()})   # thoughts are not kept


def measure(args, model, tokenizer, eos) -> None:
    from r1.evaluate import run, split, summary

    cfg, figures = Evaluate(k=args.k, sample=args.sample), {}
    columns = ["problems", "pass@1", "se", f"cons@{args.k}", f"pass@{args.k}", "format", "language", "length", "truncated"]
    sets = {s: draw_distinct({s: 1}, args.problems, f"test/{s}", test=True) for s in args.data.split(",")}
    print(f"{'source':24} " + " ".join(f"{c:>9}" for c in columns))
    for source, problems in sets.items():
        groups = run(model, tokenizer, problems, cfg, args.seed, eos, source)
        row = summary(groups)
        figures[source] = {**row, **split(groups)}
        print(f"{source:24} " + " ".join(f"{row[c]:9.3f}" if isinstance(row[c], float) else f"{row[c]:9}" for c in columns))
    if args.json:
        write_text(args.json, json.dumps({"model": args.model, "k": args.k, "temperature": args.temperature,
                                          "top_p": args.top_p, "seed": args.seed, **figures}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
