"""What the README and docs/findings.md say is what the committed results say."""
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs/results"))

import findings  # noqa: E402


def test_tables_and_pictures_are_made_from_the_committed_results(tmp_path, monkeypatch):
    for name in ("README", "DOC"):
        monkeypatch.setattr(findings, name, Path(shutil.copy(getattr(findings, name), tmp_path)))
    data = Path(shutil.copytree(findings.DATA, tmp_path / "findings"))
    monkeypatch.setattr(findings, "DATA", data)
    monkeypatch.setattr(sys, "argv", ["findings.py"])
    for svg in data.glob("*.svg"):
        svg.unlink()
    findings.main()
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (tmp_path / "findings.md").read_text() == (ROOT / "docs/findings.md").read_text()
    for svg in (ROOT / "docs/results/findings").glob("*.svg"):
        assert (data / svg.name).read_text() == svg.read_text()


def test_every_finding_has_its_config_and_its_section():
    document = (ROOT / "docs/findings.md").read_text()
    for name in (measure.__name__ for measure, *_ in findings.FINDINGS):
        assert (ROOT / f"configs/findings/{name}.yaml").is_file() and f"python train.py configs/findings/{name}.yaml" in document


def test_standard_errors_by_hand():
    """Seeds 1 and 3: 2 and 1. Problems 0, 2, 4: deviation 2, over the root of 3. Both: the root of the squares."""
    mean, se = findings.joined([1.0, 3.0], [0.0, 2.0, 4.0])
    assert mean == 2.0 and se == pytest.approx((1.0 ** 2 + (2 / 3 ** 0.5) ** 2) ** 0.5)
    assert findings.joined([5.0], []) == (5.0, 0.0)


@pytest.mark.parametrize("tests, says", [([((3, 1), 1)], "replicated"), ([((1, 1), 1)], "**not replicated**"), ([((-3, 1), 1)], "**the reverse**"),
                                         ([((-3, 1), -1), ((9, 1), -1)], "**mixed**"), ([((-3, 1), -1), ((1, 1), -1)], "partly"), ([((-3, 1), -1), ((3, 1), 1)], "replicated")])
def test_a_verdict_needs_two_standard_errors(tests, says):
    assert findings.verdict(*tests) == says


def test_differences_are_paired_by_problem(monkeypatch):
    """Two problems of very different difficulty, and the same gain in each: the gain's error is 0, that of each figure is not."""
    seed = lambda a, b: {name: {"eval": {"reasoning": {"each": {"p": [x, 1], "q": [y, 0]}}}} for name, (x, y) in (("old", a), ("new", b))}  # noqa: E731
    monkeypatch.setattr(findings, "SEEDS", [seed((0.1, 0.8), (0.2, 0.9))] * 2)
    assert findings.right("new", "old") == pytest.approx((10, 0))
    mean, se = findings.right("new")
    assert mean == pytest.approx(55) and se == pytest.approx(35)
    assert findings.right("new", "pass", vote=True)[0] == pytest.approx(50 - 55)
