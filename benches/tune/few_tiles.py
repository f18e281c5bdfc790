"""How far from the best width of tiles is the one that the library chooses where there are few of them? On a Hopper GPU.

    cargo build --release --features tune --target-dir target/tune
    LIBMOE=target/tune/release/libmoe.so PYTHONPATH=bindings/python python3 benches/tune/few_tiles.py

Random problems of 20 to 2500 tiles, rows as they lie and gathered, each with every width by turns and with the library's choice.
Written to benches/results/tune-few-tiles.json.
"""

import json
import math

from tune import ROOT, WIDTHS, forced

PROBLEMS = 90
OUTPUTS = (512, 768, 1024, 1536, 2048, 2880, 3072, 4096, 5120, 7168)
DEPTHS = (512, 768, 1024, 1536, 2048, 2880, 4096, 7168)


def drawn(rng):
    """E, rows an expert, n, k of a problem."""
    experts, n, k = (int(rng.choice(of)) for of in ((1, 2, 4, 8, 16, 32, 64, 128), OUTPUTS, DEPTHS))
    tiles = math.exp(rng.uniform(math.log(20), math.log(2500)))
    return experts, max(int(tiles / math.ceil(n / 192) / experts * 128), 8), n, k


def measure(ctx, rng, gathered):
    """A problem and its seconds by width."""
    import torch
    from libmoe import DTYPE_BF16
    from libmoe.bench import method

    randn = lambda *size: torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_()
    experts, each, n, k = drawn(rng)
    rows = experts * each
    sizes = torch.from_numpy(rng.multinomial(rows, [1 / experts] * experts))
    args = dict(b=randn(experts, n, k), c=randn(rows, n), group_offsets=torch.cat([sizes[:1] * 0, sizes.cumsum(0)]).cuda())
    args |= dict(a_rows=max(rows // 4, 1)) if gathered else dict(a_rows=rows)
    args |= dict(a=randn(args["a_rows"], k))
    if gathered:
        args |= dict(row_index=torch.randint(args["a_rows"], (rows,), device="cuda", dtype=torch.int32))
    call = ctx.prepare("grouped_gemm_fwd", dict(dtype=DTYPE_BF16, rows_max=rows, num_groups=experts, n=n, k=k), args)
    timings = method.time_gpu({width: [forced(width, call)] for width in (*WIDTHS, None)}, replays=10)
    return dict(E=experts, rows_per_expert=each, n=n, k=k, gathered=gathered), {w or "chosen": t.median for w, t in timings.items()}


def main():
    import libmoe
    import numpy as np
    from libmoe.bench import method, record

    rng = np.random.default_rng(7)
    with libmoe.Context("cuda:0") as ctx:
        measured = [measure(ctx, rng, i % 3 == 2) for i in range(PROBLEMS)]
    ratios = [times["chosen"] / min(times[width] for width in WIDTHS) for _, times in measured]
    summary = {"mean": float(np.exp(np.mean(np.log(ratios)))), "most": max(ratios)}
    print(f"the chosen width takes {summary['mean']:.3f} times the best one's time on average, {summary['most']:.3f} at most")
    details = {**method.gpu_state(), "commit": record.commit(), "chosen over best": summary,
               "problems": [{**problem, "seconds": times} for problem, times in measured]}
    (ROOT / "benches/results/tune-few-tiles.json").write_text(json.dumps(details, indent=1) + "\n")


if __name__ == "__main__":
    main()
