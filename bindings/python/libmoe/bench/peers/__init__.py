"""What other people's kernels need to run on the same tensors. Each gives a callable, or None where it is missing."""

from __future__ import annotations


def torch_grouped(made, x):
    """Plain PyTorch with grouped_mm: sort, gather, two grouped GEMMs, activation, gather, weighted sum."""
    import torch
    import torch.nn.functional as F

    gmm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    K, E = made.shape.K, made.shape.E
    ids, weights = made.ids, made.weights.to(x.dtype)

    def call():
        flat = ids.reshape(-1)
        sorted_ids, order = torch.sort(flat, stable=True)
        offsets = torch.histc(sorted_ids, bins=E, min=0, max=E - 1).cumsum(0).to(torch.int32)
        gate, up = gmm(x[order // K], made.w1.transpose(1, 2), offs=offsets).chunk(2, -1)
        rows = gmm(F.silu(gate) * up, made.w2.transpose(1, 2), offs=offsets) * weights.reshape(-1)[order, None]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        return rows[inverse].view(x.shape[0], K, -1).sum(1)

    return call


def liger(made, x):
    """Liger-Kernel's fused MoE (Triton), where the package is installed; it tunes itself at the first call."""
    try:
        import liger_kernel.ops.fused_moe as fused
    except ImportError:
        return None

    import torch

    def call():
        with torch.no_grad():
            fused.LigerFusedMoEFunction.apply(x, made.w1, made.w2, made.ids, made.weights)

    try:
        call()
    except Exception as error:  # a peer that fails counts as missing, and says why
        print(f"liger failed: {type(error).__name__}: {str(error)[:200]}")
        return None
    return call


def megatron():
    """Megatron-Core's moe_utils, where the package is installed."""
    try:
        import megatron.core.transformer.moe.moe_utils as moe_utils
    except Exception as error:
        print(f"megatron-core is missing: {type(error).__name__}: {str(error)[:200]}")
        return None
    return moe_utils
