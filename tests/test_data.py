"""From examples to batches, on literal numbers; and JSONL that says where it is broken."""
import json
import math
import random
from itertools import islice

import pytest
import torch

from r1.data import collate, micro_batches, pack
from r1.files import jsonl, read_jsonl, write_text
from r1.losses import cross_entropy, grpo_loss
from r1.optim import supervised_logprobs
from r1.types import Example, UserError

# ---- the one shift -----------------------------------------------------------------------------


def test_collate_shifts_once():
    """Column t of every field speaks of the token after input t; padding is unsupervised and weighs nothing."""
    b = collate([Example([11, 12, 13, 14, 15], [0, 0, 1, 1, 1], 0.5, 0.25, [-.1, -.2, -.3]),
                 Example([21, 22], [0, 1], -2.0, 0.75, [-.9])])
    assert b.inputs.tolist() == [[11, 12, 13, 14], [21, 22, 0, 0]]
    assert b.targets.tolist() == [[12, 13, 14, 15], [22, 0, 0, 0]]
    assert b.mask.tolist() == [[False, True, True, True], [True, False, False, False]]
    assert b.w.tolist() == [[0, .25, .25, .25], [.75, 0, 0, 0]]
    assert b.adv.tolist() == [[0, .5, .5, .5], [-2, 0, 0, 0]]
    assert torch.equal(b.old_logp, torch.tensor([[0, -.1, -.2, -.3], [-.9, 0, 0, 0]]))
    assert b.ref_logp is None


def test_collate_puts_sampled_log_probs_on_the_supervised_tokens():
    """Also where what is supervised has a gap; a row that was not sampled keeps zeros."""
    b = collate([Example([1, 2, 3, 4], [0, 1, 0, 1], 0.0, 1.0, [-1.0, -2.0]), Example([5, 6], [0, 1])])
    assert b.old_logp.tolist() == [[-1, 0, -2], [0, 0, 0]]


def test_collate_without_sampled_log_probs_makes_zeros():
    assert collate([Example([1, 2], [0, 1])]).old_logp.tolist() == [[0]]


def test_an_example_weighs_the_same_in_any_company(make_model):
    """Log-probs, loss and gradient of a row do not change with padding columns or other rows beside it."""
    model = make_model(torch.float64)
    row = Example([5, 9, 9, 2, 7, 1], [0, 0, 1, 1, 1, 1], -0.7, 0.3, [-1.0, -2.0, -0.5, -3.0])
    other = Example(list(range(20, 40)), [0] * 4 + [1] * 16, 1.0, 0.0, [-2.0] * 16)       # weighs nothing

    def run(examples):
        b = collate(examples)
        logp, _ = supervised_logprobs(model, b)
        i = [e is row for e in examples].index(True)
        loss = grpo_loss(logp, b.old_logp, b.adv, b.mask, b.w)[0] + cross_entropy(logp, b.mask, b.w)
        return logp[i, :5].detach(), loss.detach(), torch.autograd.grad(loss, list(model.parameters()))

    logp, loss, grads = run([row])
    for company in ([other, row], [row, other, other]):
        logp2, loss2, grads2 = run(company)
        assert (logp - logp2).abs().max() < 1e-6 and abs(loss - loss2) < 1e-6
        assert max((a - b).abs().max() for a, b in zip(grads, grads2, strict=True)) < 1e-6


# ---- micro-batches and packing -----------------------------------------------------------------

@pytest.mark.parametrize("budget", [1, 30, 100, 10_000])
def test_micro_batches_keep_every_example_once_within_the_budget(budget):
    """Rows times the longest row fits the budget; an example that alone exceeds it stands alone."""
    rng = random.Random(budget)
    examples = [Example([0] * n, [1] * n) for n in (rng.randint(2, 40) for _ in range(100))]
    groups = micro_batches(examples, budget)
    assert sorted(id(e) for g in groups for e in g) == sorted(map(id, examples))
    for g in groups:
        assert len(g) == 1 or len(g) * max(len(e.ids) for e in g) <= budget
    assert all(groups) and (budget < 10_000 or len(groups) == 1)


def test_micro_batches_put_like_lengths_together():
    """Lengths 9 2 8 3 2 within 8 padded tokens: 2 2, 3, 8, 9."""
    groups = micro_batches([Example([0] * n, [1] * n) for n in (9, 2, 8, 3, 2)], 8)
    assert [[len(e.ids) for e in g] for g in groups] == [[2, 2], [3], [8], [9]]


def test_pack_by_hand():
    """Every row begins with a document, the last document of a row is cut, and so is a row that never fills."""
    documents = [[1, 2], [3, 4, 5], [6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 16], [17]]
    assert list(pack(documents, 4)) == [[1, 2, 3, 4], [6, 7, 8, 9], [13, 14, 15, 16]]


def test_pack_reads_no_further_than_it_must():
    """The documents may be endless."""
    def endless():
        while True:
            yield [1, 2, 3]
    assert list(islice(pack(endless(), 5), 2)) == [[1, 2, 3, 1, 2]] * 2


# ---- JSONL -------------------------------------------------------------------------------------

GOOD = b'{"a": 1}\n\n'


@pytest.mark.parametrize("line, words", [
    (b'{"a": 1', "not a JSON object"), (b"\xff\xfe", "not a JSON object"), (b"[" * 100_000, "not a JSON object"),
    (b"[1, 2]", "expected a JSON object, found list"), (b"null", "found NoneType"),
    (b'{"b": 2, "c": 3}', "field 'a' is missing (found: b, c)")])
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, words):
    """The third line is the third, also after an empty one; what stands before it is still read."""
    file = tmp_path / "mine.jsonl"
    file.write_bytes(GOOD + line + b"\n")
    rows = read_jsonl(file, ["a"])
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(UserError) as e:
        list(rows)
    assert f"{file}:3: " in str(e.value) and words in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_jsonl_round_trip(tmp_path):
    """Any text and number comes back, line separators inside a text too; the written file is UTF-8 as it is read."""
    rows = [{"t": "Zeile\u2028 \n\r\x85 é 中 😀"}, {"n": [1, 2.5, None, True]}, {"x": math.pi}]
    write_text(tmp_path / "a.jsonl", jsonl(rows))
    assert [r for _, r in read_jsonl(tmp_path / "a.jsonl")] == rows
    assert "中" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.jsonl"
    write_text(file, jsonl([{"a": 1}]))
    with pytest.raises(TypeError):
        write_text(file, jsonl([{"a": 2}, {"a": {1, 2}}]))
    assert json.loads(file.read_text()) == {"a": 1}
