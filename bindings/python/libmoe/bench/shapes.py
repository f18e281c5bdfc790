"""Shapes, routings and limits that all sections share."""

from __future__ import annotations

from dataclasses import dataclass

# Dense bf16 on random data and device copy, measured on an H200 (132 SMs, 700 W).
FLOP_RATE, BYTE_RATE = 780e12, 4.3e12
# Reading alone, measured on an H200; an H100's memory has 3.35 of its 4.8 TB/s.
READ_RATE = 4.394e12


def read_rate(device: str) -> float:
    return READ_RATE * (3.35 / 4.8 if "H100" in device else 1)


@dataclass(frozen=True)
class Shape:
    """One MoE layer: T tokens, hidden size d, expert width f, E experts, K chosen a token."""

    name: str
    T: int
    d: int
    f: int
    E: int
    K: int

    @property
    def rows(self) -> int:
        return self.T * self.K

    @property
    def forward_flops(self) -> int:
        return 6 * self.rows * self.d * self.f


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mixtral", 8192, 4096, 14336, 8, 2),
        Shape("qwen3-30b", 16384, 2048, 768, 128, 8),
        Shape("dsv3-ep8", 8192, 7168, 2048, 32, 2),
        Shape("olmoe", 16384, 2048, 1024, 64, 8),
        Shape("sonic-7b", 24576, 1536, 256, 128, 8),
    )
}


def routing(T: int, E: int, K: int, kind: str, seed: int = 1, device: str = "cuda"):
    """(ids int32 [T, K], weights fp32 [T, K]): "uniform" is exactly balanced, "random" the top-k of noise, "skewed" of biased noise."""
    import torch

    g = torch.Generator(device=device).manual_seed(seed)
    if kind == "uniform":
        base = torch.randperm(T, generator=g, device=device)[:, None] * K
        ids = (base + torch.arange(K, device=device)) % E
        weights = torch.rand(T, K, generator=g, device=device) + 0.1
    else:
        logits = torch.randn(T, E, generator=g, device=device)
        if kind == "skewed":
            logits += 0.5 * torch.randn(E, generator=g, device=device)
        weights, ids = logits.softmax(-1).topk(K, -1)
    return ids.int(), weights / weights.sum(-1, keepdim=True)


def stage(flops: float, nbytes: float) -> float:
    """Seconds that a stage takes at best."""
    return max(flops / FLOP_RATE, nbytes / BYTE_RATE)


def forward_limit(shape: Shape, rows_per_expert: list[int], tile: int = 64) -> float:
    """Seconds of a gated bf16 expert MLP forward at best, for the routing that was timed."""
    M, d, f, T = sum(rows_per_expert), shape.d, shape.f, shape.T
    used = sum(1 for rows in rows_per_expert if rows)
    padded = sum(-(-rows // tile) * tile for rows in rows_per_expert)
    w1, w2 = used * 4 * f * d, used * 2 * f * d
    return (
        stage(4 * padded * d * f, 2 * T * d + w1 + 6 * M * f)
        + stage(2 * padded * d * f, 2 * M * f + w2 + 2 * M * d)
        + 2 * (M + T) * d / BYTE_RATE
    )


def train_limit(shape: Shape, rows_per_expert: list[int], tile: int = 64) -> float:
    """Seconds of forward and backward at best, with gradients of weights in bf16."""
    M, d, f, T = sum(rows_per_expert), shape.d, shape.f, shape.T
    used = sum(1 for rows in rows_per_expert if rows)
    R = sum(-(-rows // tile) * tile for rows in rows_per_expert)
    w1, w2 = used * 4 * f * d, used * 2 * f * d
    return (
        forward_limit(shape, rows_per_expert, tile)
        + stage(2 * R * d * f, 2 * T * d + w2 + 10 * M * f)  # dact: dy, W2, h -> dh, weighted act
        + stage(2 * R * d * f, 2 * T * d + 2 * M * f + w2)  # dW2
        + stage(4 * R * d * f, 4 * M * f + w1 + 2 * M * d)  # rows of dx
        + stage(4 * R * d * f, 2 * T * d + 4 * M * f + w1)  # dW1
        + 2 * (M + T) * d / BYTE_RATE
    )
