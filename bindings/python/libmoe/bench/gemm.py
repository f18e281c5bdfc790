"""Target `gemm`: grouped GEMM forward and dgrad beside torch's grouped_mm and one dense GEMM of the same work."""

from __future__ import annotations

import functools
import math

import libmoe

from . import method, record
from .shapes import SHAPES, Shape, routing, stage

KEY = "gemm"
CASES = ("up", "down", "dgrad")
ROWS = [(f"{name} {case}", "uniform") for name in SHAPES for case in CASES]
NEEDS = "gpu"
WANTED = ">= 0.98 x the best of torch and DeepGEMM; geometric mean >= 1.03"
# DeepGEMM's TFLOP/s on an H200 (2026-11-22), uniform and skewed: it is not run here.
DEEPGEMM = {
    ("qwen3-30b", "up"): (752, 698), ("qwen3-30b", "down"): (699, 651), ("mixtral", "up"): (725, 663),
    ("mixtral", "down"): (796, 674), ("dsv3-ep8", "up"): (748, 611), ("dsv3-ep8", "down"): (727, 569),
}

NOT_RUN = "DeepGEMM was not run beside"


def sizes(shape: Shape, case: str) -> tuple[int, int]:
    """n and k of C[M, n] = A[M, k] B."""
    return {"up": (2 * shape.f, shape.d), "down": (shape.d, shape.f), "dgrad": (shape.d, 2 * shape.f)}[case]


def limit(shape: Shape, case: str, rows_per_expert: list[int], tile: int = 64) -> float:
    """Seconds at best, for the routing that was timed."""
    n, k = sizes(shape, case)
    rows = sum(rows_per_expert)
    used = sum(1 for r in rows_per_expert if r)
    padded = sum(-(-r // tile) * tile for r in rows_per_expert)
    return stage(2 * padded * n * k, 2 * (rows * (n + k) + used * n * k))


def rates(ctx, counts, n: int, k: int, across: bool = False, replays: int = 20) -> dict:
    """TFLOP/s of libmoe, torch and the dense GEMM at C[M, n] = A[M, k] B, `counts` rows a group; B [E, k, n] where `across`."""
    import torch

    randn = lambda *size: torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_()
    gmm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows, groups, ends = int(offsets[-1]), len(counts), offsets[1:].int()
    a, c = randn(rows, k), torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    b = randn(groups, *((k, n) if across else (n, k)))
    desc = dict(dtype=libmoe.DTYPE_BF16, rows_max=rows, num_groups=groups)
    if across:
        ours = ctx.prepare("grouped_gemm_bwd", dict(desc, n=k, k=n), dict(dc=a, b=b, da=c, group_offsets=offsets))
    else:
        ours = ctx.prepare("grouped_gemm_fwd", dict(desc, n=n, k=k), dict(a=a, b=b, c=c, group_offsets=offsets, a_rows=rows))
    theirs = b if across else b.transpose(1, 2)
    timings = method.time_gpu({
        "libmoe": [ours], "torch grouped_mm": [lambda: gmm(a, theirs, offs=ends)],
        "dense": [lambda: torch.mm(a, theirs[0], out=c)],
    }, replays=replays)
    return {variant: 2 * rows * n * k / t.median / 1e12 for variant, t in timings.items()}


@functools.lru_cache(maxsize=None)
def measured(ctx, name: str, kind: str) -> dict[str, dict]:
    """Of each case TFLOP/s of libmoe, torch and the dense GEMM, and of the limit."""
    import torch

    shape = SHAPES[name]
    ids, _ = routing(shape.T, shape.E, shape.K, kind)
    counts = torch.bincount(ids.flatten().long(), minlength=shape.E)
    result = {}
    for case in CASES:
        n, k = sizes(shape, case)
        # W1 [E, 2f, d] and W2 [E, d, f]: dgrad reads W1 across.
        result[case] = rates(ctx, counts, n, k, across=case == "dgrad")
        result[case]["limit"] = 2 * shape.rows * n * k / limit(shape, case, counts.tolist()) / 1e12
        torch.cuda.empty_cache()
    return result


def best_peer(name: str, case: str, kind: str, found: dict, device: str) -> tuple[float, str]:
    published = DEEPGEMM.get((name, case), (0, 0))[kind == "skewed"] if "H200" in device else 0
    torch_rate = found["torch grouped_mm"]
    return (published, "DeepGEMM, published") if published > torch_rate else (torch_rate, "torch grouped_mm")


def verdict(reached: bool) -> dict:
    """A row that reaches torch stays open while DeepGEMM has not run beside it."""
    return dict(met=None, reason=NOT_RUN) if reached else dict(met=False)


def run(ctx) -> tuple[list[dict], dict]:
    state = method.gpu_state()
    device, rows, ratios, shapes = state.get("device", ""), [], [], {}
    for name in SHAPES:
        for case, found in measured(ctx, name, "uniform").items():
            peer, peer_name = best_peer(name, case, "uniform", found, device)
            ratio = found["libmoe"] / peer
            ratios.append(ratio)
            shapes[f"{name} {case}"] = found
            rows.append(record.row(KEY, f"{name} {case}", "uniform", "TFLOP/s", WANTED, ours=found["libmoe"], peer=peer,
                                   peer_name=peer_name, ratio=ratio, device=device, dense=found["dense"], **verdict(ratio >= 0.98)))
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return rows, {**state, "geometric mean": mean, "TFLOP/s": shapes}
