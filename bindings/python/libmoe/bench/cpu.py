"""Target `cpu`: the CPU backend's grouped GEMM beside NumPy's BLAS on the same per-expert products."""

from __future__ import annotations

import numpy as np

import libmoe

from . import method, record
from .shapes import SHAPES

KEY = "cpu"
# An eighth of the tokens and of the experts' width: what one rank of eight holds under tensor parallelism.
SLICES = {f"{name}/8": SHAPES[name] for name in ("mixtral", "qwen3-30b")}
ROWS = [(f"{name} {part}", "uniform") for name in SLICES for part in ("up", "down")]
NEEDS = "cpu"
WANTED = ">= 0.8 x NumPy's BLAS"


def run(ctx) -> tuple[list[dict], dict]:
    result, detail = [], {"device": record.cpu_name()}
    rng = np.random.default_rng()
    for name, shape in SLICES.items():
        rows, f, E = shape.rows // 8, shape.f // 8, shape.E
        offsets = np.arange(E + 1, dtype=np.int64) * (rows // E)
        for part, n, k in (("up", 2 * f, shape.d), ("down", shape.d, f)):
            a = rng.standard_normal((rows, k), dtype=np.float32)
            b = rng.standard_normal((E, n, k), dtype=np.float32)
            c = np.empty((rows, n), np.float32)
            ours = ctx.prepare(
                "grouped_gemm_fwd",
                dict(dtype=libmoe.DTYPE_FP32, rows_max=rows, n=n, k=k, num_groups=E),
                dict(a=a, b=b, c=c, group_offsets=offsets),
            )

            def blas():
                for e in range(E):
                    np.matmul(a[offsets[e] : offsets[e + 1]], b[e].T, out=c[offsets[e] : offsets[e + 1]])

            flops = 2 * rows * n * k
            rates = {}
            for label, call in (("ours", ours), ("numpy", blas), ("ours again", ours)):
                rates[label] = flops / method.time_host(call, calls=1, repeats=5).median / 1e9
            ratio = max(rates["ours"], rates["ours again"]) / rates["numpy"]
            detail[f"{name} {part}"] = rates
            result.append(
                record.row(KEY, f"{name} {part}", "uniform", "GFLOP/s", WANTED, ours=max(rates["ours"], rates["ours again"]),
                           peer=rates["numpy"], peer_name="NumPy BLAS", ratio=ratio, met=ratio >= 0.8,
                           device=detail["device"])
            )
    return result, detail
