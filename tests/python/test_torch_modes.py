"""The layer under what PyTorch does with modules: compile, CUDA graphs, autocast, checkpointing, FSDP2, threads."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
import libmoe.torch as moe  # noqa: E402
import ranks  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

T, D, F, E, K = 32, 16, 8, 4, 2
LAYERS = {
    "topk": {"router_options": {"renormalize": True, "aux_loss_coeff": 0.01, "z_loss_coeff": 0.01}},
    "shared": {"shared_ffn_size": 8, "shared_gate": True},
    "sinkhorn": {"router": "sinkhorn"},
    "expert_choice": {"router": "expert_choice"},
    "recompute": {"recompute": True, "bias": True},
    "bias": {"router_options": {"expert_bias": True}},
}


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


def build(name="topk", **more):
    return moe.MoELayer(D, F, E, K, device=harness.device.name, **LAYERS[name] | more)


def step(layer, x, call=None):
    """y, the loss, and all gradients."""
    x = x.detach().clone().requires_grad_()
    y, loss = (layer if call is None else call)(x)
    total = y.float().square().mean() + loss
    grads = torch.autograd.grad(total, [x, *layer.parameters()])
    return [y, loss, *grads]


def assert_same(ours, theirs, tolerance=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.allclose(one, other, atol=tolerance, rtol=tolerance * 10), float((one - other).abs().max())


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name):
    """The whole layer in one graph, forward and backward, and again with another number of tokens."""
    layer = build(name)
    backend = "aot_eager" if harness.on_cpu() else "inductor"
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for tokens in (T, T + 8, T + 24):
        x = torch.randn(2, tokens // 2, D, device=harness.device.name)
        assert_same(step(layer, x, compiled), step(layer, x), 1e-5)
    with torch.no_grad():
        assert_same(compiled(x), layer(x), 1e-5)


@pytest.mark.parametrize("router", ["topk", "expert_choice"])
def test_shared_experts_in_a_graph(router):
    """Beside the routed ones, in one operator; where a module is not to be bypassed, by calling it."""
    layer, x, names = build("shared", router=router), torch.randn(T, D, device=harness.device.name), []

    def backend(graph, _):
        names.append([str(node.target) for node in graph.graph.nodes])
        return graph

    expected = step(layer, x)
    assert_same(step(layer, x, torch.compile(layer, fullgraph=True, backend=backend)), expected)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert_same(torch.compile(layer, fullgraph=True, backend=backend)(x), layer(x), 1e-6)
    assert all("libmoe.expert_mlp_beside.default" in graph and "libmoe.expert_mlp.default" not in graph for graph in names)
    torch.compiler.reset()
    layer.shared.register_forward_hook(lambda *_: None)
    assert_same(step(layer, x, torch.compile(layer, fullgraph=True, backend=backend)), expected)
    assert "libmoe.expert_mlp_beside.default" not in names[-1]


def test_compile_gmm():
    sizes = torch.tensor([5, 0, 3, 8], device=harness.device.name)
    a, b = torch.randn(16, D, device=sizes.device), torch.randn(E, D, F, device=sizes.device)

    def step(a, b):
        return moe.gmm(a, b, sizes).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    a, b = a.requires_grad_(), b.requires_grad_()
    assert_same(torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(step(a, b), (a, b)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    layer, x = build(), torch.randn(T, D, device=harness.device.name)
    ours = step(layer, x, lambda x: checkpoint(layer, x, use_reentrant=reentrant)) if not reentrant else None
    if reentrant:
        x = x.requires_grad_()
        y, loss = checkpoint(layer, x, use_reentrant=True)
        (y.square().mean() + loss).backward()
        ours = [y, loss, x.grad, *(p.grad for p in layer.parameters())]
    assert_same(ours, step(layer, x), 1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_counts_tokens_once(reentrant):
    layer, x = build("bias"), torch.randn(T, D, device=harness.device.name, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant)[0].sum().backward()
    assert layer.router.tokens_per_expert.sum() == T * K


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    layer, x = build("shared"), torch.randn(T, D, device=harness.device.name)
    full = step(layer, x)
    with torch.autocast(x.device.type, dtype=dtype):
        y, loss = layer(x)
        assert y.dtype == dtype and loss.dtype == torch.float32
        # The router stays in fp32: the same experts, the same weights.
        assert all(torch.equal(a, b) for a, b in zip(layer.router(x.to(dtype).float()), layer.router(x.to(dtype))))
        (y.float().square().mean() + loss).backward()
    assert torch.allclose(y.float(), full[0], atol=0.05)
    for parameter, grad in zip(layer.parameters(), full[3:]):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - grad).norm() < 0.05 * grad.norm() + 1e-4


def test_16_bits_experts_beside_an_fp32_router():
    layer = build(dtype=torch.bfloat16)
    assert layer.router.weight.dtype == torch.float32 and layer.experts.w1.dtype == torch.bfloat16
    x = torch.randn(T, D, device=harness.device.name, dtype=torch.bfloat16, requires_grad=True)
    y, loss = layer(x)
    (y.float().square().mean() + loss).backward()
    assert y.dtype == torch.bfloat16 and layer.router.weight.grad.dtype == torch.float32 and x.grad.isfinite().all()


def test_deep_copies_and_pickles(tmp_path):
    layer, x = build(), torch.randn(T, D, device=harness.device.name)
    torch.save(layer, tmp_path / "layer.pt")
    for other in (copy.deepcopy(layer), torch.load(tmp_path / "layer.pt", weights_only=False)):
        assert torch.equal(other(x)[0], layer(x)[0])


def test_functional_calls_and_hooks():
    """Parameters that are given from outside, as FSDP, LoRA and torch.func do."""
    layer, x = build(), torch.randn(T, D, device=harness.device.name)
    doubled = {name: 2 * p for name, p in layer.named_parameters() if "experts" in name}
    y, _ = torch.func.functional_call(layer, doubled, (x,))
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.experts.w1.mul_(2), copied.experts.w2.mul_(2)
    assert torch.equal(y, copied(x)[0])


@pytest.mark.skipif("harness.on_cpu()", reason="needs a GPU")
@pytest.mark.parametrize("name", ["topk", "shared", "sinkhorn", "recompute"])
def test_cuda_graph(name):
    """Forward and backward in one CUDA graph, replayed on new data."""
    layer = build(name)
    x = torch.randn(T, D, device=harness.device.name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(layer, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert_same(captured, step(layer, x), 1e-7)


@pytest.mark.cpu
def test_fully_sharded(tmp_path):
    """FSDP2 over two processes: the gradients of a step are those of one process on the whole batch."""
    ranks.spawn(_sharded_step, 2, str(tmp_path / "meeting"), int(torch.randint(1 << 30, ())))


def _sharded_step(rank, meeting, seed):
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(seed)
    # The losses are means over a rank's tokens: they are left out, so that the whole batch is the sum of its halves.
    layer = moe.MoELayer(D, F, E, K, router_options={"renormalize": True})
    # A module of torch's own tells whether gradients are averaged: by gloo some versions sum them.
    plain = torch.nn.Linear(D, D)
    mesh = dist.init_device_mesh("cpu", (2,))
    x, grads = torch.randn(2, T, D), {}
    for module in (layer, plain):
        whole = copy.deepcopy(module)
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for one, given in ((module, x[rank]), (whole, x)):
            y = one(given)
            (y[0] if isinstance(y, tuple) else y).square().mean().backward()
        pairs = zip(module.named_parameters(), whole.parameters())
        grads[module] = {name: (sharded.grad.full_tensor(), p.grad) for (name, sharded), p in pairs}
    factor = round(float((grads[plain]["bias"][0] / grads[plain]["bias"][1]).mean()))
    assert factor in (1, 2)
    for name, (grad, expected) in grads[layer].items():
        assert torch.allclose(grad, factor * expected, atol=1e-6), name
    dist.barrier()
    dist.destroy_process_group()
