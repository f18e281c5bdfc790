"""All keys: a new one is a module with KEY, ROWS and run(), named in this list."""

from __future__ import annotations

from . import (
    cpu,
    decode,
    dispatch,
    gemm,
    gemm_skew,
    gemm_tokens,
    host,
    kernels,
    portable,
    router,
    router_logits,
    sinkhorn,
    stages,
    transformers_step,
    wgrad,
)
from .mlp import mlp_fwd, mlp_memory, mlp_train

# Each module gives KEY, ROWS (shape, routing), NEEDS ("gpu" or "cpu") and run(ctx) -> (rows, detail).
SECTIONS = (
    gemm, gemm_skew, gemm_tokens, wgrad, mlp_fwd, mlp_train, mlp_memory, stages, kernels, decode, dispatch, router_logits, router,
    sinkhorn, host, cpu, portable, transformers_step,
)
