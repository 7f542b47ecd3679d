"""Sampling: the cache against the full forward, and every sample a pure function of weights, prompt, seed and index."""
import math
import random

import numpy as np
import pytest
import torch

from r1 import context, sampler
from r1.config import Sample
from r1.data import collate
from r1.context import KVCache
from r1.optim import supervised_logprobs
from r1.sampler import check, generate, pick, row_seed, truncate, uniform
from r1.types import Example, UserError

RNG = random.Random(0)
PROMPTS = [[RNG.randrange(300) for _ in range(n)] for n in (7, 1, 12, 3, 7)]
EOS = [17, 18, 19, 20, 40, 41, 60, 61]                  # of 300 ids: rows end at different times
S = Sample(max_new_tokens=24)


@pytest.fixture(autouse=True, params=[0, context.SHARE], ids=["prompts shared", "prompts copied"])
def share(request, monkeypatch):
    """These models are so small that their rows would never share a prompt."""
    monkeypatch.setattr(context, "SHARE", request.param)


def ids(rollouts):
    return [[(r.ids, r.finish) for r in group] for group in rollouts]


def go(model, prompts=PROMPTS, n=3, s=S, seed=5, eos=EOS, **more):
    return generate(model, prompts, n, s, seed, eos, **more)


# ---- the cache ---------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1},
                                     {"qk_norm": True, "attention_bias": True, "tie_word_embeddings": False}])
@torch.no_grad()
def test_reading_through_the_cache_is_the_full_forward(make_model, options, dtype, near):
    """Token by token, in uneven chunks, and through a cache that grew on the way."""
    model = make_model(dtype, **options)
    x = torch.tensor([[RNG.randrange(300) for _ in range(20)] for _ in range(3)])
    whole = model(x)
    for chunks in ([1] * 20, [5, 1, 9, 2, 3]):
        cache, parts = KVCache(model.cfg, 3, 16, dtype=dtype), []
        for part in x.split(chunks, dim=1):
            parts.append(model(part, cache))
        assert cache.length == 20 and cache.k.shape[3] > 16
        assert (torch.cat(parts, 1) - whole).abs().max() < near * whole.abs().max()


@torch.no_grad()
def test_rows_of_two_caches_go_on_in_one(make_model):
    """Of different lengths, out of order and one of them twice: what each reads next is what it reads alone."""
    model = make_model(torch.float64)
    read, rows = [[list(range(3, 12)), list(range(40, 45))], [[7, 8, 9]]], [torch.tensor([1, 0, 1]), torch.tensor([0])]
    caches = []
    for prompts in read:
        longest = max(map(len, prompts))
        caches.append(KVCache(model.cfg, len(prompts), 9, dtype=torch.float64, start=torch.tensor([longest - len(p) for p in prompts])))
        model(torch.tensor([[0] * (longest - len(p)) + p for p in prompts]), caches[-1])
    for chosen in ([0, 1], [1, 0], [1]):
        one = KVCache.join(model.cfg, [(caches[i], rows[i]) for i in chosen])
        texts = [read[i][r] for i in chosen for r in rows[i].tolist()]
        assert one.length == max(map(len, texts)) and one.start.tolist() == [one.length - len(t) for t in texts]
        got = model(torch.full((len(texts), 1), 200), one)[:, -1]
        for row, text in zip(got, texts, strict=True):
            assert (row - model(torch.tensor([text + [200]]))[0, -1]).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("short", [context.SHORT, 2])      # below and above the length from which prompts are read one by one
def test_left_padding_changes_nothing_but_the_columns(make_model, monkeypatch, short):
    """A row behind padding, beside longer rows, has the logits of the row alone; what fills the padding is not seen."""
    monkeypatch.setattr(context, "SHORT", short)
    model = make_model(torch.float64)
    longest = max(map(len, PROMPTS))
    for fill in (0, 250):
        cache = KVCache(model.cfg, len(PROMPTS), longest, dtype=torch.float64, start=torch.tensor([longest - len(p) for p in PROMPTS]))
        logits = model(torch.tensor([[fill] * (longest - len(p)) + p for p in PROMPTS]), cache)
        for row, p in zip(logits, PROMPTS, strict=True):
            assert (row[-len(p):] - model(torch.tensor([p]))[0]).abs().max() < 1e-12


# ---- the same tokens, whoever is beside --------------------------------------------------------
# In float64, where rounding cannot matter: in float32 the logits of a row move by about 1e-6 with the shape of the
# batch, and that takes about two tokens in a million across the border to their neighbour.

@pytest.fixture
def model(make_model):
    return make_model(torch.float64)


@pytest.mark.parametrize("temperature, dtype, near", [(0.0, torch.float64, 1e-12), (0.6, torch.float64, 1e-12),
                                                      (1.0, torch.float64, 1e-12), (1.0, torch.float32, 1e-5)])
def test_a_ragged_batch_samples_what_each_prompt_samples_alone(make_model, temperature, dtype, near):
    model, s = make_model(dtype), Sample(max_new_tokens=24, temperature=temperature)
    together = go(model, s=s, seed=6)                  # with 5, one draw lies 3e-8 from the border of two tokens
    alone = [go(model, [p], s=s, seed=6)[0] for p in PROMPTS]
    assert ids(together) == ids(alone)
    for a, b in zip(sum(together, []), sum(alone, []), strict=True):
        assert np.allclose(a.logp, b.logp, rtol=0, atol=near)
    assert {r.finish for g in together for r in g} == {"eos", "length"}
    assert len({len(r.ids) for g in together for r in g}) > 2


def test_the_order_of_the_prompts_does_not_matter(model):
    order = [3, 0, 4, 2, 1]
    straight = ids(go(model))
    assert ids(go(model, [PROMPTS[i] for i in order])) == [straight[i] for i in order]


@pytest.mark.parametrize("max_rows", [1, 3, 6, 7, 1000])
def test_the_number_of_rows_decoded_at_once_does_not_matter(model, max_rows):
    assert ids(go(model, s=Sample(max_new_tokens=24, max_rows=max_rows))) == ids(go(model))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("max_rows", [3, 1000])
def test_prompts_read_in_pieces_are_prompts_read_at_once(model, monkeypatch, n, max_rows):
    whole, read, real = ids(go(model, n=n)), [], sampler._prefill
    monkeypatch.setattr(sampler, "READ", 2 * max(map(len, PROMPTS)))
    monkeypatch.setattr(sampler, "_prefill", lambda model, prompts: read.append(len(prompts)) or real(model, prompts))
    assert ids(go(model, n=n, s=Sample(max_new_tokens=24, max_rows=max_rows))) == whole
    assert max(read) <= 2 and sum(read) >= len(PROMPTS)


def test_rows_outgrow_what_their_cache_has_room_for(make_model):
    """Seventy tokens in steps of 32 columns, and the next token of each is what the whole row, read anew, gives."""
    model = make_model(torch.float64)
    for group in go(model, n=2, s=Sample(max_new_tokens=70, temperature=0.0), eos=[]):
        for r in group:
            assert model(torch.tensor([r.prompt_ids + r.ids]))[0, len(r.prompt_ids) - 1:-1].argmax(-1).tolist() == r.ids


def test_a_prompts_only_sample_is_the_first_of_its_group(model):
    """It goes on in the cache of its prompt, where a group's rows may stand behind it."""
    assert ids(go(model, n=1)) == [g[:1] for g in ids(go(model, n=3))]


def test_rows_that_leave_early_do_not_move_the_others(model):
    """With a limit per prompt each row is the beginning of what it is without; rows leave at 1, 2, 3, 20 and 24."""
    limits = [20, 1, 24, 2, 3]
    free, cut = go(model), go(model, limits=limits)
    for limit, a, b in zip(limits, sum(free, []), sum(cut, []), strict=False):
        assert b.ids == a.ids[:len(b.ids)]
    for limit, group, whole in zip(limits, cut, free, strict=True):
        for r, w in zip(group, whole, strict=True):
            assert r.ids == w.ids[:limit] and r.finish == ("eos" if r.ids[-1] in EOS else "length")


def test_a_group_read_once_is_as_many_single_calls(model):
    """The prompt is prefilled once for the group: sample g of a group is sample g of a larger group, and the
    samples of one prompt do not share a first token."""
    few, many = go(model, n=2), go(model, n=9)
    assert ids(few) == [g[:2] for g in ids(many)]
    assert all(len({r.ids[0] for r in g}) > 3 for g in many)


def test_a_prompt_that_stands_twice_is_sampled_twice_alike(model):
    a, b = go(model, [PROMPTS[0], PROMPTS[0]])
    assert ids([a]) == ids([b])


def test_another_seed_samples_something_else(model):
    assert all(a != b for g, h in zip(ids(go(model)), ids(go(model, seed=6)), strict=True)
               for a, b in zip(g, h, strict=True))


def test_seeds_differ_by_seed_prompt_and_sample():
    """No two of 8,000 rows share a seed, nor do prompts whose digits run together."""
    rows = {(s, p, g) for s in range(20) for p in [(1,), (11,), (1, 1), (1, 11), (11, 1), (111,), (2, 1), (1, 2)]
            for g in range(50)}
    assert len({row_seed(s, list(p), g) for s, p, g in rows}) == len(rows) == 8000


# ---- the trainer's distribution ----------------------------------------------------------------

@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_log_probs_are_those_that_the_trainer_computes(tiny_model, temperature):
    """Teacher-forced through the training forward, in fp32, to 1e-5: position by position, EOS included."""
    groups = go(tiny_model, s=Sample(max_new_tokens=24, temperature=temperature))
    examples = [Example(r.prompt_ids + r.ids, [0] * len(r.prompt_ids) + [1] * len(r.ids), old_logp=r.logp)
                for g in groups for r in g]
    b = collate(examples)
    with torch.no_grad():
        logp, _ = supervised_logprobs(tiny_model, b, temperature)
    assert (logp - b.old_logp)[b.mask].abs().max() < 1e-5
    assert b.mask.sum() == sum(len(r.ids) for g in groups for r in g)


# ---- how a row ends ----------------------------------------------------------------------------

def test_any_token_of_the_eos_list_ends_a_row_and_is_kept(tiny_model):
    """Each row runs on to the first id of the list, which is its last one, or to the limit."""
    free = go(tiny_model, eos=[])
    assert all(r.finish == "length" and len(r.ids) == len(r.logp) == 24 for g in free for r in g)
    ends = set()
    for whole, r in zip(sum(free, []), sum(go(tiny_model), []), strict=True):
        end = next((i for i, t in enumerate(whole.ids) if t in EOS), None)
        assert r.ids == (whole.ids if end is None else whole.ids[:end + 1])
        assert r.finish == ("length" if end is None else "eos") and len(r.logp) == len(r.ids)
        ends |= {r.ids[-1]} & set(EOS)
    assert len(ends) > 2


def test_a_stop_function_ends_a_row_after_the_token_that_completes_it(tiny_model):
    """Also where the limit is reached by the same token; an EOS goes before."""
    def stop(row):
        return len(row) == 4
    for r in sum(go(tiny_model, stop=stop), []):
        assert r.finish == "stop" if len(r.ids) == 4 and r.ids[-1] not in EOS else r.finish == "eos"
    assert all(r.finish == "stop" for r in sum(go(tiny_model, eos=[], stop=stop, limits=[4] * 5), []))


def test_an_eos_as_the_last_token_allowed_is_an_eos(tiny_model):
    whole = next(r for r in sum(go(tiny_model), []) if r.finish == "eos" and len(r.ids) > 1)
    cut = generate(tiny_model, [whole.prompt_ids], 3, S, 5, EOS, limits=[len(whole.ids)])[0]
    assert (whole.ids, "eos") in [(r.ids, r.finish) for r in cut]


def test_a_limit_of_zero_gives_empty_completions(tiny_model):
    groups = go(tiny_model, limits=[0, 3, 0, 0, 0], eos=[])
    assert [[len(r.ids) for r in g] for g in groups] == [[0] * 3, [3] * 3] + [[0] * 3] * 3
    assert all(r.finish == "length" and r.logp == [] for r in groups[0])


def test_callbacks_see_every_token_and_every_row_once(tiny_model):
    """Tokens arrive under the number of their prompt and sample, also when the prompts are decoded in chunks."""
    seen, rows = {}, []
    groups = go(tiny_model, s=Sample(max_new_tokens=24, max_rows=6), on_rows=rows.append,
                on_token=lambda q, g, t: seen.setdefault((int(q), int(g)), []).append(t))
    assert seen == {(q, g): r.ids for q, group in enumerate(groups) for g, r in enumerate(group)}
    assert sum(rows) == 15


# ---- the context -------------------------------------------------------------------------------

def test_rows_run_to_the_end_of_the_context_whatever_their_prompts(make_model):
    """The longest and the shortest prompt in one batch each fill the context, as they do alone."""
    model = make_model(torch.float64, max_position_embeddings=32)
    prompts = [[5] * 31, [6] * 20, [7]]
    s = Sample(max_new_tokens=100)
    together = go(model, prompts, s=s, eos=[])
    assert [{len(r.ids) for r in g} for g in together] == [{1}, {12}, {31}]
    assert ids(together) == [ids(go(model, [p], s=s, eos=[]))[0] for p in prompts]


def test_prompts_that_cannot_be_read_are_refused(tiny_model):
    with pytest.raises(UserError, match="prompt 1 is empty"):
        go(tiny_model, [[1], []])
    with pytest.raises(UserError, match="prompt 0 has 96 tokens, but the model's context holds 96"):
        go(tiny_model, [[1] * 96])
    assert go(tiny_model, []) == []


def test_the_model_refuses_positions_it_was_not_made_for(tiny_model):
    cache = KVCache(tiny_model.cfg, 1, 200)
    with torch.no_grad(), pytest.raises(ValueError, match="97 positions"):
        tiny_model(torch.zeros(1, 96, dtype=torch.long), cache)
        tiny_model(torch.zeros(1, 1, dtype=torch.long), cache)


# ---- drawing -----------------------------------------------------------------------------------

def grid(n):
    """n numbers spread evenly over (0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_draw_is_the_inverse_of_the_distribution_function():
    """Probabilities 1/8, 1/2, 3/8 over an even grid: exactly so many of each, with those log-probs."""
    logits = torch.tensor([1 / 8, 4 / 8, 3 / 8]).log().expand(800, 3)
    token, logp = pick(logits, grid(800), Sample())
    assert token.bincount().tolist() == [100, 400, 300] and (token.diff() >= 0).all()
    assert torch.allclose(logp.exp().float(), torch.tensor([1 / 8, 4 / 8, 3 / 8])[token])


def test_frequencies_follow_the_distribution():
    """20,000 rows with the sampler's own random numbers: chi-square below its 99.9 % point (7 degrees: 24.3)."""
    logits = torch.randn(8, generator=torch.Generator().manual_seed(3)) * 1.5
    N = 20_000
    u = uniform(np.array([row_seed(1, [4, 2], g) for g in range(N)], dtype=np.uint64), np.zeros(N))
    token, _ = pick(logits.expand(N, 8), torch.from_numpy(u), Sample(temperature=0.7))
    expected = (logits.double() / 0.7).softmax(-1) * N
    assert ((token.bincount(minlength=8) - expected) ** 2 / expected).sum() < 24.3


def test_random_numbers_of_neighbours_are_independent():
    """Pairs of positions and pairs of samples fall evenly on an 8 x 8 grid: chi-square, 63 degrees, 99.9 %: 103.4."""
    seeds = np.array([row_seed(0, [1], g) for g in range(201)], dtype=np.uint64)
    u = np.stack([uniform(seeds, np.full(201, t)) for t in range(101)])         # (position, sample)
    assert 0 < u.min() and u.max() < 1
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:])):
        counts = np.histogram2d(a.ravel(), b.ravel(), 8, [[0, 1], [0, 1]])[0]
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 103.4


@pytest.mark.parametrize("s", [Sample(), Sample(temperature=0.3), Sample(top_k=3), Sample(top_p=0.5)])
def test_a_token_of_probability_zero_is_never_drawn(s):
    """Tokens at -inf (a padded vocabulary, or cut by top-k and top-p), at both ends of the unit interval."""
    ends = torch.tensor([0.0, 5e-324, 1e-300, 2**-53, 1 - 2**-53, 1.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    for _ in range(200):
        logits = torch.randn(1, 40, generator=g) * 5
        logits[:, torch.rand(40, generator=g) < 0.5] = -math.inf
        logits[:, [0, 1, 38, 39]] = -math.inf
        logits[:, 20] = 0.0
        u = torch.cat([ends, torch.rand(50, generator=g, dtype=torch.float64)])
        token, logp = pick(logits.expand(len(u), 40), u, s)
        p = truncate(logits / s.temperature, s).softmax(-1)[0]
        assert (p[token] > 0).all() and logp.isfinite().all()


def plain_truncation(logits, top_k, top_p):
    """The set of kept tokens and their probabilities, one token at a time."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[:top_k] if top_k else order
    total = sum(math.exp(logits[i]) for i in order)
    kept, mass = [], 0.0
    for i in order:
        kept.append(i)
        mass += math.exp(logits[i]) / total
        if mass >= top_p:
            break
    total = sum(math.exp(logits[i]) for i in kept)
    return {i: math.exp(logits[i]) / total for i in kept}


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (0, 0.1), (0, 1e-9), (0, 0.999), (1, 1.0), (5, 1.0), (5, 0.6),
                                          (99, 1.0)])
def test_top_k_and_top_p_against_a_plain_loop(top_k, top_p):
    """The smallest set of mass top_p, within the top k, its probabilities renormalised."""
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(2)) * 2
    p = truncate(logits, Sample(top_k=top_k, top_p=top_p)).softmax(-1)
    token, logp = pick(logits, grid(20), Sample(top_k=top_k, top_p=top_p))
    for row, mine, t, lp in zip(logits.double().tolist(), p, token.tolist(), logp.tolist(), strict=True):
        wanted = plain_truncation(row, top_k, top_p)
        assert set(mine.nonzero().flatten().tolist()) == set(wanted)
        assert all(abs(mine[i] - q) < 1e-6 for i, q in wanted.items())
        assert abs(math.exp(lp) - wanted[t]) < 1e-6


def test_greedy_takes_the_most_likely_token_and_low_temperatures_approach_it(tiny_model):
    """Temperature 0 ignores seed and sample, is an argmax loop without a cache, and the limit of T -> 0."""
    groups = go(tiny_model, s=Sample(max_new_tokens=10, temperature=0.0), eos=[])
    with torch.no_grad():
        for p, g in zip(PROMPTS, groups, strict=True):
            row = list(p)
            for _ in range(10):
                row.append(int(tiny_model(torch.tensor([row]))[0, -1].argmax()))
            assert all(r.ids == row[len(p):] and r.logp == [0.0] * 10 for r in g)
    assert ids(go(tiny_model, s=Sample(max_new_tokens=10, temperature=0.0), eos=[], seed=99)) == ids(groups)
    assert ids(go(tiny_model, s=Sample(max_new_tokens=10, temperature=1e-4), eos=[])) == ids(groups)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error_with_the_row(bad, temperature):
    logits = torch.zeros(4, 6)
    logits[2, 5] = bad
    with pytest.raises(UserError, match="row 2: the model's logits are not finite"):
        check(pick(logits, grid(4), Sample(temperature=temperature))[1])
    with pytest.raises(UserError, match="row 0"):
        check(pick(torch.full((1, 6), -math.inf), grid(1), Sample(temperature=temperature))[1])


# ---- what sampling leaves behind ---------------------------------------------------------------

def test_sampling_leaves_no_graph(tiny_model):
    """Also when it fails on the way; the weights stay as they are."""
    before = [p.clone() for p in tiny_model.parameters()]
    graphs = []
    hook = tiny_model.norm.register_forward_hook(lambda m, i, out: graphs.append(out.requires_grad))
    go(tiny_model)
    hook.remove()
    assert set(graphs) == {False}
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, tiny_model.parameters(), strict=True))
    with torch.no_grad():
        tiny_model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        go(tiny_model)
    assert torch.is_grad_enabled()
