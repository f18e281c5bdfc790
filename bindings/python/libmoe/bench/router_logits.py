"""Target `router_logits`: the router's GEMM, bf16 operands with fp32 logits; fp32 and fp64 sums beside it."""

from __future__ import annotations

import libmoe

from . import method, record

KEY = "router_logits"
T = 16384
SIZES = [(d, E) for d in (2048, 7168) for E in (8, 64, 128, 256)]
# Operands and sums that are shown without a target: (name, dtype, math).
WIDE = (("fp32", "FP32", "DEFAULT"), ("bf16, fp64 sums", "BF16", "FP64"))
ROWS = [(f"{T} d{d} E{E}", what) for d, E in SIZES for what in ("forward", "backward")]
NEEDS = "gpu"
WANTED = "<= 1.3 x max(bytes / 4.39 TB/s, FLOPs / 787 TFLOP/s) + 3 us"
BYTE_RATE, FLOP_RATE = 4.394e12, 787e12


def limit_us(d: int, E: int, passes: int) -> float:
    """`passes` products, each of which moves a [T, d] tensor."""
    return 1.3e6 * passes * max(2 * T * d / BYTE_RATE, 2 * T * d * E / FLOP_RATE) + 3


def make(ctx, d: int, E: int, dtype: str = "BF16", math: str = "DEFAULT"):
    """Prepared forwards and backwards over rotating buffers."""
    import torch

    kind = torch.bfloat16 if dtype == "BF16" else torch.float32
    desc = dict(dtype=getattr(libmoe, f"DTYPE_{dtype}"), logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, hidden_size=d,
                num_experts=E, math=getattr(libmoe, f"MATH_{math}"))
    weight = torch.randn(E, d, device="cuda", dtype=kind)
    forwards, backwards, peers = [], [], []
    for _ in range(method.rotations(T * d * kind.itemsize)):
        x = torch.randn(T, d, device="cuda", dtype=kind)
        logits = torch.empty(T, E, device="cuda")
        forwards.append(ctx.prepare("router_logits_fwd", desc, dict(x=x, weight=weight, logits=logits)))
        backwards.append(ctx.prepare("router_logits_bwd", desc, dict(
            dlogits=torch.randn(T, E, device="cuda"), x=x, weight=weight, dx=torch.empty_like(x),
            dweight=torch.empty(E, d, device="cuda"), dbias=torch.empty(E, device="cuda"))))
        peers.append(lambda x=x: torch.nn.functional.linear(x, weight))
    return {"forward": forwards, "backward": backwards, "torch linear": peers}


def run(ctx) -> tuple[list[dict], dict]:
    result, detail = [], {**method.gpu_state(), "cases": {}}
    for d, E in SIZES:
        case = f"{T} d{d} E{E}"
        timings = method.time_gpu(make(ctx, d, E))
        detail["cases"][case] = {name: timing.median * 1e6 for name, timing in timings.items()}
        for what, passes in (("forward", 1), ("backward", 2)):
            ours, limit = timings[what].median * 1e6, limit_us(d, E, passes)
            result.append(record.row(KEY, case, what, "us", WANTED, ours=ours, peer=limit, peer_name="limit", ratio=ours / limit,
                                     met=ours <= limit, device=detail.get("device")))
    for name, dtype, math in WIDE:
        timings = method.time_gpu(make(ctx, 2048, 64, dtype, math), replays=8)
        detail["cases"][f"{T} d2048 E64 {name}"] = {
            what: {"us": timings[what].median * 1e6, "TFLOP/s": passes * 2 * T * 2048 * 64 / timings[what].median / 1e12}
            for what, passes in (("forward", 1), ("backward", 2))}
    return result, detail
