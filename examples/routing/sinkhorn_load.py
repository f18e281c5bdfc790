"""Draws docs/sinkhorn-load.png: what Sinkhorn does to the experts' load of skewed logits. Runs on the CPU backend.

    LIBMOE=target/release/libmoe.so PYTHONPATH=bindings/python python examples/routing/sinkhorn_load.py [picture]
"""

import sys
from pathlib import Path

import numpy as np

import libmoe

TOKENS, EXPERTS, TOP_K = 4096, 32, 2
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "sinkhorn-load.png"


def loads(ctx, logits, iterations):
    """Tokens of each expert over their mean, chosen by logits + log d1 after so many iterations; 0: by the logits alone."""
    bias = None
    if iterations:
        bias = libmoe.sinkhorn(ctx, logits, max_iterations=iterations, preset=libmoe.SINKHORN_MEGATRON).log_d1
    out = libmoe.router_fwd(ctx, logits, TOP_K, tokens_per_expert=True, selection_bias=bias,
                            selection_bias_target=libmoe.BIAS_ON_LOGIT, softmax_order=libmoe.SOFTMAX_AFTER_TOPK)
    return out.tokens_per_expert / (TOKENS * TOP_K / EXPERTS)


def main():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((TOKENS, EXPERTS)) + rng.standard_normal(EXPERTS)).astype(np.float32)
    with libmoe.Context("cpu") as ctx:
        plain, after = loads(ctx, logits, 0), loads(ctx, logits, 100)
        rounds = range(0, 9)
        busiest = [loads(ctx, logits, n).max() for n in rounds]
    order = np.argsort(-plain)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True, width_ratios=(2, 1))
    places = np.arange(EXPERTS)
    left.bar(places - 0.2, plain[order], 0.4, label="top-k of the logits", color="#8d99ae")
    left.bar(places + 0.2, after[order], 0.4, label="top-k after Sinkhorn", color="#0b6e4f")
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="experts, the busiest first", ylabel="tokens / mean", title=f"Load of {EXPERTS} experts, {TOKENS} tokens, K = {TOP_K}")
    left.legend()
    right.plot(list(rounds), busiest, marker="o", color="#0b6e4f")
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="iterations of Sinkhorn", ylabel="busiest expert / mean", title="How fast", ylim=(0, None))
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    figure.savefig(picture, dpi=110)
    print(f"busiest expert: {plain.max():.2f} x the mean by logits, {after.max():.2f} x after Sinkhorn; drawn: {picture}")


if __name__ == "__main__":
    main()
