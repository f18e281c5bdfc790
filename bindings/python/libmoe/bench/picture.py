"""Pictures of a run, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

from .shapes import BYTE_RATE, FLOP_RATE, SHAPES


def draw(folder: Path, details: dict[str, dict]) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is missing: no pictures")
        return
    if shapes := details.get("portable", {}).get("shapes"):
        expert_mlp(plt, folder / "portable.png", details["portable"], shapes)
    if by_tokens := details.get("gemm_tokens", {}).get("TFLOP/s by tokens per expert"):
        of_dense(plt, folder / "gemm_tokens.png", details["gemm_tokens"], by_tokens)
    if shapes := details.get("stages", {}).get("us"):
        stages(plt, folder / "stages.png", details["stages"], shapes)
    if shapes := details.get("mlp_fwd", {}).get("TFLOP/s"):
        roofline(plt, folder / "roofline.png", details["mlp_fwd"], shapes)


def finish(plt, figure, axes, path: Path, run: dict, title: str) -> None:
    axes.set_title(f"{title} ({run.get('device', '')}, {run.get('date', '')})")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def of_dense(plt, path: Path, run: dict, by_tokens: dict) -> None:
    """Lines: percent of the dense GEMM of the same work, over tokens per expert."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    tokens = [int(t) for t in by_tokens]
    for name, color in (("libmoe", "#0b6e4f"), ("torch grouped_mm", "#8d99ae")):
        axes.plot(tokens, [100 * found[name] / found["dense"] for found in by_tokens.values()], marker="o", color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens per expert")
    axes.set_ylabel("% of one dense GEMM of the same work")
    finish(plt, figure, axes, path, run, f"Grouped GEMM, {run['experts']} experts, n = {run['n']}, k = {run['k']}")


def stages(plt, path: Path, run: dict, shapes: dict) -> None:
    """Stacked bars: what a layer's forward takes."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    below = [0.0] * len(shapes)
    for name, color in (("router", "#e07a5f"), ("sort", "#f2cc8f"), ("GEMMs", "#0b6e4f"), ("combine", "#81b29a")):
        heights = [us[name] for us in shapes.values()]
        axes.bar(range(len(shapes)), heights, 0.6, bottom=below, color=color, label=name)
        below = [b + h for b, h in zip(below, heights)]
    axes.set_xticks(range(len(shapes)), list(shapes))
    axes.set_ylabel("microseconds")
    finish(plt, figure, axes, path, run, "A layer's forward, bf16")


def roofline(plt, path: Path, run: dict, found: dict) -> None:
    """Points: FLOP/s of the expert MLP over its FLOPs a byte, under what the GPU can do."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    intensities = {}
    for name, shape in SHAPES.items():
        moved = 2 * (2 * shape.T * shape.d + 3 * shape.E * shape.d * shape.f + 2 * shape.rows * (shape.f + shape.d))
        intensities[name] = shape.forward_flops / moved
    ends = [min(intensities.values()) / 4, max(intensities.values()) * 2]
    points = [ends[0], FLOP_RATE / BYTE_RATE, ends[1]]
    axes.plot(points, [min(FLOP_RATE, x * BYTE_RATE) / 1e12 for x in points], color="#8d99ae", label="limit of an H200")
    for name, intensity in intensities.items():
        rate = found[f"{name} uniform"]["forward"]
        axes.plot([intensity], [rate], marker="o", color="#0b6e4f", label=None)
        axes.annotate(name, (intensity, rate), textcoords="offset points", xytext=(5, -12), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("FLOPs a byte of memory")
    axes.set_ylabel("TFLOP/s")
    finish(plt, figure, axes, path, run, "Expert MLP forward, bf16, uniform routing")


def expert_mlp(plt, path: Path, run: dict, shapes: dict) -> None:
    """Bars of TFLOP/s a shape: libmoe, its peers, and the limit."""
    series = [s for s in ("libmoe", "torch grouped_mm", "liger", "limit") if any(f"{s} TFLOP/s" in v for v in shapes.values())]
    figure, axes = plt.subplots(figsize=(11, 4.5))
    width = 0.8 / len(series)
    for i, name in enumerate(series):
        heights = [values.get(f"{name} TFLOP/s", 0) for values in shapes.values()]
        places = [j + (i - (len(series) - 1) / 2) * width for j in range(len(shapes))]
        axes.bar(places, heights, width, label=name, color=("#0b6e4f", "#8d99ae", "#c9ada7", "#e5e5e5")[i % 4])
    axes.set_xticks(range(len(shapes)), [s.replace(" ", "\n") for s in shapes], fontsize=8)
    axes.set_ylabel("TFLOP/s, bf16")
    finish(plt, figure, axes, path, run, "Expert MLP forward, portable kernels")
