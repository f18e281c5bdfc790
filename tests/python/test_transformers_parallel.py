"""Transformers' own parallel plans with libmoe's experts: two ranks give what one gives."""

import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import ranks  # noqa: E402

pytestmark = pytest.mark.cpu

IDS = torch.arange(24).view(2, 12) % 90 + 3
WATCHED = ["model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight",
           "model.embed_tokens.weight"]


def step(model):
    """Loss and some gradients of a training step, whole."""
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    grads = [model.get_parameter(name).grad for name in WATCHED]
    return [loss.detach(), *(grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in grads)]


def test_two_ranks(tmp_path):
    """Experts spread over the ranks, then each expert's matrices."""
    config = transformers.MixtralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, num_local_experts=6)
    model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "model")
    torch.save(step(model), tmp_path / "expected.pt")
    ranks.spawn(_rank, 2, str(tmp_path))


def _rank(rank, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    import libmoe.transformers
    import torch.distributed as dist
    from transformers.distributed import DistributedConfig

    libmoe.transformers.register()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # Newer versions have a size of its own for expert parallelism.
    by_expert = {"tp_size": 2, "ep_size": 2, "tp_plan": "auto"} if hasattr(DistributedConfig, "ep_size") else {"tp_size": 2, "enable_expert_parallel": True}
    for local_experts, plan in ((3, by_expert), (6, {"tp_size": 2, "tp_plan": "auto"})):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            f"{folder}/model", experts_implementation="libmoe", distributed_config=DistributedConfig(**plan))
        experts = model.model.layers[0].mlp.experts
        assert experts.num_experts == local_experts and experts.config._experts_implementation == "libmoe"
        for ours, expected in zip(step(model), torch.load(f"{folder}/expected.pt"), strict=True):
            assert torch.allclose(ours, expected, atol=1e-5), float((ours - expected).abs().max())
    dist.barrier()
    dist.destroy_process_group()
