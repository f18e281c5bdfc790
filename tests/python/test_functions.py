"""The typed functions: shapes checked by name, outputs like inputs, options passed on."""

import numpy as np
import pytest

import harness
import libmoe
from harness import array, assert_close, host, zeros


@pytest.mark.parametrize("call, words", [
    (lambda ctx: libmoe.router_fwd(ctx, zeros(8, "fp32"), 2), r"logits has shape \[8\]; it must be \[T, E\]"),
    (lambda ctx: libmoe.router_fwd(ctx, zeros((4, 8), "fp32"), 2, selection_bias=zeros(7, "fp32")), r"selection_bias .*\[7\].*\[8\]"),
    (lambda ctx: libmoe.router_fwd(ctx, zeros((4, 8), "fp32"), 2, ids=zeros((4, 3), "int32")), r"ids has shape \[4, 3\].*\[4, 2\]"),
    (lambda ctx: libmoe.router_bwd(ctx, zeros((4, 8), "fp32"), zeros((4, 2), "int32"), zeros((4, 3), "fp32")), "dweights"),
    (lambda ctx: libmoe.router_logits_fwd(ctx, zeros((4, 8), "fp32"), zeros((3, 9), "fp32")), r"weight has shape \[3, 9\].*\[3, 8\]|\[E, d\]"),
    (lambda ctx: libmoe.grouped_gemm_fwd(ctx, zeros((4, 8), "fp32"), zeros((2, 6, 9), "fp32")), r"b has shape \[2, 6, 9\]"),
    (lambda ctx: libmoe.grouped_gemm_fwd(ctx, zeros((4, 8), "fp32"), zeros((2, 6, 8), "fp32"), zeros(4, "int64")), r"group_offsets|b has"),
    (lambda ctx: libmoe.activation_fwd(ctx, zeros((4, 8), "fp32"), row_weights=zeros(5, "fp32")), "row_weights"),
    (lambda ctx: libmoe.activation_fwd(ctx, zeros((4, 8), "fp32"), y=zeros((4, 8), "fp32")), r"y has shape \[4, 8\].*\[4, 4\]"),
    (lambda ctx: libmoe.combine_fwd(ctx, plan(), zeros((6, 8), "fp32"), zeros(5, "fp32")), r"weights has shape \[5\].*\[3, 2\]"),
    (lambda ctx: libmoe.combine_bwd(ctx, plan(), zeros((4, 8), "fp32")), r"dy has shape \[4, 8\]"),
    (lambda ctx: libmoe.expert_mlp_fwd(ctx, plan(), zeros((3, 8), "fp32"), zeros((2, 6, 8), "fp32"), zeros((2, 8, 4), "fp32")), r"w1 has shape \[2, 6, 8\]; it must be \[E, W, d\] = \[2, 8, 8\]"),
])
def test_shapes_that_do_not_fit(ctx, call, words):
    with pytest.raises(ValueError, match=words):
        call(ctx)


def plan():
    return libmoe.Plan(zeros(3, "int64"), num_tokens=3, top_k=2, rows_max=6)


def test_arguments_that_are_missing(ctx):
    with pytest.raises(TypeError, match="num_experts is required"):
        libmoe.dispatch_plan(ctx, zeros((3, 2), "int32"))
    with pytest.raises(TypeError, match="needs ids"):
        libmoe.dispatch_plan(ctx, num_experts=4)
    with pytest.raises(TypeError, match="x is list: not an array|x is"):
        libmoe.expert_mlp_fwd(ctx, plan(), 5, zeros((2, 8, 8), "fp32"), zeros((2, 8, 4), "fp32"))
    with pytest.raises(TypeError, match="no field 'activatoin'"):
        libmoe.activation_fwd(ctx, zeros((4, 8), "fp32"), activatoin=1)


def silu(x):
    return x / (1 + np.exp(-x))


def test_activation(ctx, rng):
    h, dy, w = rng.standard_normal((5, 8)), rng.standard_normal((5, 4)), rng.random(5)
    gate, up = h[:, :4], h[:, 4:]
    y = libmoe.activation_fwd(ctx, array(h, "fp32"), row_weights=array(w, "fp32"))
    assert_close(y, silu(gate) * up * w[:, None], "fp32")
    grads = libmoe.activation_bwd(ctx, array(h, "fp32"), array(dy, "fp32"), row_weights=array(w, "fp32"), weighted_act=True)
    assert_close(grads.drow_weights, (dy * silu(gate) * up).sum(1), "fp32")
    assert_close(grads.weighted_act, host(y), "fp32")
    assert type(y) is type(array(h)) and grads.dh.shape == h.shape
    relu = libmoe.activation_fwd(ctx, array(h, "bf16"), libmoe.ACTIVATION_RELU)
    assert_close(relu, np.maximum(h, 0), "bf16")
    assert relu.dtype == harness.empty(1, "bf16").dtype
