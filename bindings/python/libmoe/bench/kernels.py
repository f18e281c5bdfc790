"""Which kernels a forward and a backward of the expert MLP launch, as a profiler lists them: products and what their epilogues do,
no gather and no activation beside them. No time to compare; what stands in the detail was taken with the profiler on."""

from __future__ import annotations

from . import layer, method, record
from .mlp import train_calls
from .shapes import SHAPES

KEY = "kernels"
# The most products of a pass.
MOST = {"forward": 3, "backward": 5}
ROWS = [(f"{name} {which}", "uniform") for name in SHAPES for which in MOST]
NEEDS = "gpu"
PRODUCTS = ("hopper_", "decode_", "grouped_gemm_")
# Gathers and activations that are passes of their own.
PASSES = ("dispatch_fwd_", "activation_", "expert_mlp_scale_rows_")


def launched(call) -> list[tuple[str, float]]:
    """Names and microseconds of the kernels that a call launches, in their order."""
    import torch

    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [(e.name, e.device_time) for e in sorted(events, key=lambda e: e.time_range.start)]


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    state, rows, shapes = method.gpu_state(), [], {}
    for name, shape in SHAPES.items():
        made = layer.make(ctx, shape, "uniform")
        x = torch.empty(shape.T, shape.d, device="cuda", dtype=torch.bfloat16).normal_()
        forward, backward, _h = train_calls(made, x)
        for which, call in (("forward", forward), ("backward", backward)):
            kernels = shapes[f"{name} {which}"] = launched(call)
            products, passes = (sum(kernel.startswith(stems) for kernel, _ in kernels) for stems in (PRODUCTS, PASSES))
            rows.append(record.row(
                KEY, f"{name} {which}", "uniform", "kernels", f"<= {MOST[which]} products, no gather or activation beside",
                ours=products, met=0 < products <= MOST[which] and passes == 0, device=state.get("device")))
        del made, x, forward, backward, _h
        torch.cuda.empty_cache()
    return rows, {**state, "us": shapes}
