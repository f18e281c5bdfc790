"""Targets `plan` and `dispatch`: sort metadata, permute and combine."""

from __future__ import annotations

import libmoe

from . import layer, method, record
from .shapes import Shape

KEY = "dispatch"
SHAPE = Shape("qwen3-30b", 16384, 2048, 768, 128, 8)
ROWS = [(what, kind) for what in ("plan", "dispatch", "combine") for kind in ("uniform", "skewed")]
NEEDS = "gpu"
TARGET = 4.1e12


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "cases": {}}
    s = SHAPE
    for kind in ("uniform", "skewed"):
        made = layer.make(ctx, Shape(s.name, s.T, s.d, 64, s.E, s.K), kind)
        x = torch.randn(s.T, s.d, device="cuda", dtype=torch.bfloat16)
        rows = torch.randn(made.rows_max, s.d, device="cuda", dtype=torch.bfloat16)
        y = torch.empty_like(x)
        desc = dict(dtype=libmoe.DTYPE_BF16, num_tokens=s.T, hidden_size=s.d, top_k=s.K, rows_max=made.rows_max,
                    num_groups=s.E)
        plan = made.plan
        timings = method.time_gpu({
            "plan": [made.prepare_plan()] * 8,
            "dispatch": [ctx.prepare("dispatch_fwd", desc, dict(
                x=x, rows=rows, token_of_row=plan["token_of_row"], row_of_slot=plan["row_of_slot"],
                group_offsets=plan["group_offsets"]))],
            "combine": [ctx.prepare("combine_fwd", desc, dict(
                rows=rows, row_of_slot=plan["row_of_slot"], y=y, weights=made.weights))],
            "torch permute": [lambda: x[plan["token_of_row"]]],
        })
        nbytes = 2 * s.d * (s.T + s.rows)
        for what, timing in timings.items():
            detail["cases"][f"{what} {kind}"] = {"us": timing.median * 1e6, "GB/s": nbytes / timing.median / 1e9}
        ours = timings["plan"].median * 1e6
        result.append(record.row("plan", "T=16384 K=8 E=128", kind, "us", "<= 10 us", ours=ours, peer=10.0, peer_name="limit",
                                 ratio=ours / 10, met=ours <= 10, device=detail.get("device")))
        for what in ("dispatch", "combine"):
            rate = nbytes / timings[what].median
            result.append(record.row(KEY, f"{what} T=16384 K=8 d=2048", kind, "TB/s", ">= 4.1 TB/s", ours=rate / 1e12,
                                     peer=TARGET / 1e12, peer_name="limit", ratio=rate / TARGET, met=rate >= TARGET,
                                     device=detail.get("device")))
    return result, detail
