"""Text files: JSONL read with honest errors, and writing that leaves no half file."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from r1.types import UserError


def read_jsonl(path: str | Path, fields: Iterable[str] = ()) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line. Raises UserError with file:line for a broken line or missing field."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            if not raw.strip():
                continue
            row = read_object(raw, f"{path}:{number}")
            missing = [f for f in fields if f not in row]
            if missing:
                raise UserError(f"{path}:{number}: field {missing[0]!r} is missing (found: {', '.join(map(str, row))})")
            yield number, row


def read_object(raw: bytes, where: str) -> dict:
    """One JSON object. Raises UserError that begins with `where`."""
    try:
        row = json.loads(raw.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()                      # half a surrogate pair is no text
    except (ValueError, RecursionError) as e:                             # ValueError: also a number of 5,000 digits
        raise UserError(f"{where}: not a JSON object in UTF-8: {e}") from e
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def write_text(path: str | Path, text: str) -> None:
    """Write aside, then rename, so that no half file is ever read."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8", errors="replace")            # a model may emit half a surrogate pair
    aside.replace(path)


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
