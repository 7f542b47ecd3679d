"""What the tests share: one thread, a small random model, a tokenizer of the tiny world, and slow tests on demand."""
import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))      # the checkout, whether or not it is installed

from r1 import world  # noqa: E402
from r1.model import ModelConfig, Transformer  # noqa: E402
from r1.tokenizer import Tokenizer  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; runs only with -m slow")


def pytest_collection_modifyitems(config, items):
    """Without an -m that speaks of them, slow tests stay out."""
    if "slow" in config.option.markexpr:
        return
    slow = [i for i in items if i.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [i for i in items if not i.get_closest_marker("slow")]


def random_model(dtype=torch.float32, seed=0, **changes) -> Transformer:
    """Every parameter random, the norms too, and large enough for clear-cut distributions."""
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, **changes}
    g = torch.Generator().manual_seed(seed)
    model = Transformer(ModelConfig(**shape))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
    return model.to(dtype)


@pytest.fixture
def make_model():
    """The maker of random models: dtype, seed and other fields of ModelConfig may be named."""
    return random_model


@pytest.fixture
def tiny_model():
    """2 layers, width 32, 4 query and 2 key heads, 300 tokens, float32."""
    return random_model()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Trained on 2,000 documents of the tiny world's corpus."""
    return Tokenizer.train(itertools.islice(world.corpus(0, 0.1, 0.4, 0.1), 2000), 768)


class Killed(BaseException):
    pass


def die_at(monkeypatch, n):
    """Raise Killed at the n-th call that changes the disk."""
    left = iter(range(n - 1, -1, -1))

    def dying(real):
        def call(*args, **kwargs):
            if next(left, 1) == 0:
                raise Killed
            return real(*args, **kwargs)
        return call

    for name in ("rename", "fsync", "chmod"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))
