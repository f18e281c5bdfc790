"""Megatron-Core's own functions beside ours, where the package is installed (0.19.2 is what they were written against).

The differences that remain are those that the header names: order of ties, and Sinkhorn beyond fp32's range.
"""

import warnings

import harness
import libmoe
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mcore = pytest.importorskip("megatron.core.transformer.moe.moe_utils", reason="needs megatron-core")

from peers import close, new  # noqa: E402

SCORES = {"softmax": libmoe.SCORE_SOFTMAX, "sigmoid": libmoe.SCORE_SIGMOID, "sqrtsoftplus": libmoe.SCORE_SQRTSOFTPLUS}


@pytest.fixture
def on():
    """Random float32 tensors on the device under test; no two logits of a token are equal."""
    return lambda *size, scale=1.0: torch.randn(*size, device=harness.device.name) * scale


def route(ctx, logits, desc, args, dweights):
    """(dense weights, mask, dlogits) of our router."""
    T, E = logits.shape
    dense, mask, ids = new(T, E), new(T, E, dtype=torch.uint8), new(T, desc["top_k"], dtype=torch.int64)
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, **desc)
    ctx.run("router_fwd", desc, dict(logits=logits, weights_dense=dense, byte_mask=mask, ids=ids, **args))
    dlogits = new(T, E)
    ctx.run("router_bwd", desc, dict(logits=logits, ids=ids, dweights_dense=dweights, dlogits=dlogits))
    return dense, mask.bool(), dlogits


@pytest.mark.parametrize("biased", (False, True))
@pytest.mark.parametrize("groups", (None, (4, 2)))
@pytest.mark.parametrize("pre", (False, True))
@pytest.mark.parametrize("score", SCORES)
def test_topk_routing(ctx, on, score, pre, groups, biased):
    if biased and score == "softmax":
        pytest.skip("Megatron adds a bias to sigmoid and sqrtsoftplus alone")
    T, E, K, scale = 257, 16, 4, 2.5
    logits = on(T, E).requires_grad_()
    bias = on(E, scale=0.1) if biased else None
    probs, routing_map = mcore.topk_routing_with_score_function(
        logits, K, use_pre_softmax=pre, num_groups=groups and groups[0], group_topk=groups and groups[1], scaling_factor=scale,
        score_function=score, expert_bias=bias)
    dprobs = on(T, E)
    probs.backward(dprobs)
    desc = dict(
        top_k=K, score_function=SCORES[score], scaling_factor=scale,
        softmax_order=libmoe.SOFTMAX_BEFORE_TOPK if pre else libmoe.SOFTMAX_AFTER_TOPK,
        renormalize=libmoe.OFF if score == "softmax" else libmoe.ON, group_score=libmoe.GROUP_SCORE_TOPK_SUM)
    if groups:
        desc.update(num_groups=groups[0], top_groups=groups[1])
    args = {"selection_bias": bias} if biased else {}
    dense, mask, dlogits = route(ctx, logits.detach(), desc, args, dprobs)
    assert torch.equal(mask, routing_map)
    close(dense, probs.detach())
    close(dlogits, logits.grad)


@pytest.mark.parametrize("score", SCORES)
def test_aux_and_z_losses(ctx, on, score):
    T, E, K, coeff = 300, 12, 3, 0.013
    logits = on(T, E).requires_grad_()
    padding = torch.rand(T, device=logits.device) < 0.2
    routing_map, scores = mcore.compute_routing_scores_for_aux_loss(logits, K, score, padding_mask=padding)
    aux = mcore.switch_load_balancing_loss_func(
        probs=scores, tokens_per_expert=routing_map.sum(0), total_num_tokens=int((~padding).sum()), topk=K, num_experts=E,
        moe_aux_loss_coeff=coeff, padding_mask=~padding)
    z = mcore.z_loss_func(logits, 0.002, padding_mask=padding)
    (aux + 3 * z).backward()
    desc = dict(
        logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, score_function=SCORES[score],
        aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=coeff, z_loss=libmoe.ON, z_loss_coeff=0.002)
    real = (~padding).to(torch.uint8)
    counts, losses, dlogits = new(1, E, dtype=torch.int64), new(2), new(T, E)
    ctx.run("router_loss_fwd", desc, dict(
        logits=logits.detach(), padding_mask=real, aux_counts=counts, aux_loss=losses[:1], z_loss=losses[1:]))
    close(losses, torch.stack([aux, z]).detach())
    ctx.run("router_loss_bwd", desc, dict(
        logits=logits.detach(), padding_mask=real, aux_counts=counts, dlogits=dlogits,
        z_loss_grad=torch.full((1,), 3.0, device=logits.device)))
    close(dlogits, logits.grad)


@pytest.mark.parametrize("scope", ("sequence", "global"))
@pytest.mark.parametrize("score", SCORES)
def test_aux_losses_of_sequences_and_of_micro_batches(ctx, on, score, scope):
    """As the methods _apply_seq_aux_loss and _apply_global_aux_loss of its TopKRouter call the function."""
    length, batch, E, K, coeff = 50, 4, 12, 3, 0.013
    T = length * batch
    logits = on(T, E).requires_grad_()
    routing_map, scores = mcore.compute_routing_scores_for_aux_loss(logits, K, score)
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, score_function=SCORES[score],
                aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=coeff)
    common = dict(topk=K, num_experts=E, moe_aux_loss_coeff=coeff)
    args = {}
    if scope == "sequence":
        per_sequence = routing_map.reshape(length, -1).sum(0)
        aux = mcore.switch_load_balancing_loss_func(
            probs=scores.reshape(length, -1), tokens_per_expert=per_sequence, total_num_tokens=length, **common) / batch
        desc.update(aux_scope=libmoe.AUX_SCOPE_SEQUENCE, sequence_layout=libmoe.SEQUENCE_MINOR, num_sequences=batch)
        counts = new(batch, E, dtype=torch.int64)
    else:
        averaged = (routing_map.sum(0) + on(E).abs() * 50) / 2
        aux = mcore.switch_load_balancing_loss_func(probs=scores, tokens_per_expert=averaged, total_num_tokens=2 * T, **common)
        desc.update(aux_scope=libmoe.AUX_SCOPE_GLOBAL)
        args = dict(global_tokens_per_expert=averaged.float(), global_num_tokens=torch.full((1,), 2.0 * T, device=logits.device))
        counts = new(1, E, dtype=torch.int64)
    aux.backward()
    loss, dlogits = new(1), new(T, E)
    ctx.run("router_loss_fwd", desc, dict(logits=logits.detach(), aux_counts=counts, aux_loss=loss, **args))
    close(loss[0], aux.detach())
    ctx.run("router_loss_bwd", desc, dict(logits=logits.detach(), aux_counts=counts, dlogits=dlogits, **args))
    close(dlogits, logits.grad)


def test_quantile_balancing(ctx, on):
    T, E, K = 320, 16, 4
    bias = on(E, scale=0.1)
    scores = on(T, E).sigmoid()
    _, beta = mcore.qb_dual_update(scores, K, -bias)
    desc = dict(rule=libmoe.BIAS_UPDATE_QUANTILE, num_experts=E, num_tokens=T, top_k=K, ema_decay=0.25)
    wanted = 0.25 * bias - 0.75 * beta
    ctx.run("router_bias_update", desc, dict(bias=bias, scores=scores))
    close(bias, wanted)


@pytest.mark.parametrize("shape", ((64, 8), (1000, 64), (4096, 16)))
def test_sinkhorn(ctx, on, shape):
    T, E = shape
    logits = on(T, E)
    theirs = mcore.sinkhorn(logits)
    probs, log_d1 = new(T, E), new(E)
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, preset=libmoe.SINKHORN_MEGATRON)
    ctx.run("sinkhorn", desc, dict(logits=logits, probs=probs, log_d1=log_d1))
    close(probs, theirs, 1e-4)
    # The top-k of L + log d1 is the top-k of P.
    ids = new(T, 1, dtype=torch.int64)
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=1, selection_bias_target=libmoe.BIAS_ON_LOGIT)
    ctx.run("router_fwd", desc, dict(logits=logits, ids=ids, selection_bias=log_d1))
    assert (ids[:, 0] == theirs.argmax(-1)).double().mean() > 0.998  # near ties may fall either way


@pytest.mark.parametrize("policy", ("probs", "position"))
@pytest.mark.parametrize("factor", (0.5, 1.0, 1.7))
def test_token_dropping(ctx, on, policy, factor):
    T, E, K = 240, 8, 2
    logits = on(T, E) + on(E)
    probs, routing_map = mcore.topk_routing_with_score_function(logits, K, use_pre_softmax=True)
    capacity = mcore.get_capacity(num_tokens=T * K, num_experts=E, capacity_factor=factor)
    kept_probs, kept_map = mcore.apply_router_token_dropping(probs, routing_map, K, factor, policy)
    weights, ids = logits.softmax(-1).topk(K, -1)
    desc = dict(num_tokens=T, num_experts=E, top_k=K, formula=libmoe.CAPACITY_MEGATRON, capacity_factor=factor,
                policy=libmoe.DROP_BY_PROBS if policy == "probs" else libmoe.DROP_BY_POSITION)
    assert ctx.query("capacity_value", desc) == min(capacity, T)
    kept_ids, kept_weights, counts = new(T, K, dtype=torch.int64), new(T, K), new(E, dtype=torch.int64)
    ctx.run("capacity_fwd", desc, dict(
        ids=ids, weights=weights, kept_ids=kept_ids, kept_weights=kept_weights, tokens_per_expert=counts))
    assert torch.equal(counts, routing_map.sum(0).clamp_max(capacity))
    dense = torch.zeros(T, E + 1, device=logits.device).scatter_(1, kept_ids.where(kept_ids >= 0, E), kept_weights)[:, :E]
    if policy == "probs":
        assert torch.equal(dense > 0, kept_map)
        close(dense, kept_probs)
    else:  # which of the equal ones Megatron keeps is not specified: ours are the first
        assert torch.equal((dense > 0).sum(0), kept_map.sum(0))
        assert torch.equal(dense > 0, routing_map & (routing_map.cumsum(0) <= capacity))


def test_permute_and_unpermute(ctx, on):
    T, E, K, d = 200, 8, 3, 48
    x, logits = on(T, d), on(T, E)
    probs, routing_map = mcore.topk_routing_with_score_function(logits, K)
    rows, row_probs, order, *_ = mcore.permute(x, routing_map, probs=probs, num_out_tokens=T * K)
    restored = mcore.unpermute(rows, order, x.shape, probs=probs, routing_map=routing_map)
    plan_desc = dict(num_tokens=T, num_experts=E, top_k=K)
    plan = dict(group_offsets=new(E + 1, dtype=torch.int64), slot_offsets=new(T + 1, dtype=torch.int32),
                row_of_slot=new(T * K, dtype=torch.int32), slot_of_row=new(T * K, dtype=torch.int32),
                token_of_row=new(T * K, dtype=torch.int32))
    ctx.run("dispatch_plan", plan_desc, dict(byte_mask=routing_map.to(torch.uint8), **plan))
    desc = dict(dtype=libmoe.DTYPE_FP32, num_tokens=T, hidden_size=d, top_k=K, rows_max=T * K, num_experts=E, num_groups=E)
    ours, weights, y = new(T * K, d), new(T * K), new(T, d)
    ctx.run("dispatch_fwd", desc, dict(
        x=x, rows=ours, token_of_row=plan["token_of_row"], group_offsets=plan["group_offsets"], weights_dense=probs,
        row_weights=weights))
    assert torch.equal(ours, rows) and torch.equal(weights, row_probs)
    ctx.run("combine_fwd", desc, dict(
        rows=ours, row_of_slot=plan["row_of_slot"], slot_offsets=plan["slot_offsets"], y=y, row_weights=weights))
    close(y, restored)
