"""A whole layer on arrays of any kind: logits, router, experts, output; forward and backward.

T tokens, d hidden size, f expert width, E experts, K slots a token. On PyTorch's tensors without autograd; with it there is
libmoe.torch.MoELayer.
"""

from typing import Any, NamedTuple

from . import _arrays
from ._calls import router_dtype
from ._header import constants
from .dispatch import dispatch_plan
from .expert_mlp import expert_mlp_bwd, expert_mlp_fwd
from .router import router_bwd, router_fwd, router_logits_bwd, router_logits_fwd

SIGMOID = constants["MOE_SCORE_SIGMOID"]


class LayerOutput(NamedTuple):
    """y [T, d]; aux_loss and z_loss fp32 [1] where the router's options turn them on; what backward needs."""

    y: Any
    aux_loss: Any
    z_loss: Any
    saved: Any


class Routed(NamedTuple):
    """What one set of experts leaves for its backward. Shared experts are a set of one, which every token goes to."""

    logits: Any
    route: Any
    plan: Any
    h: Any


class MoELayer:
    """y = experts(x) + shared experts(x).

    `weights` has gate [E, d], w1 [E, 2f, d] (gate first; [E, f, d] without a gate), w2 [E, d, f], optionally b1 [E, 2f] and
    b2 [E, d]; shared_w1 [2g, d] and shared_w2 [d, g] add shared experts of width g, shared_gate [1, d] their sigmoid. `router`
    holds options of libmoe.router_fwd (renormalize, aux_loss, ...), the others are those of libmoe.expert_mlp_fwd. Outputs and
    workspaces are allocated by the arrays' library: with PyTorch a step can be captured in a CUDA graph.

        layer = libmoe.MoELayer(ctx, {"gate": gate, "w1": w1, "w2": w2}, top_k=2, router={"renormalize": 1})
        out = layer.forward(x)
        dx, grads = layer.backward(dy, out.saved)
    """

    def __init__(self, ctx, weights, top_k, *, router=None, **options):
        unknown = weights.keys() - {"gate", "w1", "w2", "b1", "b2", "shared_w1", "shared_w2", "shared_gate"}
        missing = {"gate", "w1", "w2"} - weights.keys()
        if unknown or missing or ("shared_w1" in weights) != ("shared_w2" in weights):
            raise TypeError(f"weights has {', '.join(weights)}; it must have gate, w1, w2, and may have b1, b2, shared_w1 with "
                            "shared_w2, shared_gate")
        self.ctx, self.weights, self.top_k = ctx, dict(weights), top_k
        self.router, self.options = dict(router or {}), options
        self.has_shared = "shared_w1" in weights

    def forward(self, x, training=True, stream=None):
        """LayerOutput of x [T, d]; training=False saves nothing."""
        w = self.weights
        logits = self._logits(x, w["gate"], stream)
        route = router_fwd(self.ctx, logits, self.top_k, stream=stream, **self.router)
        plan = dispatch_plan(self.ctx, route.ids, w["gate"].shape[0], stream=stream)
        y, h = expert_mlp_fwd(self.ctx, plan, x, w["w1"], w["w2"], route.weights, b1=w.get("b1"), b2=w.get("b2"), h=training,
                              stream=stream, **self.options)
        shared = self._shared_forward(x, y, training, stream) if self.has_shared else None
        saved = (x, Routed(logits, route, plan, h), shared) if training else None
        return LayerOutput(y, route.aux_loss, route.z_loss, saved)

    def backward(self, dy, saved, aux_loss_grad=None, z_loss_grad=None, stream=None):
        """(dx, gradients by the weights' names). The losses' gradients are fp32 [1] on the device, or None for 1. It
        overwrites fc1's saved output."""
        x, routed, shared = saved
        w, ctx = self.weights, self.ctx
        mlp = expert_mlp_bwd(ctx, routed.plan, dy, x, w["w1"], w["w2"], routed.h, routed.route.weights, b1=w.get("b1"),
                             b2=w.get("b2"), dh=routed.h, stream=stream, **self.options)
        dlogits = router_bwd(ctx, routed.logits, routed.route.ids, mlp.dweights, aux_counts=routed.route.aux_counts,
                             aux_loss_grad=aux_loss_grad, z_loss_grad=z_loss_grad, stream=stream, **self.router)
        gate = router_logits_bwd(ctx, dlogits, x, w["gate"], dx=mlp.dx, dx_mode="add", stream=stream)
        grads = {"gate": gate.dweight, "w1": mlp.dw1, "w2": mlp.dw2, "b1": mlp.db1, "b2": mlp.db2}
        if shared is not None:
            grads |= self._shared_backward(dy, x, mlp.dx, shared, stream)
        return mlp.dx, {name: grad for name, grad in grads.items() if grad is not None}

    def _logits(self, x, gate, stream):
        """In fp32, or fp64 where all is, whatever x is."""
        return router_logits_fwd(self.ctx, x, gate, logits_dtype=router_dtype(x, None), stream=stream)

    def _shared_forward(self, x, y, training, stream):
        """Adds the shared experts to y: a layer of one expert, whose sigmoid score is the gate."""
        w, logits, route = self.weights, None, None
        if "shared_gate" in w:
            logits = self._logits(x, w["shared_gate"], stream)
            route = router_fwd(self.ctx, logits, 1, stream=stream, score_function=SIGMOID)
            ids, weights = route.ids, route.weights
        else:
            view = _arrays.view("x", x)
            ids, weights = _arrays.array_library(x).empty((view.shape[0], 1), "int32", view.device), None
            ids[...] = 0
        plan = dispatch_plan(self.ctx, ids, 1, stream=stream)
        w1, w2 = w["shared_w1"][None], w["shared_w2"][None]
        _, h = expert_mlp_fwd(self.ctx, plan, x, w1, w2, weights, y=y, y_mode="add", h=training, stream=stream, **self.options)
        return Routed(logits, route, plan, h)

    def _shared_backward(self, dy, x, dx, shared, stream):
        w, ctx = self.weights, self.ctx
        weights = None if shared.route is None else shared.route.weights
        mlp = expert_mlp_bwd(ctx, shared.plan, dy, x, w["shared_w1"][None], w["shared_w2"][None], shared.h, weights, dx=dx,
                             dx_mode="add", dh=shared.h, stream=stream, **self.options)
        grads = {"shared_w1": mlp.dw1[0], "shared_w2": mlp.dw2[0]}
        if weights is not None:
            dlogits = router_bwd(ctx, shared.logits, shared.route.ids, mlp.dweights, stream=stream, score_function=SIGMOID)
            gate = router_logits_bwd(ctx, dlogits, x, w["shared_gate"], dx=dx, dx_mode="add", stream=stream)
            grads["shared_gate"] = gate.dweight
        return grads
