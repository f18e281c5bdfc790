"""The experts as modules: Experts, routed, and SharedExperts, which every token goes through."""

import functools
import math

import torch

from .._header import structs
from ..activation import SWIGLU, is_gated
from ._beside import expert_mlp_beside
from ._define import autocasting, checked
from ._dispatch import make_plan
from ._expert_mlp import expert_mlp, expert_rows, row_weights_of


class Experts(torch.nn.Module):
    """y_t = sum_k weights_tk * (W2_e act(W1_e x_t + b1_e) + b2_e), with e = ids_tk.

    w1 [E, 2f, d] (gate first; [E, f, d] without a gate), w2 [E, d, f]. Options are those of libmoe.expert_mlp_fwd
    (activation, gate_order, weights_at, math, ...). recompute=True saves x alone for backward and computes fc1 again.
    """

    def __init__(self, num_experts, hidden_size, ffn_size, *, bias=False, recompute=False, device=None, dtype=None, **options):
        super().__init__()
        self.options = checked(structs["moe_expert_mlp_desc_t"], options, "Experts")
        self.recompute = recompute
        self.num_experts = num_experts
        wide = ffn_size * (2 if is_gated(options.get("activation", SWIGLU)) else 1)
        new = functools.partial(torch.empty, device=device, dtype=dtype)
        self.w1 = torch.nn.Parameter(new(num_experts, wide, hidden_size))
        self.w2 = torch.nn.Parameter(new(num_experts, hidden_size, ffn_size))
        self.b1 = torch.nn.Parameter(new(num_experts, wide)) if bias else None
        self.b2 = torch.nn.Parameter(new(num_experts, hidden_size)) if bias else None
        self.reset_parameters()

    def extra_repr(self):
        return f"{self.num_experts}, hidden_size={self.w1.shape[2]}, ffn_size={self.w2.shape[2]}"

    def reset_parameters(self):
        """Uniform within 1/sqrt(inputs), as torch.nn.Linear's."""
        uniform_like_linear(self.w1, self.b1)
        uniform_like_linear(self.w2, self.b2)

    def forward(self, x, ids, weights, rows_max=None, shared=None):
        """x [..., d], ids [..., K] (-1: an empty slot), weights [..., K] of any floating dtype; y is like x.

        Or, for routers that give a token any number of experts, a mask bool [..., E] and weights [..., E]; rows_max bounds
        how many of the mask are set. With `shared`, SharedExperts, (y, their y), computed side by side in one operator.
        """
        dtype = x.dtype
        flat, ids, weights = (t.reshape(-1, t.shape[-1]) for t in (x, ids, weights))
        if not flat.shape[0] == ids.shape[0] == weights.shape[0]:
            raise ValueError(f"x has {flat.shape[0]} tokens, ids {ids.shape[0]}, weights {weights.shape[0]}")
        if ids.shape[1] != weights.shape[1]:
            raise ValueError(f"ids has {ids.shape[1]} slots a token, weights {weights.shape[1]}")
        if flat.shape[1] != self.w1.shape[2]:
            raise ValueError(f"x has hidden size {flat.shape[1]}, the experts {self.w1.shape[2]}")
        plan = make_plan(ids, self.num_experts, rows_max)
        if plan.slot_offsets is None:
            row_weights = None
        else:
            weights, row_weights = None, row_weights_of(weights, plan)
        if shared is not None:
            y, of_shared = expert_mlp_beside(flat, plan, self.w1, self.w2, weights, self.b1, self.b2, row_weights, *shared.arguments(x),
                                             recompute=self.recompute, encoded=self.options, shared_encoded=shared.options)
            return y.view(x.shape).to(y.dtype if autocasting(x.device.type) else dtype), shared.gated(of_shared, x)
        y = expert_mlp(flat, plan, self.w1, self.w2, weights, self.b1, self.b2, row_weights=row_weights, recompute=self.recompute,
                       encoded=self.options)
        # Autocast gives out what it computes in; elsewhere y has the dtype of x.
        return y.view(x.shape) if autocasting(x.device.type) else y.view(x.shape).to(dtype)


class SharedExperts(torch.nn.Module):
    """W2 act(W1 x) for every token, with gate=True times sigmoid(gate x) (Qwen2-MoE). w1 [2f, d], w2 [d, f], gate [1, d]."""

    def __init__(self, hidden_size, ffn_size, *, gate=False, recompute=False, device=None, dtype=None, **options):
        super().__init__()
        self.recompute = recompute
        self.options = checked(structs["moe_expert_mlp_desc_t"], options, "SharedExperts")
        wide = ffn_size * (2 if is_gated(options.get("activation", SWIGLU)) else 1)
        new = functools.partial(torch.empty, device=device, dtype=dtype)
        self.w1 = torch.nn.Parameter(new(wide, hidden_size))
        self.w2 = torch.nn.Parameter(new(hidden_size, ffn_size))
        self.gate = torch.nn.Parameter(new(1, hidden_size)) if gate else None
        self.reset_parameters()

    def reset_parameters(self):
        for weight in self.parameters():
            uniform_like_linear(weight)

    def forward(self, x):
        (rows, w1, w2), offsets = self.arguments(x)
        return self.gated(expert_rows(rows, offsets, w1, w2, recompute=self.recompute, encoded=self.options), x)

    def arguments(self, x):
        """(rows of x, w1 [1, 2f, d], w2 [1, d, f]), and the offsets of one group of all rows, made on the device."""
        if x.shape[-1] != self.w1.shape[1]:
            raise ValueError(f"x has hidden size {x.shape[-1]}, the shared experts {self.w1.shape[1]}")
        rows = x.reshape(-1, x.shape[-1])
        return (rows, self.w1[None], self.w2[None]), torch.arange(2, device=x.device) * rows.shape[0]

    def gated(self, y, x):
        y = y.view(x.shape)
        return y if self.gate is None else y * torch.nn.functional.linear(x, self.gate).sigmoid()


@torch.no_grad()
def uniform_like_linear(weight, bias=None):
    bound = 1 / math.sqrt(max(weight.shape[-1], 1))
    for parameter in (weight, bias):
        if parameter is not None:
            parameter.uniform_(-bound, bound)
