"""Problems that people measure on, by name: each source's own fields -> Problem, and where its files come from.

A name alone fetches the files from the hub once; NAME:FOLDER or NAME:FILE reads a local copy in the same format (parquet needs the
package pyarrow, JSONL nothing). Sides of the split are the sources' own; most are for evaluation alone.
"""

import ast
import random
import re
from collections.abc import Callable
from pathlib import Path

from r1 import hub
from r1.files import read_jsonl
from r1.types import Problem, UserError

# name -> (data set, files of the training side, of the test side; "": there is none)
WHERE = {
    "gsm8k": ("openai/gsm8k", "main/train-*.parquet", "main/test-*.parquet"),                       # Cobbe et al. 2021
    "math": ("nlile/hendrycks-MATH-benchmark", "data/train-*.parquet", "data/test-*.parquet"),      # Hendrycks et al. 2021; its test side is MATH-500
    "math500": ("HuggingFaceH4/MATH-500", "", "test.jsonl"),                                        # Lightman et al. 2023
    "aime24": ("HuggingFaceH4/aime_2024", "", "data/train-*.parquet"),
    "amc": ("AI-MO/aimo-validation-amc", "", "data/train-*.parquet"),
    "mbpp": ("google-research-datasets/mbpp", "full/train-*.parquet", "full/test-*.parquet"),       # Austin et al. 2021
}


def load(name: str, local: str, test: bool) -> list[Problem]:
    """All problems of one side. Raises UserError for files that cannot be had, and for rows that lack a field."""
    data, *sides = WHERE[name]
    pattern = sides[test]
    if not pattern:
        return []
    if not local:
        files = hub.fetch_data(data, pattern)
    elif Path(local).is_dir():
        files = sorted(f for f in Path(local).rglob("*") if f.suffix in (".parquet", ".jsonl"))
        if not files:
            raise UserError(f"{name}:{local}: no .parquet or .jsonl file in this folder")
        if sides[0]:
            files = [f for f in files if f.name.startswith("test" if test else "train")]
    elif sides[0]:
        raise UserError(f"{name}:{local}: {name} has two sides; name a folder with train*.jsonl and test*.jsonl (or parquet) in it")
    else:
        files = [Path(local)]
    problems = []
    for file in files:
        for number, row in _rows(file):
            try:
                found = ROWS[name](row)
            except (LookupError, TypeError, ValueError, AttributeError, SyntaxError) as e:
                raise UserError(f"{file}:{number}: not a row of {name}: {type(e).__name__} {e}; it has the fields {', '.join(row)}") from e
            problems += [found] if found else []
    return problems


def _rows(file: Path):
    """(number from 1, row) of a JSONL or a parquet file."""
    if file.suffix != ".parquet":
        yield from read_jsonl(file)
        return
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"{file} is a parquet file, which needs the package: pip install pyarrow") from e
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as e:
        raise UserError(f"{file} cannot be read: {e}") from e
    yield from enumerate(table.to_pylist(), 1)


def _gsm8k(row: dict) -> Problem:
    """The answer stands behind the last ####, with commas in it."""
    return Problem("gsm8k", row["question"], row["question"].strip(), row["answer"].rsplit("####", 1)[1].strip().replace(",", ""))


def _math(task: str) -> Callable[[dict], Problem]:
    return lambda row: Problem(task, str(row.get("unique_id") or row["problem"]), row["problem"].strip(), str(row["answer"]),
                               level=int(re.sub(r"\D", "", str(row.get("level", ""))) or 0))


def _competition(task: str) -> Callable[[dict], Problem]:
    """Answers are whole numbers, some of them written as 96.0."""
    return lambda row: Problem(task, str(row["id"]), row["problem"].strip(), str(int(float(row["answer"]))))


def _mbpp(row: dict) -> Problem | None:
    """Asserts that compare a call with a value become calls; a problem with others is left out: its verdict could not stay outside of
    the sandbox."""
    calls, names = [], set()
    for line in row["test_list"]:
        test = ast.parse(line).body[0]
        compare = test.test if isinstance(test, ast.Assert) else None
        if not (isinstance(compare, ast.Compare) and isinstance(compare.ops[0], ast.Eq) and isinstance(compare.left, ast.Call)
                and isinstance(compare.left.func, ast.Name) and not compare.left.keywords):
            return None
        try:
            calls.append([[ast.literal_eval(a) for a in compare.left.args], ast.literal_eval(compare.comparators[0])])
        except ValueError:
            return None
        names.add(compare.left.func.id)
    if len(names) != 1:
        return None
    asked = f"{row['text'].strip()} The function is called {(name := names.pop())}; for example: {row['test_list'][0]}"
    return Problem("mbpp", str(row["task_id"]), asked, {"entry": name, "calls": calls}, "code")


ROWS = {"gsm8k": _gsm8k, "math": _math("math"), "math500": _math("math500"), "aime24": _competition("aime24"), "amc": _competition("amc"), "mbpp": _mbpp}


def countdown(rng: random.Random, numbers: int) -> Problem:
    """TinyZero's game: `numbers` of 1..99, each used once, +, -, *, / to a target of at most 1,000. It is made from a solution, so there is one."""
    while True:
        given = [rng.randint(1, 99) for _ in range(numbers)]
        values = given[:]
        while len(values) > 1:
            a, b = (values.pop(rng.randrange(len(values))) for _ in range(2))
            ways = [a + b, abs(a - b), a * b] + ([a // b] if b and a % b == 0 else [])
            values.append(rng.choice(ways))
        if 1 <= values[0] <= 1000 and values[0] not in given:
            break
    given.sort()
    ask = f"Using each of the numbers {', '.join(map(str, given[:-1]))} and {given[-1]} exactly once, with + - * / and brackets, write an expression equal to {values[0]}."
    return Problem("countdown", f"countdown:{given}={values[0]}", ask, {"numbers": given, "target": values[0]}, "countdown", level=numbers)


def shared(text: str, known: set[str]) -> bool:
    """Whether a text shares a run of ten words with a set of them: the paper's rule for what training data must not hold (v2, D.1)."""
    return not known.isdisjoint(grams(text))


def grams(text: str, n: int = 10) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return [" ".join(words[i:i + n]) for i in range(len(words) - n + 1)]
