"""Measures what src/cuda/grouped_gemm/shapes.rs says of each width of tiles, on a Hopper GPU, and prints its table.

    cargo build --release --features tune --target-dir target/tune
    LIBMOE=target/tune/release/libmoe.so PYTHONPATH=bindings/python python3 benches/tune/tune.py

A forward's time is modelled as rows * columns * (steps + epilogue) / rate, columns and steps rounded up to whole tiles and to 64;
rate and epilogue of each width are the least squares of the relative errors. All widths take turns at a problem: cards slow down as
they get warm. Written to benches/results/tune.json.
"""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (128, 176, 192, 256)
KINDS = ("plain", "gathered")
# Who stores outputs: the warps that made them, or the copy engine.
WAYS = ("by_warps", "by_boxes")
# Outputs, reduction; rows and experts are the same for all.
PROBLEMS = [(n, k) for n in (512, 1024, 1536, 2048, 3072, 4096, 7168) for k in (256, 512, 768, 1024, 2048, 4096, 14336)]
ROWS, EXPERTS = 32768, 32


def forced(width, call, boxes=True):
    """The call with tiles of this width; None: of the library's choice. `boxes`: outputs may be stored by the copy engine."""
    def run():
        os.environ["MOE_TUNE_COLUMNS"] = "" if width is None else str(width)
        os.environ["MOE_TUNE_BOXES"] = str(int(boxes))
        call()

    return run


def measure():
    """Seconds of each problem by way of storing, rows as they lie or gathered, and width."""
    import libmoe
    import torch
    from libmoe.bench import method

    randn = lambda *size: torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_()
    offsets = torch.arange(EXPERTS + 1, device="cuda") * (ROWS // EXPERTS)
    index = torch.randperm(ROWS, device="cuda", dtype=torch.int32)
    times = []
    with libmoe.Context("cuda:0") as ctx:
        for n, k in PROBLEMS:
            a, b, c = randn(ROWS, k), randn(EXPERTS, n, k), randn(ROWS, n)
            desc = dict(dtype=libmoe.DTYPE_BF16, rows_max=ROWS, num_groups=EXPERTS, n=n, k=k)
            args = dict(a=a, b=b, c=c, group_offsets=offsets, a_rows=ROWS)
            calls = {
                kind: ctx.prepare("grouped_gemm_fwd", desc, given)
                for kind, given in {"plain": args, "gathered": dict(args, row_index=index)}.items()
            }
            variants = {
                (way, kind, width): [forced(width, calls[kind], way == "by_boxes")]
                for way in WAYS for kind in KINDS for width in WIDTHS
            }
            timings = method.time_gpu(variants, replays=12)
            times.append({
                way: {kind: {width: timings[way, kind, width].median for width in WIDTHS} for kind in KINDS} for way in WAYS
            })
    return times


def up(length, size):
    return -(-length // size) * size


def fit(width, seconds):
    """Seconds a product of 64, and what an epilogue costs in such products: relative least squares."""
    import numpy as np

    work = np.array([[ROWS * up(n, width) * up(k, 64) / 64, ROWS * up(n, width)] for n, k in PROBLEMS])
    cost, *_ = np.linalg.lstsq(work / np.array(seconds)[:, None], np.ones(len(seconds)), rcond=None)
    return cost[0], max(cost[1] / cost[0], 0.0)


def main():
    from libmoe.bench import method, record

    times = measure()
    fitted = {
        way: {kind: {width: fit(width, [t[way][kind][width] for t in times]) for width in WIDTHS} for kind in KINDS} for way in WAYS
    }
    for width in WIDTHS:
        costs = []
        for way in WAYS:
            of = fitted[way].values()
            rates = ", ".join(f"{kind[192][0] / kind[width][0]:.2f}" for kind in of)
            epilogues = ", ".join(f"{kind[width][1]:.1f}" for kind in of)
            costs.append(f"{way}: costs([{rates}], [{epilogues}])")
        print(f"    Shape {{ columns: {width}, {', '.join(costs)} }},")
    details = {**method.gpu_state(), "commit": record.commit(), "problems": PROBLEMS, "seconds": times, "fitted": fitted}
    (ROOT / "benches/results/tune.json").write_text(json.dumps(details, indent=1) + "\n")


if __name__ == "__main__":
    main()
