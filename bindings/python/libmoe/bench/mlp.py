"""Targets `mlp_fwd`, `mlp_train` and `mlp_memory`: the whole expert MLP, given ids and weights, beside SonicMoE and plain PyTorch.

Rates compare from the ids on, sort included, as SonicMoE is called; what both take with the sort done beforehand stands in the
detail. The limit has no sort: our share of it is of the MLP alone. Where SonicMoE does not run, its published figures stand beside
ours, and a row that reaches them is left open.
"""

from __future__ import annotations

import functools

import libmoe

from . import layer, method, peers, record
from .peers import sonic
from .peers.policy import attempt
from .shapes import SHAPES, Shape, forward_limit, train_limit

# SonicMoE 0.1.2 on an H200 (2026-11-22): TFLOP/s forward, forward and backward, of uniform and skewed routing; peak GB.
SONIC = {
    "qwen3-30b": ((659, 646), (585, 487), 1.01), "mixtral": ((640, 635), (605, 605), 1.14),
    "dsv3-ep8": ((689, 570), (512, 495), 0.49), "olmoe": ((587, 588), (559, 539), 1.14),
    "sonic-7b": ((486, 412), (374, 412), 0.88),
}
PEER = "SonicMoE 0.1.2"
NOT_RUN = "SonicMoE was not run beside"
KINDS = ("uniform", "skewed")


def train_calls(made, x):
    """(forward that keeps h, backward of everything but the ids), and what they hold."""
    import torch

    shape = made.shape
    new = lambda *size, dtype=torch.bfloat16: torch.empty(size, device="cuda", dtype=dtype)
    y, h, dy = new(shape.T, shape.d), new(made.rows_max, 2 * shape.f), new(shape.T, shape.d).normal_()
    names = ("token_of_row", "slot_of_row", "row_of_slot", "group_offsets")
    # dh takes the place of h, which nothing reads afterwards.
    args = dict(dy=dy, x=x, w1=made.w1, w2=made.w2, h=h, dh=h, dx=new(shape.T, shape.d), dw1=torch.empty_like(made.w1),
                dw2=torch.empty_like(made.w2), weights=made.weights, dweights=new(shape.T, shape.K, dtype=torch.float32),
                **{name: made.plan[name] for name in names})
    return made.prepare_forward(x, y, h), made.ctx.prepare("expert_mlp_bwd", made.desc, args), h


def in_turn(calls) -> None:
    for call in calls:
        call()


@functools.lru_cache(maxsize=None)
def measured(ctx, name: str, kind: str) -> dict:
    import torch

    shape = SHAPES[name]
    made = layer.make(ctx, shape, kind)
    x = torch.empty(shape.T, shape.d, device="cuda", dtype=torch.bfloat16).normal_()
    forward, backward, h = train_calls(made, x)
    y = torch.empty_like(x)
    plan, inference = made.prepare_plan(), made.prepare_forward(x, y)
    variants = {"forward": (inference,), "train": (forward, backward), "forward from ids": (plan, inference),
                "train from ids": (plan, forward, backward), "torch forward from ids": (peers.torch_grouped(made, x),)}
    inference()
    peer, absent = attempt(sonic.NAME, name, lambda: sonic.experts(made, x, y))
    timings = method.time_gpu(
        {key: [functools.partial(in_turn, calls)] for key, calls in variants.items()}, replays=12,
        peers={f"{sonic.NAME} {what}": [call] for what, call in peer.calls().items()} if peer else {})
    rows = made.rows_per_expert
    result = {key: (3 if "train" in key else 1) * shape.forward_flops / t.median / 1e12 for key, t in timings.items()}
    result["forward limit"] = shape.forward_flops / forward_limit(shape, rows) / 1e12
    result["train limit"] = 3 * shape.forward_flops / train_limit(shape, rows) / 1e12
    if absent:
        result["absent"] = absent
    else:
        result["peer's saved bytes"], result["peer's peak bytes"] = peer.memory()
    names = ("token_of_row", "slot_of_row", "row_of_slot")
    result["saved bytes"] = h.numel() * h.element_size() + sum(made.plan[n].numel() * made.plan[n].element_size() for n in names)
    scratch = max(ctx.query(f"expert_mlp_{way}_workspace_size", made.desc) for way in ("fwd", "bwd"))
    result["peak bytes"] = result["saved bytes"] + scratch
    del made, forward, backward, h, x, y, variants, inference, plan, peer
    torch.cuda.empty_cache()
    return result


class Rate:
    """A section: TFLOP/s of the forward, or of forward and backward."""

    NEEDS = "gpu"
    ROWS = [(name, kind) for name in SHAPES for kind in KINDS]

    def __init__(self, key: str, what: str, published: int, share: float, means: tuple[float, float]):
        self.KEY, self.what, self.published, self.share = key, what, published, share
        self.means = dict(zip(KINDS, means))

    def run(self, ctx) -> tuple[list[dict], dict]:
        state, rows, detail = method.gpu_state(), [], {}
        wanted = f">= SonicMoE and >= {self.share:.0%} of the limit"
        for name, kind in self.ROWS:
            found = detail[f"{name} {kind}"] = measured(ctx, name, kind)
            rows.append(record.row(self.KEY, name, kind, "TFLOP/s", wanted, device=state.get("device"), **self.compare(name, kind, found)))
        means = {kind: record.geometric_mean([r["ratio"] for r in rows if r["routing"] == kind], self.means[kind]) for kind in KINDS}
        return rows, {**state, "geometric mean": means, "TFLOP/s": detail}

    def compare(self, name: str, kind: str, found: dict) -> dict:
        """What a row says beside its key."""
        ours, share = found[f"{self.what} from ids"], found[self.what] / found[f"{self.what} limit"]
        published, theirs = SONIC[name][KINDS.index(kind)][self.published], found.get(f"{sonic.NAME} {self.what}")
        peer = theirs or published
        values = dict(ours=ours, peer=peer, peer_name=PEER if theirs else f"{PEER}, published", ratio=ours / peer, of_limit=share,
                      published=published)
        if sorted_before := found.get(f"{sonic.NAME} {self.what}, sorted before"):
            values["ratio_sorted_before"] = found[self.what] / sorted_before
        reached = ours >= peer and share >= self.share
        if reached and not theirs:
            return dict(values, met=None, reason=f"{NOT_RUN}: {found.get('absent')}")
        return dict(values, met=reached)


class Memory:
    """A section: bytes that are kept for backward, and the most that forward and backward hold at once."""

    KEY = "mlp_memory"
    NEEDS = "gpu"
    ROWS = [(name, "uniform") for name in SHAPES]

    def run(self, ctx) -> tuple[list[dict], dict]:
        state, rows, detail = method.gpu_state(), [], {}
        for name, kind in self.ROWS:
            shape: Shape = SHAPES[name]
            found = measured(ctx, name, kind)
            saved, allowed = found["saved bytes"], 4 * shape.rows * shape.f + 24 * shape.rows
            peak, published = found["peak bytes"] / 1e9, SONIC[name][2]
            detail[name] = {"saved bytes": saved, "allowed bytes": allowed, "peak GB": peak}
            if "peer's peak bytes" in found:
                detail[name].update({"SonicMoE's saved bytes": found["peer's saved bytes"], "SonicMoE's peak GB": found["peer's peak bytes"] / 1e9})
            # What is wanted are the published peaks; of its own run the detail tells.
            rows.append(record.row(self.KEY, name, kind, "GB at the peak", f"saved <= {allowed} bytes; peak <= {published} GB",
                                   ours=peak, peer=published, peer_name=f"{PEER}, published", ratio=peak / published,
                                   met=saved <= allowed and peak <= published, device=state.get("device"), saved=saved))
        return rows, {**state, "bytes": detail}


mlp_fwd = Rate("mlp_fwd", "forward", 0, 0.85, (1.05, 1.15))
mlp_train = Rate("mlp_train", "train", 1, 0.80, (1.10, 1.20))
mlp_memory = Memory()
