"""The PyTorch modules against the same layer written in torch, and gradients against finite differences."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
import libmoe  # noqa: E402
from libmoe.torch import Experts, TopKRouter  # noqa: E402

fp64 = pytest.mark.cpu
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def generator(rng):
    # Modules draw their weights from the global one.
    torch.manual_seed(int(rng.integers(1 << 62)))
    return torch.Generator().manual_seed(int(rng.integers(1 << 62)))


def randn(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(harness.device.name)


def choose(generator, tokens, experts, top_k):
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices.to(harness.device.name)


def layer(x, ids, weights, w1, w2, b1=None, b2=None, gated=True):
    """Every expert on every token, in the precision of its arguments."""
    h = torch.einsum("td,ehd->teh", x, w1)
    h = h if b1 is None else h + b1
    gate, up = h.chunk(2, -1) if gated else (h, 1)
    y = torch.einsum("tef,edf->ted", torch.nn.functional.silu(gate) * up, w2)
    y = y if b2 is None else y + b2
    here = (ids >= 0) & (ids < w1.shape[0])
    chosen = y[torch.arange(x.shape[0], device=x.device)[:, None], ids.clamp(0, w1.shape[0] - 1).long()]
    return (chosen * (weights * here)[..., None]).sum(1)


def error(out, reference):
    out, reference = out.detach().double(), reference.detach().double()
    return float((out - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", [pytest.param(torch.float64, marks=fp64), torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_experts(generator, dtype, bias):
    module = Experts(6, 16, 8, bias=bias, dtype=dtype, device=harness.device.name)
    x, weights = randn(generator, 3, 7, 16, dtype=dtype), randn(generator, 3, 7, 2).abs().float()
    ids = choose(generator, 21, 6, 2).view(3, 7, 2)
    ids[0, 0, 1] = -1
    x.requires_grad_(), weights.requires_grad_()
    dy = randn(generator, 3, 7, 16, dtype=dtype)
    y = module(x, ids, weights)
    assert y.shape == x.shape and y.dtype == dtype
    inputs = [x, weights, *module.parameters()]
    grads = torch.autograd.grad(y, inputs, dy)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference = layer(exact[0].view(21, 16), ids.view(21, 2), exact[1].view(21, 2), *exact[2:])
    expected = torch.autograd.grad(reference, exact, dy.double().view(21, 16))
    # Router weights are fp32 whatever x is.
    tolerance = max(TOLERANCES[dtype], 1e-6)
    assert error(y.view(21, 16), reference) <= tolerance
    for ours, exactly in zip(grads, expected):
        assert ours.shape == exactly.shape and error(ours, exactly) <= tolerance
    assert grads[1][0, 0, 1] == 0


@fp64
@pytest.mark.parametrize("options", [
    {}, {"bias": True}, {"weights_at": libmoe.WEIGHTS_AT_ACTIVATION, "bias": True}, {"weights_at": libmoe.WEIGHTS_AT_INPUT},
    {"activation": libmoe.ACTIVATION_GELU_ERF}, {"activation": libmoe.ACTIVATION_GEGLU_TANH, "gate_order": libmoe.UP_FIRST},
], ids=str)
def test_experts_gradcheck(generator, options):
    module = Experts(4, 6, 5, dtype=torch.float64, **options)
    x, weights = randn(generator, 5, 6).requires_grad_(), randn(generator, 5, 2).requires_grad_()
    ids = choose(generator, 5, 4, 2)
    names = [name for name, _ in module.named_parameters()]

    def call(x, weights, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters)), (x, ids, weights))

    assert torch.autograd.gradcheck(call, (x, weights, *module.parameters()))


@fp64
def test_router_gradcheck(generator):
    module = TopKRouter(5, 6, 2, aux_loss_coeff=0.1, z_loss_coeff=0.01, renormalize=1, math=libmoe.MATH_FP64).double()
    # Differences must not change which experts are chosen, nor their order.
    while True:
        x = randn(generator, 7, 5)
        best = (x @ module.weight.detach().T).sort(descending=True).values
        if (best[:, :2] - best[:, 1:3]).min() > 0.05:
            break
    x.requires_grad_()

    def call(x, weight):
        _, weights, loss = torch.func.functional_call(module, {"weight": weight}, (x,))
        return weights, loss.double()

    # The losses are fp32: differences of theirs have few digits.
    assert torch.autograd.gradcheck(call, (x, module.weight), eps=1e-3, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("score", [libmoe.SCORE_SOFTMAX, libmoe.SCORE_SIGMOID])
def test_router(generator, score):
    module = TopKRouter(16, 8, 2, score_function=score, renormalize=1, aux_loss_coeff=1.0, device=harness.device.name)
    x = randn(generator, 4, 5, 16, dtype=torch.float32)
    ids, weights, loss = module(x)
    logits = (x.double() @ module.weight.double().T)
    scores = logits.softmax(-1) if score == libmoe.SCORE_SOFTMAX else logits.sigmoid()
    chosen = scores.topk(2)
    assert torch.equal(ids.long(), chosen.indices)
    expected = chosen.values / chosen.values.sum(-1, keepdim=True)
    assert error(weights, expected) < 1e-5 and weights.dtype == torch.float32 and not ids.requires_grad
    normal = (scores / scores.sum(-1, keepdim=True)).view(20, 8)
    counts = torch.bincount(ids.view(-1).long(), minlength=8)
    aux = 8 / (2 * 20**2) * (normal.sum(0) * counts).sum()
    assert abs(loss.item() - aux.item()) < 1e-5
    (weights * torch.rand_like(weights)).sum().add(loss).backward()
    exact = module.weight.detach().double().requires_grad_()
    assert module.weight.grad.isfinite().all() and module.weight.grad.norm() > 0 and exact.shape == module.weight.shape


def test_a_layer_learns(generator):
    """Router and experts together, by torch's own optimizer, halve a regression's loss."""
    device = harness.device.name
    router, experts = TopKRouter(8, 4, 2, renormalize=1, aux_loss_coeff=1e-2, device=device), Experts(4, 8, 16, device=device)
    optimizer = torch.optim.Adam([*router.parameters(), *experts.parameters()], 1e-2)
    x = randn(generator, 128, 8, dtype=torch.float32)
    target = x.abs().roll(1, -1)
    losses = []
    for _ in range(60):
        ids, weights, aux = router(x)
        loss = (experts(x, ids, weights) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + aux).backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_strided_inputs_and_frozen_experts(generator):
    module = Experts(4, 16, 8, device=harness.device.name)
    module.w1.requires_grad_(False)
    wide = randn(generator, 10, 32, dtype=torch.float32)
    ids, weights = choose(generator, 10, 4, 2), randn(generator, 10, 2, dtype=torch.float32)
    x = wide[:, :16].detach().requires_grad_()
    y = module(x, ids, weights)
    y.sum().backward()
    assert module.w1.grad is None and module.w2.grad is not None and x.grad is not None
    same = module(x.detach().clone(), ids, weights)
    assert torch.equal(same, y)
    with torch.no_grad():
        assert torch.equal(module(x, ids, weights), y)


def test_no_tokens():
    module = Experts(4, 16, 8, device=harness.device.name)
    x = torch.empty(0, 16, device=harness.device.name, requires_grad=True)
    y = module(x, torch.empty(0, 2, dtype=torch.int64, device=x.device), torch.empty(0, 2, device=x.device))
    y.sum().backward()
    assert y.shape == (0, 16) and not module.w1.grad.any()
