"""Random bits where data becomes an address: skipped or clamped, reported, nothing overrun, the GPU goes on."""

import libmoe
import pytest
import torch
from layer import Layer

GUARD = 4096


def guarded(size, dtype):
    """(whole allocation, the part in the middle)."""
    count = 1
    for s in size:
        count *= s
    whole = torch.full((count + 2 * GUARD,), 77, dtype=dtype, device="cuda")
    return whole, whole[GUARD : GUARD + count].view(size)


def intact(whole) -> bool:
    return bool((whole[:GUARD] == 77).all() and (whole[-GUARD:] == 77).all())


def random_bits(tensor):
    bits = torch.randint(-(2**31), 2**31, (tensor.numel() * tensor.element_size() // 4,), device="cuda", dtype=torch.int64)
    tensor.view(-1).view(torch.int32).copy_(bits.int())


@pytest.mark.parametrize("victim", ("ids", "group_offsets", "token_of_row", "slot_of_row", "row_of_slot"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_random_maps(gpu, rng, dtype, victim):
    layer = Layer.draw(rng, 333, 136, 72, 8, 3, dtype)
    buffers = layer.buffers(gpu, "cuda")
    walls = {}
    for name in ("y", "h", "dh", "dx", "dw1", "dw2", "dweights"):
        walls[name], buffers[name] = guarded(buffers[name].shape, buffers[name].dtype)
    plan, forward, backward = layer.calls(gpu, buffers, layer.tensors, layer.ids)
    ids = layer.ids.clone()
    if victim == "ids":
        random_bits(layer.ids)
    plan()
    if victim != "ids":
        random_bits(buffers[victim])
    forward()
    backward()
    torch.cuda.synchronize()
    for name, whole in walls.items():
        assert intact(whole), (victim, name)
    layer.ids.copy_(ids)
    assert torch.isfinite(layer.on(gpu)["y"]).all(), "the GPU no longer works"


def test_a_fault_is_reported(gpu, rng):
    layer = Layer.draw(rng, 50, 64, 32, 4, 2, torch.bfloat16)
    buffers = layer.buffers(gpu, "cuda")
    plan, *_ = layer.calls(gpu, buffers, layer.tensors, layer.ids)
    plan()
    buffers["token_of_row"][7] = 1 << 30
    report = torch.zeros(3, device="cuda", dtype=torch.int64)
    desc = dict(dtype=libmoe.DTYPE_BF16, num_tokens=50, hidden_size=64, top_k=2, rows_max=buffers["R"], num_groups=4)
    gpu.run("dispatch_fwd", desc, dict(
        x=layer.tensors["x"], rows=torch.empty(buffers["R"], 64, device="cuda", dtype=torch.bfloat16),
        token_of_row=buffers["token_of_row"], group_offsets=buffers["group_offsets"], report=report))
    torch.cuda.synchronize()
    what, place, value = report.tolist()
    assert (what & 0xFFFFFFFF, place, value) == (libmoe.FAULT_TOKEN_INDEX, 7, 1 << 30)


def test_a_pointer_between_multiples_of_16_bytes(gpu):
    """Copy boxes cannot begin there: the group is left out and reported, the others are computed."""
    rows, n, k = 100, 136, 72
    make = lambda *size: torch.randn(*size, device="cuda").bfloat16()
    odd = make(n * k + 1)[1:].view(n, k)
    a, b, c = make(2 * rows, k), [make(n, k), odd], torch.full((2 * rows, n), torch.nan, device="cuda", dtype=torch.bfloat16)
    report = torch.zeros(24, device="cuda", dtype=torch.uint8)
    offsets = torch.tensor([0, rows, 2 * rows], device="cuda")
    gpu.run("grouped_gemm_fwd", dict(dtype=libmoe.DTYPE_BF16, rows_max=2 * rows, num_groups=2, n=n, k=k),
            dict(a=a, b=b, c=c, group_offsets=offsets, report=report))
    torch.cuda.synchronize()
    assert (c[:rows].double() - a[:rows].double() @ b[0].double().T).abs().max() < 0.2
    if torch.cuda.get_device_capability()[0] == 9:
        assert c[rows:].isnan().all()
        assert "group 1" in gpu.report_message(report) and "16 bytes" in gpu.report_message(report)
