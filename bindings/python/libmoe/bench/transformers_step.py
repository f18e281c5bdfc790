"""Target `transformers`: one MoE layer of a model of Transformers, by libmoe and by Transformers' own grouped_mm."""

from __future__ import annotations

from . import layer, method, record
from .shapes import SHAPES, routing

KEY = "transformers"
# What one layer's training step must gain over grouped_mm.
WANTED = {"qwen3-30b": 2.5, "mixtral": 1.3}
DECODE = (1, 8, 32)
# Microseconds that a decoding layer may take beside the expert MLP and its plan.
DECODE_EXTRA = 10
ROWS = [(name, "training step") for name in WANTED] + [(name, f"decode T={tokens}") for name in WANTED for tokens in DECODE]
NEEDS = "gpu"


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    import libmoe.transformers

    libmoe.transformers.register()
    result, detail = [], {**method.gpu_state(), "torch": torch.__version__, "rows": {}}
    for name in WANTED:
        shape = SHAPES[name]
        made = layer.make(ctx, shape, "uniform")
        experts = module(shape, made)
        result.append(training(name, shape, experts, detail))
        for tokens in DECODE:
            result.append(decoding(ctx, name, shape, made, experts, tokens, detail))
        del made, experts
        torch.cuda.empty_cache()
    return result, detail


def module(shape, made):
    """Mixtral's experts, which have the layout of most models', with the layer's weights."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=shape.d, intermediate_size=shape.f, num_local_experts=shape.E)
    with torch.device("meta"):
        experts = MixtralExperts(config)
    experts.gate_up_proj, experts.down_proj = torch.nn.Parameter(made.w1), torch.nn.Parameter(made.w2)
    return experts


def training(name, shape, experts, detail):
    """Forward and backward as autograd runs them, the two implementations in turns."""
    import torch

    ids, weights = routing(shape.T, shape.E, shape.K, "uniform")
    ids, weights = ids.long(), weights.bfloat16()
    x, dy = (torch.randn(shape.T, shape.d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    samples = {"libmoe": [], "grouped_mm": []}
    for repeat in range(13):
        for implementation, times in samples.items():
            experts.config._experts_implementation = implementation
            leaf, routed = x.detach().requires_grad_(), weights.detach().requires_grad_()
            for parameter in experts.parameters():
                parameter.grad = None
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            experts(leaf, ids, routed).backward(dy)
            end.record()
            if repeat >= 3:
                times.append((begin, end))
    torch.cuda.synchronize()
    timings = {key: method.summarize([b.elapsed_time(e) * 1e-3 for b, e in pairs]) for key, pairs in samples.items()}
    rates = {key: 3 * shape.forward_flops / timing.median / 1e12 for key, timing in timings.items()}
    detail["rows"][f"{name} training step"] = {f"{key} TFLOP/s": rate for key, rate in rates.items()}
    ratio = rates["libmoe"] / rates["grouped_mm"]
    return record.row(KEY, name, "training step", "TFLOP/s", f">= {WANTED[name]} x grouped_mm", ours=rates["libmoe"],
                      peer=rates["grouped_mm"], peer_name="Transformers grouped_mm", ratio=ratio, met=ratio >= WANTED[name],
                      device=detail.get("device"))


def decoding(ctx, name, shape, made, experts, tokens, detail):
    """Forward under a CUDA graph; beside it the expert MLP and its plan without PyTorch."""
    import torch

    ids, weights = routing(tokens, shape.E, shape.K, "skewed")
    ids64, x = ids.long(), torch.randn(tokens, shape.d, device="cuda", dtype=torch.bfloat16)
    small = type(shape)(shape.name, tokens, shape.d, shape.f, shape.E, shape.K)
    bare = layer.Layer(small, ctx, made.w1, made.w2, ids, weights, {k: v.clone() for k, v in made.plan.items()}, tokens * shape.K)
    bare.plan = {key: value if key.startswith("group") else value[:tokens * shape.K] for key, value in bare.plan.items()}
    plan, mlp = bare.prepare_plan(), bare.prepare_forward(x, torch.empty_like(x))

    def through(implementation):
        def call():
            experts.config._experts_implementation = implementation
            with torch.no_grad():
                experts(x, ids64, weights.bfloat16())

        return call

    variants = {"libmoe": [through("libmoe")], "batched_mm": [through("batched_mm")], "grouped_mm": [through("grouped_mm")],
                "expert MLP": [lambda: (plan(), mlp())]}
    timings = {key: timing.median * 1e6 for key, timing in method.time_gpu(variants).items()}
    detail["rows"][f"{name} decode T={tokens}"] = {f"{key} us": value for key, value in timings.items()}
    extra = timings["libmoe"] - timings["expert MLP"]
    return record.row(KEY, name, f"decode T={tokens}", "us", f"expert MLP and plan + {DECODE_EXTRA}", ours=timings["libmoe"],
                      peer=timings["expert MLP"], peer_name="the calls alone", ratio=timings["libmoe"] / timings["expert MLP"],
                      met=extra <= DECODE_EXTRA, device=detail.get("device"))
