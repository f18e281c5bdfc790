"""Target `portable`: the expert MLP forward with the kernels that every GPU from A100 on runs."""

from __future__ import annotations

from . import layer, method, peers, record
from .shapes import SHAPES, forward_limit

KEY = "portable"
ROWS = [(name, kind) for name in SHAPES for kind in ("uniform", "skewed")]
NEEDS = "gpu"
# TFLOP/s of the better of ScatterMoE and Liger on an H200 (2026-11-22), for shapes whose peer is not run here.
PUBLISHED = {"mixtral": 384, "qwen3-30b": 327, "dsv3-ep8": 348, "olmoe": 369, "sonic-7b": 173}


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "shapes": {}}
    for name, kind in ROWS:
        shape = SHAPES[name]
        made = layer.make(ctx, shape, kind)
        xs = [torch.randn(shape.T, shape.d, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        y = torch.empty_like(xs[0])
        variants = {"libmoe": [made.prepare_forward(x, y) for x in xs], "plan": [made.prepare_plan()]}
        variants["torch grouped_mm"] = [peers.torch_grouped(made, x) for x in xs]
        timings = method.time_gpu(variants)
        liger = peers.liger(made, xs[0])
        if liger:
            timings["liger"] = method.time_eager(liger)
        rates = {peer: shape.forward_flops / t.median / 1e12 for peer, t in timings.items() if peer != "plan"}
        limit = shape.forward_flops / forward_limit(shape, made.rows_per_expert) / 1e12
        wanted = PUBLISHED[name]
        ours = rates["libmoe"]
        detail["shapes"][f"{name} {kind}"] = {
            **{f"{peer} TFLOP/s": rate for peer, rate in rates.items()},
            "plan us": timings["plan"].median * 1e6,
            "libmoe p10, p90 us": [timings["libmoe"].low * 1e6, timings["libmoe"].high * 1e6],
            "limit TFLOP/s": limit,
        }
        best = max(wanted, rates.get("liger", 0))
        peer_name = "liger" if best == rates.get("liger") else "ScatterMoE and Liger, published"
        result.append(
            record.row(KEY, name, kind, "TFLOP/s", ">= ScatterMoE and Liger", ours=ours, peer=best, peer_name=peer_name,
                       ratio=ours / best, met=ours >= best, device=detail.get("device"))
        )
        del made, xs, y
        torch.cuda.empty_cache()
    return result, detail
