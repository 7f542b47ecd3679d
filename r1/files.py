"""Files and folders: JSONL read with honest errors, and writing that leaves nothing half written, whenever it is killed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

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


def load_json(file: Path) -> dict:
    """The file's object; {} if it is missing or half written."""
    with suppress(OSError, ValueError):
        if isinstance(found := json.loads(file.read_text(encoding="utf-8")), dict):
            return found
    return {}


def write_text(path: str | Path, text: str) -> None:
    """Write aside, sync, rename: the old text or the new one is there, also after the power has failed."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    with writing(path, len(text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8", errors="replace")        # a model may emit half a surrogate pair
        sync(aside)
        aside.replace(path)
        sync(path.parent)


def append_text(path: Path, text: str) -> None:
    with writing(path, len(text)), path.open("a", encoding="utf-8") as f:
        f.write(text)


def jsonl(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- folders, whole or not at all --------------------------------------------------------------

def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """SHA-256 of what a file holds."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digests(model: Path) -> dict[str, str]:
    """Of a model's weights, by file."""
    return {f.name: digest(f) for f in sorted(model.glob("*.safetensors"))}


def make_aside(path: Path) -> Path:
    """A fresh `.tmp-` folder beside `path`, on the same file system so that a rename can publish it."""
    aside = path.with_name(f".tmp-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def publish(aside: Path, path: Path) -> None:
    """Sync what is in `aside` and rename it to `path`, in place of what may be there."""
    old = path.with_name(f".old-{path.name}")
    mode = next(aside.glob("*.json")).stat().st_mode & 0o777
    for file in aside.iterdir():
        os.chmod(file, mode)                           # safetensors writes 0600 whatever the umask says
        sync(file)
    sync(aside)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)                           # a folder cannot be renamed over a full one
    os.rename(aside, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Put back the old folder if `publish` was killed between its two renames."""
    old = path.with_name(f".old-{path.name}")
    if old.exists() and not path.exists():
        with suppress(OSError):                        # another rank was quicker
            os.rename(old, path)


def discard(path: Path) -> None:
    """Delete a folder under another name, so that a half-deleted one is never taken for a whole one."""
    trash = path.with_name(f".trash-{path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend, and costs nothing but what was being written: UserError."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        shutil.rmtree(path.with_name(f".tmp-{path.name}"), ignore_errors=True)
        with suppress(OSError):
            path.with_name(path.name + ".tmp").unlink()                   # what write_text has begun
        raise UserError(f"{path} could not be written ({getattr(e, 'strerror', None) or e}); it takes {size / 1e6:.1f} MB. What was "
                        f"saved before is whole: make room, and the same command continues") from e
