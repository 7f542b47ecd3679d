"""The two attempts that did not work are small programs of their own; these are the parts that would spoil their verdict if wrong."""
import random
import sys
from pathlib import Path

import pytest
import torch

from r1 import world
from r1.config import Sample
from r1.rollout import Scored
from r1.types import Rollout, Score

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "attempts"))

import mcts  # noqa: E402
import prm  # noqa: E402


def completion(tokenizer, text: str, right: float = 1.0, prefix: str = "") -> Scored:
    ids = tokenizer.encode(text)
    text = prefix + text
    problem = world.make("chain", random.Random(0), False)[0]
    return Scored(problem, Rollout([1, 2], ids, [0.0] * len(ids), "eos"), text, Score(right, {"accuracy": right}, "ok"))


@pytest.mark.parametrize("text, steps, right", [
    ("<think>We have 3+4-2. Then 3+4=7, left 7-2. Last 7-2=5.</think><answer>5</answer>", 4, [1, 1, 1, 1]),
    ("<think>我们有3+4-2。先算3+4=8，剩下8-2。最后8-2=6。</think><answer>6</answer>", 4, [1, 0, 1, 0]),
    ("<think>Make 12. Try 3+4+5=7+5=12, yes. Try 3+4*2=7*2=14, no.</think><answer>3+4+5</answer>", 4, [1, 1, 0, 1]),
    ("<answer>5</answer>", 1, [1])])
@pytest.mark.parametrize("prefilled", [False, True])
def test_steps_are_sentences_and_their_labels_are_their_sums(tokenizer, text, steps, right, prefilled):
    """Also where the template has written <think> already: it stands in the text and not in the ids."""
    text = text.removeprefix("<think>" if prefilled else "")
    s = completion(tokenizer, text, right[-1], "<think>" * prefilled)
    at = prm.steps_of(s, tokenizer)
    assert len(at) == steps and at == sorted(set(at)) and at[-1] == len(s.rollout.ids)
    assert "".join(tokenizer.decode(s.rollout.ids[a:b]) for a, b in zip([0, *at], at, strict=False)) == text
    assert prm.labels(s, at, tokenizer) == right


def test_process_advantages_by_hand():
    """Rewards 1, 0 and 1 over the two completions: mean 2/3, deviation sqrt(2)/3; a token is given what ends with it or after."""
    up, down = (1 / 3) / (2 ** 0.5 / 3), (-2 / 3) / (2 ** 0.5 / 3)
    (first, second), = prm.process_advantages([[[1.0, 0.0], [1.0]]], [[[2, 3], [2]]], [[3, 2]])
    assert first.tolist() == pytest.approx([up + down, up + down, down]) and second.tolist() == pytest.approx([up, up])


def test_the_search_goes_where_the_value_is():
    """Two finished children, one of which is worth more: visits follow; a node never has more children than allowed."""
    root = mcts.Node([])
    root.children, root.tries = [mcts.Node([i], True, root) for i in range(mcts.CHILDREN)], mcts.CHILDREN
    for _ in range(300):
        node = mcts.select(root)
        worth = 0.9 if node.ids == [1] else 0.1
        while node is not None:
            node.visits, node.total, node = node.visits + 1, node.total + worth, node.parent
    visits = [c.visits for c in root.children]
    assert sum(visits) == root.visits == 300 and visits[1] > 200 and min(visits) >= 1


def test_a_search_counts_its_tokens_and_keeps_to_its_limits(tokenizer, make_model):
    model = make_model(vocab_size=tokenizer.vocab_size)
    value = mcts.Value(model)
    prompts = [tokenizer.encode("User: 1+1?\nAssistant:<think>"), tokenizer.encode("User: 2+3?\nAssistant:<think>")]
    roots, spent = mcts.search(model, value, tokenizer, [tokenizer.eos_id], prompts, Sample(max_new_tokens=12), 3)
    grown = [n for r in roots for n in mcts.nodes(r)[1:]]
    assert spent >= sum(len(n.ids) - len(n.parent.ids) for n in grown) and all(mcts.principal(r).done for r in roots)
    assert all(len({tuple(c.ids) for c in n.children}) == len(n.children) <= n.tries for n in [*roots, *grown])      # no two say the same
    assert all(len(n.children) <= mcts.CHILDREN and len(n.ids) <= 12 and (n.done or len(n.ids) < 12) for n in grown)
    assert all(n.ids[:len(n.parent.ids)] == n.parent.ids and n.visits >= sum(c.visits for c in n.children) for n in grown)
    assert torch.is_grad_enabled()


def test_a_step_of_the_search_is_a_sentence_and_the_last_is_the_answer(tokenizer):
    ids = tokenizer.encode("We have 3+4. Last 3+4=7.</think><answer>7. 8</answer>")
    ends = [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1) if mcts.step_ends(tokenizer, ids[:n])]
    assert ends == ["We have 3+4.", "We have 3+4. Last 3+4=7."]


def test_nothing_imports_them():
    for file in [*ROOT.glob("r1/*.py"), *ROOT.glob("*.py")]:
        assert not {"attempts", "prm", "mcts"} & set(file.read_text(encoding="utf-8").replace(".", " ").split()), file
