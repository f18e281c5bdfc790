"""All keys: a new one is a module with KEY, ROWS and run(), named in this list."""

from __future__ import annotations

from . import cpu, decode, dispatch, host, portable, router, router_logits, sinkhorn, transformers_step

# Each module gives KEY, ROWS (shape, routing), NEEDS ("gpu" or "cpu") and run(ctx) -> (rows, detail).
SECTIONS = (host, cpu, portable, router_logits, router, sinkhorn, dispatch, decode, transformers_step)
