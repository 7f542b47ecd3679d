"""Stages pretrain and sft (distillation is sft of another model): one loop, one masked cross-entropy.

They differ in data and mask alone: pretraining supervises every token of packed documents, fine-tuning the
completion of each conversation and its EOS.
"""

import itertools
import random
import time
from collections.abc import Callable
from functools import lru_cache

from r1 import lora, ranks, world
from r1.benchmarks import shared
from r1.checkpoint import load_model
from r1.config import SFT, Pretrain
from r1.data import pack
from r1.files import read_jsonl
from r1.losses import cross_entropy
from r1.model import ModelConfig, Transformer
from r1.optim import lr_at, make_optimizer, optimise, supervised_logprobs
from r1.runtime import Folder
from r1.tokenizer import Tokenizer
from r1.types import Batch, Example, UserError

BLOCK = 50      # steps whose rows are made at once


def pretrain(cfg: Pretrain, folder: Folder) -> None:
    """Random weights and the world's corpus -> a base model."""
    if cfg.init:
        tokenizer = Tokenizer.load(folder.find_model(cfg.init))
    else:
        documents = world.corpus(f"{folder.seed}/tokenizer", cfg.thinks, cfg.mixes, cfg.checks)
        tokenizer = Tokenizer.train(itertools.islice(documents, 10_000), cfg.vocab_size)
    model = Transformer(shape(cfg, tokenizer.vocab_size)).init_weights(folder.seed).to(folder.device)

    @lru_cache(1)
    def block(number: int) -> list[list[int]]:         # of the corpus, each from its own seed: any step can be the first
        documents = world.corpus(f"{folder.seed}/{number}", cfg.thinks, cfg.mixes, cfg.checks)
        return list(itertools.islice(pack(_encoded(documents, tokenizer), cfg.row_tokens + 1), BLOCK * cfg.rows))

    def batch(step: int) -> list[Example]:
        number, i = divmod(step, BLOCK)
        return [Example(ids, [1] * len(ids), w=1 / (cfg.rows * cfg.row_tokens)) for ids in block(number)[i * cfg.rows:(i + 1) * cfg.rows]]

    model = train(model, batch, cfg.steps, cfg, folder)
    folder.save_model(model, tokenizer, [tokenizer.eos_id])


def shape(cfg: Pretrain, vocab_size: int) -> ModelConfig:
    """The model that `model` in the config asks for. Raises UserError for fields that no model has."""
    try:
        return ModelConfig(**{"vocab_size": vocab_size, **cfg.model})
    except (TypeError, ValueError) as e:
        raise UserError(f"{cfg.name}.model: {e}") from e


def _encoded(documents, tokenizer: Tokenizer):
    while True:
        for ids in tokenizer.encode_batch(list(itertools.islice(documents, 512))):
            yield ids + [tokenizer.eos_id]


def sft(cfg: SFT, folder: Folder) -> None:
    """A model and conversations -> the model fine-tuned on their completions."""
    start = folder.find_model(cfg.init)
    model, tokenizer = lora.adapt(load_model(start, folder.device), cfg.lora, folder.seed), Tokenizer.load(start)
    examples = read_examples(cfg, folder, tokenizer, model.cfg.max_position_embeddings)
    per_epoch = -(-len(examples) // cfg.batch)

    def batch(step: int) -> list[Example]:
        epoch, i = divmod(step, per_epoch)
        order = random.Random(f"{folder.seed}/{epoch}").sample(range(len(examples)), len(examples))
        chosen = [examples[j] for j in order[i * cfg.batch:(i + 1) * cfg.batch]]
        total = sum(sum(e.mask) for e in chosen)
        return [Example(e.ids, e.mask, w=1 / total) for e in chosen]

    model = train(model, batch, cfg.epochs * per_epoch, cfg, folder)
    folder.save_model(model, tokenizer.with_template(folder.template(cfg.template)), [tokenizer.eos_id])


def read_examples(cfg: SFT, folder: Folder, tokenizer: Tokenizer, context: int) -> list[Example]:
    """Lines {"prompt", "completion"} or {"messages"} of earlier stages or files, as token ids with their mask."""
    examples, asking = [], tokenizer.with_template(folder.template(cfg.template))
    for source in cfg.data:
        stage = folder.root / source / "examples.jsonl"
        file = stage if stage.is_file() else source
        for number, row in read_jsonl(file):
            if "messages" in row:
                try:
                    ids, mask = tokenizer.render(row["messages"])
                except UserError as e:
                    raise UserError(f"{file}:{number}: {e}") from e
            elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
                ids, mask = asking.render([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}])
            else:
                raise UserError(f"{file}:{number}: expected the fields prompt and completion (texts), or messages")
            if folder.evaluated and shared(tokenizer.decode(ids), folder.evaluated):
                continue                                    # it holds a problem that is evaluated
            if len(ids) > context:
                raise UserError(f"{file}:{number}: {len(ids)} tokens do not fit into the model's context of {context}")
            examples.append(Example(ids, mask))
    if not examples:
        raise UserError(f"{cfg.name}: no examples in {', '.join(cfg.data)}")
    random.Random(folder.seed).shuffle(examples)
    return examples[:cfg.limit] if cfg.limit else examples


def train(model: Transformer, batch: Callable[[int], list[Example]], steps: int, cfg: Pretrain | SFT, folder: Folder) -> Transformer:
    """`steps` steps of masked cross-entropy on `batch(step)`, from the folder's last state on. Returns the model, in
    shards where there are several ranks."""
    o = cfg.optim
    model = ranks.shard(model, folder.bf16(o.bf16), o.recompute, o.compile)
    optimizer = make_optimizer(model, o.lr, tuple(o.betas), o.weight_decay, o.muon_lr, o.offload)
    done = folder.resume(model, optimizer)

    def loss_fn(b: Batch):
        logp, _ = supervised_logprobs(model, b)
        return cross_entropy(logp, b.mask, b.w), {}

    tokens, began = 0, time.perf_counter()
    for step in folder.steps(cfg, done, steps):
        examples = batch(step)
        tokens += sum(len(e.ids) for e in examples)
        out = optimise(model, optimizer, examples, loss_fn, lr_at(step, steps, o.lr, o.warmup, o.final, o.schedule),
                       o.micro_tokens, o.clip)
        out["tokens_per_second"] = tokens / (time.perf_counter() - began)
        folder.log(step=step, **out)
        folder.bar.set_postfix(loss=f"{out['loss']:.3f}")
    return model
