"""What the operations compute, in float64 with torch's own functions: shares no code with the library."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def plan(ids: torch.Tensor, E: int) -> dict[str, torch.Tensor]:
    """Maps of int ids [T, K]: rows by expert, then token, then slot; ids outside 0..E-1 are not here."""
    T, K = ids.shape
    flat = ids.reshape(-1).long()
    here = (flat >= 0) & (flat < E)
    slots = torch.arange(T * K, device=ids.device)[here]
    order = torch.argsort(flat[here], stable=True)
    slot_of_row = slots[order]
    row_of_slot = torch.full((T * K,), -1, device=ids.device, dtype=torch.long)
    row_of_slot[slot_of_row] = torch.arange(slot_of_row.numel(), device=ids.device)
    sizes = torch.bincount(flat[here], minlength=E)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return dict(group_sizes=sizes, group_offsets=offsets, slot_of_row=slot_of_row, row_of_slot=row_of_slot,
                token_of_row=slot_of_row // K)


def expert_mlp(x, w1, w2, weights, ids, b1=None, b2=None):
    """Gated SwiGLU, gate first, w1 [E, 2f, d], w2 [E, d, f]; weights at the combine. Differentiable."""
    # Part of the graph even where no slot is here.
    y = 0 * x
    for e in range(w1.shape[0]):
        token, slot = (ids == e).nonzero(as_tuple=True)
        if token.numel() == 0:
            continue
        h = x[token] @ w1[e].T + (0 if b1 is None else b1[e])
        gate, up = h.chunk(2, -1)
        out = (F.silu(gate) * up) @ w2[e].T + (0 if b2 is None else b2[e])
        y = y.index_add(0, token, out * weights[token, slot, None])
    return y


def router(logits, K):
    """Softmax over all experts, top-k of it, renormalised. Ties do not occur in random data."""
    scores = logits.softmax(-1)
    weights, ids = scores.topk(K, -1)
    return ids, weights / weights.sum(-1, keepdim=True)


def error(out, ref) -> float:
    """||out - ref|| / ||ref||; NaN where either has one."""
    out, ref = out.double(), ref.double()
    scale = ref.norm()
    return ((out - ref).norm() / scale).item() if scale > 0 else (out - ref).norm().item()


TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
