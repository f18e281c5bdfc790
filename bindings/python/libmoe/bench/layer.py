"""An expert MLP on tensors of random data, as the sections time it."""

from __future__ import annotations

from dataclasses import dataclass

import libmoe

from .shapes import Shape, routing


@dataclass
class Layer:
    """Weights, routing and prepared calls of one shape on one GPU."""

    shape: Shape
    ctx: object
    w1: object
    w2: object
    ids: object
    weights: object
    plan: dict
    rows_max: int

    @property
    def desc(self) -> dict:
        s = self.shape
        return dict(
            dtype=libmoe.DTYPE_BF16, num_tokens=s.T, rows_max=self.rows_max, top_k=s.K, num_experts=s.E,
            hidden_size=s.d, ffn_size=s.f,
        )

    @property
    def rows_per_expert(self) -> list[int]:
        return self.plan["group_sizes"].tolist()

    def prepare_plan(self):
        """The call that makes the plan anew."""
        return self.ctx.prepare("dispatch_plan", self.plan_desc, dict(ids=self.ids, **self.plan))

    @property
    def plan_desc(self) -> dict:
        return dict(num_tokens=self.shape.T, num_experts=self.shape.E, top_k=self.shape.K)

    def prepare_forward(self, x, y, h=None):
        """moe_expert_mlp_fwd on this x and y; with h, what training needs."""
        names = ("token_of_row", "slot_of_row", "row_of_slot", "group_offsets")
        args = dict(x=x, w1=self.w1, w2=self.w2, y=y, weights=self.weights, **{n: self.plan[n] for n in names})
        if h is not None:
            args["h"] = h
        return self.ctx.prepare("expert_mlp_fwd", self.desc, args)


def make(ctx, shape: Shape, kind: str, seed: int = 1, weights_of_experts=None) -> Layer:
    """`weights_of_experts`: (w1, w2) of another layer of these widths."""
    import torch

    def randn(*size, scale=1.0):
        return torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_(0, scale)

    T, E, K = shape.T, shape.E, shape.K
    ids, weights = routing(T, E, K, kind, seed)
    rows_max = ctx.query("dispatch_rows_max", dict(num_tokens=T, num_experts=E, top_k=K))

    def ints(size, dtype=torch.int32):
        return torch.empty(size, device="cuda", dtype=dtype)

    plan = dict(
        group_offsets=ints(E + 1, torch.int64), group_sizes=ints(E, torch.int64), row_of_slot=ints(T * K),
        slot_of_row=ints(rows_max), token_of_row=ints(rows_max),
    )
    w1, w2 = weights_of_experts or (
        randn(E, 2 * shape.f, shape.d, scale=shape.d**-0.5), randn(E, shape.d, shape.f, scale=shape.f**-0.5))
    layer = Layer(shape, ctx, w1, w2, ids, weights, plan, rows_max)
    layer.prepare_plan()()
    torch.cuda.synchronize()
    return layer
