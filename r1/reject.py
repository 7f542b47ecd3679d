"""Stage reject: rejection sampling. Many completions per problem, the right and readable ones become examples.

Used twice, as in the paper: R1-Zero's outputs become the cold start of dev1 (section 2.3.1), and dev2's the
reasoning part of the set on which the base is fine-tuned to dev3 (2.3.3), mixed with other domains.
"""

from r1 import checkpoint, ranks, world
from r1.accuracy import find_answer
from r1.config import Reject
from r1.files import digests, jsonl
from r1.hf_config import eos_ids
from r1.rewards import is_readable
from r1.rollout import Scored, judged, roll_out
from r1.runtime import Folder
from r1.tasks import draw, open_sources
from r1.tokenizer import Tokenizer
from r1.types import Problem, UserError

SUMMARY = {"en": " The answer is {}. ", "zh": "答案是{}。"}
PIECE = 512      # problems between two results that a killed run continues from


def reject(cfg: Reject, folder: Folder) -> None:
    """A model and problems -> examples.jsonl of {"prompt", "completion"}."""
    start = folder.find_model(cfg.init)
    model, tokenizer = checkpoint.load_model(start, folder.device), Tokenizer.load(start).with_template(folder.template(cfg.template))
    model.bf16 = folder.bf16(cfg.bf16)
    problems = distinct(cfg.data, cfg.problems, folder, "")

    def sift(at: int) -> dict:
        groups, seconds = roll_out(model, tokenizer, problems[at:at + PIECE], cfg.sample, cfg.group, folder.seed, {"accuracy": 1.0},
                                   eos_ids(start), title=f"{folder.name} {at}/{len(problems)}")
        left = judged(groups, cfg.name)
        kept = [s for group in left for s in choose(group, cfg.keep, cfg.keep_wrong)]
        counts = {"sampled": len(left) * cfg.group, "problems": len(left), "unjudged_groups": len(groups) - len(left),
                  "right": sum(s.score.parts["accuracy"] == 1 for g in left for s in g),
                  "readable_right": sum(good(s) for g in left for s in g), "kept": len(kept)}
        return {"counts": counts | seconds, "rows": [row(s.problem, readable(s)) for s in kept], "samples": [s.record() for s in kept[:20]]}

    sampler = ranks.lead(lambda: digests(start))       # pieces are of these weights
    pieces = [folder.remember(f"piece-{at}", lambda at=at: sift(at), sampler) for at in range(0, len(problems), PIECE)]
    counts = {k: sum(p["counts"][k] for p in pieces) for k in pieces[0]["counts"]}
    others = [row(p, direct(p)) for p in distinct(cfg.others, cfg.others_problems, folder, "/others")]
    rows = [r for p in pieces for r in p["rows"]] + others
    if not rows:
        raise UserError(f"{cfg.name}: none of {counts['sampled']} completions was right and readable; train {cfg.init!r} longer")
    folder.write("examples.jsonl", jsonl(rows))
    folder.start_logs(0)
    folder.log(step=0, **counts, others=len(others))
    folder.log_samples([{"step": 0, **s} for p in pieces for s in p["samples"]][:20])


def good(s: Scored, wrong: bool = False) -> bool:
    return (wrong or s.score.parts["accuracy"] == 1) and is_readable(s.problem, s.text) and s.rollout.finish == "eos"


def choose(group: list[Scored], keep: int, wrong: bool = False) -> list[Scored]:
    """Right (or `wrong` too), readable and different from each other, the shortest first; at most `keep` of them."""
    return sorted({s.text: s for s in group if good(s, wrong)}.values(), key=lambda s: len(s.rollout.ids))[:keep]


def readable(s: Scored) -> str:
    """The paper's readable form, made by rule: the thinking as it was, then a summary, then the answer."""
    thinking = s.text.split("<think>")[1].split("</think>")[0].strip()
    return form(thinking, find_answer(s.problem, s.text).strip(), s.problem.lang)


def form(thinking: str, answer: str, lang: str) -> str:
    return f"<think>{thinking}</think>{SUMMARY.get(lang, SUMMARY['en']).format(answer)}<answer>{answer}</answer>"


def distinct(mix: dict[str, float], count: int, folder: Folder, what: str) -> list[Problem]:
    """`count` problems, or less: those that were drawn twice count once."""
    return list({p.id: p for p in draw(open_sources(mix, folder.evaluated), count, f"{folder.seed}/{folder.name}{what}")}.values())


def direct(p: Problem) -> str:
    """The world's own answer, with one sentence for thinking; for what needs reasoning, without a thought."""
    answer = world.answer_text(p)
    return form(world.REMARKS[p.task][p.lang], answer, p.lang) if p.task in world.REMARKS else f"<answer>{answer}</answer>"


def row(p: Problem, completion: str) -> dict:
    return {"prompt": p.prompt, "completion": completion, "task": p.task, "id": p.id, "lang": p.lang}
