"""dMoE and MoE with MegaBlocks' arguments and names, beside loops over experts."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
from libmoe.megablocks import (  # noqa: E402
    MoE, Arguments, batched_load_balancing_loss, batched_router_zloss, clear_load_balancing_loss, clear_router_zloss, dMoE,
    from_megatron, get_load_balancing_loss)

S, B, D, F, E, K = 6, 4, 16, 12, 5, 2


@pytest.fixture(autouse=True)
def no_losses():
    clear_load_balancing_loss()


def arguments(**more):
    normal = torch.nn.init.normal_
    return Arguments(**{"hidden_size": D, "ffn_hidden_size": F, "moe_num_experts": E, "moe_top_k": K, "return_bias": False,
                        "device": harness.device.name, "init_method": lambda w: normal(w, 0, 0.3),
                        "output_layer_init_method": lambda w: normal(w, 0, 0.3), **more})


def reference(layer, x, capacity=None):
    """Loops over tokens and their experts, in token order."""
    args, flat = layer.args, x.reshape(-1, D)
    scores = (flat @ layer.router.layer.weight.T).softmax(-1)
    values, ids = scores.topk(args.moe_top_k)
    if args.moe_normalize_expert_weights:
        values = values / values.norm(p=args.moe_normalize_expert_weights, dim=-1, keepdim=True)
    mlp, taken, y = layer.experts.mlp, [0] * E, []
    for t, row in enumerate(flat):
        out = torch.zeros_like(row)
        for k in range(args.moe_top_k):
            e = int(ids[t, k])
            taken[e] += 1
            if capacity is not None and taken[e] > capacity:
                continue
            part = slice(e * F, (e + 1) * F)
            act = args.activation_fn(mlp.w1[part] @ row)
            act = act if mlp.v1 is None else act * (mlp.v1[part] @ row)
            out = out + values[t, k] * (act @ mlp.w2[part])
        y.append(out)
    y = torch.stack(y).view(x.shape)
    y = y if layer.experts.bias is None else y + layer.experts.bias
    if not args.shared_expert:
        return y
    mlp = layer.shared_expert
    up = mlp.up_proj(x)
    shared = mlp.down_proj(args.activation_fn(up) if args.mlp_type == "mlp" else args.activation_fn(mlp.gate_proj(x)) * up)
    weights = (1 / (K + 1), K / (K + 1)) if args.shared_expert_weighted_sum else (1, 1)
    return weights[0] * shared + weights[1] * y


def compare(layer, capacity=None):
    x = torch.randn(S, B, D, device=harness.device.name).requires_grad_()
    ours, theirs, dy = layer(x), reference(layer, x, capacity), torch.randn(S, B, D, device=x.device)
    tolerance = 1e-5 if harness.on_cpu() else 5e-3
    assert torch.allclose(ours, theirs, atol=tolerance)
    inputs = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, inputs, dy) for y in (ours, theirs))):
        assert torch.allclose(a, b, atol=20 * tolerance)


@pytest.mark.parametrize("options", [
    {}, {"mlp_type": "glu"}, {"mlp_type": "glu", "activation_fn": torch.nn.functional.silu, "moe_normalize_expert_weights": 1},
    {"moe_normalize_expert_weights": 2, "bias": False}, {"moe_top_k": 1}, {"memory_optimized_mlp": True},
    {"activation_fn": torch.nn.functional.elu}, {"activation_fn": torch.nn.functional.elu, "mlp_type": "glu"},
    {"shared_expert": True, "shared_expert_hidden_size": 7}, {"shared_expert": True, "mlp_type": "glu", "shared_expert_weighted_sum": True},
], ids=str)
def test_dropless(options):
    layer = dMoE(arguments(**options))
    assert (layer.experts.mlp.options is None) == (options.get("activation_fn") is torch.nn.functional.elu)
    compare(layer)


@pytest.mark.parametrize("factor", [0.5, 1, 0])
def test_capacity(factor):
    compare(MoE(arguments(moe_capacity_factor=factor)), capacity=int(S * B * K / E * factor) if factor else None)


def test_a_capacity_of_nothing_drops_nothing():
    """As in MegaBlocks, where so few tokens come that floor() leaves none."""
    layer = MoE(arguments(moe_top_k=1))
    x = torch.randn(1, 2, D, device=harness.device.name)
    assert int(2 / E) == 0 and torch.allclose(layer(x), reference(layer, x), atol=1e-5 if harness.on_cpu() else 5e-3)


def test_state_dicts_of_moe():
    """MegaBlocks' MoE, not dMoE, has w1 [E, d, f] and w2 [E, f, d]."""
    layer, other = MoE(arguments()), MoE(arguments())
    state = layer.state_dict()
    state["experts.mlp.w1"] = state["experts.mlp.w1"].view(E, F, D).transpose(1, 2).contiguous()
    state["experts.mlp.w2"] = state["experts.mlp.w2"].view(E, F, D)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters()))


@pytest.mark.parametrize("activation", [torch.nn.functional.silu, torch.nn.functional.elu])
def test_autocast(activation):
    """fp32 parameters, and what comes is of 16 bits or not."""
    layer = dMoE(arguments(mlp_type="glu", activation_fn=activation, bias=False))
    x = torch.randn(S, B, D, device=harness.device.name)
    full = layer(x)
    # The router's product is in bf16, as in MegaBlocks: scores that nearly tie may choose other experts.
    best = layer.router.layer(x).topk(K + 1).values
    clear = best[..., K - 1] - best[..., K] > 0.1
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        for given in (x, x.bfloat16()):
            y = layer(given)
            assert y.dtype == torch.bfloat16 and (y.float() - full)[clear].norm() < 0.05 * full[clear].norm()
    assert clear.sum() >= S * B / 4
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.norm() > 0 for p in layer.experts.parameters())


def test_names_are_megablocks():
    layer = dMoE(arguments(mlp_type="glu"))
    shapes = {name: list(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"router.layer.weight": [E, D], "experts.bias": [D], "experts.mlp.w1": [E * F, D], "experts.mlp.w2": [E * F, D],
                      "experts.mlp.v1": [E * F, D]}
    y, bias = dMoE(arguments(return_bias=True))(torch.randn(S, B, D, device=harness.device.name))
    assert y.shape == (S, B, D) and bias.shape == (D,)
    megatron = type("Megatron", (), {"hidden_size": D, "moe_num_experts": E, "no_such": 1})
    assert from_megatron(megatron) == Arguments(hidden_size=D, moe_num_experts=E)
    with pytest.raises(ValueError, match="mlp_type is 'moe'"):
        dMoE(arguments(mlp_type="moe"))
    with pytest.raises(ValueError, match="moe_expert_model_parallelism is True"):
        arguments(moe_expert_model_parallelism=True)
    shared = dMoE(arguments(shared_expert=True, mlp_type="glu", bf16=True, mlp_impl="sparse", bias=False))
    names = {name for name in shared.state_dict() if name.startswith("shared_expert")}
    assert names == {f"shared_expert.{part}_proj.weight" for part in ("up", "gate", "down")}
    assert shared(torch.randn(S, B, D, device=harness.device.name, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_router_zloss():
    args = arguments(moe_zloss_weight=0.5, moe_zloss_in_fp32=True)
    layer, x = dMoE(args), torch.randn(S, B, D, device=harness.device.name)
    clear_router_zloss()
    layer(x), layer(x)
    loss = batched_router_zloss(args)
    expected = 0.5 * (x.view(-1, D) @ layer.router.layer.weight.T).logsumexp(1).square().mean()
    assert loss.shape == (2,) and torch.allclose(loss, expected.expand(2), atol=1e-2)
    loss.sum().backward()
    clear_router_zloss()
    assert layer.router.layer.weight.grad.norm() > 0 and batched_router_zloss(args) == 0


def test_load_balancing_loss():
    args = arguments(num_layers=2, moe_loss_weight=0.3)
    layers = [dMoE(args) for _ in range(2)]
    x, expected = torch.randn(S, B, D, device=harness.device.name), 0
    for layer in layers:
        layer(x)
        scores = (x.view(-1, D) @ layer.router.layer.weight.T).softmax(-1)
        load = torch.bincount(scores.topk(K).indices.flatten(), minlength=E)
        expected = expected + 0.3 * E / (2 * S * B * K) * (load * scores.mean(0)).sum()
    loss = batched_load_balancing_loss(args)
    assert torch.allclose(loss, expected, atol=1e-4) and len(get_load_balancing_loss()) == 2
    loss.backward()
    assert layers[0].router.layer.weight.grad.norm() > 0
    clear_load_balancing_loss()
    layers[0].eval()(x)
    with pytest.raises(ValueError, match="0 layers ran"):
        batched_load_balancing_loss(args)
    assert batched_load_balancing_loss(arguments(moe_loss_weight=0)) == 0
    layers[0].train()(x)
    assert batched_load_balancing_loss(arguments(num_layers=2, pipeline_model_parallel_size=2)) > 0


def test_uniform_assignment_and_jitter():
    layer = dMoE(arguments(uniform_expert_assignment=True, moe_jitter_eps=0.1))
    x = torch.randn(S, B, D, device=harness.device.name)
    _, _, ids, load = layer.router(x)
    assert load.max() - load.min() <= 1 and torch.equal(ids.flatten(), torch.arange(S * B * K, device=x.device, dtype=torch.int32) % E)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
