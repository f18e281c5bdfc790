"""SonicMoE 0.1.2 on QuACK's kernels, which it compiles and tunes at the first call of a kind (minutes in all).

QUACK_CACHE_DIR keeps what was compiled and tuned, TRITON_CACHE_DIR the rest.
"""

from __future__ import annotations

import functools
import os
import time

from .policy import load, require_same

NAME = "SonicMoE"
# (tile m, tile n, ping-pong) in clusters of 2 x 1: what its tuner chooses on Hopper at the shapes here, to within a few percent.
TILES = {(128, 192, True), (128, 128, True), (128, 256, False)}
# (columns, experts) a block of the kernel that sums a token's rows.
SUMS = ((512, 2), (512, 8), (1024, 1), (1024, 2), (2048, 1), (2048, 2))


@functools.lru_cache(maxsize=None)
def library():
    """sonicmoe.functional, with its tuners' lists cut short."""
    os.environ.setdefault("QUACK_COMPILE_WORKERS", str(min(14, os.cpu_count() or 1)))

    def importing():
        import quack.gemm_config
        import triton

        every = quack.gemm_config.get_all_configs

        def short(*args, **kwargs):
            configs = every(*args, **kwargs)
            kept = [c for c in configs if c.device_capacity == 9 and (c.cluster_m, c.cluster_n) == (2, 1) and not c.swap_ab
                    and (c.tile_m, c.tile_n, c.pingpong) in TILES]
            return kept or configs

        # Before anything else of QuACK is imported: its kernels ask once.
        quack.gemm_config.get_all_configs = short
        import sonicmoe.functional
        import sonicmoe.functional.reduction_over_k_gather as sums

        sums.token_gather_sum_kernel.configs = [
            triton.Config({"BLOCK_H": columns, "BLOCK_K": experts}, num_warps=4, num_stages=4) for columns, experts in SUMS]
        return sonicmoe.functional

    return load(NAME, importing)


class Experts:
    """The expert MLP of a layer, its weights laid out as SonicMoE wants them: rows of gate and up in turns."""

    def __init__(self, made, x):
        import torch

        self.functional = library()
        from sonicmoe.enums import ActivationType

        self.activation = ActivationType.SWIGLU
        self.shape, self.ids = made.shape, made.ids
        E, f, d = made.shape.E, made.shape.f, made.shape.d
        self.w1 = made.w1.view(E, 2, f, d).transpose(1, 2).reshape(E, 2 * f, d).requires_grad_()
        self.w2 = made.w2.detach().requires_grad_()
        self.weights = made.weights.detach().requires_grad_()
        self.x = x.detach().requires_grad_()
        self.dy = torch.empty_like(x).normal_()
        self.sorted = self.sort()

    @property
    def leaves(self):
        return [self.x, self.w1, self.w2, self.weights]

    def sort(self):
        """(first row of each expert, token of each row, slot of each row, row of each slot)."""
        import torch

        slots, new = self.ids.numel(), lambda size: torch.empty(size, device=self.ids.device, dtype=torch.int32)
        counts, offsets, token, slot, row = new(self.shape.E), new(self.shape.E + 1), new(slots), new(slots), new(slots)
        self.functional.TC_topk_router_metadata_triton(self.ids, self.shape.E, counts, offsets, token, slot, row)
        return offsets, token, slot, row

    def layer(self, sort, inference: bool):
        T, K = self.ids.shape
        offsets, token, slot, row = sort
        a, h = self.functional._UpProjection.apply(
            self.x, self.w1.permute(1, 2, 0), None, offsets, T * K, K, token, slot, row, None, False, self.activation, inference, False)
        return self.functional._DownProjection.apply(
            a, h, self.w2.permute(1, 2, 0), None, self.weights, offsets, T, K, token, slot, row, None, False, self.activation)

    def forward(self, sort=None):
        import torch

        with torch.no_grad():
            return self.layer(sort or self.sort(), True)

    def train(self, sort=None):
        """Forward and the gradients of x, both weights and the routing weights."""
        import torch

        with torch.enable_grad():
            y = self.layer(sort or self.sort(), False)
            return torch.autograd.grad(y, self.leaves, self.dy)

    def calls(self) -> dict:
        """By name: from ids, and with the sort done beforehand."""
        return {
            "forward": self.forward, "train": self.train,
            "forward, sorted before": lambda: self.forward(self.sorted), "train, sorted before": lambda: self.train(self.sorted),
        }

    def memory(self) -> tuple[int, int]:
        """(bytes held after forward, most bytes held in forward and backward); neither counts y, nor the gradients."""
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.enable_grad():
            y = self.layer(self.sort(), False)
        y_bytes = y.numel() * y.element_size()
        held = torch.cuda.memory_allocated() - before - y_bytes
        gradients = torch.autograd.grad(y, self.leaves, self.dy)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before - y_bytes
        return held, peak - sum(g.numel() * g.element_size() for g in gradients)


def experts(made, x, expected, train: bool = True) -> Experts:
    """Compiles, tunes and checks what the layer needs."""
    begin = time.perf_counter()
    peer = Experts(made, x)
    require_same(NAME, peer.forward(), expected)
    if train:
        peer.train()
    print(f"{made.shape.name}: {NAME} compiled and tuned in {time.perf_counter() - begin:.1f} s", flush=True)
    return peer
