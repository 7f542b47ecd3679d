"""Low-rank adapters: against peft, against the merged weights, and what must not move."""
import json

import pytest
import torch

from r1 import checkpoint, config, lora, pipeline
from r1.config import LoRA
from r1.runtime import Folder
from r1.types import UserError

TARGETS = ["q_proj", "v_proj", "down_proj"]


def random_adapters(model, rank=3, alpha=6.0):
    """With both factors random, so that they count."""
    model = lora.adapt(model, LoRA(rank, alpha, TARGETS), 0)
    g = torch.Generator().manual_seed(5)
    for m in model.modules():
        if isinstance(m, lora.Adapted):
            m.b.data.copy_(torch.randn(m.b.shape, generator=g) * 0.1)
    return model


IDS = torch.arange(40).view(2, 20) * 7 % 300


def test_it_begins_as_the_model_and_can_be_switched_off(make_model):
    plain = make_model()(IDS)
    model = lora.adapt(make_model(), LoRA(4), 0)
    assert torch.equal(model(IDS), plain)
    model = random_adapters(make_model())
    assert (model(IDS) - plain).abs().max() > 0.01
    with lora.off(model):
        assert torch.equal(model(IDS), plain)
    trained = [n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad]
    assert set(trained) == {"a", "b"} and len(trained) == 2 * 2 * len(TARGETS)


def test_what_is_saved_and_what_is_sampled_is_the_sum(make_model, tmp_path):
    model = random_adapters(make_model(torch.float64, attention_bias=True))
    checkpoint.save_model(tmp_path / "m", model, eos_ids=[1])
    merged = checkpoint.load_model(tmp_path / "m", dtype=torch.float64)
    assert set(dict(merged.named_parameters())) == {n for n, _ in model.named_parameters() if not n.endswith((".a", ".b"))}
    with torch.no_grad():
        assert (merged(IDS) - model(IDS)).abs().max() < 1e-6      # rope in float32 there
        with model.laid_out():
            assert (merged(IDS) - model(IDS)).abs().max() < 1e-6
        model.float().bf16 = merged.float().bf16 = True
        assert (merged(IDS) - model(IDS)).abs().max() < 0.2


def test_against_peft(make_model, tmp_path):
    """The same logits and the same gradients of A and B."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    checkpoint.save_model(tmp_path / "m", make_model(), eos_ids=[1])
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m"),
                                 peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, lora_dropout=0.0))
    ours = random_adapters(checkpoint.load_model(tmp_path / "m"))
    pairs, mine = [], dict(ours.named_modules())
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            own = mine[name.removeprefix("base_model.model.model.")]
            module.lora_A["default"].weight.data.copy_(own.a)
            module.lora_B["default"].weight.data.copy_(own.b)
            pairs += [(own.a, module.lora_A["default"].weight), (own.b, module.lora_B["default"].weight)]
    assert len(pairs) == 12
    a, b = ours(IDS), theirs(IDS).logits
    assert (a - b).abs().max() < 1e-5
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in pairs:
        assert (x.grad - y.grad).abs().max() < 1e-4 * max(1, y.grad.abs().max())


@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_training_moves_the_targets_alone(tmp_path, tokenizer, make_model, kind):
    """Through the stages: a run that was stopped and went on ends with the same weights; the reference costs no second model."""
    start = make_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    checkpoint.save_model(tmp_path / "start", start, tokenizer, [tokenizer.eos_id])
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n{"prompt": "2+1?", "completion": "3"}\n')
    stage = {"name": "x", "kind": kind, "init": str(tmp_path / "start"), "template": "plain", "save_every": 1, "optim": {"lr": 1e-2},
             "lora": {"rank": 2, "alpha": 4, "targets": TARGETS}}
    stage |= {"data": [str(tmp_path / "data.jsonl")], "epochs": 3} if kind == "sft" else {
        "data": {"chain": 1}, "steps": 3, "problems": 2, "group": 4, "kl_coef": 0.1, "ref_every": 3, "reward_function": f"{__file__}:taste",
        "reward": {"custom": 1}, "sample": {"max_new_tokens": 6}}
    ends = []
    for out in ("a", "b"):
        cfg = config.parse({"out": str(tmp_path / out), "templates": {"plain": "{prompt}"}, "stages": [stage]}, "test")
        if out == "b":                                  # stopped after the first step
            real, monkey = Folder.save, pytest.MonkeyPatch()

            def save(self, step, real=real):
                real(self, step)
                raise KeyboardInterrupt

            monkey.setattr(Folder, "save", save)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(cfg)
            monkey.undo()
        pipeline.run(cfg)
        ends.append(dict(checkpoint.load_model(tmp_path / out / "x/model").named_parameters()))
    for name, p in start.named_parameters():
        assert torch.equal(ends[0][name], ends[1][name]), name
        assert torch.equal(ends[0][name], p) != any(name.endswith(f"{t}.weight") for t in TARGETS), name
    log = [json.loads(line) for line in (tmp_path / "a/x/metrics.jsonl").read_text().splitlines()]
    if kind == "grpo":
        assert log[0]["kl"] == 0 and log[2]["kl"] > 0


def taste(problem, completion):
    return len(completion) % 3


def test_a_target_that_is_not_there_is_named(make_model):
    with pytest.raises(UserError, match="no layers 'q_prj'; it has .*q_proj"):
        lora.adapt(make_model(), LoRA(2, targets=["q_prj"]), 0)
