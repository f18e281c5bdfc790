"""Routers and the whole layer in PyTorch: each router against torch, losses, capacity, shared experts."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
import libmoe  # noqa: E402
import libmoe.torch as moe  # noqa: E402
from torch.nn.functional import linear, silu  # noqa: E402

T, D, F, E, K = 24, 16, 12, 6, 2


def randn(*shape):
    return torch.randn(*shape, device=harness.device.name)


def dense(experts, x, weights):
    """Every expert on every token, weighted by weights [T, E]."""
    h = torch.einsum("td,ehd->teh", x, experts.w1)
    gate, up = h.chunk(2, -1)
    return torch.einsum("tef,edf,te->td", silu(gate) * up, experts.w2, weights)


def scattered(ids, weights):
    """weights [T, E] of ids and weights [T, K]; -1 is no expert."""
    out = torch.zeros(ids.shape[0], E + 1, device=ids.device, dtype=weights.dtype)
    return out.scatter(1, ids.long().where(ids >= 0, E), weights)[:, :E]


def same(ours, theirs, tolerance=None):
    tolerance = tolerance or (1e-5 if harness.on_cpu() else 5e-3)
    assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance), float((ours - theirs).abs().max())


def compare(layer, x, weights):
    """The layer's output and gradients beside the dense computation with the weights [T, E] that a function of x gives."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    dy = randn(*x.shape)
    y, _ = layer(x)
    grads = torch.autograd.grad(y, [x, *parameters], dy, allow_unused=True)
    flat = x.view(-1, D)
    expected = dense(layer.experts, flat, weights(flat)).view(x.shape)
    if layer.shared is not None:
        gate, up = linear(x, layer.shared.w1).chunk(2, -1)
        shared = linear(silu(gate) * up, layer.shared.w2)
        expected = expected + (shared if layer.shared.gate is None else shared * linear(x, layer.shared.gate).sigmoid())
    same(y, expected)
    theirs = torch.autograd.grad(expected, [x, *parameters], dy, allow_unused=True)
    for ours, exact in zip(grads, theirs):
        same(ours, exact, 1e-4 if harness.on_cpu() else 2e-2)


@pytest.mark.parametrize("shared", [{}, {"shared_ffn_size": 8}, {"shared_ffn_size": 8, "shared_gate": True}], ids=str)
def test_top_k(shared):
    layer = moe.MoELayer(D, F, E, K, router_options={"renormalize": True}, device=harness.device.name, **shared)
    ids = []

    def weights(x):
        chosen = linear(x, layer.router.weight).softmax(-1).topk(K)
        ids.append(chosen.indices)
        return scattered(chosen.indices, chosen.values / chosen.values.sum(-1, keepdim=True))

    x = randn(4, T // 4, D).requires_grad_()
    compare(layer, x, weights)
    assert torch.equal(layer.router(x)[0].view(T, K).long(), ids[0])


def test_shared_experts_have_the_routed_ones_activation():
    options = {"activation": libmoe.ACTIVATION_CLAMPED_SWIGLU, "gate_order": libmoe.GATE_INTERLEAVED, "gate_block": 2, "clamp_limit": 0.5,
               "clamp_alpha": 1.0, "recompute": True}
    layer = moe.MoELayer(D, F, E, K, shared_ffn_size=8, device=harness.device.name, **options)
    x = 3 * randn(T, D)
    h = linear(x, layer.shared.w1).view(T, 4, 2, 2)
    gate, up = (part.flatten(1) for part in h.unbind(2))
    gate, up = gate.clamp(max=0.5), up.clamp(-0.5, 0.5)
    same(layer.shared(x), linear((up + 1) * gate * gate.sigmoid(), layer.shared.w2))
    assert layer.shared.recompute


def test_sinkhorn():
    layer = moe.MoELayer(D, F, E, 1, router="sinkhorn", device=harness.device.name, router_options={"preset": libmoe.SINKHORN_MEGATRON})
    with torch.no_grad():
        layer.router.weight[0] *= 3
        # Tokens that prefer this expert.
        x = randn(64, D) + layer.router.weight[0] / layer.router.weight[0].norm()
    x.requires_grad_()
    logits = linear(x, layer.router.weight).double()
    cost, d1 = logits.exp(), torch.ones(E, dtype=torch.float64, device=x.device)
    for _ in range(1000):
        d0 = 1 / (64 * ((d1 * cost).sum(1) + 1e-8))
        last, d1 = d1, 1 / (E * ((d0[:, None] * cost).sum(0) + 1e-8))
        if (last - d1).abs().mean() < 1e-4:
            break
    balanced = (d1 * cost * d0[:, None]).argmax(1)
    ids, weights, _ = layer.router(x)
    assert (ids[:, 0] == balanced).float().mean() > 0.95
    compare(layer, x, lambda x: scattered(ids, linear(x, layer.router.weight).sigmoid().gather(1, ids.long())))
    trained = torch.bincount(ids[:, 0], minlength=E)
    layer.eval()
    ids, _, _ = layer.router(x)
    assert torch.equal(ids[:, 0].long(), logits.argmax(1))
    assert torch.bincount(ids[:, 0], minlength=E).max() > trained.max()


def test_expert_choice():
    layer = moe.MoELayer(D, F, E, router="expert_choice", device=harness.device.name)
    x = randn(T, D).requires_grad_()
    capacity = layer.router.capacity(T)
    assert capacity == 8

    def weights(x):
        scores = linear(x, layer.router.weight).softmax(-1)
        chosen = scores.topk(capacity, dim=0).indices
        return scores * torch.zeros_like(scores).scatter(0, chosen, 1.0)

    mask, ours, _ = layer.router(x)
    assert (mask.sum(0) == capacity).all()
    same(ours, weights(x))
    compare(layer, x, weights)


def test_experts_of_a_padded_batch():
    """Expert choice with padding: fewer tokens than the capacity, so that the plan has rows to spare."""
    router = moe.ExpertChoiceRouter(D, E, capacity_factor=E, device=harness.device.name)
    experts = moe.Experts(E, D, F, device=harness.device.name)
    x = randn(T, D).requires_grad_()
    real = torch.arange(T, device=x.device) < 5
    mask, weights, _ = router(x, padding_mask=real)
    assert (mask.sum(0) == 5).all() and not mask[5:].any()
    y = experts(x, mask, weights, rows_max=T * E)
    same(y, dense(experts, x, weights))
    y.sum().backward()
    assert router.weight.grad.isfinite().all() and not x.grad[5:].any()


def test_capacity():
    layer = moe.MoELayer(D, F, E, K, device=harness.device.name, router_options={"renormalize": True},
                         capacity={"formula": libmoe.CAPACITY_MEGATRON, "capacity_factor": 0.5, "policy": libmoe.DROP_BY_POSITION})
    x = randn(T, D).requires_grad_()
    capacity = T * K // E // 2

    def weights(x):
        chosen = linear(x, layer.router.weight).softmax(-1).topk(K)
        w = scattered(chosen.indices, chosen.values / chosen.values.sum(-1, keepdim=True))
        return w * ((w > 0).cumsum(0) <= capacity)

    compare(layer, x, weights)


def test_random_dropping_draws_anew_and_by_torchs_seed():
    ids, weights = torch.zeros(200, 1, dtype=torch.int32, device=harness.device.name), torch.ones(200, 1, device=harness.device.name)

    def kept(**options):
        return (moe.drop(ids, weights, E, **options)[0] >= 0).flatten()

    options = {"policy": libmoe.DROP_RANDOM, "capacity": 50}
    torch.manual_seed(1)
    first, second = kept(**options), kept(**options)
    torch.manual_seed(1)
    assert torch.equal(kept(**options), first) and not torch.equal(first, second) and first.sum() == second.sum() == 50
    seed = torch.tensor([7], device=ids.device)
    assert torch.equal(kept(seed=seed, **options), kept(seed=seed, **options))


def test_bias_against_the_load():
    router = moe.TopKRouter(D, E, K, expert_bias=True, score_function=libmoe.SCORE_SIGMOID, renormalize=True, device=harness.device.name)
    assert set(router.state_dict()) == {"weight", "expert_bias"}
    x = randn(128, D) + 1
    counts = []
    for _ in range(300):
        ids, weights, _ = router(x)
        counts.append(torch.bincount(ids.flatten(), minlength=E))
        assert torch.equal(router.tokens_per_expert, counts[-1])
        router.update_bias(0.01)
    same(weights.sum(-1), torch.ones(128, device=x.device))
    assert counts[-1].max() < counts[0].max() and counts[-1].max() <= 1.5 * 128 * K / E


def test_losses_of_sequences_and_padding():
    x, real = randn(3, 8, D), torch.ones(3, 8, dtype=torch.bool, device=harness.device.name)
    real[1, 5:] = False
    router = moe.TopKRouter(D, E, K, z_loss_coeff=1.0, device=x.device)
    logits = linear(x, router.weight)
    same(router(x, padding_mask=real)[2], logits[real].logsumexp(-1).square().mean())
    router = moe.TopKRouter(D, E, K, aux_loss_coeff=1.0, aux_scope=libmoe.AUX_SCOPE_SEQUENCE, device=x.device)
    router.load_state_dict(dict(weight=router.weight))
    logits = linear(x, router.weight)
    scores = logits.softmax(-1)
    counts = torch.nn.functional.one_hot(scores.topk(K).indices, E).sum((1, 2))
    same(router(x)[2], (E / (K * 64) * (scores.sum(1) * counts).sum(-1)).mean())


@pytest.mark.parametrize("router", ["topk", "sinkhorn", "expert_choice"])
def test_no_tokens_and_one(router):
    layer = moe.MoELayer(D, F, E, K, router=router, shared_ffn_size=8, shared_gate=True, device=harness.device.name)
    x = randn(0, D).requires_grad_()
    y, loss = layer(x)
    (y.sum() + loss).backward()
    assert y.shape == x.grad.shape == (0, D) and all(p.grad is None or not p.grad.any() for p in layer.parameters())
    assert layer(randn(0, 5, D))[0].shape == (0, 5, D)
    one = randn(D)
    same(layer(one)[0], layer(one[None])[0][0])


def test_layer_learns_and_its_state_moves():
    layer = moe.MoELayer(D, F, E, K, shared_ffn_size=8, device=harness.device.name)
    names = {"router.weight", "experts.w1", "experts.w2", "shared.w1", "shared.w2"}
    assert set(layer.state_dict()) == names
    optimizer, x = torch.optim.Adam(layer.parameters(), 1e-2), randn(128, D)
    target, losses = x.abs().roll(1, -1), []
    for _ in range(60):
        y, loss = layer(x)
        losses.append((y - target).square().mean())
        optimizer.zero_grad()
        (losses[-1] + loss).backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    copy = moe.MoELayer(D, F, E, K, shared_ffn_size=8, device=harness.device.name)
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x)[0], layer(x)[0])
