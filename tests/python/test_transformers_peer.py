"""Transformers' own routers beside ours, where the package is installed (5.17 is what they were written against)."""

from types import SimpleNamespace

import harness
import libmoe
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from peers import close, new  # noqa: E402

T, D = 330, 64


def built(router):
    """The router on the device under test with random parameters."""
    with torch.no_grad():
        for parameter in list(router.parameters()) + [b for b in router.buffers() if b.is_floating_point()]:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return router.to(harness.device.name)


def ours(ctx, logits, E, K, args=(), **desc):
    """(ids, weights, a function from dweights to dlogits) of our router on these logits."""
    rows = logits.shape[0]
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=rows, num_experts=E, top_k=K, **desc)
    ids, weights = new(rows, K, dtype=torch.int64), new(rows, K)
    ctx.run("router_fwd", desc, dict(logits=logits, ids=ids, weights=weights, **dict(args)))

    def backward(dweights):
        dlogits = new(rows, E)
        ctx.run("router_bwd", desc, dict(logits=logits, ids=ids, dweights=dweights, dlogits=dlogits))
        return dlogits

    return ids, weights, backward


def by_expert(ids, values):
    """Slots in ascending expert order: some routers promise no order of their own."""
    order = ids.argsort(-1)
    return ids.gather(1, order), values.gather(1, order)


def compare(ctx, router, K, E, args=(), **desc):
    """Ids, weights, logits and the gradient with respect to the router's weight."""
    x = torch.randn(T, D, device=harness.device.name)
    logits, weights, ids = router(x)
    logits.retain_grad()
    slope = torch.randn(T, E, device=x.device)  # a function of the expert, so that the order of slots does not matter
    (weights * slope.gather(1, ids)).sum().backward()
    own = new(T, E)
    gemm = dict(dtype=libmoe.DTYPE_FP32, logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, hidden_size=D, num_experts=E)
    bias = getattr(router, "bias", None)
    ctx.run("router_logits_fwd", gemm, dict(
        x=x, weight=router.weight.detach(), logits=own, **({} if bias is None else {"bias": bias.detach()})))
    close(own, logits.detach(), 1e-3 if x.is_cuda else 1e-5)
    our_ids, our_weights, backward = ours(ctx, logits.detach(), E, K, args, **desc)
    mine, theirs = by_expert(our_ids, our_weights), by_expert(ids, weights.detach())
    assert torch.equal(mine[0], theirs[0])
    close(mine[1], theirs[1])
    close(backward(slope.gather(1, our_ids)), logits.grad)
    dweight = new(E, D)
    ctx.run("router_logits_bwd", gemm, dict(dlogits=logits.grad, x=x, weight=router.weight.detach(), dweight=dweight))
    close(dweight, router.weight.grad, 1e-3 if x.is_cuda else 1e-5)


def test_mixtral(ctx):
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    config = SimpleNamespace(num_experts_per_tok=2, num_local_experts=8, hidden_size=D)
    compare(ctx, built(MixtralTopKRouter(config)), 2, 8, renormalize=libmoe.ON)


@pytest.mark.parametrize("normalised", (False, True))
def test_qwen3_moe(ctx, normalised):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = SimpleNamespace(num_experts_per_tok=8, num_experts=64, hidden_size=D, norm_topk_prob=normalised)
    compare(ctx, built(Qwen3MoeTopKRouter(config)), 8, 64, renormalize=libmoe.ON if normalised else libmoe.OFF)


def test_gpt_oss(ctx):
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    config = SimpleNamespace(num_experts_per_tok=4, num_local_experts=32, hidden_size=D)
    compare(ctx, built(GptOssTopKRouter(config)), 4, 32, softmax_order=libmoe.SOFTMAX_AFTER_TOPK)


@pytest.mark.parametrize("normalised", (False, True))
def test_deepseek_v3(ctx, normalised):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = SimpleNamespace(num_experts_per_tok=6, num_local_experts=32, n_routed_experts=32, hidden_size=D, n_group=8,
                             topk_group=3, norm_topk_prob=normalised, routed_scaling_factor=2.5)
    router = built(DeepseekV3TopkRouter(config))
    compare(ctx, router, 6, 32, [("selection_bias", router.e_score_correction_bias.float())],
            score_function=libmoe.SCORE_SIGMOID, renormalize=libmoe.ON if normalised else libmoe.OFF, scaling_factor=2.5,
            num_groups=8, top_groups=3, group_score=libmoe.GROUP_SCORE_TOP2_SUM)


@pytest.mark.parametrize("masked", (False, True))
def test_load_balancing_loss_of_all_layers(ctx, masked):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers, batch, length, E, K = 3, 4, 50, 8, 2
    logits = tuple(torch.randn(batch * length, E, device=harness.device.name, requires_grad=True) for _ in range(layers))
    mask = (torch.rand(batch, length, device=harness.device.name) < 0.8).long() if masked else None
    loss = load_balancing_loss_func(logits, E, K, mask)
    loss.backward()
    rows = torch.cat([l.detach() for l in logits])
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=rows.shape[0], num_experts=E, top_k=K,
                aux_loss=libmoe.AUX_LOSS_TRANSFORMERS, aux_loss_coeff=1.0)
    args = dict(logits=rows)
    if masked:
        args["padding_mask"] = mask.reshape(-1).repeat(layers).to(torch.uint8)
    counts, out, dlogits = new(1, E, dtype=torch.int64), new(1), new(*rows.shape)
    ctx.run("router_loss_fwd", desc, dict(args, aux_counts=counts, aux_loss=out))
    close(out[0], loss.detach())
    ctx.run("router_loss_bwd", desc, dict(args, aux_counts=counts, dlogits=dlogits))
    close(dlogits, torch.cat([l.grad for l in logits]))


@pytest.mark.parametrize("prioritised", (False, True))
@pytest.mark.parametrize("before", (False, True))
@pytest.mark.parametrize("capacity", (None, 20))
def test_nllb_moe(ctx, prioritised, before, capacity):
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    E, K = 16, 2
    config = SimpleNamespace(
        num_experts=E, expert_capacity=capacity, hidden_size=D, router_bias=False, router_ignore_padding_tokens=False,
        router_dtype="float32", second_expert_policy="all", normalize_router_prob_before_dropping=before,
        batch_prioritized_routing=prioritised, moe_eval_capacity_token_fraction=1.0)
    router = NllbMoeTop2Router(config).to(harness.device.name).train()
    logits = (torch.randn(T, E, device=harness.device.name) + torch.randn(E, device=harness.device.name)).requires_grad_()
    _, combined = router.route_tokens(logits)
    slope = torch.randn(T, E, device=logits.device)
    (combined * slope).sum().backward()
    ids, weights, backward = ours(ctx, logits.detach(), E, K)
    desc = dict(
        num_tokens=T, num_experts=E, top_k=K, capacity=capacity or 0,
        formula=libmoe.CAPACITY_NLLB if capacity is None else libmoe.CAPACITY_EXPLICIT,
        policy=libmoe.DROP_BATCH_PRIORITIZED if prioritised else libmoe.DROP_BY_CHOICE,
        renormalize=libmoe.DROP_RENORMALIZE_BEFORE if before else libmoe.DROP_RENORMALIZE_AFTER)
    kept_ids, kept_weights, dweights = new(T, K, dtype=torch.int64), new(T, K), new(T, K)
    ctx.run("capacity_fwd", desc, dict(ids=ids, weights=weights, kept_ids=kept_ids, kept_weights=kept_weights))
    places = kept_ids.where(kept_ids >= 0, E)
    dense = torch.zeros(T, E + 1, device=logits.device).scatter_(1, places, kept_weights)[:, :E]
    assert (kept_ids < 0).any() and torch.equal(dense > 0, combined > 0)
    close(dense, combined.detach())
    dkept = slope.gather(1, ids).where(kept_ids >= 0, 0)
    ctx.run("capacity_bwd", desc, dict(weights=weights, ids=ids, kept_ids=kept_ids, dkept_weights=dkept, dweights=dweights))
    close(backward(dweights), logits.grad, 1e-4)
