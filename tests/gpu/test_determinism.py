"""The same bits, whatever else runs."""

import libmoe
import pytest
import torch
from layer import Layer

RESULTS = ("y", "dx", "dw1", "dw2", "dweights", "row_of_slot", "group_offsets")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_twenty_repeats_beside_other_work(gpu, rng, dtype):
    layer = Layer.draw(rng, 2000, 512, 384, 32, 4, dtype, "skewed")
    first = layer.on(gpu)
    other = torch.cuda.Stream()
    noise = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    for repeat in range(20):
        with torch.cuda.stream(other):
            for _ in range(repeat % 5):
                noise = (noise @ noise).clamp(-1, 1)
        again = layer.on(gpu)
        for name in RESULTS:
            assert torch.equal(first[name], again[name]), (repeat, name)


def test_router_losses_repeat(gpu, rng):
    T, E, K = 10000, 64, 6
    logits = torch.randn(T, E, device="cuda")
    desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, aux_loss=libmoe.AUX_LOSS_MEGATRON,
                aux_loss_coeff=0.01, z_loss=libmoe.ON, z_loss_coeff=0.001)
    results = set()
    for _ in range(20):
        losses = torch.full((2,), float("nan"), device="cuda")
        gpu.run("router_fwd", desc, dict(
            logits=logits, ids=torch.empty(T, K, device="cuda", dtype=torch.int32),
            weights=torch.empty(T, K, device="cuda"), aux_counts=torch.empty(1, E, device="cuda", dtype=torch.int64),
            aux_loss=losses[:1], z_loss=losses[1:]))
        results.add(tuple(losses.view(torch.int32).tolist()))
    assert len(results) == 1, results
