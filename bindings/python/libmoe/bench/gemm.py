"""Target `gemm`: grouped GEMM forward and dgrad beside torch's grouped_mm, DeepGEMM and one dense GEMM of the same work."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import libmoe

from . import method, record
from .peers import deepgemm
from .peers.policy import attempt
from .shapes import SHAPES, Shape, routing, stage

KEY = "gemm"
CASES = ("up", "down", "dgrad")
ROWS = [(f"{name} {case}", "uniform") for name in SHAPES for case in CASES]
NEEDS = "gpu"
WANTED = ">= 0.98 x the best of torch and DeepGEMM; geometric mean >= 1.03"
MEAN_WANTED = 1.03
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


def problem(ctx, counts, n: int, k: int, across: bool) -> SimpleNamespace:
    """Random operands of C[M, n] = A[M, k] B, `counts` rows a group, B [E, k, n] where `across`, and libmoe's call."""
    import torch

    randn = lambda *size: torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows, groups = int(offsets[-1]), len(counts)
    a, c = randn(rows, k), torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    b = randn(groups, *((k, n) if across else (n, k)))
    desc = dict(dtype=libmoe.DTYPE_BF16, rows_max=rows, num_groups=groups)
    if across:
        call = ctx.prepare("grouped_gemm_bwd", dict(desc, n=k, k=n), dict(dc=a, b=b, da=c, group_offsets=offsets))
    else:
        call = ctx.prepare("grouped_gemm_fwd", dict(desc, n=n, k=k), dict(a=a, b=b, c=c, group_offsets=offsets, a_rows=rows))
    return SimpleNamespace(call=call, a=a, b=b, c=c, ends=offsets[1:].int(), flops=2 * rows * n * k)


def rates(ctx, counts, n: int, k: int, across: bool = False, replays: int = 20, beside: str | None = None) -> dict:
    """TFLOP/s of libmoe, torch and the dense GEMM at a problem.

    `beside`: name of the shape for which DeepGEMM runs, too; the reason stands in "absent" where it does not.
    """
    import torch

    made = problem(ctx, counts, n, k, across)
    a, b, c, ends = made.a, made.b, made.c, made.ends
    gmm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    theirs = b if across else b.transpose(1, 2)
    peers, absent = {}, None
    if beside:
        call, absent = attempt(deepgemm.NAME, beside, lambda: deepgemm.grouped(a, b, counts, across, gmm(a, theirs, offs=ends)))
        peers = {deepgemm.NAME: [call]} if call else {}
    timings = method.time_gpu({
        "libmoe": [made.call], "torch grouped_mm": [lambda: gmm(a, theirs, offs=ends)],
        "dense": [lambda: torch.mm(a, theirs[0], out=c)],
    }, replays=replays, peers=peers)
    result = {variant: made.flops / t.median / 1e12 for variant, t in timings.items()}
    return {**result, "absent": absent} if absent else result


def counts_of(shape: Shape, kind: str):
    """Rows of each expert."""
    import torch

    ids, _ = routing(shape.T, shape.E, shape.K, kind)
    return torch.bincount(ids.flatten().long(), minlength=shape.E)


def is_across(case: str) -> bool:
    """W1 [E, 2f, d] and W2 [E, d, f]: dgrad reads W1 across."""
    return case == "dgrad"


@functools.lru_cache(maxsize=None)
def measured(ctx, name: str, kind: str) -> dict[str, dict]:
    """Of each case TFLOP/s of libmoe, its peers and the dense GEMM, and of the limit."""
    import torch

    shape = SHAPES[name]
    counts = counts_of(shape, kind)
    result = {}
    for case in CASES:
        n, k = sizes(shape, case)
        result[case] = rates(ctx, counts, n, k, across=is_across(case), beside=name)
        result[case]["limit"] = 2 * shape.rows * n * k / limit(shape, case, counts.tolist()) / 1e12
        torch.cuda.empty_cache()
    return result


def published(name: str, case: str, kind: str, device: str) -> float | None:
    figures = DEEPGEMM.get((name, case)) if "H200" in device else None
    return figures[kind == "skewed"] if figures else None


def best_peer(name: str, case: str, kind: str, found: dict, device: str) -> tuple[float, str]:
    """The fastest that ran; where DeepGEMM did not, its published figure counts, too."""
    rivals = {peer: found[peer] for peer in ("torch grouped_mm", deepgemm.NAME) if peer in found}
    known = published(name, case, kind, device)
    if known and deepgemm.NAME not in found:
        rivals["DeepGEMM, published"] = known
    best = max(rivals, key=rivals.get)
    return rivals[best], best


def verdict(reached: bool, found: dict) -> dict:
    """A row that reaches what ran stays open while DeepGEMM has not run beside it."""
    if not reached or deepgemm.NAME in found:
        return dict(met=bool(reached))
    return dict(met=None, reason=f"{NOT_RUN}: {found['absent']}" if "absent" in found else NOT_RUN)


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
                                   peer_name=peer_name, ratio=ratio, device=device, dense=found["dense"],
                                   published=published(name, case, "uniform", device), **verdict(ratio >= 0.98, found)))
    return rows, {**state, "geometric mean": record.geometric_mean(ratios, MEAN_WANTED), "TFLOP/s": shapes}
