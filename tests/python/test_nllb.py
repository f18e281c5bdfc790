"""patch_nllb: NLLB-MoE's experts by libmoe, beside a loop over experts as Transformers 4 had it."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import harness  # noqa: E402
from libmoe.transformers import patch_nllb  # noqa: E402
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration  # noqa: E402
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP  # noqa: E402

POLICIES = [{}, {"second_expert_policy": "random"}, {"second_expert_policy": "sampling"}, {"batch_prioritized_routing": True},
            {"normalize_router_prob_before_dropping": True}, {"expert_capacity": 2}]


def config(**more):
    small = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_experts": 6, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
             # TF32 and a kink at zero do not go together.
             "activation_function": "relu" if harness.on_cpu() else "gelu", "vocab_size": 99, "expert_capacity": 64, "max_position_embeddings": 64, "moe_token_dropout": 0.0, "router_bias": True}
    return NllbMoeConfig(**(small | more))


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1)
    return module.to(harness.device.name)


def loop_over_experts(layer, x):
    """Each expert on the tokens that the router left it, in whole."""
    _, probs, _ = layer.router(x)
    y = torch.zeros_like(x)
    for number in range(layer.num_experts):
        tokens = torch.nonzero(probs[:, number])[:, 0]
        out = layer.experts[f"expert_{number}"](x[tokens]) * probs[tokens, number, None]
        y = y.index_add(0, tokens, out)
    return y * (1 if layer.training else 1 - layer.experts.moe_token_dropout)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_layer(policy, training):
    theirs = randomise(NllbMoeSparseMLP(config(**policy, moe_token_dropout=0.0 if training else 0.2), 24)).train(training)
    ours = copy.deepcopy(theirs)
    assert patch_nllb(ours) == 1 and patch_nllb(ours) == 1
    x, dy = torch.randn(3, 8, 32, device=harness.device.name), torch.randn(3, 8, 32, device=harness.device.name)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    seed = int(torch.randint(1 << 30, ()))
    torch.manual_seed(seed)
    y = ours(inputs[0])
    torch.manual_seed(seed)
    expected = loop_over_experts(theirs, inputs[1].view(24, 32)).view_as(x)
    tolerance = 1e-5 if harness.on_cpu() else 1e-3
    assert torch.allclose(y, expected, atol=tolerance)
    y.backward(dy), expected.backward(dy)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=10 * tolerance)
    assert torch.allclose(ours.router.classifier.weight.grad, theirs.router.classifier.weight.grad, atol=10 * tolerance)
    for number in range(6):
        grad = theirs.experts[f"expert_{number}"].fc1.weight.grad
        assert torch.allclose(ours.experts.w1.grad[number], torch.zeros_like(ours.experts.w1[0]) if grad is None else grad, atol=10 * tolerance)


def test_dropout_between_the_layers():
    layer = randomise(NllbMoeSparseMLP(config(activation_dropout=0.5), 24))
    patch_nllb(layer)
    x = torch.randn(1, 200, 32, device=harness.device.name)
    layer.train()
    first, second = layer(x), layer(x)
    layer.eval()
    assert not torch.equal(first, second) and torch.equal(layer(x), layer(x))


def test_state_dicts_keep_their_names():
    model = randomise(NllbMoeForConditionalGeneration(config()))
    names, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    assert patch_nllb(model) == 2
    assert sorted(model.state_dict()) == sorted(names)
    fresh = randomise(NllbMoeForConditionalGeneration(config()))
    patch_nllb(fresh)
    fresh.load_state_dict(before)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters()))


def test_a_model_trains_and_generates():
    model = randomise(NllbMoeForConditionalGeneration(config()))
    patch_nllb(model)
    ids = torch.randint(4, 90, (4, 10), device=harness.device.name)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        losses.append(model(input_ids=ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert model.eval().generate(ids, max_new_tokens=5, do_sample=False).shape[0] == 4
