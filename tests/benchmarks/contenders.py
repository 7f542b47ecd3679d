"""What is measured, one at a time and each in a process of its own: `python contenders.py NAME '{"dtype": "bf16", ...}'` prints a line of JSON.

Every function takes the folder of a model (the shape of SmolLM2-135M unless it says otherwise) and returns how much was done in how many
seconds. Loading is not counted; every contender warms up on a little of the same work.
"""
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 1e5}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
QUESTIONS = ["What is the capital of France?", "Name three fruits.", "Write a short poem about rain.", "What is 12 + 30?",
             "Is the sun a star?", "Explain what a verb is.", "Say hello in Spanish.", "How many days has a week?"]


def random_prompts(count: int, length: int) -> list[list[int]]:
    import torch
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(0)).tolist()


def natural_prompts(folder: str) -> list[list[int]]:
    from r1.tokenizer import Tokenizer
    t = Tokenizer.load(folder)
    return [t.encode(t.render_prompt([{"role": "user", "content": q}])) for q in QUESTIONS]


def leave_out(part: str) -> None:
    """Undo one thing that makes it faster."""
    from r1 import context, data, graph, losses, model, runtime
    if part == "oneDNN's layout":
        model.platform.machine = lambda: "another"
    elif part == "prompts shared, no padding":
        data.PAYS = 0
    elif part == "plain products for short rows":
        context.SHORT = 0
    elif part == "freed memory kept":
        runtime.keep_freed_memory = lambda: None
    elif part == "CUDA graphs":
        graph.Steps.read = lambda self, token, cache: self.model(token[:, None], cache)[:, -1]
    elif part == "logits in pieces":
        losses.LOGITS = 2 ** 60


def timed(work, **about) -> dict:
    began = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - began
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, **about}


# ---- sampling ----------------------------------------------------------------------------------

def r1_sampler(folder, dtype, prompts=4, group=8, prompt=128, new=64, natural=False, rows=512) -> dict:
    from r1.checkpoint import load_model
    from r1.config import Sample
    from r1.hf_config import eos_ids
    from r1.runtime import keep_freed_memory
    from r1.sampler import generate
    keep_freed_memory()
    model = load_model(folder)
    model.bf16 = dtype == "bf16"
    texts, eos = (natural_prompts(folder), eos_ids(folder)) if natural else (random_prompts(prompts, prompt), [])
    go = lambda n: sum(len(r.ids) for g in generate(model, texts, group, Sample(max_new_tokens=n, max_rows=rows), 0, eos) for r in g)  # noqa: E731
    go(2)
    return timed(lambda: go(new))


def transformers_sampler(folder, dtype, prompts=4, group=8, prompt=128, new=64, natural=False, rows=512) -> dict:
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPES[dtype]), attn_implementation="sdpa").eval()
    texts = natural_prompts(folder) if natural else random_prompts(prompts, prompt)
    end = model.config.eos_token_id if natural else None

    def batch(texts: list[list[int]], n: int) -> int:
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(t)) + t for t in texts]).repeat_interleave(group, 0)
        seen = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts]).repeat_interleave(group, 0)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=seen, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=n,
                                 pad_token_id=0, **({} if natural else {"min_new_tokens": n}))
        made = out[:, longest:]
        return made.numel() if not natural else sum(min((row == end).nonzero()[:1].flatten().tolist() + [n - 1]) + 1 for row in made)

    per = max(1, rows // group)
    go = lambda n: sum(batch(texts[i:i + per], n) for i in range(0, len(texts), per))  # noqa: E731
    go(2)
    return timed(lambda: go(new))


def linear_layers(folder, dtype, prompts=4, group=8, new=64, **_) -> dict:
    """Every linear layer of a decode step by torch's own product, and nothing else."""
    import torch
    import torch.nn.functional as F
    kind, rows = getattr(torch, DTYPES[dtype]), prompts * group
    sizes = [(576 + 2 * 192, 576), (576, 576), (2 * 1536, 576), (576, 1536)] * SHAPE["num_hidden_layers"] + [(49152, 576)]
    weights = [torch.randn(size, dtype=kind) for size in sizes]
    x = {width: torch.randn(rows, width, dtype=kind) for width in (576, 1536)}

    def steps(n: int) -> int:
        for _ in range(n):
            for w in weights:
                F.linear(x[w.shape[1]], w)
        return rows * n
    steps(2)
    return timed(lambda: steps(new))


def llama_cpp(folder, prompts=1, group=1, prompt=128, new=64, **_) -> dict:
    """llama.cpp's server, in f16, as the wheel of xllamacpp brings it: built without AVX-512. It samples `group` answers to each prompt at once."""
    import concurrent.futures
    import tempfile

    import gguf
    import numpy as np
    import xllamacpp
    rng, file = np.random.default_rng(0), str(Path(tempfile.mkdtemp()) / "m.gguf")
    s, w = SHAPE, gguf.GGUFWriter(file, "llama")
    c, f, kv = s["hidden_size"], s["intermediate_size"], 192
    for add, value in ((w.add_context_length, 8192), (w.add_embedding_length, c), (w.add_block_count, s["num_hidden_layers"]),
                       (w.add_feed_forward_length, f), (w.add_head_count, 9), (w.add_head_count_kv, 3), (w.add_layer_norm_rms_eps, 1e-5),
                       (w.add_rope_freq_base, 1e5), (w.add_rope_dimension_count, 64), (w.add_vocab_size, s["vocab_size"]), (w.add_file_type, 1),
                       (w.add_tokenizer_model, "gpt2"), (w.add_tokenizer_pre, "default"), (w.add_bos_token_id, 256), (w.add_eos_token_id, 257)):
        add(value)
    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    w.add_token_list(letters + [f"<|{i}|>" for i in range(s["vocab_size"] - 256)])
    w.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.USER_DEFINED] * (s["vocab_size"] - 256))
    w.add_token_merges([f"{letters[0]} {letters[1]}"])
    add = lambda name, *shape: w.add_tensor(f"{name}.weight", (rng.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)  # noqa: E731
                                            if len(shape) > 1 else np.ones(shape, np.float32))
    add("token_embd", s["vocab_size"], c)
    add("output_norm", c)
    for i in range(s["num_hidden_layers"]):
        for name, shape in {"attn_q": (c, c), "attn_k": (kv, c), "attn_v": (kv, c), "attn_output": (c, c), "ffn_gate": (f, c), "ffn_up": (f, c),
                            "ffn_down": (c, f), "attn_norm": (c,), "ffn_norm": (c,)}.items():
            add(f"blk.{i}.{name}", *shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    p = xllamacpp.CommonParams()
    rows = prompts * group
    p.model.path, p.n_ctx, p.n_parallel, p.cpuparams.n_threads, p.n_predict = file, rows * 256, rows, os.cpu_count(), new
    server = xllamacpp.Server(p)

    def go(n: int) -> int:
        ask = {"max_tokens": n, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True, "cache_prompt": True}
        with concurrent.futures.ThreadPoolExecutor(rows) as pool:
            list(pool.map(lambda i: server.handle_completions({**ask, "prompt": random_prompts(prompts, prompt)[i // group], "seed": i}), range(rows)))
        return rows * n
    go(2)
    return timed(lambda: go(new))


# ---- training ----------------------------------------------------------------------------------

def completions(prompts=4, group=8, prompt=128, new=128) -> list:
    """Examples of `group` completions behind each prompt, of random tokens."""
    import random

    from r1.types import Example
    rng = random.Random(0)
    return [Example(p + [rng.randrange(256) for _ in range(new)], [0] * prompt + [1] * new, rng.choice([-1.0, 1.0]), 1 / (prompts * group * new),
                    [-5.0] * new) for p in random_prompts(prompts, prompt) for _ in range(group)]


def r1_train(folder, dtype, micro=1536, recompute=False, alone=False, compiled=False) -> dict:
    """Forward and backward of 32 completions; `alone`: every prompt its own, so that none is shared."""
    from dataclasses import replace

    from r1 import graph
    from r1.checkpoint import load_model
    from r1.data import collate, micro_batches
    from r1.losses import grpo_loss
    from r1.optim import supervised_logprobs
    from r1.runtime import keep_freed_memory
    keep_freed_memory()
    model = load_model(folder).train()
    model.bf16, model.recompute, examples = dtype == "bf16", recompute, completions()
    if compiled:
        graph.compile_layers(model)
    if alone:
        examples = [replace(e, ids=[i] + e.ids[1:]) for i, e in enumerate(examples)]

    def go(examples) -> int:
        for group in micro_batches(examples, micro):
            b = collate(group)
            grpo_loss(supervised_logprobs(model, b)[0], None, b.adv, b.mask, b.w)[0].backward()
        return sum(len(e.ids) for e in examples)
    go(examples if compiled else examples[:8])
    return timed(lambda: go(examples))


def products(folder, dtype, alone=False, **_) -> dict:
    """Every matrix product of a forward and backward of the linear layers for the same tokens, and nothing else."""
    import torch
    kind = getattr(torch, DTYPES[dtype])
    tokens, read = (32 * 255, 32 * 128) if alone else (4 * (128 + 8 * 127), 32 * 128)
    n = 2040 if alone else 1144
    weights = [torch.randn(o, i, dtype=kind) for o, i in [(960, 576), (576, 576), (3072, 576), (576, 1536)]]
    head = torch.randn(49152, 576, dtype=kind)
    x = {w: torch.randn(n, w, dtype=kind) for w in (576, 960, 1536, 3072)}
    y, g = torch.randn(1024, 576, dtype=kind), torch.randn(1024, 49152, dtype=kind)

    def go(times: int, heads: int) -> int:
        for _ in range(times):
            for _ in range(SHAPE["num_hidden_layers"]):
                for w in weights:
                    x[w.shape[1]] @ w.T, x[w.shape[0]] @ w, x[w.shape[0]].T @ x[w.shape[1]]
        for _ in range(heads):
            y @ head.T, g @ head, g.T @ y
        return 32 * 256
    go(1, 1)
    return timed(lambda: go(tokens // n, read // 1024))


# ---- a step of GRPO ----------------------------------------------------------------------------

def r1_grpo(folder, dtype, new=128, micro=1536, recompute=False) -> dict:
    """Sampling, log-probs, loss, backward, clipping and AdamW, once and from cold, as stage grpo does them."""
    import torch

    from r1.checkpoint import load_model
    from r1.config import GRPO, Optim, Sample
    from r1.grpo import learn
    from r1.losses import advantages
    from r1.optim import make_optimizer
    from r1.runtime import keep_freed_memory
    from r1.sampler import generate
    from r1.types import Example
    keep_freed_memory()
    cfg = GRPO("rl", "grpo", sample=Sample(max_new_tokens=new), kl_coef=0.0, optim=Optim(lr=1e-6, micro_tokens=micro))
    model = load_model(folder)
    model.bf16, model.recompute = dtype == "bf16", recompute
    optimizer, adv, at = make_optimizer(model, 1e-6, (0.9, 0.999), 0.0), advantages(torch.tensor([[0.0, 1.0] * 4] * 4)), []

    def go() -> int:
        groups = generate(model, random_prompts(4, 128), 8, cfg.sample, 0, [])
        at.append(time.perf_counter())
        learn(model, None, optimizer, [Example(r.prompt_ids + r.ids, [0] * len(r.prompt_ids) + [1] * len(r.ids), float(adv[q, g]), 1.0, r.logp)
                                       for q, group in enumerate(groups) for g, r in enumerate(group)], cfg, 1e-6, "0")
        return sum(len(r.ids) for g in groups for r in g)
    began = time.perf_counter()
    return {**timed(go), "sampling_seconds": at[0] - began}


def trl_grpo(folder, dtype, new=128, recompute=False, **_) -> dict:
    import random
    import tempfile

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    random.seed(0)
    t = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    data = Dataset.from_list([{"prompt": "".join(random.choice("abcdefgh ") for _ in range(128))} for _ in range(64)])
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(output_dir=out, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, max_steps=1, seed=0,
                            per_device_train_batch_size=8, gradient_accumulation_steps=4, num_generations=8, num_iterations=1, beta=0.0,
                            max_completion_length=new, temperature=1.0, top_k=0, top_p=1.0, generation_kwargs={"min_new_tokens": new},
                            bf16=dtype == "bf16", fp16=False, gradient_checkpointing=recompute, learning_rate=1e-6, disable_tqdm=True)
        trainer = GRPOTrainer(model=model, processing_class=tokenizer, args=config, train_dataset=data,
                              reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))])
        return timed(lambda: trainer.train() and 32 * new)


# ---- on a CUDA device --------------------------------------------------------------------------

def cuda_sampler(folder, rows=64, new=128, prompt=128) -> dict:
    """`rows` samples, 8 at most of each prompt, in bf16."""
    import torch

    from r1.checkpoint import load_model
    from r1.config import Sample
    from r1.sampler import generate
    model = load_model(folder, "cuda")
    model.bf16, group = True, min(8, rows)
    go = lambda n: sum(len(r.ids) for g in generate(model, random_prompts(rows // group, prompt), group, Sample(max_new_tokens=n), 0, [])  # noqa: E731
                       for r in g)
    go(8)
    return on_device(lambda: go(new), torch)


def cuda_transformers(folder, rows=64, new=128, prompt=128) -> dict:
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval().to("cuda")
    group = min(8, rows)
    ids = torch.tensor(random_prompts(rows // group, prompt)).repeat_interleave(group, 0).cuda()

    @torch.inference_mode()
    def go(n: int) -> int:
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=n,
                              max_new_tokens=n, pad_token_id=0)[:, prompt:].numel()
    go(8)
    return on_device(lambda: go(new), torch)


def cuda_bandwidth() -> dict:
    """Bytes that are read and written in a second by a large copy."""
    import torch
    x = torch.empty(2 ** 30, dtype=torch.int32, device="cuda")      # 4 GiB
    y = torch.empty_like(x)
    y.copy_(x)
    return on_device(lambda: [y.copy_(x) for _ in range(20)] and 20 * 2 * x.nbytes, torch)


def cuda_train(folder, rows=64, length=1024, micro=16384, compile=False, recompute=False) -> dict:
    """Steps of `rows` rows, every token learned: forward, backward, clipping and AdamW, with bf16 products."""
    import torch

    from r1 import ranks
    from r1.checkpoint import load_model
    from r1.losses import cross_entropy
    from r1.optim import make_optimizer, optimise, supervised_logprobs
    from r1.plan import parameters
    from r1.types import Example
    model = ranks.shard(load_model(folder, "cuda").train(), True, recompute, compile)
    optimizer = make_optimizer(model, 1e-5, (0.9, 0.95), 0.0)
    examples = [Example(ids, [1] * length, w=1 / (rows * length)) for ids in random_prompts(rows, length)]
    loss = lambda b: (cross_entropy(supervised_logprobs(model, b)[0], b.mask, b.w), {})  # noqa: E731
    go = lambda n: [optimise(model, optimizer, examples, loss, 1e-5, micro, 1.0) for _ in range(n)] and n * rows * length  # noqa: E731
    go(2)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    products = on_device(lambda: [a @ b for _ in range(30)] and 30 * 2 * 8192 ** 3, torch)["tokens_per_second"]
    m, found = model.cfg, on_device(lambda: go(4), torch)
    per_token = 6 * parameters(m) + 6 * m.num_hidden_layers * m.num_attention_heads * m.head_dim * length      # causal: half of all pairs
    return {**found, "flops": per_token * found["tokens_per_second"], "products_flops": products}


def cuda_recipe(folder, config, changes) -> dict:
    """Two steps of a recipe from random weights, as `train.py` runs it: what it planned, what it took at most, its last line of metrics."""
    import torch

    from r1 import config as configs
    from r1 import pipeline, plan
    from r1.checkpoint import load_config
    from r1.runtime import Folder
    cfg = configs.load(ROOT / config, [f"out={folder}/run", *changes])
    stage, at = cfg.stages[0], Folder(Path(folder) / "run", "zero", 0, "cuda", cfg.templates)
    planned = plan.plan(stage, load_config(folder), False, 1, pipeline.prompt_tokens(stage, at), cfg.evaluate)
    torch.cuda.reset_peak_memory_stats()
    pipeline.run(cfg)
    line = json.loads((Path(folder) / "run/zero/metrics.jsonl").read_text().splitlines()[-1])
    return {"planned_mb": {phase: sum(parts.values()) / 2 ** 20 for phase, parts in planned.items()}, "reserved_mb": torch.cuda.max_memory_reserved() / 2 ** 20,
            "took_mb": torch.cuda.max_memory_allocated() / 2 ** 20, **line}


def on_device(work, torch) -> dict:
    import gc
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()

    def whole():
        done = work()
        torch.cuda.synchronize()
        return done
    found = timed(whole)
    return {**found, "gpu_mb": torch.cuda.max_memory_allocated() / 2 ** 20}


CONTENDERS = {f.__name__: f for f in (r1_sampler, transformers_sampler, linear_layers, llama_cpp, r1_train, products, r1_grpo, trl_grpo,
                                      cuda_sampler, cuda_transformers, cuda_bandwidth, cuda_train, cuda_recipe)}

if __name__ == "__main__":
    import torch
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    settings = json.loads(sys.argv[2])
    leave_out(settings.pop("without", ""))
    found = CONTENDERS[sys.argv[1]](**settings)
    # not getrusage: its peak begins with what the parent held when it forked
    peak = next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**found, "peak_mb": peak}))
