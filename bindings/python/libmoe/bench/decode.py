"""Target `decode`: few tokens, from expert ids to the layer's output, against the time that reading the chosen experts takes."""

from __future__ import annotations

from dataclasses import replace

from . import layer, method, record
from .shapes import SHAPES, read_rate

KEY = "decode"
TOKENS = (1, 8, 32, 64, 128)
# mixtral's slices are those of 4 and 8 ranks of tensor parallelism.
LAYERS = {name: SHAPES[name] for name in ("mixtral", "qwen3-30b")}
LAYERS |= {f"mixtral f={f}": replace(SHAPES["mixtral"], f=f) for f in (3584, 1792)}
ROWS = [(f"{name} T={tokens}", "random") for name in LAYERS for tokens in TOKENS]
NEEDS = "gpu"
# Microseconds of SGLang's Triton kernels on an H200 (2026-11-22), their alignment computed beforehand.
PUBLISHED = {
    "mixtral": (193, 602, 695, 672, 685),
    "qwen3-30b": (29.8, 126, 251, 295, 296),
}
SETS = 4


def wanted(name: str, tokens: int, limit: float) -> float:
    """The share of the limit that a row should reach."""
    if tokens == 1:
        return 0.7 if name.startswith("qwen3") else 0.8
    return 0.95 if limit > 200e-6 else 0.9


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "cases": {}}
    rate = read_rate(detail.get("device", ""))
    for name, whole in LAYERS.items():
        weights = None
        for place, tokens in enumerate(TOKENS):
            shape = replace(whole, T=tokens)
            # As many sets of tokens as keep the L2 cache from holding what they choose.
            made = []
            for i in range(SETS):
                made.append(layer.make(ctx, shape, "random", 100 + i, weights))
                weights = made[0].w1, made[0].w2
            xs = [torch.randn(tokens, shape.d, device="cuda", dtype=torch.bfloat16) for _ in made]
            ys = [torch.empty_like(x) for x in xs]
            forwards = [one.prepare_forward(x, y) for one, x, y in zip(made, xs, ys)]
            plans = [one.prepare_plan() for one in made]
            calls = [call for pair in zip(plans, forwards) for call in pair]
            timings = method.time_gpu({"libmoe": calls, "plan": plans})
            seconds = 2 * timings["libmoe"].median
            touched = sum(sum(rows > 0 for rows in one.rows_per_expert) for one in made) / len(made)
            limit = touched * 6 * shape.d * shape.f / rate
            share, goal = limit / seconds, wanted(name, tokens, limit)
            peer = PUBLISHED[name][place] if name in PUBLISHED else None
            detail["cases"][f"{name} T={tokens}"] = {
                "us": seconds * 1e6, "p10, p90 us": [2e6 * timings["libmoe"].low, 2e6 * timings["libmoe"].high],
                "plan us": timings["plan"].median * 1e6, "limit us": limit * 1e6, "share": share, "experts": touched,
            }
            on_h200 = peer is not None and "H200" in detail.get("device", "")
            slower = on_h200 and seconds * 1e6 > peer
            result.append(record.row(
                KEY, f"{name} T={tokens}", "random", "us", f">= {goal:.0%} of the bytes' limit" + (", <= SGLang" if peer else ""),
                ours=seconds * 1e6, peer=peer if on_h200 else limit * 1e6,
                peer_name="SGLang Triton, published" if on_h200 else "limit", ratio=share, met=share >= goal and not slower,
                device=detail.get("device")))
            del made, forwards, plans, calls
        del weights
        torch.cuda.empty_cache()
    return result, detail
