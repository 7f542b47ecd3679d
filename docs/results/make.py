"""Where tables go: into a document, between the command that makes them and the next end mark."""
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
sys.path.insert(0, str(HERE.parents[1]))


def put(file: Path, command: str, text: str) -> None:
    """Replace the table in `file` that `command` makes."""
    begin, end = f"<!-- table: {command} -->\n", "<!-- end of table -->"
    head, rest = file.read_text(encoding="utf-8").split(begin)
    file.write_text(head + begin + text + end + rest.split(end, 1)[1], encoding="utf-8")
