"""libmoe.megatron.Experts beside loops over experts; and inside Megatron-Core's own layer, where that is installed."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
from libmoe.megatron import Experts  # noqa: E402
from torch.nn.functional import elu, gelu, silu  # noqa: E402

E, D, F = 5, 16, 12
SIZES = torch.tensor([4, 0, 9, 1, 7])


def config(**more):
    def init(weight):
        torch.nn.init.normal_(weight, 0, 0.3)

    fields = {"hidden_size": D, "moe_ffn_hidden_size": F, "gated_linear_unit": True, "activation_func": silu, "add_bias_linear": False,
              "init_method": init, "output_layer_init_method": init, "params_dtype": torch.float32}
    return SimpleNamespace(**(fields | more))


def reference(module, x, probs):
    out = []
    for e, (rows, p) in enumerate(zip(x.split(SIZES.tolist()), probs.split(SIZES.tolist()))):
        on_input = getattr(module.config, "moe_apply_probs_on_input", False)
        rows, p = (rows * p[:, None], 1) if on_input else (rows, p[:, None])
        h = rows @ module.weight1[e].T + (0 if module.bias1 is None else module.bias1[e])
        y = (module.act(h) * p) @ module.weight2[e].T
        out.append(y + (0 if module.bias2 is None else module.bias2[e] * p))
    return torch.cat(out)


@pytest.mark.parametrize("options", [
    {}, {"add_bias_linear": True}, {"moe_apply_probs_on_input": True}, {"gated_linear_unit": False, "activation_func": gelu},
    {"activation_func": lambda x: x * torch.sigmoid(1.702 * x), "activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0},
    {"activation_func": elu, "add_bias_linear": True}, {"activation_func": elu, "moe_apply_probs_on_input": True},
], ids=lambda options: ",".join(options))
def test_experts(options):
    module = Experts(E, config(**options)).to(harness.device.name)
    assert (module.options is None) == (options.get("activation_func") is elu)
    with torch.no_grad():
        for bias in (module.bias1, module.bias2):
            if bias is not None:
                bias.normal_()
    x = torch.randn(21, D, device=harness.device.name, requires_grad=True)
    probs = torch.rand(21, device=x.device, requires_grad=True)
    dy = torch.randn_like(x)
    inputs, tolerance = [x, probs, *module.parameters()], 1e-4 if harness.on_cpu() else 2e-2
    expected = reference(module, x, probs)
    theirs = torch.autograd.grad(expected, inputs, dy)
    for where in ("cpu", harness.device.name):
        y, bias = module(x, SIZES.to(where), probs)
        assert bias is None and torch.allclose(y, expected, atol=tolerance)
        for ours, exact in zip(torch.autograd.grad(y, inputs, dy), theirs):
            assert torch.allclose(ours, exact, atol=5 * tolerance)


def test_what_it_does_not_do():
    for field in ({"expert_tensor_parallel_size": 2}, {"fp8": "hybrid"}):
        with pytest.raises(NotImplementedError, match="libmoe.megatron.Experts"):
            Experts(E, config(**field))
    parallel = Experts(E, config(expert_model_parallel_size=2))
    assert not parallel.weight1.allreduce and Experts(E, config()).weight1.allreduce


@pytest.mark.skipif("harness.on_cpu()", reason="Megatron-Core's router moves its weight to a GPU")
def test_in_a_layer_of_megatron(tmp_path):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)
        settings = TransformerConfig(
            num_layers=1, hidden_size=D, num_attention_heads=2, num_moe_experts=E, moe_router_topk=2, moe_ffn_hidden_size=F,
            ffn_hidden_size=F, gated_linear_unit=True, activation_func=silu, add_bias_linear=False, use_cpu_initialization=True,
            moe_token_dispatcher_type="allgather", moe_router_load_balancing_type="none")
        plain = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        specs = (ModuleSpec(module=Experts), ModuleSpec(module=SequentialMLP, submodules=plain))
        ours, theirs = (MoELayer(settings, MoESubmodules(experts=spec)).to(harness.device.name) for spec in specs)
        with torch.no_grad():
            theirs.router.weight.copy_(ours.router.weight)
            for e, expert in enumerate(theirs.experts.local_experts):
                expert.linear_fc1.weight.copy_(ours.experts.weight1[e])
                expert.linear_fc2.weight.copy_(ours.experts.weight2[e])
        x = torch.randn(6, 2, D, device=harness.device.name)
        grads = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y, _ = layer(leaf)
            y.square().sum().backward()
            grads.append((y, leaf.grad, layer.router.weight.grad))
        for one, other in zip(*grads):
            assert torch.allclose(one, other, atol=1e-4)
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
