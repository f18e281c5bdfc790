"""Routers at their edges: ties, infinities, NaN, one expert, all experts, many tokens, and bad input."""

import numpy as np
import pytest

import harness
import libmoe
from harness import array, assert_close, bits, empty, host, poisoned, report, report_fields, rounded
from philox_reference import philox

INF, NAN = np.inf, np.nan


def desc_of(tokens, experts, top_k, **more):
    return {"logits_dtype": "fp32", "num_tokens": tokens, "num_experts": experts, "top_k": top_k, **more}


def route(ctx, logits, top_k, dtype="fp32", **more):
    """ids, weights, report of a router with `more` in its description or arguments."""
    logits = np.asarray(logits, float)
    tokens, experts = logits.shape
    out = {"ids": empty((tokens, top_k), "int64"), "weights": empty((tokens, top_k), dtype), "report": report()}
    args = {name: more.pop(name) for name in ("selection_bias", "given_ids", "random") if name in more}
    desc = desc_of(tokens, experts, top_k, **{"logits_dtype": dtype, **more})
    ctx.run("router_fwd", desc, {"logits": array(logits, dtype), **args, **out})
    return host(out["ids"]), host(out["weights"]), report_fields(out["report"])


SOFTMAX, SIGMOID, SQRTSOFTPLUS = libmoe.SCORE_SOFTMAX, libmoe.SCORE_SIGMOID, libmoe.SCORE_SQRTSOFTPLUS
EVERY_SCORE = [(SOFTMAX, 0, 0), (SOFTMAX, 0, 1), (SOFTMAX, 1, 0), (SIGMOID, 0, 0), (SIGMOID, 0, 1), (SQRTSOFTPLUS, 0, 0), (SQRTSOFTPLUS, 0, 1)]


def scoring(score, order, renormalize):
    return {"score_function": score, "softmax_order": order, "renormalize": renormalize}


@pytest.mark.parametrize("score", EVERY_SCORE)
@pytest.mark.parametrize("experts, top_k", [(4, 2), (40, 8), (256, 8), (1024, 64)])
def test_ties_go_to_the_lower_expert(ctx, score, experts, top_k):
    logits = np.zeros((3, experts))
    logits[1, experts // 2:] = 1
    logits[2, ::2] = -1
    ids, weights, _ = route(ctx, logits, top_k, **scoring(*score))
    want = [np.argsort(-row, kind="stable")[:top_k] for row in logits]
    assert np.array_equal(ids, want)
    assert np.array_equal(weights[:2], np.repeat(weights[:2, :1], top_k, axis=1))


@pytest.mark.parametrize("score", EVERY_SCORE)
def test_special_logits(ctx, score):
    logits = [
        [-INF] * 6, [NAN] * 6, [NAN, -INF, NAN, -INF, -INF, NAN], [1, INF, 2, INF, INF, 0], [NAN, 1, NAN, 3, 2, INF],
        [-INF, -INF, 5, -INF, -INF, -INF], [INF] * 6, [3e38, -3e38, 3e38, 0, 0, -3e38],
    ]
    ids, weights, (what, place, _) = route(ctx, logits, 3, **scoring(*score))
    want = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 3, 4], [5, 3, 4], [2, 0, 1], [0, 1, 2], [0, 2, 3]]
    assert ids.tolist() == want
    assert not weights[:3].any() and np.isfinite(weights).all()
    assert (weights[5, 1:] == 0).all() and weights[5, 0] > 0
    assert np.array_equal(weights[3], weights[3, :1].repeat(3)) and np.array_equal(weights[6], weights[6, :1].repeat(3))
    if score[0] == SOFTMAX:
        assert_close(weights[3], [1 / 3] * 3, "fp32")
        assert_close(weights[4], [1, 0, 0], "fp32")
    assert what == libmoe.FAULT_NAN_LOGIT and np.isnan(np.array(logits).ravel()[place])


@pytest.mark.parametrize("score", EVERY_SCORE)
def test_gradients_at_special_logits(ctx, score):
    """0 where a logit is -inf or NaN, finite everywhere."""
    logits = np.array([
        [-INF] * 6, [NAN] * 6, [1, INF, 2, INF, INF, 0], [NAN, 1, -INF, 3, 2, -1], [-INF, -INF, 5, -INF, -INF, -INF],
        [-90, -200, -1e4, -1e30, -80, -300], [90, 200, 1e4, 1e30, 80, 300],
    ])
    desc = desc_of(*logits.shape, 3, **scoring(*score), aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=1.0)
    ids, counts = empty((7, 3), "int32"), empty((1, 6), "int64")
    ctx.run("router_fwd", desc, {"logits": array(logits, "fp32"), "ids": ids, "aux_counts": counts})
    dlogits = empty((7, 6), "fp32")
    dweights = array(np.arange(21).reshape(7, 3) - 10.0, "fp32")
    ctx.run("router_bwd", desc, {"logits": array(logits, "fp32"), "ids": ids, "dweights": dweights, "dlogits": dlogits, "aux_counts": counts})
    got = host(dlogits)
    assert np.isfinite(got).all() and not got[~(logits > -INF)].any()


@pytest.mark.parametrize("score", EVERY_SCORE)
def test_one_expert_and_all_experts(ctx, rng, score):
    ids, weights, _ = route(ctx, rng.normal(size=(5, 1)), 1, **scoring(*score))
    assert not ids.any()
    if score[0] == SOFTMAX:
        assert (weights == 1).all()
    logits = rounded(rng.normal(size=(5, 7)), "fp32")
    ids, weights, _ = route(ctx, logits, 7, **scoring(*score))
    assert np.array_equal(ids, np.argsort(-logits, axis=1, kind="stable"))
    if score[0] == SOFTMAX or score[2]:
        assert_close(weights.sum(axis=1), np.ones(5), "fp32")


def test_bias_bans_and_forces(ctx, rng):
    bias = np.zeros(16)
    bias[[3, 4]], bias[7], bias[9] = -INF, INF, NAN
    for target in (libmoe.BIAS_ON_SCORE, libmoe.BIAS_ON_LOGIT):
        ids, _, _ = route(ctx, rng.normal(size=(50, 16)), 4, score_function=SIGMOID, selection_bias=array(bias, "fp32"),
                          selection_bias_target=target)
        assert (ids[:, 0] == 7).all() and not np.isin(ids, [3, 4, 9]).any()


def test_group_limits_hold_where_kept_experts_are_minus_infinity(ctx):
    logits = np.array([[5, 4, -INF, -INF, 1, 1, 1, 1.0]])
    more = {"num_groups": 4, "top_groups": 2, "group_score": libmoe.GROUP_SCORE_MAX, "softmax_order": 1}
    ids, _, _ = route(ctx, logits, 4, **more)
    assert ids.tolist() == [[0, 1, 4, 5]]
    logits[0] = [5, -INF, 4, -INF, 1, 1, 1, 1]
    assert route(ctx, logits, 4, **more)[0].tolist() == [[0, 2, 1, 3]]


@pytest.mark.parametrize("experts, top_k", [(8, 2), (128, 8), (60, 7), (16, 16), (1, 1), (1024, 64)])
def test_balanced_selection(ctx, experts, top_k):
    tokens, seed, offset = 400, 0x123456789ABCDEF0, (1 << 40) + 3
    ids, weights, _ = route(ctx, np.zeros((tokens, experts)), top_k, selection=libmoe.SELECT_BALANCED, random=(seed, offset))
    first = (philox(seed, offset, tokens) * np.uint64(experts)) >> np.uint64(32)
    assert np.array_equal(ids, (first.astype(int)[:, None] + np.arange(top_k) * (experts // top_k)) % experts)
    assert all(len(set(row)) == top_k for row in ids)
    counts = np.bincount(ids.ravel(), minlength=experts)
    mean = tokens * top_k / experts
    assert (np.abs(counts - mean) <= 6 * np.sqrt(mean) + 1).all()


def test_given_ids_that_are_not_here(ctx, rng):
    logits = rounded(rng.normal(size=(4, 8)), "fp32")
    given = np.array([[3, -1], [8, 1], [-1, 1 << 20], [5, 5]])
    ids, weights, (what, _, _) = route(ctx, logits, 2, selection=libmoe.SELECT_GIVEN, given_ids=array(given, "int64"), renormalize=1)
    assert ids.tolist() == [[3, -1], [-1, 1], [-1, -1], [5, 5]] and what == libmoe.FAULT_NONE
    assert_close(weights, [[1, 0], [0, 1], [0, 0], [0.5, 0.5]], "fp32")


def test_wide_ids_do_not_wrap(ctx):
    given, ids = array(np.array([[(1 << 32) + 1]]), "int64"), empty((1, 1), "int32")
    ctx.run("router_fwd", desc_of(1, 4, 1, selection=libmoe.SELECT_GIVEN), {
        "logits": array(np.zeros((1, 4)), "fp32"), "given_ids": given, "ids": ids,
    })
    assert host(ids).tolist() == [[-1]]


def test_gradient_of_empty_slots_is_not_read(ctx, rng):
    logits = rounded(rng.normal(size=(2, 4)), "fp32")
    ids = array(np.array([[1, -1], [4, 9]]), "int32")
    dweights, dlogits = array(np.array([[2.0, NAN], [NAN, NAN]]), "fp32"), empty((2, 4), "fp32")
    ctx.run("router_bwd", desc_of(2, 4, 2), {"logits": array(logits, "fp32"), "ids": ids, "dweights": dweights, "dlogits": dlogits})
    s = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert_close(dlogits, [2 * s[1] * ((np.arange(4) == 1) - s), np.zeros(4)], "fp32")


@pytest.mark.cpu
@pytest.mark.parametrize("score", EVERY_SCORE)
def test_gradient_by_finite_differences(ctx, rng, score):
    """Of the library's own forward, in fp64."""
    tokens, experts, top_k, step = 6, 12, 4, 1e-6
    desc = desc_of(tokens, experts, top_k, **scoring(*score), logits_dtype="fp64", scaling_factor=1.7)
    logits, dweights = rng.normal(size=(tokens, experts)), rng.normal(size=(tokens, top_k))
    ids, dlogits = empty((tokens, top_k), "int32"), empty((tokens, experts), "fp64")
    ctx.run("router_fwd", desc, {"logits": logits, "ids": ids})
    ctx.run("router_bwd", desc, {"logits": logits, "ids": ids, "dweights": dweights, "dlogits": dlogits})

    def objective(logits):
        weights = empty((tokens, top_k), "fp64")
        ctx.run("router_fwd", {**desc, "selection": libmoe.SELECT_GIVEN}, {"logits": logits, "given_ids": ids, "weights": weights})
        return (weights * dweights).sum(axis=1)

    want = np.zeros((tokens, experts))
    for e in range(experts):
        moved = np.eye(experts)[e] * step
        want[:, e] = (objective(logits + moved) - objective(logits - moved)) / (2 * step)
    assert np.abs(want - dlogits).max() < 1e-8


# Sizes on both sides of where a GPU takes another kernel, or another number of lanes a token.
@pytest.mark.parametrize("tokens, experts, top_k", [
    (5000, 64, 8), (4099, 8, 2), (3000, 128, 8), (700, 1000, 10), (70000, 8, 1), (300, 512, 8), (300, 513, 8), (333, 9, 8), (333, 17, 9),
    (600, 256, 8), (20000, 16, 2), (65, 33, 7), (40, 1, 1), (1, 60, 4)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_many_tokens(ctx, rng, tokens, experts, top_k, dtype):
    logits = rounded(rng.normal(size=(tokens, experts)) * 2, dtype)
    mask = (rng.random(tokens) < 0.9).astype(np.uint8)
    mask[0] = 1
    desc = desc_of(tokens, experts, top_k, logits_dtype=dtype, aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=1.0,
                   z_loss=1, z_loss_coeff=1.0)
    ids, weights = empty((tokens, top_k), "int32"), empty((tokens, top_k), "fp32")
    per_expert, counts, aux, z = empty(experts, "int64"), empty((1, experts), "int64"), empty(1, "fp32"), empty(1, "fp32")
    common = {"logits": array(logits, dtype), "padding_mask": array(mask, "uint8"), "ids": ids}
    outs = {"weights": weights, "tokens_per_expert": per_expert, "aux_counts": counts, "aux_loss": aux, "z_loss": z}
    ctx.run("router_fwd", desc, {**common, **outs})
    want = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    assert np.array_equal(host(ids), want)
    lse = np.log(np.exp(logits).sum(axis=1))
    s = np.exp(logits - lse[:, None])
    assert_close(weights, np.take_along_axis(s, want, 1), "fp32")
    n = np.bincount(want[mask > 0].ravel(), minlength=experts)
    assert np.array_equal(host(per_expert), n) and np.array_equal(host(counts)[0], n)
    real = mask.sum()
    assert_close(aux, [experts / top_k / real**2 * (s[mask > 0].sum(axis=0) * n).sum()], "fp32")
    assert_close(z, [(lse[mask > 0] ** 2).mean()], "fp32")
    dweights, dlogits = rounded(rng.normal(size=(tokens, top_k)), "fp32"), empty((tokens, experts), dtype)
    ctx.run("router_bwd", desc, {**common, "dweights": array(dweights, "fp32"), "dlogits": dlogits, "aux_counts": counts})
    dense = np.zeros((tokens, experts))
    np.put_along_axis(dense, want, dweights, axis=1)
    mask = mask.astype(float)
    dense += mask[:, None] * experts / top_k / real**2 * n
    grad = s * (dense - (dense * s).sum(axis=1, keepdims=True)) + mask[:, None] * 2 * (lse / real)[:, None] * s
    assert_close(dlogits, grad, dtype, factor=4)
    first = [bits(out).tobytes() for out in (ids, *outs.values(), dlogits)]
    for _ in range(2):
        ctx.run("router_fwd", desc, {**common, **outs})
        ctx.run("router_bwd", desc, {**common, "dweights": array(dweights, "fp32"), "dlogits": dlogits, "aux_counts": counts})
        assert [bits(out).tobytes() for out in (ids, *outs.values(), dlogits)] == first


def test_no_tokens(ctx):
    """Counts and losses of nothing are 0."""
    desc = desc_of(0, 8, 2, aux_loss=1, aux_loss_coeff=1.0, z_loss=1, z_loss_coeff=1.0)
    out = {"tokens_per_expert": empty(8, "int64"), "aux_counts": empty((1, 8), "int64"), "aux_loss": empty(1, "fp32"), "z_loss": empty(1, "fp32")}
    ctx.run("router_fwd", desc, {"logits": empty((0, 8), "fp32"), **out})
    assert all(not host(x).any() for x in out.values())


@pytest.mark.parametrize("change, words", [
    ({"num_experts": 0}, "num_experts is 0"), ({"num_experts": 1025}, "num_experts is 1025; at most 1024"),
    ({"top_k": 0}, "top_k is 0"), ({"top_k": 9}, "top_k is 9; at most 8"), ({"top_k": -1}, "top_k is -1"),
    ({"num_experts": 128, "top_k": 65}, "top_k is 65; at most 64"), ({"num_tokens": -1}, "num_tokens is -1"),
    ({"num_tokens": 1 << 62}, "num_tokens"), ({"logits_dtype": "int32"}, "logits_dtype is INT32"),
    ({"logits_dtype": 99}, "logits_dtype is 99"), ({"logits_dtype": 0}, "logits_dtype is 0"), ({"score_function": 3}, "score_function is 3"),
    ({"softmax_order": -1}, "softmax_order is -1"), ({"renormalize": 2}, "renormalize is 2"), ({"math": libmoe.MATH_TF32}, "math is"),
    ({"scaling_factor": NAN}, "scaling_factor is NaN"), ({"scaling_factor": INF}, "scaling_factor is inf"), ({"selection": 3}, "selection is 3"),
    ({"selection_bias_target": 2}, "selection_bias_target is 2"), ({"num_groups": 3, "top_groups": 1}, "num_groups is 3; a divisor"),
    ({"num_groups": -1}, "num_groups is -1"), ({"num_groups": 16, "top_groups": 1}, "num_groups is 16"),
    ({"num_groups": 4}, "top_groups is 0"), ({"num_groups": 4, "top_groups": 5}, "top_groups is 5; at most 4"),
    ({"num_groups": 4, "top_groups": 3, "top_k": 4}, "top_groups is 3; a divisor of desc.top_k"),
    ({"num_groups": 8, "top_groups": 1}, "top_k is 2; at most 1"), ({"group_score": 3}, "group_score is 3"),
    ({"aux_loss": 5}, "aux_loss is 5"), ({"aux_scope": 3}, "aux_scope is 3"), ({"sequence_layout": 3}, "sequence_layout is 3"),
    ({"aux_loss": 1, "aux_scope": 1}, "num_sequences is 0; at least 1"),
    ({"aux_loss": 1, "aux_scope": 1, "num_sequences": 3}, "num_sequences is 3; a divisor"),
    ({"aux_loss_coeff": INF}, "aux_loss_coeff is inf"), ({"z_loss": 2}, "z_loss is 2"), ({"z_loss_coeff": NAN}, "z_loss_coeff is NaN"),
    ({"num_layers": -2}, "num_layers is -2"), ({"reserved": 1}, "reserved is 1"),
])
def test_bad_descriptions(ctx, change, words):
    desc = {**desc_of(4, 8, 2), **change}
    ids = empty((4, 2), "int32")
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("router_fwd", desc, {"logits": array(np.zeros((4, 8)), "fp32"), "ids": ids})
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.query("router_bwd_workspace_size", desc)
    assert poisoned(ids).all()


@pytest.mark.parametrize("change, args, words", [
    ({}, {"logits": None, "ids": "int32"}, "args.logits.data is NULL"), ({"selection": 1}, {}, "args.given_ids.data is NULL"),
    ({}, {"ids": "fp32"}, "args.ids.dtype"), ({}, {"weights": "int32"}, "args.weights.dtype"),
    ({}, {"byte_mask": "int32"}, "args.byte_mask.dtype"), ({}, {"bit_mask": "uint8"}, "args.bit_mask.dtype"),
    ({"aux_loss": 1, "aux_scope": 2}, {"aux_loss": "fp32"}, "global_tokens_per_expert is NULL"),
    ({"aux_loss": 1, "aux_scope": 1, "num_sequences": 2, "sequence_layout": 2}, {}, "sequence_offsets is NULL"),
])
def test_bad_arguments(ctx, change, args, words):
    made = {name: kind and empty((4, 8) if name != "aux_loss" else 1, kind) for name, kind in args.items()}
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("router_fwd", {**desc_of(4, 8, 2), **change}, {"logits": array(np.zeros((4, 8)), "fp32"), **made})


@pytest.mark.parametrize("score", [(SOFTMAX, 1, 0), (SOFTMAX, 0, 1), (SOFTMAX, 1, 1)])
@pytest.mark.parametrize("selection", [libmoe.SELECT_TOPK, libmoe.SELECT_GIVEN])
def test_backward_of_constant_weights_is_refused(ctx, score, selection):
    """K = 1 and normalised: forward gives 1, backward says why it has nothing to give."""
    desc = desc_of(3, 8, 1, **scoring(*score), selection=selection)
    ids, weights, logits = array(np.array([[1], [2], [0]]), "int32"), empty((3, 1), "fp32"), array(np.ones((3, 8)), "fp32")
    ctx.run("router_fwd", desc, {"logits": logits, "weights": weights, "given_ids": ids})
    assert (host(weights) == 1).all()
    dlogits = empty((3, 8), "fp32")
    args = {"logits": logits, "ids": ids, "dlogits": dlogits}
    with pytest.raises(libmoe.InvalidArgument, match="top_k is 1; .*always 1"):
        ctx.run("router_bwd", desc, {**args, "dweights": weights})
    with pytest.raises(libmoe.InvalidArgument, match="top_k is 1; .*always 1"):
        ctx.run("router_bwd", desc, args)
    assert poisoned(dlogits).all()
    ctx.run("router_bwd", {**desc, "z_loss": 1, "z_loss_coeff": 1.0}, args)
    assert np.abs(host(dlogits)).min() > 0


def test_backward_of_nothing_is_refused(ctx):
    args = {"logits": array(np.ones((3, 8)), "fp32"), "dlogits": empty((3, 8), "fp32"), "ids": empty((3, 2), "int32")}
    with pytest.raises(libmoe.InvalidArgument, match="dweights is absent"):
        ctx.run("router_bwd", desc_of(3, 8, 2), args)
    both = {"dweights": empty((3, 2), "fp32"), "dweights_dense": empty((3, 8), "fp32")}
    with pytest.raises(libmoe.InvalidArgument, match="dweights_dense is given"):
        ctx.run("router_bwd", desc_of(3, 8, 2), {**args, **both})
    with pytest.raises(libmoe.InvalidArgument, match="args.aux_counts is NULL"):
        ctx.run("router_bwd", desc_of(3, 8, 2, aux_loss=1), args)
    with pytest.raises(libmoe.InvalidArgument, match="args.ids.data is NULL"):
        ctx.run("router_bwd", desc_of(3, 8, 2), {**args, "ids": None, "dweights": both["dweights"]})


def test_true_count_outside_its_bound(ctx):
    for given, used in [(-3, 0), (9, 4)]:
        ids, said = empty((4, 2), "int32"), report()
        ctx.run("router_fwd", desc_of(4, 8, 2), {
            "logits": array(np.zeros((4, 8)), "fp32"), "ids": ids, "num_tokens": array(np.array([given]), "int32"), "report": said,
        })
        assert (~poisoned(ids)).all(axis=1).sum() == used
        assert report_fields(said) == (libmoe.FAULT_COUNT, 4, given)
