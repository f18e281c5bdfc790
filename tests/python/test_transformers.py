"""experts_implementation="libmoe" on every family of the installed Transformers, beside the eager implementation in fp64."""

import copy
import logging
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import harness  # noqa: E402
import libmoe.transformers as libmoe_transformers  # noqa: E402
import ranks  # noqa: E402
import transformers_families as families  # noqa: E402
from libmoe.transformers import _experts  # noqa: E402
from transformers.integrations.moe import grouped_mm_experts_forward  # noqa: E402

FAMILIES = list(families.modules())
# Whose other layers, written for GPUs, take long on a CPU.
SLOW = {"glm5_next", "granitemoehybrid", "kimi_linear"}
WHOLE = [family for family in FAMILIES if family not in SLOW or not harness.on_cpu()]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def registered():
    libmoe_transformers.register()


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


def error(out, exact, floor=1e-30):
    return float((out.double() - exact).norm() / max(float(exact.norm()), floor))


def assert_no_worse(ours, eager, exact, dtype, what):
    """Errors against fp64 at most twice eager's, but for what rounding the result itself costs: of the output, and of all
    gradients as one vector. A single gradient may be eight times worse: it may be a sum that cancels; a few numbers that do
    are judged with the others alone. One that cancels to nothing beside the rest may be off by a thousandth of that nothing."""
    eps = torch.finfo(dtype).eps
    # What is nothing beside the rest is noise in fp64 too.
    floor = 1e-6 * max(float(reference.norm()) for reference in exact if reference is not None)
    squares = torch.zeros(3)
    for place, (one, theirs, reference, name) in enumerate(zip(ours, eager, exact, what, strict=True)):
        if reference is None:
            assert one is None or not one.any(), name
            continue
        assert one.dtype == theirs.dtype and one.shape == theirs.shape, name
        mine, other = error(one, reference, floor), error(theirs, reference, floor)
        if place == 0 or reference.numel() >= 64:
            noise = 1e-3 if reference.norm() <= floor else 2 * eps
            assert mine <= (2 if place == 0 else 8) * other + noise, f"{name}: {mine:.3g}, eager {other:.3g}"
        if place > 0:
            squares += torch.tensor([float(t.square().sum()) for t in (one.double() - reference, theirs.double() - reference, reference)])
    mine, other = (squares[:2] / squares[2]).sqrt().tolist()
    assert mine <= 2 * other + eps, f"gradients together: {mine:.3g}, eager {other:.3g}"


def test_there_are_families():
    """Every modelling file of the installed version that has the decorator is a family's."""
    files = (Path(transformers.__file__).parent / "models").rglob("modeling_*.py")
    using = {file.stem.removeprefix("modeling_") for file in files if re.search(r"^\s*@use_experts_implementation", file.read_text(), re.M)}
    assert using == set(FAMILIES)
    assert len(FAMILIES) >= 20 and {"mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"} <= using


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_every_family(family, dtype):
    """The experts alone: output and all gradients."""
    for experts_class in families.experts_classes(family):
        config = families.ExpertsConfig(family)
        module = experts_class(config).to(harness.device.name)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.dim() > 2 else 0.1)
        width = module.down_proj.shape[2 if module.is_transposed else 1]
        ids = torch.rand(40, 6, device=harness.device.name).topk(2).indices
        # In 16 bits far from where a clamp begins: what is rounded across it has another slope.
        scale = 2 if dtype.itemsize > 2 else 1
        x, weights = torch.randn(40, width, device=ids.device) * scale, torch.rand(40, 2, device=ids.device)
        dy = torch.randn_like(x)

        def run(implementation, dtype):
            config._experts_implementation = implementation
            cast = copy.deepcopy(module).to(dtype)
            inputs = [t.to(dtype).requires_grad_() for t in (x, weights)]
            y = cast(inputs[0], ids, inputs[1])
            grads = torch.autograd.grad(y, [*inputs, *cast.parameters()], dy.to(dtype))
            return [y.detach(), *grads]

        # What all begin with are numbers of the dtype.
        module.to(dtype), module.to(torch.float64)
        x, weights, dy = (t.to(dtype).double() for t in (x, weights, dy))
        names = ["y", "dx", "dweights", *(name for name, _ in module.named_parameters())]
        assert_no_worse(run("libmoe", dtype), run("eager", dtype), run("batched_mm", torch.float64), dtype, names)


def learnt(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def run_model(model, ids, dtype, implementation, call=None):
    """Output, a loss, and the gradients of all parameters."""
    model = model.to(dtype)
    model.set_experts_implementation(implementation)
    out = (model if call is None else call)(input_ids=ids, use_cache=False)
    out = out.logits if "logits" in out else out.last_hidden_state
    slope = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).sin().view(out.shape)
    loss = (out - slope.to(out.dtype)).square().mean()
    return [out.detach(), loss.detach(), *torch.autograd.grad(loss, learnt(model), allow_unused=True)]


@pytest.mark.parametrize("family", WHOLE)
def test_whole_models(family):
    """Logits, loss, all gradients in fp32; then greedy generation."""
    model, reason = families.tiny_model(family, seed=int(torch.randint(1 << 30, ())))
    assert model is not None, reason
    model = model.to(harness.device.name).eval()
    ids = torch.randint(3, 90, (2, 12), device=harness.device.name)
    eager, ours = (run_model(model, ids, torch.float32, implementation) for implementation in ("eager", "libmoe"))
    names = ["output", "loss", *(name for name, p in model.named_parameters() if p.requires_grad)]
    try:
        # Some eager experts compute in fp32 whatever they are given.
        exact = run_model(copy.deepcopy(model), ids, torch.float64, "batched_mm")
    except RuntimeError as failure:  # as do some models elsewhere, and cannot
        assert "same dtype" in str(failure)
        for one, theirs, name in zip(ours, eager, names, strict=True):
            assert (one is None) == (theirs is None), name
            assert one is None or (one - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6, name
    else:
        assert_no_worse(ours, eager, exact, torch.float32, names)
    if model.can_generate() and getattr(model, "main_input_name", "") == "input_ids":
        texts = []
        for implementation in ("eager", "libmoe"):
            model.set_experts_implementation(implementation)
            texts.append(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))
        assert torch.equal(*texts)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v4", "gpt_oss"])
def test_compile(family):
    """In one graph, from the very first call, which is when the activation is found out."""
    model, _ = families.tiny_model(family)
    model = model.to(harness.device.name)
    ids = torch.randint(3, 90, (2, 12), device=harness.device.name)
    _experts._RECOGNISED.clear()
    model.set_experts_implementation("libmoe")
    # One model by the default backend, which compiles for half a minute each.
    backend = "aot_eager" if harness.on_cpu() or family != "mixtral" else "inductor"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ours = run_model(model, ids, torch.float32, "libmoe", compiled)
    assert _experts._RECOGNISED
    for one, other in zip(ours, run_model(model, ids, torch.float32, "libmoe"), strict=True):
        assert (one is None) == (other is None) and (one is None or torch.allclose(one, other, atol=1e-4, rtol=1e-4))


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_experts_of_every_family(family):
    """In one graph, forward and backward, and again with another number of tokens."""
    for experts_class in families.experts_classes(family):
        module = experts_of(experts_class, family)
        module.config._experts_implementation = "libmoe"
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for tokens in (20, 28):
            x, ids, weights = routed(tokens, module.down_proj.shape[2 if module.is_transposed else 1])
            results = []
            for call in (compiled, module):
                inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
                y = call(inputs[0], ids, inputs[1])
                results.append([y, *torch.autograd.grad(y.square().sum(), [*inputs, *module.parameters()])])
            for ours, eager in zip(*results, strict=True):
                assert torch.allclose(ours, eager, atol=1e-5, rtol=1e-4), experts_class.__name__


@pytest.mark.parametrize("compiled", [False, True])
def test_generation_with_a_static_cache(compiled):
    if compiled and harness.on_cpu():
        pytest.skip("compiles for minutes on a CPU")
    model, _ = families.tiny_model("mixtral")
    model = model.to(harness.device.name).eval()
    ids = torch.randint(3, 90, (2, 12), device=harness.device.name)
    texts = []
    for implementation, cache in (("eager", None), ("libmoe", "static")):
        model.set_experts_implementation(implementation)
        texts.append(model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, cache_implementation=cache,
                                    disable_compile=not compiled))
    assert torch.equal(*texts)


# ---------------------------------------------------------------- what the interface may bring


def experts(family="mixtral", dtype=torch.float32):
    return experts_of(families.experts_classes(family)[0], family, dtype)


def experts_of(experts_class, family, dtype=torch.float32):
    module = experts_class(families.ExpertsConfig(family))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2)
    return module.to(harness.device.name, dtype)


def routed(tokens=20, width=32):
    ids = torch.rand(tokens, 6, device=harness.device.name).topk(2).indices
    return torch.randn(tokens, width, device=ids.device), ids, torch.rand(tokens, 2, device=ids.device)


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 if harness.on_cpu() else 1e-2)


def test_sentinels_of_other_ranks():
    """Expert parallelism sends what is on another rank to id E with weight 0."""
    module, (x, ids, weights) = experts(), routed()
    away = torch.rand(ids.shape, device=ids.device) < 0.4
    ids, weights = ids.masked_fill(away, 6), weights.masked_fill(away, 0)
    x.requires_grad_()
    # Newer versions look at sentinels where this says so.
    module._is_expert_parallel = True
    y, theirs = (forward(module, x, ids, weights) for forward in (_experts.experts_forward, grouped_mm_experts_forward))
    assert close(y, theirs)
    assert close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, theirs)))
    nothing = _experts.experts_forward(module, x, torch.full_like(ids, 6), torch.zeros_like(weights))
    assert not nothing.any()


def test_a_norm_behind_each_expert():
    """Newer versions have it; rows of empty slots must not reach its gradient."""
    module, (x, ids, weights) = experts(), routed()
    module.has_post_expert_norm, module.post_expert_norm = True, torch.nn.RMSNorm(32, device=x.device)
    ids[3, 1], ids[5, :] = 6, 6
    inputs = [x.requires_grad_(), weights.requires_grad_(), *module.parameters()]
    y = _experts.experts_forward(module, x, ids, weights)
    expected = torch.zeros_like(x)
    for t in range(20):
        for slot, expert in enumerate(ids[t].tolist()):
            if expert < 6:
                gate, up = (module.gate_up_proj[expert] @ x[t]).chunk(2)
                out = module.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                expected = expected.index_add(0, torch.tensor([t], device=x.device), (module.post_expert_norm(out) * weights[t, slot])[None])
    assert close(y, expected)
    dy = torch.randn_like(y)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, dy) for out in (y, expected))):
        assert torch.allclose(ours, theirs, atol=1e-4 if harness.on_cpu() else 0.05, rtol=1e-4 if harness.on_cpu() else 0.05)


def test_what_is_said_is_said_once(caplog):
    logging.Logger.warning_once.cache_clear()
    for _ in range(2):
        _experts.experts_forward(experts("deepseek_v4"), *routed())
        _experts.experts_forward(experts("mixtral"), *routed())
    said = [record.message for record in caplog.records if record.name.startswith("libmoe")]
    assert len(said) == 1 and "DeepseekV4Experts is none of libmoe's" in said[0]


def test_what_a_newer_interface_may_ask(monkeypatch, caplog):
    """What libmoe does not know of is not computed as if it were not there."""
    module, (x, ids, weights) = experts(), routed()
    monkeypatch.setitem(_experts.UNKNOWN, "has_something_new", False)
    expected = _experts.experts_forward(module, x, ids, weights)
    module.has_something_new = True
    with pytest.raises(NotImplementedError, match="does not compute experts with has_something_new"):
        _experts.experts_forward(module, x, ids, weights)
    monkeypatch.setitem(_experts.FALLBACK, "name", "eager")
    logging.Logger.warning_once.cache_clear()
    for _ in range(2):
        assert close(_experts.experts_forward(module, x, ids, weights), expected)
    assert [record.message for record in caplog.records] == ["libmoe does not compute experts with has_something_new: eager does"]


def test_dense_weights():
    module, (x, ids, weights) = experts(), routed()
    dense = torch.zeros(20, 6, device=x.device).scatter(1, ids, weights).requires_grad_()
    y = _experts.experts_forward(module, x, ids, dense)
    assert torch.equal(y, _experts.experts_forward(module, x, ids, weights))
    y.sum().backward()
    assert ((dense.grad != 0) == (dense != 0)).all()


def test_frozen_experts_and_inputs():
    module, (x, ids, weights) = experts(), routed()
    module.gate_up_proj.requires_grad_(False)
    _experts.experts_forward(module, x, ids, weights.requires_grad_()).sum().backward()
    assert module.gate_up_proj.grad is None and module.down_proj.grad is not None and weights.grad is not None


def test_no_tokens_and_a_batch_of_sequences():
    module, (x, ids, weights) = experts(), routed()
    assert _experts.experts_forward(module, x[:0], ids[:0], weights[:0]).shape == (0, 32)
    y = _experts.experts_forward(module, x.view(4, 5, 32), ids, weights)
    assert torch.equal(y.view(20, 32), _experts.experts_forward(module, x, ids, weights))


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v4"])
def test_autocast_and_mixed_dtypes(family):
    module, (x, ids, weights) = experts(family), routed()
    full = _experts.experts_forward(module, x, ids, weights)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        low = _experts.experts_forward(module, x, ids, weights)
    assert low.dtype == torch.float32 and 0 < (low - full).norm() < 0.03 * full.norm()
    mixed = _experts.experts_forward(experts(family, torch.bfloat16), x, ids, weights)
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()


def test_weights_that_are_dtensors(tmp_path):
    ranks.spawn(_spread, 1, str(tmp_path / "meeting"), harness.device.name)


def _spread(rank, meeting, device):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate

    harness.device.name = device
    dist.init_process_group("gloo" if harness.on_cpu() else "nccl", init_method=f"file://{meeting}", rank=rank, world_size=1)
    mesh = dist.init_device_mesh(device.partition(":")[0], (1,))
    module, (x, ids, weights) = experts(), routed()
    expected = _experts.experts_forward(module, x, ids, weights)
    for name in ("gate_up_proj", "down_proj"):
        spread = DTensor.from_local(getattr(module, name).detach(), mesh, [Replicate()])
        setattr(module, name, torch.nn.Parameter(spread))
    y = _experts.experts_forward(module, x, ids, weights)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert isinstance(module.down_proj.grad, DTensor)
    dist.destroy_process_group()


def test_activations_that_are_no_module_s_name():
    """The probe knows functions by what they compute: any order, any clamp, and nothing that is merely near."""
    from libmoe.torch._probe import recognise

    def clamped(h, alpha=1.5, limit=3.0):
        up, gate = h.chunk(2, -1)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(alpha * gate)

    options = dict(part.split("=") for part in recognise(clamped, 16, True).split(","))
    assert options["gate_order"] == "1" and abs(float(options["clamp_alpha"]) - 1.5) < 1e-6
    assert abs(float(options["clamp_limit"]) - 3) < 1e-6
    assert recognise(lambda h: torch.nn.functional.gelu(h[..., 1::2], approximate="tanh") * h[..., ::2], 16, True) is None
    assert recognise(lambda h: torch.nn.functional.gelu(h[..., ::2], approximate="tanh") * h[..., 1::2], 16, True) is not None
    assert recognise(torch.nn.functional.elu, 8, False) is None
    assert recognise(lambda h: torch.nn.functional.silu(h) * 1.001, 8, False) is None
    assert recognise(lambda h: h.no_such_method(), 8, False) is None
    assert recognise(lambda h: h.relu().square(), 8, False) is not None


def test_experts_that_a_quantizer_has_replaced(monkeypatch):
    """An error, unless another implementation is allowed: then the quantized experts' own of that name."""
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8", reason="this version has no FP8 experts")
    quantization = transformers.FineGrainedFP8Config(weight_block_size=(16, 16))
    model, _ = families.tiny_model("qwen3_moe")
    fp8.replace_with_fp8_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    module = next(module for module in model.modules() if type(module).__name__ == "FP8Experts")
    module.config._experts_implementation = "libmoe"
    x, ids, weights = (t.to("meta") for t in routed())
    with pytest.raises(NotImplementedError, match=r'quantized experts \(FP8Experts\); libmoe.transformers.register\(fallback='):
        module(x, ids, weights)
    monkeypatch.setitem(_experts.FALLBACK, "name", "theirs")
    monkeypatch.setitem(fp8.ALL_FP8_EXPERTS_FUNCTIONS._local_mapping, "theirs", lambda module, x, ids, weights: (module, x))
    assert module(x, ids, weights) == (module, x)


class Packed(torch.Tensor):
    """A quantizer's weights, as torchao has them: they say the dtype that they are computed in."""

    def __new__(cls, inner):
        packed = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        packed.inner = inner
        return packed

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, *_):
        raise NotImplementedError(f"{function} of Packed")


def test_weights_that_a_quantizer_has_packed(monkeypatch):
    module, (x, ids, weights) = experts(dtype=torch.bfloat16), routed()
    packed = Packed(module.gate_up_proj.detach())
    del module.gate_up_proj
    module.gate_up_proj = packed
    with pytest.raises(NotImplementedError, match=r"does not compute weights that are Packed; .*register\(fallback="):
        _experts.experts_forward(module, x, ids, weights)
    monkeypatch.setitem(_experts.FALLBACK, "name", "batched_mm")
    with pytest.raises(NotImplementedError, match="of Packed"):  # another implementation was reached
        _experts.experts_forward(module, x, ids, weights)


def test_what_libmoe_does_not_compute():
    module, (x, ids, weights) = experts(), routed()
    module.gate_up_proj = torch.nn.Parameter(module.gate_up_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(NotImplementedError, match=r'float8_e4m3fn.*register\(fallback='):
        _experts.experts_forward(module, x, ids, weights)
    with pytest.raises(ValueError, match="fallback is 'nothing'"):
        libmoe_transformers.register(fallback="nothing")
    libmoe_transformers.register(fallback="eager")
    try:
        module.gate_up_proj = torch.nn.Parameter(experts().gate_up_proj.to(torch.complex64), requires_grad=False)
        with pytest.raises(RuntimeError, match="ComplexFloat|complex|dtype"):
            _experts.experts_forward(module, x, ids, weights)  # the eager forward was reached, and cannot either
    finally:
        libmoe_transformers.register()
