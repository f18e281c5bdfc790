"""Target `sinkhorn`: to convergence in one launch."""

from __future__ import annotations

import libmoe

from . import method, peers, record

KEY = "sinkhorn"
SIZES = [(T, E) for T in (4096, 65536) for E in (8, 64, 128)]
ROWS = [(f"{T}x{E}", f"{scale}*randn") for T, E in SIZES for scale in (1, 5)]
NEEDS = "gpu"


def limit_us(T: int, iterations: int) -> float:
    return 5 + 2.5 * iterations if T <= 4096 else 15 + 8 * iterations


def verdict(within: bool, faster: bool | None) -> dict:
    """A row that is within its limit stays open where Megatron-Core was not run beside."""
    return dict(met=None, reason="Megatron-Core is not installed") if within and faster is None else dict(met=bool(within and faster))


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "cases": {}}
    mcore = peers.megatron()
    for T, E in SIZES:
        for scale in (1, 5):
            desc = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, preset=libmoe.SINKHORN_MEGATRON)
            sets = min(8, method.rotations(T * E * 4))
            logits = [scale * torch.randn(T, E, device="cuda") for _ in range(sets)]
            iterations = torch.zeros(1, device="cuda", dtype=torch.int32)
            calls = [
                ctx.prepare("sinkhorn", desc, dict(
                    logits=x, log_d1=torch.empty(E, device="cuda"), iterations=iterations))
                for x in logits
            ]
            timing = method.time_gpu({"libmoe": calls})["libmoe"]
            rounds = int(iterations.item())
            limit, ours = limit_us(T, rounds), timing.median * 1e6
            case = f"{T}x{E}"
            peer = method.time_eager(lambda: mcore.sinkhorn(logits[0].clone())).median * 1e6 if mcore else None
            detail["cases"][f"{case} {scale}*randn"] = {"us": ours, "iterations": rounds, "limit": limit, "megatron us": peer}
            result.append(
                record.row(KEY, case, f"{scale}*randn", "us", f"<= {limit:g} us and <= Megatron-Core / 10", ours=ours,
                           peer=peer, peer_name="Megatron-Core sinkhorn" if mcore else None, ratio=peer / ours if peer else None,
                           iterations=rounds, device=detail.get("device"), **verdict(ours <= limit, peer and peer / ours >= 10))
            )
    return result, detail
