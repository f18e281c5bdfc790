"""A whole Mixture-of-Experts layer: router, routed experts, shared experts."""

import torch

from .._header import structs
from ._beside import side_by_side
from ._define import checked
from ._router import drop
from .experts import Experts, SharedExperts
from .routers import ExpertChoiceRouter, SinkhornRouter, TopKRouter

# Of the experts' options, those that the shared experts have, too.
OF_SHARED = ("activation", "gate_order", "gate_block", "clamp_limit", "clamp_alpha", "math", "recompute")
ROUTERS = {"topk": TopKRouter, "sinkhorn": SinkhornRouter, "expert_choice": ExpertChoiceRouter}


class MoELayer(torch.nn.Module):
    """y = experts(x) (+ shared experts(x)), and the router's loss.

    `router` is "topk", "sinkhorn", "expert_choice" or a module that gives (ids, weights, loss); router_options go to the
    former. `capacity` drops slots: options of libmoe.capacity_fwd, for example dict(formula=libmoe.CAPACITY_MEGATRON,
    capacity_factor=1.25). `shared_ffn_size` adds shared experts, with shared_gate times a sigmoid; on a GPU they run beside
    the routed ones on a stream of their own. Other options are the experts'.

        layer = MoELayer(hidden_size=64, ffn_size=128, num_experts=8, top_k=2, router_options=dict(renormalize=1))
        y, loss = layer(x)
    """

    def __init__(self, hidden_size, ffn_size, num_experts, top_k=2, *, router="topk", router_options=None, capacity=None,
                 shared_ffn_size=0, shared_gate=False, device=None, dtype=None, **options):
        super().__init__()
        if isinstance(router, str):
            # The router stays in fp32 where the experts are of 16 bits.
            own = {"device": device, "dtype": dtype if dtype == torch.float64 else None, **(router_options or {})}
            sizes = (hidden_size, num_experts) if router == "expert_choice" else (hidden_size, num_experts, top_k)
            router = ROUTERS[router](*sizes, **own)
        self.router = router
        self.capacity = None if capacity is None else checked(structs["moe_capacity_desc_t"], capacity, "MoELayer.capacity")
        self.experts = Experts(num_experts, hidden_size, ffn_size, device=device, dtype=dtype, **options)
        of_shared = {name: options[name] for name in OF_SHARED if name in options}
        self.shared = SharedExperts(hidden_size, shared_ffn_size, gate=shared_gate, device=device, dtype=dtype, **of_shared) \
            if shared_ffn_size else None

    def forward(self, x):
        """(y like x, the router's loss)."""
        if self.shared is None:
            return self.routed(x)
        if not torch.compiler.is_compiling():
            (shared,), (y, loss) = side_by_side(lambda: (self.shared(x),), lambda: self.routed(x), x)
        elif self.shared_is_plain():
            (y, shared), loss = self.routed(x, shared=self.shared)
        else:
            shared, (y, loss) = self.shared(x), self.routed(x)
        return y + shared, loss

    def shared_is_plain(self):
        """Whether nobody has wrapped the shared experts, so that their parameters may be used without calling them."""
        return type(self.shared) is SharedExperts and not self.shared._forward_pre_hooks and not self.shared._forward_hooks

    def routed(self, x, **beside):
        ids, weights, loss = self.router(x)
        tokens = x.numel() // x.shape[-1]
        if isinstance(self.router, ExpertChoiceRouter):
            rows_max = self.router.capacity(tokens) * self.router.num_experts
            return self.experts(x, ids, weights, rows_max=rows_max, **beside), loss
        if self.capacity is not None:
            flat = ids.reshape(tokens, ids.shape[-1]), weights.reshape(tokens, ids.shape[-1])
            ids, weights = (t.view(ids.shape) for t in drop(*flat, self.experts.num_experts, self.capacity))
        return self.experts(x, ids, weights, **beside), loss
