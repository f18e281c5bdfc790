"""A whole MoE layer on tensors: what the tests of the GPU suite drive."""

from __future__ import annotations

from dataclasses import dataclass, field

import libmoe
import torch

POISON = float("nan")


def poisoned(*size, dtype, device="cuda"):
    """A tensor of NaN, or of a large odd integer."""
    return torch.full(size, POISON if dtype.is_floating_point else 0x7F7F7F7F, dtype=dtype, device=device)


def draw_ids(rng, T, E, K, kind, device="cuda"):
    """int32 [T, K], distinct a token: "even", "skewed", "one" (all to one expert), "few" (most experts empty), "dropped"."""
    scores = torch.rand(T, E, device=device)
    if kind == "skewed":
        scores = scores ** torch.linspace(1, 8, E, device=device)
    elif kind == "one":
        scores[:, rng.randrange(E)] = 2
    elif kind == "few":
        scores[:, K + 1 :] = -1
    ids = scores.argsort(-1, descending=True)[:, :K].int()
    if kind == "dropped":
        ids[torch.rand(T, K, device=device) < 0.3] = -1
    return ids.contiguous()


@dataclass
class Layer:
    """Tensors of one layer; `on(ctx)` runs forward and backward and gives all results."""

    T: int
    d: int
    f: int
    E: int
    K: int
    dtype: torch.dtype
    ids: torch.Tensor
    tensors: dict = field(default_factory=dict)

    @classmethod
    def draw(cls, rng, T, d, f, E, K, dtype, kind="even"):
        layer = cls(T, d, f, E, K, dtype, draw_ids(rng, T, E, K, kind))
        randn = lambda *size, scale=1.0: (torch.randn(*size, device="cuda") * scale).to(dtype)
        layer.tensors = dict(
            x=randn(T, d), w1=randn(E, 2 * f, d, scale=d**-0.5), w2=randn(E, d, f, scale=f**-0.5), dy=randn(T, d),
            weights=torch.rand(T, K, device="cuda") + 0.1,
        )
        return layer

    def buffers(self, ctx, device) -> dict:
        T, d, f, E, K = self.T, self.d, self.f, self.E, self.K
        R = ctx.query("dispatch_rows_max", dict(num_tokens=T, num_experts=E, top_k=K))
        new = lambda *size, dtype=self.dtype: poisoned(*size, dtype=dtype, device=device)
        i32, i64, f32 = torch.int32, torch.int64, torch.float32
        return dict(
            R=R, group_offsets=new(E + 1, dtype=i64), group_sizes=new(E, dtype=i64), row_of_slot=new(T * K, dtype=i32),
            slot_of_row=new(R, dtype=i32), token_of_row=new(R, dtype=i32), y=new(T, d), h=new(R, 2 * f), dh=new(R, 2 * f),
            dx=new(T, d), dw1=new(E, 2 * f, d, dtype=f32), dw2=new(E, d, f, dtype=f32), dweights=new(T, K, dtype=f32),
        )

    def calls(self, ctx, buffers, tensors, ids):
        """Prepared plan, forward and backward."""
        names = {torch.bfloat16: libmoe.DTYPE_BF16, torch.float16: libmoe.DTYPE_FP16, torch.float32: libmoe.DTYPE_FP32}
        b, t = buffers, tensors
        desc = dict(dtype=names[self.dtype], num_tokens=self.T, rows_max=b["R"], top_k=self.K, num_experts=self.E,
                    hidden_size=self.d, ffn_size=self.f)
        maps = {name: b[name] for name in ("group_offsets", "token_of_row", "slot_of_row", "row_of_slot")}
        plan = ctx.prepare("dispatch_plan", dict(num_tokens=self.T, num_experts=self.E, top_k=self.K),
                           dict(ids=ids, group_sizes=b["group_sizes"], **maps))
        common = dict(x=t["x"], w1=t["w1"], w2=t["w2"], weights=t["weights"], **maps)
        forward = ctx.prepare("expert_mlp_fwd", desc, dict(y=b["y"], h=b["h"], **common))
        outputs = {name: b[name] for name in ("dx", "dw1", "dw2", "dweights", "dh")}
        backward = ctx.prepare("expert_mlp_bwd", desc, dict(dy=t["dy"], h=b["h"], **common, **outputs))
        return plan, forward, backward

    def on(self, ctx, device="cuda") -> dict:
        tensors = {name: t.to(device) for name, t in self.tensors.items()}
        buffers = self.buffers(ctx, device)
        for call in self.calls(ctx, buffers, tensors, self.ids.to(device)):
            call()
        torch.cuda.synchronize()
        return buffers
