"""Teach a small model a large one's reasoning: sample traces, keep the right ones, fine-tune, compare.

    python distill.py runs/tiny/r1/model runs/tiny/student_base/model --data chain,word out=runs/distilled
    python distill.py configs/distill.yaml                a whole config; the same as train.py on it

The stages are those of the pipeline (reject, sft, evaluate). Running it again continues where it stopped.
"""
import argparse
import sys

from r1 import config
from r1.types import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="the teacher's model folder, or a config (.yaml)")
    parser.add_argument("student", nargs="?", help="the student's model folder, or a .yaml whose last stage makes it")
    parser.add_argument("overrides", nargs="*", help="key=value: out=DIR, traces.problems=2000, student.epochs=3")
    parser.add_argument("--data", metavar="SOURCE[,SOURCE]", help="where the problems come from")
    args = parser.parse_args()
    try:
        if args.teacher.endswith(".yaml"):
            cfg = config.load(args.teacher, [a for a in [args.student, *args.overrides] if a])
        elif args.student and args.data:
            cfg = plan(args.teacher, args.student, args.data.split(","), args.overrides)
        else:
            parser.error("name a config, or teacher, student and --data")
        from r1 import pipeline
        pipeline.run(cfg)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues: python {' '.join(sys.argv)}", file=sys.stderr)
        return 130
    return 0


def plan(teacher: str, student: str, data: list[str], overrides: list[str]) -> config.Config:
    """The stages of a distillation: the teacher's traces, then the student's fine-tuning on them."""
    mix = {source: 1.0 for source in data}
    before = config.load(student).stages if student.endswith(".yaml") else []
    raw = {"out": "runs/distill", "evaluate": {"domains": {"distilled": mix}}, "stages": [
        *map(config.to_dict, before),
        {"name": "traces", "kind": "reject", "init": teacher, "template": "chat", "data": mix},
        {"name": "student", "kind": "sft", "init": before[-1].name if before else student, "data": ["traces"],
         "optim": {"lr": 1e-3, "schedule": "cosine"}}]}
    return config.parse(raw, "distill.py", overrides)


if __name__ == "__main__":
    sys.exit(main())
