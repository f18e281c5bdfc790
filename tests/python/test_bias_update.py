"""The update of the selection bias: the sign rule in exact integers, quantile balancing by plain sorts."""

import math

import numpy as np
import pytest

import libmoe
from harness import array, assert_close, bits, empty, host, report, report_fields, rounded, zeros

SIGN, QUANTILE = libmoe.BIAS_UPDATE_SIGN, libmoe.BIAS_UPDATE_QUANTILE


@pytest.mark.parametrize("experts", (1, 2, 7, 128, 1024))
def test_sign(ctx, rng, experts):
    counts = rng.choice([rng.integers(0, 9, experts), rng.integers(0, 1 << 40, experts), np.full(experts, 5)], axis=0)
    before, rate = rounded(rng.standard_normal(experts), "fp32"), float(rng.choice([0.0, 1e-3, 0.25, -0.5]))
    bias = array(before, "fp32")
    ctx.run("router_bias_update", {"rule": SIGN, "num_experts": experts, "rate": rate},
            {"bias": bias, "tokens_per_expert": array(counts, "int64")})
    total = sum(int(n) for n in counts)
    signs = [(total > n * experts) - (total < n * experts) for n in map(int, counts)]
    expected = before.astype(np.float32) + np.float32(rate or 1e-3) * np.array(signs, np.float32)
    assert (host(bias) == expected).all()


def quantile(bias, scores, top_k, decay):
    tokens, experts = scores.shape
    scores = np.where(np.isnan(scores), -np.inf, scores)
    threshold = -np.sort(-(scores + bias), 1)[:, top_k]
    with np.errstate(invalid="ignore"):
        margins = scores - threshold[:, None]
    margins = np.where(np.isnan(margins), -np.inf, margins)
    q = -np.sort(-margins, 0)[tokens * top_k // experts]
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(q), decay * bias - (1 - decay) * q, bias)


@pytest.mark.parametrize("tokens, experts, top_k", [(1, 2, 1), (2, 3, 2), (50, 8, 2), (333, 33, 5), (2000, 64, 8), (100, 1024, 64), (700, 65, 64)])
@pytest.mark.parametrize("decay", (0.0, 0.9, 1.0))
def test_quantile(ctx, rng, tokens, experts, top_k, decay):
    scores = rounded(1 / (1 + np.exp(-rng.standard_normal((tokens, experts)) - rng.standard_normal(experts))), "fp32")
    before = rounded(0.1 * rng.standard_normal(experts), "fp32")
    bias = array(before, "fp32")
    ctx.run("router_bias_update", {"rule": QUANTILE, "num_experts": experts, "num_tokens": tokens, "top_k": top_k, "ema_decay": decay},
            {"bias": bias, "scores": array(scores, "fp32")})
    assert_close(bias, quantile(before, scores, top_k, decay), "fp32")


def test_quantile_balances(ctx, rng):
    tokens, experts, top_k = 4000, 16, 2
    scores = rounded(1 / (1 + np.exp(-rng.standard_normal((tokens, experts)) - 2 * rng.standard_normal(experts))), "fp32")
    bias = zeros(experts, "fp32")
    desc = {"rule": QUANTILE, "num_experts": experts, "num_tokens": tokens, "top_k": top_k}

    def load():
        return np.bincount((scores + host(bias)).argsort(1)[:, -top_k:].ravel(), minlength=experts).max()

    before = load()
    for _ in range(10):
        ctx.run("router_bias_update", desc, {"bias": bias, "scores": array(scores, "fp32")})
    assert load() < 1.1 * tokens * top_k / experts < before


def test_quantile_of_real_tokens(ctx, rng):
    scores = rounded(rng.random((300, 12)), "fp32")
    few, real = 211, rng.random(300) < 0.6
    spoiled = np.where(real[:, None] & (np.arange(300) < few)[:, None], scores, np.nan)
    bias = array(np.zeros(12), "fp32")
    desc = {"rule": QUANTILE, "num_experts": 12, "num_tokens": 300, "top_k": 3}
    fault = report()
    ctx.run("router_bias_update", desc, {"bias": bias, "scores": array(spoiled, "fp32"), "padding_mask": array(real, "uint8"),
                                         "num_tokens": array([few], "int32"), "report": fault})
    assert_close(bias, quantile(np.zeros(12), scores[:few][real[:few]], 3, 0.0), "fp32")
    assert report_fields(fault)[0] == libmoe.FAULT_NONE


def test_quantile_that_is_not_finite(ctx, rng):
    scores = rounded(rng.random((40, 5)), "fp32")
    scores[:, 2] = -np.inf
    scores[3, 1] = np.nan
    before = rounded(rng.standard_normal(5) / 10, "fp32")
    bias, fault = array(before, "fp32"), report()
    ctx.run("router_bias_update", {"rule": QUANTILE, "num_experts": 5, "num_tokens": 40, "top_k": 1, "ema_decay": 0.5},
            {"bias": bias, "scores": array(scores, "fp32"), "report": fault})
    assert report_fields(fault)[:2] == (libmoe.FAULT_NAN_LOGIT, 3 * 5 + 1)
    assert host(bias)[2] == before[2]
    assert_close(bias, quantile(before, scores, 1, 0.5), "fp32")


def test_quantile_of_no_tokens(ctx, rng):
    before = rounded(rng.standard_normal(6), "fp32")
    for tokens, count in ((0, None), (5, zeros(1, "int64"))):
        bias = array(before, "fp32")
        ctx.run("router_bias_update", {"rule": QUANTILE, "num_experts": 6, "num_tokens": tokens, "top_k": 2},
                {"bias": bias, "scores": zeros((tokens, 6), "fp32"), "num_tokens": count})
        assert (host(bias) == before).all()


def test_repeats_to_the_bit(ctx, rng):
    scores = array(rng.random((3000, 32)).round(2), "fp32")
    biases = [zeros(32, "fp32") for _ in range(2)]
    for bias in biases:
        ctx.run("router_bias_update", {"rule": QUANTILE, "num_experts": 32, "num_tokens": 3000, "top_k": 4}, {"bias": bias, "scores": scores})
    assert (bits(biases[0]) == bits(biases[1])).all()


@pytest.mark.parametrize("fields, words", [
    ({"rule": 2}, "rule is 2"), ({"num_experts": 0}, "num_experts is 0"), ({"rate": math.nan}, "rate is NaN"),
    ({"rule": QUANTILE, "top_k": 0}, "top_k is 0"), ({"rule": QUANTILE, "top_k": 8}, "top_k is 8; at most 7"),
    ({"rule": QUANTILE, "num_experts": 1}, "num_experts is 1; at least 2"), ({"rule": QUANTILE, "top_k": 2, "ema_decay": 1.5}, "ema_decay is 1.5"),
    ({"rule": QUANTILE, "top_k": 2, "ema_decay": math.nan}, "ema_decay is NaN"), ({"ema_decay": -0.1}, "ema_decay is -0.1"),
])
def test_refusals(ctx, fields, words):
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("router_bias_update", {"num_experts": 8, "num_tokens": 4, **fields},
                {"bias": empty(8, "fp32"), "tokens_per_expert": zeros(8, "int64"), "scores": zeros((4, 8), "fp32")})
