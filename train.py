"""Run a config's stages, from nothing to R1. Running it again continues where it stopped.

    python train.py configs/tiny.yaml                          everything
    python train.py configs/tiny.yaml zero.steps=10 out=runs/x  with other values
    python train.py configs/tiny.yaml --list                   the stages, and which are done
    python train.py configs/tiny.yaml --plan                   how much memory each takes, before anything runs
    python train.py configs/tiny.yaml --only zero              one stage
"""
import argparse
import os
import sys
from pathlib import Path

from r1 import config, stop
from r1.types import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, e.g. configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value: out=DIR, seed=1, STAGE.key=value")
    parser.add_argument("--list", action="store_true", help="show the stages and which are done")
    parser.add_argument("--plan", action="store_true", help="the memory that each stage takes, against what there is")
    parser.add_argument("--only", default="", metavar="STAGE", help="run this stage alone")
    args = parser.parse_intermixed_args()          # key=value may stand on either side of --only

    def work() -> None:
        runs = config.each_seed(config.load(args.config, args.overrides))
        if len(runs) > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("under torchrun one seed at a time: say seeds=[0], then seeds=[1], ...")
        for cfg in runs:
            if args.list:
                stop.say(cfg.out)
                for s in cfg.stages:
                    done = (Path(cfg.out) / s.name / "done.json").is_file()
                    stop.say(f"{'done' if done else '    '}  {s.name:12} {s.kind:9} {'from ' + s.init if s.init else ''}")
            else:
                from r1 import pipeline     # here, because all else needs no torch
                pipeline.show_plan(cfg) if args.plan else pipeline.run(cfg, args.only)

    return stop.ends(work)


if __name__ == "__main__":
    sys.exit(main())
