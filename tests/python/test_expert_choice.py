"""Expert choice against a plain sort of softmax scores, its gradient against finite differences."""

import numpy as np
import pytest

import libmoe
from harness import array, assert_close, bits, empty, host, on_cpu, report, report_fields, rounded, zeros

DTYPES = ("fp64", "fp32", "fp16", "bf16")
# (T, E, C): one of each, more places than tokens, none, as many, few of many.
SIZES = [(1, 1, 1), (1, 5, 3), (7, 1, 2), (12, 4, 0), (12, 4, 12), (12, 4, 20), (64, 8, 16), (200, 33, 7), (1500, 40, 75),
         (30, 1024, 2), (5000, 3, 1700)]


def dtypes():
    return DTYPES if on_cpu() else DTYPES[1:]


def softmax(logits):
    logits = np.minimum(np.where(np.isnan(logits), -np.inf, logits), np.finfo(np.float32).max)
    top = np.maximum(logits.max(1, keepdims=True), -1e300)
    terms = np.exp(logits - top)
    return terms / np.maximum(terms.sum(1, keepdims=True), 1e-300)


def choose(ctx, logits, capacity, dtype="fp32", ids_dtype="int32", weights_dtype="fp32", num_tokens=None, padding_mask=None,
           report=None, **fields):
    tokens, experts = logits.shape
    words = -(-experts // 32)
    out = {"token_ids": empty((experts, capacity), ids_dtype), "weights": empty((experts, capacity), weights_dtype),
           "weights_dense": empty((tokens, experts), weights_dtype), "byte_mask": empty((tokens, experts), "uint8"),
           "bit_mask": empty((tokens, words), "uint32")}
    desc = {"logits_dtype": dtype, "num_tokens": tokens, "num_experts": experts, "capacity": capacity, **fields}
    ctx.run("expert_choice_fwd", desc, {"logits": array(logits, dtype), "num_tokens": num_tokens, "report": report,
                                        "padding_mask": padding_mask, **out})
    return out


def check(out, scores, capacity, real=None, tolerance=1e-6, weights_dtype="fp32"):
    """The choice is the best there is, but for scores closer than the tolerance; all outputs say the same."""
    tokens, experts = scores.shape
    real = np.arange(tokens) if real is None else np.flatnonzero(real)
    count = min(capacity, len(real))
    ids, weights = host(out["token_ids"]), host(out["weights"])
    mask = np.zeros((tokens, experts), bool)
    for expert in range(experts):
        chosen = ids[expert, :count]
        assert (ids[expert, count:] == -1).all() and (weights[expert, count:] == 0).all()
        assert (np.diff(chosen) > 0).all() and np.isin(chosen, real).all()
        rest = np.setdiff1d(real, chosen)
        if len(rest) and count:
            worst, best = scores[chosen, expert].min(), scores[rest, expert].max()
            assert worst >= best - tolerance * best, f"expert {expert} took {worst} and left {best}"
        mask[chosen, expert] = True
    assert_close(weights[:, :count], np.take_along_axis(scores.T, ids[:, :count], 1), weights_dtype)
    assert (host(out["byte_mask"])[:tokens] == mask).all()
    packed = np.packbits(np.pad(mask, [(0, 0), (0, -experts % 32)]), axis=1, bitorder="little").view("<u4")
    assert (host(out["bit_mask"])[:tokens] == packed).all()
    dense = host(out["weights_dense"])[:tokens]
    assert (dense[~mask] == 0).all()
    assert_close(dense, np.where(mask, scores, 0), weights_dtype)
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, experts, capacity", SIZES)
def test_choice(ctx, rng, tokens, experts, capacity, dtype):
    if dtype not in dtypes():
        pytest.skip("FP64 is the CPU's")
    logits = rounded(rng.choice([0.1, 1, 5]) * rng.standard_normal((tokens, experts)) + rng.standard_normal(experts), dtype)
    weights_dtype = str(rng.choice(dtypes()))
    out = choose(ctx, logits, capacity, dtype, str(rng.choice(["int32", "int64"])), weights_dtype)
    check(out, softmax(logits), capacity, weights_dtype="fp32" if weights_dtype == "fp64" else weights_dtype)


@pytest.mark.cpu
def test_fp64_scores_decide(ctx, rng):
    """Scores that fp32 cannot tell apart."""
    logits = np.zeros((40, 2))
    logits[:, 0] = 1e-10 * rng.permutation(40)
    out = choose(ctx, logits, 10, "fp64", weights_dtype="fp64", math=libmoe.MATH_FP64)
    assert (host(out["token_ids"])[0] == np.sort(logits[:, 0].argsort()[-10:])).all()
    assert (host(out["token_ids"])[1] == np.sort(logits[:, 0].argsort()[:10])).all()


def test_ties_go_to_the_lower_token(ctx, rng):
    tokens, experts, capacity = 300, 6, 40
    logits = rng.integers(0, 3, tokens)[:, None] * np.ones(experts)
    logits[:, 0] += rng.integers(0, 2, tokens)
    out = choose(ctx, logits, capacity)
    ids = host(out["token_ids"])
    for expert in range(experts):
        # Rows of one value each have the same scores to the bit, the others differ by far.
        keys = np.round(softmax(logits)[:, expert], 5)
        assert (ids[expert] == np.sort(np.lexsort((np.arange(tokens), -keys))[:capacity])).all()
    check(out, softmax(logits), capacity)


def test_saturated_and_zero_scores(ctx):
    logits = np.full((50, 3), -1e4)
    logits[20:, 0] = 1e4
    out = choose(ctx, logits, 35)
    # 30 scores of 1, then zeros from the lowest token on; of all others: a third 20 times, then zeros.
    assert (host(out["token_ids"])[0] == np.concatenate([np.arange(5), np.arange(20, 50)])).all()
    assert (host(out["token_ids"])[1] == np.arange(35)).all()


def test_infinities_and_nan(ctx, rng):
    logits = rng.standard_normal((60, 5))
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[7] = -np.inf
    logits[8, [1, 3]] = np.inf
    logits[9, 2] = np.nan
    fault = report()
    out = choose(ctx, logits, 11, report=fault)
    assert report_fields(fault)[:2] == (libmoe.FAULT_NAN_LOGIT, 9 * 5 + 2)
    scores = softmax(logits)
    assert (scores[7] == 0).all() and scores[8, 1] == 0.5
    check(out, scores, 11)


def test_padding_and_true_count(ctx, rng):
    logits = rng.standard_normal((100, 7))
    real = rng.random(100) < 0.4
    padded = np.where(real[:, None], logits, 50.0)
    out = choose(ctx, padded, 25, padding_mask=array(real, "uint8"))
    check(out, softmax(rounded(padded, "fp32")), 25, real)
    few = int(rng.integers(0, 60))
    logits[few:] = np.nan
    out = choose(ctx, logits, 25, num_tokens=array([few], "int32"))
    for name in ("byte_mask", "bit_mask"):
        assert (host(out[name])[few:] == host(empty(1, "uint8" if name == "byte_mask" else "uint32"))).all()
    assert np.isnan(host(out["weights_dense"])[few:]).all()
    trimmed = {name: host(x)[:few] if name in ("byte_mask", "bit_mask", "weights_dense") else x for name, x in out.items()}
    check(trimmed, softmax(rounded(logits[:few], "fp32")), 25)


def test_optional_outputs(ctx, rng, guarded):
    logits = rng.standard_normal((50, 9))
    whole = choose(ctx, logits, 6)
    desc = {"logits_dtype": "fp32", "num_tokens": 50, "num_experts": 9, "capacity": 6}
    shapes = {"token_ids": ((9, 6), "int64"), "weights": ((9, 6), "bf16"), "weights_dense": ((50, 9), "fp16"),
              "byte_mask": ((50, 9), "uint8"), "bit_mask": ((50, 1), "uint32")}
    for name, (shape, dtype) in shapes.items():
        alone = guarded(shape, dtype, pitch=shape[1] + 3)
        ctx.run("expert_choice_fwd", desc, {"logits": array(logits, "fp32"), name: alone})
        if dtype in ("bf16", "fp16"):
            assert_close(alone, host(whole[name]), dtype)
        else:
            assert (host(alone) == host(whole[name])).all()
    ctx.run("expert_choice_fwd", desc, {"logits": array(logits, "fp32")})


def test_repeats_to_the_bit(ctx, rng):
    logits = rng.standard_normal((4000, 16)).round(1)
    first, second = choose(ctx, logits, 500), choose(ctx, logits, 500)
    assert all((bits(first[name]) == bits(second[name])).all() for name in first)


def backward(ctx, logits, capacity, dtype="fp32", dlogits=None, **args):
    tokens, experts = logits.shape
    dlogits = empty((tokens, experts), dtype) if dlogits is None else dlogits
    desc = {"logits_dtype": dtype, "num_tokens": tokens, "num_experts": experts, "capacity": capacity}
    ctx.run("expert_choice_bwd", desc, {"logits": array(logits, dtype), "dlogits": dlogits, **args})
    return dlogits


def finite_differences(logits, grad, step=1e-6):
    """d/dL of sum(grad * softmax(L)), in float64."""
    out = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        row = np.repeat(logits[place[0]][None], 2, 0)
        row[0, place[1]] -= step
        row[1, place[1]] += step
        below, above = (softmax(row) * grad[place[0]]).sum(1)
        out[place] = (above - below) / (2 * step)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, experts, capacity", [(1, 1, 1), (9, 4, 3), (40, 8, 10), (25, 37, 6), (6, 5, 9)])
def test_gradient(ctx, rng, tokens, experts, capacity, dtype):
    if dtype not in dtypes():
        pytest.skip("FP64 is the CPU's")
    logits = rounded(rng.standard_normal((tokens, experts)), dtype)
    ids = host(choose(ctx, logits, capacity, dtype)["token_ids"])
    grad_dtype = str(rng.choice(dtypes()))
    compact = rounded(rng.standard_normal((experts, capacity)), grad_dtype)
    dense, mask = np.zeros((tokens, experts)), ids >= 0
    experts_of = np.broadcast_to(np.arange(experts)[:, None], ids.shape)
    dense[ids[mask], experts_of[mask]] = compact[mask]
    expected = finite_differences(logits, dense)
    # What belongs to no choice must not matter.
    poisoned = np.where(mask, compact, np.nan)
    tolerance = dtype if dtype != "fp64" else "fp32"
    args = {"token_ids": array(ids, "int64"), "dweights": array(poisoned, grad_dtype)}
    assert_close(backward(ctx, logits, capacity, dtype, **args), expected, tolerance, factor=3)
    chosen = np.zeros((tokens, experts))
    chosen[ids[mask], experts_of[mask]] = 1
    args = {"byte_mask": array(chosen, "uint8"), "dweights_dense": array(np.where(chosen, dense, np.nan), grad_dtype)}
    assert_close(backward(ctx, logits, capacity, dtype, **args), expected, tolerance, factor=3)
    before = rounded(rng.standard_normal((tokens, experts)), dtype)
    added = backward(ctx, logits, capacity, dtype, array(before, dtype), dlogits_mode="add", **args)
    assert_close(added, before + expected, tolerance, factor=3)


def test_gradient_of_infinities(ctx):
    logits = np.zeros((4, 3))
    logits[0] = -np.inf
    logits[1, 0] = np.nan
    logits[2, 1] = np.inf
    ids = np.array([[0, 1, 2], [0, 1, 2], [0, 2, 3]])
    dlogits = host(backward(ctx, logits, 3, token_ids=array(ids, "int32"), dweights=array(np.full((3, 3), 2.0), "fp32")))
    assert np.isfinite(dlogits).all() and (dlogits[0] == 0).all() and dlogits[1, 0] == 0 and (dlogits[2] == 0).all()
    assert_close(dlogits[1], [0, 0.5, -0.5], "fp32")
    assert_close(dlogits[3], [-2 / 9, -2 / 9, 4 / 9], "fp32")


def test_tokens_that_do_not_exist(ctx, rng):
    logits = rounded(rng.standard_normal((6, 2)), "fp32")
    ids, grad = np.array([[0, 3, 5], [1, 2, -1]]), rng.standard_normal((2, 3))
    expected = backward(ctx, logits, 3, token_ids=array(ids, "int64"), dweights=array(np.where(ids == 3, 0, grad), "fp32"))
    fault = report()
    for bad in (6, -2, 1 << 40):
        spoiled = np.where(ids == 3, bad, ids)
        fault[:] = 0
        out = backward(ctx, logits, 3, token_ids=array(spoiled, "int64"), dweights=array(grad, "fp32"), report=fault)
        assert (host(out) == host(expected)).all()
        assert report_fields(fault) == (libmoe.FAULT_TOKEN_INDEX, 1, bad)


@pytest.mark.parametrize("fields, words", [
    ({"num_experts": 0}, "num_experts is 0"), ({"num_experts": 1025}, "num_experts is 1025"), ({"capacity": -1}, "capacity is -1"),
    ({"math": 7}, "math is 7"), ({"math": libmoe.MATH_TF32}, "math is MOE_MATH_TF32"), ({"num_tokens": -1}, "num_tokens is -1"),
])
def test_refusals(ctx, fields, words):
    desc = {"logits_dtype": "fp32", "num_tokens": 4, "num_experts": 8, "capacity": 2, **fields}
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("expert_choice_fwd", desc, {"logits": zeros((4, 8), "fp32")})


def test_gradients_that_are_missing(ctx):
    logits, ids = zeros((4, 3), "fp32"), zeros((3, 2), "int32")
    desc = {"logits_dtype": "fp32", "num_tokens": 4, "num_experts": 3, "capacity": 2}
    both = {"dweights": zeros((3, 2), "fp32"), "token_ids": ids, "dweights_dense": logits, "byte_mask": zeros((4, 3), "uint8")}
    for missing, words in [((), "dweights_dense is given"), (("dweights", "dweights_dense"), "dweights.data is NULL"),
                           (("token_ids", "dweights_dense"), "token_ids.data is NULL"), (("byte_mask", "dweights"), "byte_mask.data is NULL")]:
        args = {name: x for name, x in both.items() if name not in missing}
        with pytest.raises(libmoe.InvalidArgument, match=words):
            ctx.run("expert_choice_bwd", desc, {"logits": logits, "dlogits": empty((4, 3), "fp32"), **args})
