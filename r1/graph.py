"""What keeps a GPU busy: decode steps recorded once and replayed by one launch, and layers compiled (on a CPU they can be, too).

A decode step of a small model is over a thousand kernels of a few microseconds each, and launching them one by one takes five times as
long as running them (an H100: docs/performance.md). What is recorded holds for one cache of one size: a new one is made after rows have changed or columns were added.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from r1.context import KVCache
from r1.model import Transformer


class Steps:
    """`draw(logits (N, V), u (N,))` and `read(token (N,), cache)`, the logits after one more token."""

    def __init__(self, model: Transformer, draw: Callable, static: bool):
        """`static`: `draw` never waits for the device, as that of a nucleus does, and can be recorded."""
        self.model, self.pick, self.static, self.keys = model, draw, static, None
        self.reading = self.drawing = None

    def read(self, token: Tensor, cache: KVCache) -> Tensor:
        one = lambda token: self.model(token[:, None], cache)[:, -1]  # noqa: E731
        if token.device.type != "cuda" or hasattr(self.model, "unshard"):     # FSDP's hooks are not for recording
            return one(token)
        if cache.k is not self.keys or cache.length == cache.k.shape[3]:      # not recorded yet, because libraries set themselves up in a first step
            self.reading = self.drawing = self.keys = None                    # what they hold is let go before the cache grows
            logits = one(token)
            self.keys = cache.k
            return logits
        if self.reading is None:
            self.reading = Recorded(one, token)                               # moves the cache's own count on
        else:
            cache.length += 1
        return self.reading(token)

    def draw(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.reading is None or not self.static or logits is not self.reading.out:     # rows have changed
            return self.pick(logits, u)
        self.drawing = self.drawing or Recorded(self.pick, logits, u)
        return self.drawing(logits, u)


class Recorded:
    """A function of tensors as a CUDA graph."""

    def __init__(self, f: Callable, *args: Tensor):
        self.args, self.graph = args, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = f(*args)

    def __call__(self, *args: Tensor):
        for mine, a in zip(self.args, args, strict=True):
            if a is not mine:
                mine.copy_(a)
        self.graph.replay()
        return self.out


def on_host(*tensors: Tensor) -> Callable[[], list[Tensor]]:
    """Copies, once they are whole: until they are asked for, a GPU may be given more to do."""
    copies = [t.to("cpu", non_blocking=True) for t in tensors]
    if tensors[0].device.type != "cuda":
        return lambda: copies
    done = torch.cuda.current_stream(tensors[0].device).record_event()
    return lambda: done.synchronize() or copies


# Of a function, once per process: what does not change from call to call, as the vocabulary's size, is a constant in it.
compiled = cache(torch.compile)


def compile_layers(model: Transformer) -> None:
    """torch.compile of every layer, for training: a decode step gains nothing by it beside being recorded."""
    torch._dynamo.config.recompile_limit = 64      # kinds of rows, with and without gradient, adapters: beyond 8 it would give up in silence
    model.compiled = True
    for layer in model.layers:
        layer.compile(dynamic=True)
