"""Pictures of a run, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path


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
    axes.set_title(f"Expert MLP forward, portable kernels ({run.get('device', '')}, {run.get('date', '')})")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
