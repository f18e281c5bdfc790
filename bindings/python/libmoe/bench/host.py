"""Target `host`: host time of a call, from its entry to its return."""

from __future__ import annotations

import ctypes
import functools

import libmoe
from libmoe._library import library

from . import layer, method, record
from .shapes import Shape

KEY = "host"
OPS = ("router_fwd", "grouped_gemm_fwd", "expert_mlp_fwd")
ROWS = [(op, "uniform") for op in OPS]
NEEDS = "gpu"
SMALL = Shape("small", 256, 512, 256, 8, 2)


def wanted(launches: int) -> str:
    return f"<= {1 + 2.5 * launches:g} us (1 us + 2.5 us a launch, {launches} launches)"


def empty(call, stream):
    """A call of a function that does nothing, with the same arguments."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, *call.function.argtypes)
    nothing = prototype(ctypes.cast(library().moe_version, ctypes.c_void_p).value)
    return functools.partial(nothing, *call.arguments, stream)


def run(ctx) -> tuple[list[dict], dict]:
    """Calls through ctypes with arguments prepared beforehand; what ctypes takes to hand these over is taken off."""
    import torch

    small = layer.make(ctx, SMALL, "uniform")
    logits = torch.randn(SMALL.T, SMALL.E, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(SMALL.T, SMALL.d, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(small.rows_max, SMALL.d, device="cuda", dtype=torch.bfloat16)
    c = torch.empty(small.rows_max, 2 * SMALL.f, device="cuda", dtype=torch.bfloat16)
    bf16 = libmoe.DTYPE_BF16
    calls = {
        "router_fwd": ctx.prepare(
            "router_fwd",
            dict(logits_dtype=bf16, num_tokens=SMALL.T, num_experts=SMALL.E, top_k=SMALL.K),
            dict(logits=logits, ids=small.ids.clone(), weights=small.weights.clone()),
        ),
        "grouped_gemm_fwd": ctx.prepare(
            "grouped_gemm_fwd",
            dict(dtype=bf16, rows_max=small.rows_max, n=2 * SMALL.f, k=SMALL.d, num_groups=SMALL.E),
            dict(a=rows, b=small.w1, c=c, group_offsets=small.plan["group_offsets"]),
        ),
        "expert_mlp_fwd": small.prepare_forward(x, torch.empty_like(x)),
    }
    drain = torch.cuda.synchronize
    stream = torch.cuda.current_stream().cuda_stream
    result, detail = [], method.gpu_state()
    for op, call in calls.items():
        raw = functools.partial(call.function, *call.arguments, stream)
        timing = method.time_host(raw, calls=100, drain=drain)
        launches = count_launches(call)
        handed_over = method.time_host(empty(call, stream), calls=2000).median
        ours = (timing.median - handed_over) * 1e6
        limit = 1 + 2.5 * launches
        detail[op] = {"us": ours, "with ctypes, p10": timing.low * 1e6, "with ctypes, p90": timing.high * 1e6, "launches": launches}
        result.append(
            record.row(KEY, op, "uniform", "us", wanted(launches), ours=ours, peer=limit, peer_name="limit",
                       ratio=ours / limit, met=ours <= limit, device=detail.get("device"))
        )
    return result, detail


def count_launches(call) -> int:
    """Kernel nodes of the call's graph."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(1 for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA)
