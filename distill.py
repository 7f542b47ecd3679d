"""Teach a small model a large one's reasoning: sample traces, keep the right ones, fine-tune, evaluate.

    python distill.py --teacher runs/tiny/r1/model --student runs/tiny/student_base/model --data chain,word out=runs/distilled
    python distill.py configs/mine.yaml                   a whole config; the same as train.py on it

A student may also be a .yaml whose last stage makes it. The stages are those of the pipeline (reject, sft, evaluate):
`traces.problems=2000` or `distilled.epochs=3` change them. Running it again continues where it stopped.
"""
import argparse
import sys

from r1 import config, stop


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="CONFIG or key=value", help="a config; out=DIR, seed=1, STAGE.key=value")
    parser.add_argument("--teacher", metavar="DIR", help="the teacher's model folder")
    parser.add_argument("--student", metavar="DIR", help="the student's model folder, or a .yaml whose last stage makes it")
    parser.add_argument("--data", metavar="SOURCE[,SOURCE]", help="where the problems come from")
    args = parser.parse_intermixed_args()
    named = [args.teacher, args.student, args.data]
    whole = bool(args.words) and "=" not in args.words[0]
    if any(named) == whole or not whole and not all(named):
        parser.error("name either a config, or --teacher, --student and --data")

    def work() -> None:
        cfg = config.load(args.words[0], args.words[1:]) if whole else plan(*named[:2], args.data.split(","), args.words)
        from r1 import pipeline     # here, so that --help and errors in the config need no torch
        for each in config.each_seed(cfg):
            pipeline.run(each)

    return stop.ends(work)


def plan(teacher: str, student: str, data: list[str], overrides: list[str]) -> config.Config:
    """The stages of a distillation: the teacher's traces, then the student's fine-tuning on them."""
    mix = {source: 1.0 for source in data}
    before = config.load(student) if student.endswith(".yaml") else config.Config()
    made = before.stages[-1].name if before.stages else student
    raw = {"out": "runs/distill", "templates": before.templates, "evaluate": {"domains": {"distilled": mix}}, "stages": [
        *map(config.to_dict, before.stages),
        {"name": "traces", "kind": "reject", "init": teacher, "template": "chat", "data": mix},
        {"name": "distilled", "kind": "sft", "init": made, "data": ["traces"], "optim": {"lr": 1e-3, "schedule": "cosine"}}]}
    return config.parse(raw, "distill.py", overrides)


if __name__ == "__main__":
    sys.exit(main())
