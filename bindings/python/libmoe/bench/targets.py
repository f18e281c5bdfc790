"""All keys: a new one is a module with KEY, ROWS and run(), named in this list."""

from __future__ import annotations

from . import gemm, gemm_skew, wgrad, cpu, decode, dispatch, host, portable, router, router_logits, sinkhorn, transformers_step
from .mlp import mlp_fwd, mlp_memory, mlp_train

# Each module gives KEY, ROWS (shape, routing), NEEDS ("gpu" or "cpu") and run(ctx) -> (rows, detail).
SECTIONS = (gemm, gemm_skew, wgrad, mlp_fwd, mlp_train, mlp_memory, host, cpu, portable, router_logits, router, sinkhorn, dispatch, decode, transformers_step)
