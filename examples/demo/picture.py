"""The demo's picture: loss curves, and the experts' load over time."""

import numpy as np


def save(path, runs, unigram, held_out):
    """runs: name -> {"tokens": [...], "bits": [...], "load": [[E], ...]}; held_out: name -> bits a byte."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    for name, run in runs.items():
        tokens, bits = np.array(run["tokens"]) / 1e6, np.array(run["bits"])
        window = max(1, len(bits) // 40)
        smooth = np.convolve(bits, np.ones(window) / window, mode="valid")
        left.plot(tokens[window - 1:], smooth, label=f"{name}: {held_out[name]:.3f} held out")
    left.axhline(unigram, color="grey", linestyle=":", label=f"unigrams: {unigram:.3f}")
    left.set(xlabel="million training bytes", ylabel="bits a byte", title="Loss")
    left.legend()
    load = np.array(runs["MoE"]["load"]).T
    tokens = np.linspace(0, runs["MoE"]["tokens"][-1] / 1e6, load.shape[1])
    right.stackplot(tokens, load, linewidth=0.3, edgecolor="white", colors=plt.cm.viridis(np.linspace(0.1, 0.95, len(load))))
    right.set(xlabel="million training bytes", ylabel="share of the rows", title=f"Load of the {len(load)} experts", ylim=(0, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
