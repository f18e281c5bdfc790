"""Target `gemm_skew`: what grouped GEMM loses under skewed routing, its limit taken into account."""

from __future__ import annotations

from . import gemm, method, record
from .peers import deepgemm
from .shapes import SHAPES

KEY = "gemm_skew"
ROWS = [(f"{name} {case}", "skewed") for name in SHAPES for case in gemm.CASES]
NEEDS = "gpu"
WANTED = "TFLOP/s over the limit >= 0.95 x the same quotient uniform"


def by_turns(ctx, name: str, case: str) -> dict[str, float]:
    """TFLOP/s over the limit, uniform and skewed: cards slow down as they get warm, so that only turns are comparable."""
    import torch

    shape = SHAPES[name]
    counts = {kind: gemm.counts_of(shape, kind) for kind in ("uniform", "skewed")}
    made = {kind: gemm.problem(ctx, of, *gemm.sizes(shape, case), gemm.is_across(case)) for kind, of in counts.items()}
    timings = method.time_gpu({kind: [problem.call] for kind, problem in made.items()}, replays=20)
    del made
    torch.cuda.empty_cache()
    return {kind: gemm.limit(shape, case, of.tolist()) / timings[kind].median for kind, of in counts.items()}


def run(ctx) -> tuple[list[dict], dict]:
    state, rows, shapes = method.gpu_state(), [], {}
    for name in SHAPES:
        for case, rates in gemm.measured(ctx, name, "skewed").items():
            shares = by_turns(ctx, name, case)
            quotient, even = shares["skewed"], shares["uniform"]
            shapes[f"{name} {case}"] = {**rates, "of the limit": quotient, "of the limit, uniform": even}
            rows.append(record.row(KEY, f"{name} {case}", "skewed", "of the limit", WANTED, ours=quotient, peer=even,
                                   peer_name="libmoe, uniform", ratio=quotient / even, met=quotient / even >= 0.95,
                                   device=state.get("device"), tflops=rates["libmoe"], torch_tflops=rates["torch grouped_mm"],
                                   deepgemm_tflops=rates.get(deepgemm.NAME)))
    return rows, {**state, "TFLOP/s": shapes}
