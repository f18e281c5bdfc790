"""Where a layer's forward spends its time: router, sort, GEMMs, combine. No target; the picture is drawn from it."""

from __future__ import annotations

import libmoe

from . import layer, method, record
from .shapes import SHAPES

KEY = "stages"
ROWS = [(name, "uniform") for name in SHAPES]
NEEDS = "gpu"


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    new = lambda *size, dtype=torch.bfloat16: torch.empty(size, device="cuda", dtype=dtype)
    state, rows, shapes = method.gpu_state(), [], {}
    for name, kind in ROWS:
        s, made = SHAPES[name], layer.make(ctx, SHAPES[name], kind)
        x, y, expert_rows = new(s.T, s.d).normal_(), new(s.T, s.d), new(made.rows_max, s.d).normal_()
        router = ctx.prepare("router_fwd", dict(logits_dtype=libmoe.DTYPE_BF16, num_tokens=s.T, num_experts=s.E, top_k=s.K), dict(
            logits=new(s.T, s.E).normal_(), ids=new(s.T, s.K, dtype=torch.int32), weights=new(s.T, s.K, dtype=torch.float32)))
        combine = ctx.prepare("combine_fwd", dict(
            dtype=libmoe.DTYPE_BF16, num_tokens=s.T, hidden_size=s.d, top_k=s.K, rows_max=made.rows_max, num_groups=s.E),
            dict(rows=expert_rows, row_of_slot=made.plan["row_of_slot"], y=y, weights=made.weights))
        timings = method.time_gpu({"router": [router], "sort": [made.prepare_plan()], "experts": [made.prepare_forward(x, y)],
                                   "combine": [combine]}, replays=12)
        us = {stage: t.median * 1e6 for stage, t in timings.items()}
        # The experts' call ends with the combine.
        us["GEMMs"] = us.pop("experts") - us["combine"]
        shapes[name] = us
        rows.append(record.row(KEY, name, kind, "us", "no target", ours=sum(us.values()), device=state.get("device")))
        del made, x, y, expert_rows, router, combine
        torch.cuda.empty_cache()
    return rows, {**state, "us": shapes}
