"""Target `wgrad`: the gradient of weights, into bf16 and accumulated into an fp32 main_grad."""

from __future__ import annotations

import libmoe

from . import gemm, method, record
from .peers import deepgemm
from .peers.policy import attempt
from .shapes import SHAPES, Shape, routing, stage

KEY = "wgrad"
ROWS = [(f"{name} {out}", "uniform") for name in SHAPES for out in ("bf16", "fp32 accumulate")]
NEEDS = "gpu"
ACCUMULATING_WANTED = ">= 1.3 x DeepGEMM and faster than torch's wgrad followed by add_"
# DeepGEMM's TFLOP/s with fp32 accumulation on an H200 (2026-11-22), for where it does not run beside.
DEEPGEMM = {"qwen3-30b": 442, "mixtral": 537, "dsv3-ep8": 276}


def limit(shape: Shape) -> float:
    """Seconds at best, into bf16."""
    n, k = 2 * shape.f, shape.d
    return stage(2 * shape.rows * n * k, 2 * (shape.rows * (n + k) + shape.E * n * k))


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    state, rows, detail = method.gpu_state(), [], {}
    device = state.get("device", "")
    gmm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    for name, shape in SHAPES.items():
        n, k = 2 * shape.f, shape.d
        ids, _ = routing(shape.T, shape.E, shape.K, "uniform")
        counts = torch.bincount(ids.flatten().long(), minlength=shape.E)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        ends = offsets[1:].int()
        x, dy = (torch.empty(shape.rows, c, device="cuda", dtype=torch.bfloat16).normal_() for c in (k, n))
        dw = torch.empty(shape.E, n, k, device="cuda", dtype=torch.bfloat16)
        main_grad = torch.zeros(shape.E, n, k, device="cuda")
        desc = dict(dtype=libmoe.DTYPE_BF16, rows_max=shape.rows, num_groups=shape.E, n=n, k=k)
        args = dict(dc=dy, a=x, group_offsets=offsets, a_rows=shape.rows)
        call, absent = attempt(deepgemm.NAME, name, lambda: deepgemm.wgrad(dy, x, counts, gmm(dy.t(), x, offs=ends)))
        timings = method.time_gpu({
            "bf16": [ctx.prepare("grouped_gemm_bwd", desc, dict(args, db=dw))],
            "fp32 accumulate": [ctx.prepare("grouped_gemm_bwd", desc, dict(args, db=main_grad, db_mode="add"))],
            "torch": [lambda: gmm(dy.t(), x, offs=ends)],
            "torch, add_": [lambda: main_grad.add_(gmm(dy.t(), x, offs=ends))],
        }, replays=20, peers={deepgemm.NAME: [call]} if call else {})
        flops = 2 * shape.rows * n * k
        rate = {variant: flops / t.median / 1e12 for variant, t in timings.items()}
        rate["limit"] = flops / limit(shape) / 1e12
        if absent:
            rate["absent"] = absent
        detail[name] = rate
        ours, wanted = rate["bf16"], ">= 1.10 x torch or >= 0.90 of the limit"
        rows.append(record.row(KEY, f"{name} bf16", "uniform", "TFLOP/s", wanted, ours=ours, peer=rate["torch"],
                               peer_name="torch grouped_mm", ratio=ours / rate["torch"],
                               met=ours >= 1.1 * rate["torch"] or ours >= 0.9 * rate["limit"], device=device))
        rows.append(accumulating(name, rate, device))
        del x, dy, dw, main_grad, call
        torch.cuda.empty_cache()
    return rows, {**state, "TFLOP/s": detail}


def accumulating(name: str, rate: dict, device: str) -> dict:
    """The row of accumulation into fp32."""
    ours, known = rate["fp32 accumulate"], DEEPGEMM.get(name) if "H200" in device else None
    rivals = {"torch grouped_mm, add_": rate["torch, add_"]}
    if deepgemm.NAME in rate:
        rivals["1.3 x DeepGEMM"] = 1.3 * rate[deepgemm.NAME]
    elif known:
        rivals["1.3 x DeepGEMM, published"] = 1.3 * known
    peer_name = max(rivals, key=rivals.get)
    peer = rivals[peer_name]
    return record.row(KEY, f"{name} fp32 accumulate", "uniform", "TFLOP/s", ACCUMULATING_WANTED, ours=ours, peer=peer,
                      peer_name=peer_name, ratio=ours / peer, device=device, published=known, **gemm.verdict(ours >= peer, rate))
