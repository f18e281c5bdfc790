"""Target `decode`: few tokens, from expert ids to the layer's output, against the time that reading the chosen experts takes."""

from __future__ import annotations

from dataclasses import replace

from . import layer, method, record
from .peers import sglang
from .peers.policy import attempt
from .shapes import SHAPES, read_rate

KEY = "decode"
TOKENS = (1, 8, 32, 64, 128)
# mixtral's slices are those of 4 and 8 ranks of tensor parallelism.
LAYERS = {name: SHAPES[name] for name in ("mixtral", "qwen3-30b")}
LAYERS |= {f"mixtral f={f}": replace(SHAPES["mixtral"], f=f) for f in (3584, 1792)}
ROWS = [(f"{name} T={tokens}", "random") for name in LAYERS for tokens in TOKENS]
NEEDS = "gpu"
# Microseconds of SGLang's Triton kernels on an H200 (2026-11-22), their alignment computed beforehand: for where they do not run.
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


def sglang_calls(name: str, made: list, xs: list, ys: list) -> tuple[dict, str | None]:
    """Calls of SGLang's kernels by the way they sort, one a set of tokens."""
    def build():
        by_set = [sglang.variants(*one) for one in zip(made, xs, ys)]
        return {f"SGLang, {how}": [calls[how] for calls in by_set] for how in by_set[0]}

    calls, absent = attempt(sglang.NAME, name.split()[0], build)
    return calls or {}, absent


def best_peer(us: dict, known: float | None) -> tuple[float | None, str | None]:
    """The fastest of SGLang's kernels with their sort; where they did not run, their published time."""
    sorting = {how: time for how, time in us.items() if "aligned by" in how}
    if sorting:
        best = min(sorting, key=sorting.get)
        return sorting[best], best
    return (known, "SGLang Triton, published") if known else (None, None)


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "cases": {}}
    device = detail.get("device", "")
    rate = read_rate(device)
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
            for call in calls:
                call()
            peers, absent = sglang_calls(name, made, xs, ys)
            timings = method.time_gpu({"libmoe": calls, "plan": plans}, peers=peers)
            us = {variant: t.median * 1e6 for variant, t in timings.items()}
            ours = us.pop("libmoe") * 2
            touched = sum(sum(rows > 0 for rows in one.rows_per_expert) for one in made) / len(made)
            limit = touched * 6 * shape.d * shape.f / rate
            share, goal = limit * 1e6 / ours, wanted(name, tokens, limit)
            known = PUBLISHED[name][place] if name in PUBLISHED and "H200" in device else None
            peer, peer_name = best_peer(us, known)
            detail["cases"][f"{name} T={tokens}"] = {
                "us": ours, "p10, p90 us": [2e6 * timings["libmoe"].low, 2e6 * timings["libmoe"].high],
                **{f"{variant} us": value for variant, value in us.items()}, "limit us": limit * 1e6, "share": share,
                "experts": touched,
                **({"absent": absent} if absent else {"SGLang configuration": sglang.config(tokens, shape.E, shape.f)[1]}),
            }
            result.append(record.row(
                KEY, f"{name} T={tokens}", "random", "us", f">= {goal:.0%} of the bytes' limit, <= SGLang", ours=ours,
                peer=peer or limit * 1e6, peer_name=peer_name or "limit", ratio=share, device=device, published=known,
                sglang_without_sort=min((t for how, t in us.items() if "aligned before" in how), default=None),
                met=share >= goal and (peer is None or ours <= peer)))
            del made, forwards, plans, calls, peers
        del weights
        torch.cuda.empty_cache()
    return result, detail
