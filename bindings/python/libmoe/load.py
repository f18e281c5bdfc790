"""How evenly a router spreads its tokens: a bar chart with the figures that users of routers look at."""

import numpy as np

BLOCKS = " ▏▎▍▌▋▊▉█"


def load_report(ids, num_experts=None):
    """The LoadReport of ids of any shape (NumPy, PyTorch, ...); ids outside 0 ... num_experts-1 are empty slots.

        print(libmoe.load_report(ids, num_experts=8))
    """
    ids = ids.detach().cpu().numpy() if hasattr(ids, "detach") else ids.get() if hasattr(ids, "get") else np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids have dtype {ids.dtype}; they must be integers")
    ids = ids.ravel().astype(np.int64)
    if num_experts is None:
        num_experts = int(ids.max(initial=-1)) + 1
    here = ids[(ids >= 0) & (ids < num_experts)]
    return LoadReport(np.bincount(here, minlength=num_experts), ids.size - here.size)


class LoadReport:
    """counts int64 [E], and empty: slots that went to no expert (dropped, or on another rank)."""

    def __init__(self, counts, empty=0):
        self.counts, self.empty = np.asarray(counts), int(empty)

    @property
    def gini(self):
        """0: every expert has the same load; (E-1)/E: one has it all."""
        ordered, total = np.sort(self.counts), self.counts.sum()
        if not total:
            return 0.0
        ranks = np.arange(1, len(ordered) + 1)
        return float(2 * (ranks * ordered).sum() / (len(ordered) * total) - (len(ordered) + 1) / len(ordered))

    @property
    def max_over_mean(self):
        """How many times its fair share the busiest expert has: what a step waits for."""
        return float(self.counts.max() / self.counts.mean()) if self.counts.any() else 0.0

    @property
    def idle(self):
        """Experts without a token."""
        return int((self.counts == 0).sum())

    def summary(self):
        slots = int(self.counts.sum())
        text = f"{slots} slots over {len(self.counts)} experts   Gini {self.gini:.3f}   max/mean {self.max_over_mean:.2f}"
        return text + f"   idle {self.idle}" + (f"   empty slots {self.empty}" if self.empty else "")

    def __str__(self, width=48):
        largest = max(int(self.counts.max(initial=0)), 1)
        digits, lines = len(str(max(len(self.counts) - 1, 0))), [self.summary()]
        for expert, count in enumerate(self.counts):
            eighths = round(8 * width * int(count) / largest)
            bar = "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()
            lines.append(f"{expert:{digits}d} {bar:{width}s} {count}")
        return "\n".join(lines)

    __repr__ = summary

    def save(self, path):
        """The same as a picture."""
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError("pictures need matplotlib: pip install matplotlib") from error
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(min(3 + len(self.counts) / 8, 16), 3.2), constrained_layout=True)
        axes.bar(range(len(self.counts)), self.counts, color="#0b6e4f")
        axes.axhline(self.counts.mean(), color="grey", linestyle=":", label="even")
        axes.set(xlabel="expert", ylabel="slots", title=self.summary())
        axes.title.set_fontsize(9)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)
