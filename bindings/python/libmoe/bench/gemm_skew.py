"""Target `gemm_skew`: what grouped GEMM loses under skewed routing, its limit taken into account."""

from __future__ import annotations

from . import gemm, method, record
from .peers import deepgemm
from .shapes import SHAPES

KEY = "gemm_skew"
ROWS = [(f"{name} {case}", "skewed") for name in SHAPES for case in gemm.CASES]
NEEDS = "gpu"
WANTED = "TFLOP/s over the limit >= 0.95 x the same quotient uniform"


def run(ctx) -> tuple[list[dict], dict]:
    state, rows, shapes = method.gpu_state(), [], {}
    for name in SHAPES:
        uniform = gemm.measured(ctx, name, "uniform")
        for case, rates in gemm.measured(ctx, name, "skewed").items():
            quotient = rates["libmoe"] / rates["limit"]
            even = uniform[case]["libmoe"] / uniform[case]["limit"]
            shapes[f"{name} {case}"] = {**rates, "of the limit": quotient, "of the limit, uniform": even}
            rows.append(record.row(KEY, f"{name} {case}", "skewed", "of the limit", WANTED, ours=quotient, peer=even,
                                   peer_name="libmoe, uniform", ratio=quotient / even, met=quotient / even >= 0.95,
                                   device=state.get("device"), tflops=rates["libmoe"], torch_tflops=rates["torch grouped_mm"],
                                   deepgemm_tflops=rates.get(deepgemm.NAME)))
    return rows, {**state, "TFLOP/s": shapes}
