"""Capacity and dropping against a queue that admits one slot after another; gradients against complex steps."""

import itertools
import math

import numpy as np
import pytest

import capacity_reference as reference
import libmoe
from harness import ROUTINGS, array, assert_close, bits, empty, host, on_cpu, report, report_fields, rounded, zeros

DTYPES = ("fp64", "fp32", "fp16", "bf16")
FORMULAS = ("EXPLICIT", "MEGATRON", "DEEPSPEED", "MEGABLOCKS", "NLLB", "TOKEN_FRACTION")
POLICIES = ("BY_PROBS", "BY_POSITION", "RANDOM", "BATCH_PRIORITIZED", "BY_CHOICE")
SECONDS = ("ALL", "SAMPLING", "RANDOM")
NORMALS = ("KEEP_WEIGHTS", "RENORMALIZE_AFTER", "RENORMALIZE_BEFORE")


def dtypes():
    return DTYPES if on_cpu() else DTYPES[1:]


def of(kind, name):
    return getattr(libmoe, f"{kind}_{name}")


def run(ctx, ids, weights, experts, dtype="fp32", ids_dtype="int32", logits=None, num_tokens=None, padding_mask=None,
        random=(0, 0), report=None, **fields):
    """All outputs, and the C that the library says."""
    tokens, top_k = ids.shape
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k, **fields}
    out = {"kept_ids": empty((tokens, top_k), ids_dtype), "kept_weights": empty((tokens, top_k), dtype),
           "tokens_per_expert": empty(experts, "int64"), "dropped_per_expert": empty(experts, "int64")}
    args = {"ids": array(ids, ids_dtype), "weights": array(weights, dtype), "num_tokens": num_tokens, "random": random,
            "padding_mask": padding_mask, "report": report}
    if logits is not None:
        out |= {"routed_ids": empty((tokens, top_k), ids_dtype), "routed_weights": empty((tokens, top_k), dtype)}
        args["logits"] = logits
    ctx.run("capacity_fwd", desc, args | out)
    return out, ctx.query("capacity_value", desc)


def check(out, expected, dtype="fp32"):
    kept_ids, kept_weights, taken, dropped = expected
    assert (host(out["kept_ids"]) == kept_ids).all()
    assert (host(out["tokens_per_expert"]) == taken).all() and (host(out["dropped_per_expert"]) == dropped).all()
    weights = host(out["kept_weights"])
    assert (weights[kept_ids < 0] == 0).all()
    assert_close(weights, kept_weights, dtype)


@pytest.mark.parametrize("formula", FORMULAS)
def test_values(ctx, rng, formula):
    formula = of("CAPACITY", formula)
    for _ in range(300):
        experts = int(rng.integers(1, 300))
        top_k = int(rng.integers(1, min(experts, 64) + 1))
        tokens = int(rng.choice([0, 1, rng.integers(1, 100), rng.integers(1, 10**6), rng.integers(1, 1 << 40)]))
        factor = float(rng.choice([1.0, 1.25, 2.0, 0.1, 1.1, 0.7, rng.random()]))
        explicit, least = int(rng.integers(0, 1000)), int(rng.choice([0, 4, 100]))
        desc = {"formula": formula, "num_tokens": tokens, "num_experts": experts, "top_k": top_k, "capacity": explicit,
                "min_capacity": least, "capacity_factor": factor}
        expected = reference.capacity(formula, tokens, experts, top_k, factor, explicit, least)
        assert ctx.query("capacity_value", desc) == expected, desc


def test_values_that_overflow(ctx):
    desc = {"num_tokens": 1 << 40, "num_experts": 2, "top_k": 2, "capacity_factor": 1e300}
    assert ctx.query("capacity_value", desc | {"formula": libmoe.CAPACITY_MEGATRON}) == 1 << 40
    assert ctx.query("capacity_value", desc | {"formula": libmoe.CAPACITY_DEEPSPEED}) == (1 << 63) - 1
    assert ctx.query("capacity_value", desc | {"formula": libmoe.CAPACITY_MEGATRON, "capacity_factor": 0.0}) == 1 << 40


def case(rng, second="ALL"):
    """A random problem: ids, weights and logits of a random routing."""
    sampled = second == "SAMPLING"
    experts = int(rng.choice([2, 3, 8, 33] if sampled else [2, 3, 8, 33, 128, 1000]))
    top_k = 2 if second != "ALL" else int(rng.integers(1, min(experts, 9) + 1))
    tokens = int(rng.choice([1, 2, 50, 300] if sampled else [1, 2, 50, 300, 2049]))
    ids = ROUTINGS[str(rng.choice(list(ROUTINGS)))](rng, tokens, experts, top_k)
    # Many ties, zeros, and sums below the machine's epsilon.
    weights = rng.choice([rng.random((tokens, top_k)), rng.integers(0, 4, (tokens, top_k)) / 4], axis=0)
    weights[rng.random(tokens) < 0.05] *= 1e-9
    return ids, -np.sort(-weights), experts, int(rng.choice([0, 1, tokens * top_k // experts, tokens // 2, tokens * top_k]))


@pytest.mark.parametrize("policy, second, renormalize", list(itertools.product(POLICIES, SECONDS, NORMALS)))
@pytest.mark.parametrize("repeat", range(3))
def test_dropping(ctx, rng, policy, second, renormalize, repeat):
    ids, weights, experts, limit = case(rng, second)
    dtype = str(rng.choice(dtypes()))
    weights = rounded(weights, dtype)
    random = (int(rng.integers(1 << 63)), int(rng.integers(1 << 40)))
    real = rng.random(len(ids)) < 0.8 if rng.random() < 0.5 else None
    logits = rounded(rng.standard_normal((len(ids), experts)), "fp32") if second == "SAMPLING" else None
    out, value = run(
        ctx, ids, weights, experts, dtype, str(rng.choice(["int32", "int64"])), random=random, capacity=limit,
        logits=None if logits is None else array(logits, "fp32"), padding_mask=None if real is None else array(real, "uint8"),
        policy=of("DROP", policy), second_expert=of("SECOND_EXPERT", second), renormalize=of("DROP", renormalize))
    assert value == limit
    if second == "SAMPLING":
        ids, weights = reference.sample_second(ids, weights, logits, random, len(ids))
        assert (host(out["routed_ids"]) == ids).all()
        assert_close(host(out["routed_weights"]), weights, dtype if dtype != "fp64" else "fp32")
        weights = host(out["routed_weights"])
    expected = reference.drop(ids, weights, limit, experts, of("DROP", policy), of("SECOND_EXPERT", second),
                              of("DROP", renormalize), random, real, epsilon=reference.EPSILON[dtype])
    check(out, expected, dtype)


@pytest.mark.parametrize("formula", FORMULAS[1:])
def test_capacity_of_the_true_count(ctx, rng, formula):
    """The formula sees the tokens that there are, not the bound."""
    bound, experts, top_k, factor = 500, 8, 2, float(rng.choice([0.3, 0.8, 1.0, 1.25]))
    few = int(rng.integers(0, bound))
    ids, weights = ROUTINGS["skewed"](rng, bound, experts, top_k), rng.random((bound, top_k))
    fields = {"formula": of("CAPACITY", formula), "capacity_factor": factor, "min_capacity": 3}
    limit = reference.capacity(fields["formula"], few, experts, top_k, factor, 0, 3)
    weights[few:] = np.nan
    out, _ = run(ctx, ids, weights, experts, num_tokens=array([few], str(rng.choice(["int32", "int64"]))), **fields)
    assert np.isnan(host(out["kept_weights"])[few:]).all() and (host(out["kept_ids"])[few:] == 0x7F7F7F7F).all()
    out["kept_ids"], out["kept_weights"] = out["kept_ids"][:few], out["kept_weights"][:few]
    check(out, reference.drop(ids[:few], rounded(weights[:few], "fp32"), limit, experts))


def test_random_draws_of_the_bound(ctx, rng):
    """Draws of second experts follow the description's num_tokens, so that fewer tokens draw the same."""
    ids, weights = ROUTINGS["uniform"](rng, 40, 8, 2), rounded(rng.random((40, 2)), "fp32")
    logits, random = rounded(rng.standard_normal((40, 8)), "fp32"), (3, 11)
    out, _ = run(ctx, ids, weights, 8, logits=array(logits, "fp32"), num_tokens=array([30], "int32"), random=random,
                 capacity=99, second_expert=libmoe.SECOND_EXPERT_SAMPLING)
    expected, _ = reference.sample_second(ids[:30], weights[:30], logits[:30], random, 40)
    assert (host(out["routed_ids"])[:30] == expected).all()
    out, _ = run(ctx, ids, weights, 8, num_tokens=array([30], "int32"), random=random, capacity=99,
                 second_expert=libmoe.SECOND_EXPERT_RANDOM)
    expected, *_ = reference.drop(ids[:30], weights[:30], 99, 8, second=libmoe.SECOND_EXPERT_RANDOM, random=random, bound=40)
    assert (host(out["kept_ids"])[:30] == expected).all()


def test_seeds_on_the_device(ctx, rng):
    ids, weights = ROUTINGS["one_expert"](rng, 100, 4, 1), np.ones((100, 1))
    fields = {"capacity": 20, "policy": libmoe.DROP_RANDOM}
    seed, offset = array([5], "int64"), array([77], "int64")
    by_value, _ = run(ctx, ids, weights, 4, random=(5, 77), **fields)
    by_device, _ = run(ctx, ids, weights, 4, random={"seed_device": seed, "offset_device": offset}, **fields)
    other, _ = run(ctx, ids, weights, 4, random=(5, 78), **fields)
    assert (host(by_value["kept_ids"]) == host(by_device["kept_ids"])).all()
    assert (host(by_value["kept_ids"]) != host(other["kept_ids"])).any()


def test_random_selection_is_fair(ctx, rng):
    kept = np.zeros(64)
    for seed in rng.integers(1 << 62, size=200):
        out, _ = run(ctx, np.zeros((64, 1), int), np.ones((64, 1)), 2, random=(int(seed), 0), capacity=16, policy=libmoe.DROP_RANDOM)
        kept += host(out["kept_ids"])[:, 0] == 0
    assert kept.sum() == 200 * 16 and abs(kept - 50).max() < 6 * math.sqrt(200 * 0.25 * 0.75)


def test_nan_and_zeros(ctx):
    weights = np.array([[0.0], [np.nan], [-0.0], [1e-9], [-1.0], [np.inf]])
    out, _ = run(ctx, np.zeros((6, 1), int), weights, 2, capacity=3)
    # The zeros are equal: the lower token.
    assert host(out["kept_ids"])[:, 0].tolist() == [0, -1, -1, 0, -1, 0]
    out, _ = run(ctx, np.zeros((6, 1), int), weights, 2, capacity=5)
    assert host(out["kept_ids"])[:, 0].tolist() == [0, -1, 0, 0, 0, 0]


def test_sampling_with_infinities(ctx):
    logits = np.array([[0, -np.inf, -np.inf], [1, np.nan, 0.5], [-np.inf] * 3, [np.nan, -np.inf, -np.inf]])
    fault = report()
    out, _ = run(ctx, np.zeros((4, 2), int), np.ones((4, 2)), 3, logits=array(logits, "fp32"), capacity=9, report=fault,
                 second_expert=libmoe.SECOND_EXPERT_SAMPLING)
    assert report_fields(fault)[0] == libmoe.FAULT_NAN_LOGIT
    assert host(out["routed_ids"])[:, 1].tolist() == [1, 2, 1, 1]
    assert_close(host(out["routed_weights"])[:, 1], [0, 1 / (1 + math.exp(0.5)), 0, 0], "fp32")


def test_sampling_follows_the_softmax(ctx, rng):
    tokens, logits = 20000, np.array([2.0, 1.0, 0.0, -1.0])
    out, _ = run(ctx, np.zeros((tokens, 2), int), np.ones((tokens, 2)), 4, random=(int(rng.integers(1 << 60)), 0),
                 logits=array(np.tile(logits, (tokens, 1)), "fp32"), capacity=tokens * 2, second_expert=libmoe.SECOND_EXPERT_SAMPLING)
    share = np.bincount(host(out["routed_ids"])[:, 1], minlength=4) / tokens
    expected = np.exp(logits) * (np.arange(4) > 0)
    expected /= expected.sum()
    assert abs(share - expected).max() < 6 * 0.5 / math.sqrt(tokens)


def test_outputs_in_place(ctx, rng):
    ids, weights, experts, _ = case(rng)
    apart, _ = run(ctx, ids, weights, experts, capacity=2, renormalize=libmoe.DROP_RENORMALIZE_AFTER)
    in_ids, in_weights = array(ids, "int32"), array(weights, "fp32")
    ctx.run("capacity_fwd", {"num_tokens": len(ids), "num_experts": experts, "top_k": ids.shape[1], "capacity": 2,
                             "renormalize": libmoe.DROP_RENORMALIZE_AFTER},
            {"ids": in_ids, "weights": in_weights, "kept_ids": in_ids, "kept_weights": in_weights})
    assert (host(in_ids) == host(apart["kept_ids"])).all() and (bits(in_weights) == bits(apart["kept_weights"])).all()


def test_pitches(ctx, rng, guarded):
    ids, weights = ROUTINGS["skewed"](rng, 70, 6, 3), rng.random((70, 3))
    wide_ids, wide = array(np.pad(ids, [(0, 0), (1, 1)]), "int64"), array(np.pad(weights, [(0, 0), (2, 2)]), "fp32")
    kept_ids, kept = guarded((70, 3), "int64", pitch=5), guarded((70, 3), "fp32", pitch=4)
    desc = {"num_tokens": 70, "num_experts": 6, "top_k": 3, "capacity": 20, "policy": libmoe.DROP_BATCH_PRIORITIZED}
    ctx.run("capacity_fwd", desc, {"ids": wide_ids[:, 1:4], "weights": wide[:, 2:5], "kept_ids": kept_ids, "kept_weights": kept})
    expected = reference.drop(ids, rounded(weights, "fp32"), 20, 6, libmoe.DROP_BATCH_PRIORITIZED)
    assert (host(kept_ids) == expected[0]).all()
    assert_close(kept, expected[1], "fp32")


def test_repeats_to_the_bit(ctx, rng):
    for policy in POLICIES:
        ids, weights = ROUTINGS["skewed"](rng, 5000, 16, 4), rng.random((5000, 4)).round(2)
        first, second = (run(ctx, ids, weights, 16, capacity=700, policy=of("DROP", policy))[0] for _ in range(2))
        assert all((bits(first[name]) == bits(second[name])).all() for name in first)


@pytest.mark.parametrize("second, renormalize", list(itertools.product(SECONDS, NORMALS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(ctx, rng, second, renormalize, dtype):
    if dtype not in dtypes():
        pytest.skip("FP64 is the CPU's")
    ids, weights, experts, limit = case(rng, second)
    weights = rounded(weights, dtype)
    second, renormalize = of("SECOND_EXPERT", second), of("DROP", renormalize)
    epsilon = reference.EPSILON[dtype]
    valid = (ids >= 0) & (ids < experts)
    kept_ids, *_ = reference.drop(ids, weights, limit, experts, second=second, random=(1, 2))
    kept, grad = kept_ids >= 0, rounded(rng.standard_normal(ids.shape), "fp32")
    expected = np.zeros(ids.shape)
    for k in range(ids.shape[1]):
        moved = weights.astype(complex)
        moved[:, k] += 1e-30j
        by_k = reference.renormalized(moved, valid, kept, second, renormalize, epsilon).imag / 1e-30
        expected[:, k] = np.where(valid[:, k], (by_k * grad).sum(1), 0)
    if ids.shape[1] == 1 and renormalize != libmoe.DROP_KEEP_WEIGHTS:
        # A weight divided by itself: what is left are rounding errors.
        expected[np.abs(weights) >= epsilon] = 0
    # Neither a gradient nor a weight that is not here may matter.
    args = {"weights": array(np.where(valid, weights, np.nan), dtype), "ids": array(ids, "int64"), "kept_ids": array(kept_ids, "int32"),
            "dkept_weights": array(np.where(kept, grad, np.nan), "fp32")}
    desc = {"num_tokens": len(ids), "num_experts": experts, "top_k": ids.shape[1], "second_expert": second, "renormalize": renormalize}
    dweights = empty(ids.shape, "fp32")
    ctx.run("capacity_bwd", desc, args | {"dweights": dweights})
    assert_close(dweights, expected, "fp32", factor=3)
    before = rounded(rng.standard_normal(ids.shape), "fp32")
    added = array(before, "fp32")
    ctx.run("capacity_bwd", desc, args | {"dweights": added, "dweights_mode": array([1], "int32")})
    assert_close(added, before + expected, "fp32", factor=3)


@pytest.mark.parametrize("fields, words", [
    ({"num_experts": 0}, "num_experts is 0"), ({"num_experts": 1025}, "num_experts is 1025"), ({"top_k": 0}, "top_k is 0"),
    ({"top_k": 9}, "top_k is 9; at most 8"), ({"num_experts": 100, "top_k": 65}, "top_k is 65; at most 64"),
    ({"capacity": -1}, "capacity is -1; at least 0"), ({"min_capacity": -2}, "min_capacity is -2"), ({"capacity_factor": -1.0}, "capacity_factor is -1"),
    ({"capacity_factor": math.nan}, "capacity_factor is NaN"), ({"capacity_factor": math.inf}, "capacity_factor is inf"),
    ({"formula": 6}, "formula is 6"), ({"policy": 5}, "policy is 5"), ({"second_expert": 3}, "second_expert is 3"),
    ({"renormalize": 3}, "renormalize is 3"), ({"second_expert": 2, "top_k": 3}, "top_k is 3; 2 where"), ({"num_tokens": -1}, "num_tokens is -1"),
])
def test_refusals(ctx, fields, words):
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.query("capacity_value", {"num_tokens": 4, "num_experts": 8, "top_k": 2, **fields})


def test_arguments_that_do_not_fit(ctx):
    ids, weights = zeros((4, 2), "int32"), zeros((4, 2), "fp32")
    desc = {"num_tokens": 4, "num_experts": 8, "top_k": 2}
    args = {"ids": ids, "weights": weights, "kept_ids": ids, "kept_weights": weights}
    for change, words in [({"kept_ids": zeros((4, 2), "int64")}, "kept_ids.dtype is INT64"), ({"logits": zeros((4, 8), "fp32")}, "logits is given"),
                          ({"kept_weights": zeros((4, 2), "bf16")}, "kept_weights.dtype is BF16"), ({"kept_ids": None}, "kept_ids.data is NULL")]:
        with pytest.raises(libmoe.InvalidArgument, match=words):
            ctx.run("capacity_fwd", desc, args | change)
    with pytest.raises(libmoe.InvalidArgument, match="logits.data is NULL"):
        ctx.run("capacity_fwd", desc | {"second_expert": libmoe.SECOND_EXPERT_SAMPLING}, args)
