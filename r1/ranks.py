"""Several processes as one: torchrun's group, FSDP2 around a model, and what the ranks tell each other.

Started without torchrun there is one rank, and everything here hands back what it was given. With torchrun every
rank draws the same problems and knows the whole batch, so that every count is global without asking; a rank samples
its share of the problems and trains on its share of the examples. Everything sharded is cut along its first
dimension, in rows as equal as torch.chunk makes them.
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1 import graph
from r1.data import families, micro_batches
from r1.types import Example, UserError

_store: dist.Store | None = None     # torchrun's own: it answers also when a rank has gone
_mesh = None                         # (nodes, ranks of a node) or (ranks,): whole copies of the model, and shards of one
_subject = "the run"                 # what a rank is doing something of: a step, an evaluation


def rank() -> int:
    return dist.get_rank() if _store else 0


def world() -> int:
    return dist.get_world_size() if _store else 1


@contextmanager
def joined(device: str, timeout: float) -> Iterator[None]:
    """The ranks that torchrun started, as one group; each waits at most `timeout` seconds for the others.

    Ends the process with a sentence that names the rank which was lost or late, and what it was doing."""
    global _store, _mesh
    if not dist.is_torchelastic_launched():
        yield
        return
    cuda, own, local, wait = device != "cpu", int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), timedelta(seconds=timeout)
    if cuda and (device != "cuda" or local > torch.cuda.device_count()):
        raise UserError(f"torchrun gives each of {local} processes a GPU of its own: say device=cuda, and as many as the "
                        f"{torch.cuda.device_count()} that are here")
    if cuda:
        torch.cuda.set_device(own)
    store, own, size = next(dist.rendezvous("env://", timeout=wait))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.PrefixStore("group", store), rank=own,
                            world_size=size, timeout=wait)
    _store = dist.PrefixStore("r1", store)
    shape = {"nodes": size // local, "ranks": local} if size > local else {"ranks": size}
    _mesh = dist.init_device_mesh(device, tuple(shape.values()), mesh_dim_names=tuple(shape))
    for group in _mesh.get_all_groups():                             # a mesh of two makes its own, which would wait for half an hour
        dist.distributed_c10d._set_pg_timeout(wait, group)
    at("the beginning")
    try:
        yield
        dist.barrier()
    except BaseException as e:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)                # torchrun's: this process is ending already
        _end(e, timeout)
        raise
    finally:
        _store = _mesh = None
    dist.destroy_process_group()


def _end(e: BaseException, timeout: float) -> None:
    """Note that this rank ends with `e`. What is a sentence is said by one rank, and ends the process."""
    lost = isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and "gloo" in str(e)     # another did not take part
    stopped = not isinstance(e, Exception)                           # by a signal: the user's, or torchrun's when it has lost a rank
    try:
        _store.set(f"end/{rank()}", "lost" if lost else "stopped" if stopped else f"{type(e).__name__}: {e}")
    except dist.DistError:
        raise SystemExit("error: torchrun itself has gone. The same command continues from the last saved state") from e
    if not lost and not stopped and not isinstance(e, UserError):
        return
    mistake = isinstance(e, UserError)
    if _store.add(f"said/{e}" if mistake else "said/a rank is lost", 1) == 1:      # one speaks, the others leave: so their neighbours notice
        text = str(e) if mistake else _who(timeout if "timed out" in str(e).lower() else 0)
        if not text:
            return
        print(f"error: {text}", file=sys.stderr, flush=True)
    if not stopped:
        raise SystemExit(2) from e


def _who(waited: float) -> str:
    """Which rank is to blame, and what it was doing: one that ended by itself, or one that says nothing any more; "" if all were stopped."""
    everyone, until = range(world()), time.monotonic() + 2
    while not _store.check([f"end/{r}" for r in everyone]) and time.monotonic() < until:
        time.sleep(0.05)
    end = {r: _store.get(f"end/{r}").decode() if _store.check([f"end/{r}"]) else "silent" for r in everyone}
    place = {r: _store.get(f"at/{r}").decode() for r in everyone}
    failed = [f"rank {r} failed in {place[r]} with {end[r]}" for r in everyone if end[r] not in ("lost", "stopped", "silent")]
    silent = [f"rank {r} has not answered since {place[r]}" for r in everyone if end[r] == "silent"]
    if not failed and not silent and "stopped" in end.values():
        return ""
    return (f"{'; '.join(failed or silent) or 'the ranks lost each other in ' + place[rank()]}"
            f"{f' (the others waited `timeout`: {waited:.0f} s)' if waited else ''}. The same command continues from the last saved state")


def at(phase: str, of: str = "") -> None:
    """Say what this rank is doing, and of which step, for the message that the others print if it does not come back."""
    global _subject
    _subject = of or _subject
    if _store:
        _store.set(f"at/{rank()}", f"{phase} of {_subject}")


# ---- words between ranks -----------------------------------------------------------------------

def together(work: Callable[[], Any]) -> list:
    """work() on every rank: the results of all, in order, on all. What one raises, all raise."""
    if not _store:
        return [work()]
    try:
        mine = (work(), None)
    except Exception as e:
        e.add_note(f"on rank {rank()}:\n{traceback.format_exc()}")
        mine = (None, e if _travels(e) else RuntimeError(f"{type(e).__name__}: {e}"))
    everyones: list = [None] * world()
    dist.all_gather_object(everyones, mine)
    for _, error in everyones:
        if error is not None:
            raise error
    return [result for result, _ in everyones]


def _travels(e: Exception) -> bool:
    try:
        return type(ForkingPickler.loads(ForkingPickler.dumps(e))) is type(e)
    except Exception:
        return False


def lead(work: Callable[[], Any]) -> Any:
    """work() on rank 0 alone: its result, or what it raised, on all."""
    return together(lambda: work() if rank() == 0 else None)[0]


def share(items: list) -> list:
    """This rank's part of what all ranks hold."""
    return items[rank()::world()]


def gather(mine: list) -> list:
    """What every rank has made of its share, in the order of the whole."""
    parts = together(lambda: mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def total(sums: dict[str, float]) -> dict[str, float]:
    """Every entry, added over the ranks."""
    parts = together(lambda: sums)
    return {k: sum(part[k] for part in parts) for k in sums}


def deal(examples: list[Example], micro_tokens: int) -> list[list[Example]]:
    """This rank's micro-batches of a batch that all ranks hold.

    Every rank gets as many, because all must run the same number of forwards: one that is short gets some of which
    nothing is trained. FSDP averages gradients over the ranks, so token weights are multiplied by their number."""
    if world() == 1 or not examples:
        return micro_batches(examples, micro_tokens)
    dealt = families(examples)                                # a prompt's examples to one rank, which reads the prompt once,
    if len(dealt) < 4 * world():                              # unless that would leave others idle
        dealt = [[e] for e in sorted(examples, key=lambda e: len(e.ids))]
    hands = [micro_batches([e for family in dealt[r::world()] for e in family], micro_tokens) for r in range(world())]
    idle = [Example(dealt[0][0].ids[:2], [0, 0])]
    mine = [[replace(e, w=e.w * world()) for e in group] for group in hands[rank()]]
    return mine + [idle] * (max(map(len, hands)) - len(mine))


# ---- models and tensors ------------------------------------------------------------------------

def shard(model: nn.Module, bf16: bool = False, recompute: bool = False, compiled: bool = False) -> nn.Module:
    """The model with its weights in shards (FSDP2), before the optimiser is made. fp32 stays what is stored,
    reduced and optimised; with `bf16` it is gathered and run in bfloat16. On one rank autocast runs the matrix products in it."""
    model.recompute = recompute
    if compiled:
        graph.compile_layers(model)
    if not _store:
        model.bf16 = bf16
        return model
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard    # half a second that one rank needs not spend
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    for part in [*model.layers, model]:
        fully_shard(part, mesh=_mesh, mp_policy=policy, reshard_after_forward=True)     # the root too: a reference has no backward
    return model


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank meanwhile: ranks may then run forward as often as each of them likes."""
    parts = [m for m in model.modules() if hasattr(m, "set_reshard_after_forward")]
    for m in parts:
        m.set_reshard_after_forward(False, recurse=False)
        m.unshard()
    try:
        yield
    finally:
        for m in parts:
            m.reshard()
            m.set_reshard_after_forward(True, recurse=False)


def whole(t: Tensor) -> Tensor:
    """A sharded tensor in full, on every rank."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def local(t: Tensor) -> Tensor:
    """The rows that this rank holds of a sharded tensor."""
    return t.redistribute(placements=_placements()).to_local() if hasattr(t, "redistribute") else t


def like(t: Tensor, rows: Tensor) -> Tensor:
    """`rows` of this rank as a tensor sharded as `t` is."""
    if not hasattr(t, "redistribute"):
        return rows
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(rows, t.device_mesh, _placements(), shape=t.shape, stride=t.stride())


def _placements() -> list:
    """On the mesh's dimensions: copies, and on the last of them rows."""
    from torch.distributed.tensor import Replicate, Shard
    return [Replicate()] * (_mesh.ndim - 1) + [Shard(0)]


def part() -> tuple[int, int, bool]:
    """Index and count of this rank's shard of a model, and whether it is of the first of several whole copies."""
    if not _mesh:
        return 0, 1, True
    last = _mesh.ndim - 1
    return _mesh.get_local_rank(last), _mesh.size(last), last == 0 or _mesh.get_local_rank(0) == 0


def rows(n: int) -> tuple[int, int]:
    """From where to where this rank holds the `n` rows of a sharded tensor."""
    index, count, _ = part()
    step = -(-n // count)
    return min(index * step, n), min((index + 1) * step, n)
