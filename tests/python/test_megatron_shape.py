"""One call chain as Megatron-Core's experts module makes it: rows that are already permuted, tokens_per_expert, a
probability a row applied on the activation, and weight gradients delayed and accumulated into fp32 main_grads."""

import numpy as np
import pytest

import libmoe
from harness import array, assert_close, empty, host, rounded, zeros

E, D, F = 5, 32, 24
SIZES = np.array([4, 0, 9, 1, 7])
LAYOUT = {"input_layout": libmoe.LAYOUT_ROWS, "output_layout": libmoe.LAYOUT_ROWS, "weights_at": libmoe.WEIGHTS_AT_ACTIVATION}


def reference(x, probs, w1, w2, dy):
    """Forward and all gradients in float64, expert by expert."""
    y, dx, dprobs = np.zeros_like(x), np.zeros_like(x), np.zeros_like(probs)
    dw1, dw2 = np.zeros_like(w1), np.zeros_like(w2)
    stop = np.cumsum(SIZES)
    for e, rows in enumerate(slice(a, b) for a, b in zip(stop - SIZES, stop)):
        gate, up = np.split(x[rows] @ w1[e].T, 2, axis=1)
        sigmoid = 1 / (1 + np.exp(-gate))
        act, p = gate * sigmoid * up, probs[rows, None]
        y[rows] = (act * p) @ w2[e].T
        dw2[e] = dy[rows].T @ (act * p)
        dweighted = dy[rows] @ w2[e]
        dprobs[rows] = (dweighted * act).sum(1)
        dact = dweighted * p
        dh = np.concatenate([dact * up * sigmoid * (1 + gate * (1 - sigmoid)), dact * gate * sigmoid], axis=1)
        dw1[e], dx[rows] = dh.T @ x[rows], dh @ w1[e]
    return y, dx, dprobs, dw1, dw2


@pytest.mark.parametrize("pointers", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_experts_module(ctx, rng, dtype, pointers):
    rows = SIZES.sum()
    x, dy = rounded(rng.standard_normal((rows, D)), dtype), rounded(rng.standard_normal((rows, D)), dtype)
    w1 = rounded(rng.standard_normal((E, 2 * F, D)) / np.sqrt(D), dtype)
    w2 = rounded(rng.standard_normal((E, D, F)) / np.sqrt(F), dtype)
    probs = rounded(rng.random(rows), "fp32")
    expected = reference(x, probs, w1, w2, dy)

    tokens_per_expert = array(SIZES)
    offsets = array(np.concatenate([[0], np.cumsum(SIZES)]))
    plan = libmoe.Plan(offsets, tokens_per_expert, rows_max=int(rows))

    def weights(values):
        # Megatron holds a parameter an expert, or all of them stacked.
        return [array(m, dtype) for m in values] if pointers else array(values, dtype)

    x, dy, probs, w1, w2 = array(x, dtype), array(dy, dtype), array(probs, "fp32"), weights(w1), weights(w2)
    y, h = libmoe.expert_mlp_fwd(ctx, plan, x, w1, w2, row_weights=probs, **LAYOUT)
    assert_close(y, expected[0], dtype)

    grads = libmoe.expert_mlp_bwd(ctx, plan, dy, x, w1, w2, h, row_weights=probs, dw1=False, dw2=False, dh=h,
                                  weighted_act=True, **LAYOUT)
    assert grads.dw1 is None and grads.dw2 is None
    assert_close(grads.dx, expected[1], dtype)
    assert_close(grads.drow_weights, expected[2], dtype)

    # Two micro-batches of the same rows accumulate into main_grads; fc2's half is made apart from fc1's.
    main1, main2 = zeros((E, 2 * F, D), "fp32"), zeros((E, D, F), "fp32")
    for _ in range(2):
        libmoe.expert_mlp_wgrad(ctx, plan, dy, x, grads.dh, grads.weighted_act, row_weights=probs, dw2=main2,
                                dw_mode="add", **LAYOUT)
        libmoe.expert_mlp_wgrad(ctx, plan, dy, x, grads.dh, grads.weighted_act, row_weights=probs, dw1=main1,
                                dw_mode="add", **LAYOUT)
    assert_close(main1, 2 * expected[3], dtype)
    assert_close(main2, 2 * expected[4], dtype)
    assert not host(main1)[1].any() and not host(main2)[1].any()

    # Without accumulation the gradient of an expert without rows is written as zeros.
    written = libmoe.expert_mlp_wgrad(ctx, plan, dy, x, grads.dh, grads.weighted_act, row_weights=probs,
                                      dw1=empty((E, 2 * F, D), "fp32"), dw2=empty((E, D, F), "fp32"), **LAYOUT)
    assert_close(written.dw1, expected[3], dtype)
    assert_close(written.dw2, expected[4], dtype)
    assert not host(written.dw1)[1].any()
