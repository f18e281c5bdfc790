"""The seam between NumPy on the CPU and PyTorch's tensors on a GPU: all that the model needs beyond operators."""

import numpy as np


class Arrays:
    """`xp.exp`, `xp.sqrt`, ... are NumPy's or torch's; both have them under one name."""

    def __init__(self, device):
        self.device = device
        self.on_cpu = device == "cpu"
        if self.on_cpu:
            self.module = np
        else:
            import torch

            self.module = torch

    def __getattr__(self, name):
        return getattr(self.module, name)

    def array(self, x):
        return x if self.on_cpu else self.module.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def host(self, x):
        return np.asarray(x) if self.on_cpu else x.cpu().numpy()

    def range(self, count):
        return self.array(np.arange(count))

    def sum_by(self, index, rows, count):
        """[count, columns]: row i is the sum of rows[index == i]."""
        if self.on_cpu:
            order = np.argsort(index, kind="stable")
            starts = np.searchsorted(index[order], np.arange(count))
            total = np.zeros((count, rows.shape[1]), rows.dtype)
            used = np.flatnonzero(np.diff(starts, append=len(index)))
            total[used] = np.add.reduceat(rows[order], starts[used], axis=0)
            return total
        return rows.new_zeros(count, rows.shape[1]).index_add_(0, index, rows)
