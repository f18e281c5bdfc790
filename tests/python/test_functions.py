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


def test_gmm(ctx, rng):
    sizes = np.array([3, 0, 4])
    a, b = rng.standard_normal((7, 6)), rng.standard_normal((3, 6, 5))
    c = np.einsum("rk,rkn->rn", a, b[np.repeat(np.arange(3), sizes)])
    for dtype in ("int64", "int32"):
        assert_close(libmoe.gmm(array(a, "fp32"), array(b, "fp32"), array(sizes, dtype)), c, "fp32")
    turned = array(np.ascontiguousarray(b.transpose(0, 2, 1)), "fp32")
    assert_close(libmoe.gmm(array(a, "fp32"), turned, array(sizes), trans_b=True), c, "fp32")
    with pytest.raises(TypeError, match="batch_sizes is list: not a"):
        libmoe.gmm(array(a, "fp32"), array(b, "fp32"), [3, 0, 4])
    with pytest.raises(TypeError, match="batch_sizes has dtype .*; it must be int64 or int32"):
        libmoe.gmm(array(a, "fp32"), array(b, "fp32"), array(sizes, "fp32"))
    if harness.on_cpu():
        with pytest.raises(ValueError, match="batch_sizes are 0 or more, 8 together; a has 7 rows"):
            libmoe.gmm(array(a, "fp32"), array(b, "fp32"), array(sizes + [1, 0, 0]))


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


def test_router(ctx, rng):
    logits = rng.standard_normal((6, 8)).astype(np.float32)
    out = libmoe.router_fwd(ctx, array(logits), 2, renormalize=1, tokens_per_expert=True, byte_mask=True, bit_mask=True,
                            weights_dense=True, ids_dtype="int64", aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=1.0)
    ids = (-logits).argsort(axis=1)[:, :2]
    assert np.array_equal(host(out.ids), ids)
    scores = np.exp(logits.astype(np.float64))
    chosen = np.take_along_axis(scores, ids, 1)
    weights = chosen / chosen.sum(1, keepdims=True)
    assert_close(out.weights, weights, "fp32")
    mask = (np.arange(8) == ids[..., None]).any(1)
    assert np.array_equal(host(out.byte_mask) != 0, mask)
    assert np.array_equal(host(out.bit_mask)[:, 0] & 0xFFFFFFFF, (mask << np.arange(8)).sum(1))
    assert np.array_equal(host(out.tokens_per_expert), mask.sum(0))
    assert_close(host(out.weights_dense).sum(1), np.ones(6), "fp32")
    loss = 8 / (2 * 6**2) * ((scores / scores.sum(1, keepdims=True)).sum(0) * mask.sum(0)).sum()
    assert_close(out.aux_loss, [loss], "fp32")
    assert out.z_loss is None
    # A step against the gradient lowers the loss.
    grad = libmoe.router_bwd(ctx, array(logits), out.ids, aux_counts=out.aux_counts, renormalize=1,
                             aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=1.0)
    assert_close(host(grad).sum(1) + 1, np.ones(6), "fp32")
    assert np.linalg.norm(host(grad)) > 1e-3


@pytest.mark.parametrize("preset, first", [(libmoe.SINKHORN_MEGATRON, 0), (libmoe.SINKHORN_NEOX, -2)])
def test_sinkhorn_by_steps(ctx, rng, preset, first):
    logits = array(rng.standard_normal((40, 6)), "fp32")
    whole = libmoe.sinkhorn(ctx, logits, preset=preset, max_iterations=3, tolerance=1e-30, log_d0=True)
    log_d0, log_d1, column_mass, done = zeros(40, "fp32"), zeros(6, "fp32"), zeros(6, "fp32"), zeros(1, "int32")
    for step in range(first, 4):
        out = libmoe.sinkhorn_step(ctx, logits, step, log_d1, column_mass, done, log_d0=log_d0, iterations=True, preset=preset,
                                   total_tokens=array([40], "fp32"), max_iterations=3, tolerance=1e-30)
    assert host(out.iterations) == 3 and out.log_d1 is log_d1
    assert_close(np.exp(host(log_d1)), np.exp(host(whole.log_d1)), "fp32", factor=4)
    assert_close(np.exp(host(log_d0)), np.exp(host(whole.log_d0)), "fp32", factor=4)


@pytest.mark.parametrize("source", ["ids", "byte_mask", "bit_mask"])
@pytest.mark.parametrize("alignment", [1, 8])
def test_dispatch_and_combine(ctx, rng, source, alignment):
    tokens, experts, top_k, hidden = 7, 5, 2, 8
    ids = np.sort(harness.uniform_ids(rng, tokens, experts, top_k), axis=1)
    mask = (np.arange(experts) == ids[..., None]).any(1)
    given = {"ids": array(ids, "int32"), "byte_mask": array(mask, "uint8"),
             "bit_mask": array((mask << np.arange(experts)).sum(1, keepdims=True), "uint32")}[source]
    plan = libmoe.dispatch_plan(ctx, num_experts=experts, alignment=alignment, top_k=top_k, **{source: given})
    sizes = mask.sum(0)
    assert np.array_equal(host(plan.group_sizes), sizes)
    offsets = np.concatenate([[0], np.cumsum(-(-sizes // alignment) * alignment)])
    assert np.array_equal(host(plan.group_offsets), offsets)
    assert plan.num_groups == experts and (plan.slot_offsets is None) == (source == "ids")
    x, weights, dy = rng.standard_normal((tokens, hidden)), rng.random((tokens, top_k)), rng.standard_normal((tokens, hidden))
    rows = libmoe.dispatch_fwd(ctx, plan, array(x, "fp32"), array(weights, "fp32"))
    token_of_row = host(plan.token_of_row)[:offsets[-1]]
    assert_close(host(rows.rows)[:offsets[-1]], np.where(token_of_row[:, None] < 0, 0, x[token_of_row]), "fp32")
    y = libmoe.combine_fwd(ctx, plan, rows.rows, array(weights.ravel(), "fp32"))
    assert_close(y, x * weights.sum(1, keepdims=True), "fp32")
    same = libmoe.combine_fwd(ctx, plan, rows.rows, row_weights=rows.row_weights)
    assert_close(same, host(y), "fp32")
    grads = libmoe.combine_bwd(ctx, plan, array(dy, "fp32"), rows.rows, array(weights, "fp32"))
    assert_close(grads.dweights, np.repeat((x * dy).sum(1, keepdims=True), top_k, 1), "fp32")
    back = libmoe.dispatch_bwd(ctx, plan, grads.drows, rows.row_weights)
    assert_close(back.dx, dy * weights.sum(1, keepdims=True), "fp32")
    assert_close(back.dweights, weights, "fp32")


def test_local_experts_and_row_bound(ctx, rng):
    ids = array(harness.uniform_ids(rng, 9, 8, 3), "int64")
    plan = libmoe.dispatch_plan(ctx, ids, 8, expert_begin=2, num_local_experts=4, map_dtype="int64")
    assert plan.num_groups == 4 and plan.expert_begin == 2
    assert np.array_equal(host(plan.group_sizes), np.bincount(host(ids).ravel(), minlength=8)[2:6])
    assert plan.rows_max >= host(plan.group_offsets)[-1]


@pytest.mark.parametrize("layout", [libmoe.WEIGHT_OUT_IN, libmoe.WEIGHT_IN_OUT])
def test_grouped_gemm(ctx, rng, layout):
    sizes = np.array([3, 0, 4])
    group = np.repeat(np.arange(3), sizes)
    a, b, dc = rng.standard_normal((7, 6)), rng.standard_normal((3, 5, 6)), rng.standard_normal((7, 5))
    stored = b if layout == libmoe.WEIGHT_OUT_IN else b.transpose(0, 2, 1)
    offsets = array(np.concatenate([[0], np.cumsum(sizes)]))
    arguments = {"group_offsets": offsets, "b_layout": layout}
    c = libmoe.grouped_gemm_fwd(ctx, array(a, "fp32"), array(stored, "fp32"), **arguments)
    assert_close(c, np.einsum("rk,rnk->rn", a, b[group]), "fp32")
    by_pointers = libmoe.grouped_gemm_fwd(ctx, array(a, "fp32"), [array(m, "fp32") for m in stored],
                                          group_sizes=array(sizes), b_layout=layout)
    assert_close(by_pointers, host(c), "fp32")
    main_grad = array(np.ones(stored.shape), "fp32")
    grads = libmoe.grouped_gemm_bwd(ctx, array(dc, "fp32"), array(a, "fp32"), array(stored, "fp32"), **arguments,
                                    db=main_grad, db_mode="add", dbias=True)
    assert_close(grads.da, np.einsum("rn,rnk->rk", dc, b[group]), "fp32")
    db = np.stack([dc[group == g].T @ a[group == g] for g in range(3)])
    assert_close(main_grad, 1 + (db if layout == libmoe.WEIGHT_OUT_IN else db.transpose(0, 2, 1)), "fp32")
    assert_close(grads.dbias, np.stack([dc[group == g].sum(0) for g in range(3)]), "fp32")
