"""A whole layer on arrays of any kind: logits, router, experts, output; forward and backward.

T tokens, d hidden size, f expert width, E experts, K slots a token. On PyTorch's tensors without autograd; with it there is
libmoe.torch.MoELayer.
"""

from typing import Any, NamedTuple

from . import _arrays
from ._calls import router_dtype
from ._context import Keeper
from ._header import constants
from .dispatch import combine_fwd, dispatch_plan
from .expert_mlp import expert_mlp_bwd, expert_mlp_fwd
from .router import router_bwd, router_fwd, router_logits_bwd, router_logits_fwd

SIGMOID = constants["MOE_SCORE_SIGMOID"]
ROWS = {name: constants["MOE_LAYOUT_ROWS"] for name in ("input_layout", "output_layout")}


class LayerOutput(NamedTuple):
    """y [T, d]; aux_loss and z_loss fp32 [1] where the router's options turn them on; what backward needs."""

    y: Any
    aux_loss: Any
    z_loss: Any
    saved: Any


class SideStream(NamedTuple):
    """A second stream for the shared experts, and two events of the caller's, which each call records anew. Streams and events
    are integers or objects of torch (whose events exist once they were recorded) or cupy."""

    stream: Any
    fork: Any
    join: Any


class Routed(NamedTuple):
    """What one set of experts leaves for its backward. Shared experts are a set of one, which every token goes to: its rows are
    the tokens."""

    logits: Any
    route: Any
    plan: Any
    h: Any


class MoELayer:
    """y = experts(x) + shared experts(x).

    `weights` has gate [E, d], w1 [E, 2f, d] (gate first; [E, f, d] without a gate), w2 [E, d, f], optionally b1 [E, 2f] and
    b2 [E, d]; shared_w1 [2g, d] and shared_w2 [d, g] add shared experts of width g, shared_gate [1, d] their sigmoid. `router`
    holds options of libmoe.router_fwd (renormalize, aux_loss, ...), the others are those of libmoe.expert_mlp_fwd. Outputs and
    workspaces are allocated by the arrays' library: with PyTorch a step can be captured in a CUDA graph. With `side`, a
    SideStream, the shared experts run beside the routed ones; the CPU has no streams and takes no notice of it.

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
        self.has_shared, self.has_streams = "shared_w1" in weights, ctx.info["device"] >= 0

    def forward(self, x, training=True, stream=None, side=None):
        """LayerOutput of x [T, d]; training=False saves nothing."""
        w = self.weights
        shared = self._begin(x, stream, side)
        rows, left = self._shared_forward(shared, x, training) if shared else (None, None)
        logits = self._logits(self.ctx, x, w["gate"], stream)
        route = router_fwd(self.ctx, logits, self.top_k, stream=stream, **self.router)
        plan = dispatch_plan(self.ctx, route.ids, w["gate"].shape[0], stream=stream)
        y, h = expert_mlp_fwd(self.ctx, plan, x, w["w1"], w["w2"], route.weights, b1=w.get("b1"), b2=w.get("b2"), h=training,
                              stream=stream, **self.options)
        if shared:
            self._add(shared, left, rows, y)
        saved = (x, Routed(logits, route, plan, h), left) if training else None
        return LayerOutput(y, route.aux_loss, route.z_loss, saved)

    def backward(self, dy, saved, aux_loss_grad=None, z_loss_grad=None, stream=None, side=None):
        """(dx, gradients by the weights' names). The losses' gradients are fp32 [1] on the device, or None for 1. It
        overwrites fc1's saved output."""
        x, routed, left = saved
        w, ctx = self.weights, self.ctx
        shared = self._begin(x, stream, side)
        rows, of_shared = self._shared_backward(shared, dy, x, left) if shared else (None, {})
        mlp = expert_mlp_bwd(ctx, routed.plan, dy, x, w["w1"], w["w2"], routed.h, routed.route.weights, b1=w.get("b1"),
                             b2=w.get("b2"), dh=routed.h, stream=stream, **self.options)
        dlogits = router_bwd(ctx, routed.logits, routed.route.ids, mlp.dweights, aux_counts=routed.route.aux_counts,
                             aux_loss_grad=aux_loss_grad, z_loss_grad=z_loss_grad, stream=stream, **self.router)
        gate = router_logits_bwd(ctx, dlogits, x, w["gate"], dx=mlp.dx, dx_mode="add", stream=stream)
        grads = {"gate": gate.dweight, "w1": mlp.dw1, "w2": mlp.dw2, "b1": mlp.db1, "b2": mlp.db2}
        if shared:
            self._add(shared, left, rows, mlp.dx)
        return mlp.dx, {name: grad for name, grad in (grads | of_shared).items() if grad is not None}

    # What the shared experts do goes to the side stream before anything of the routed ones, and its memory is kept until both
    # streams have joined: the arrays' library may give what is freed to the next who asks on its current stream.

    def _begin(self, x, stream, side):
        """Where the shared experts run, from what `stream` holds now on; None without them."""
        if not self.has_shared:
            return None
        view = _arrays.view("x", x)
        # The one expert of every token, for a plan without a router.
        ids = _arrays.array_library(x).empty((view.shape[0], 1), "int32", view.device)
        ids[...] = 0
        if side is None or not self.has_streams:
            return Beside(self.ctx, ids, stream, stream, None)
        main = _arrays.array_library(x).stream(self.ctx.device) if stream is None else stream
        self.ctx.stream_wait(side.stream, main, side.fork)
        return Beside(Keeper(self.ctx), ids, side.stream, main, side.join)

    def _add(self, shared, left, rows, total):
        """total += rows, when both streams have come so far."""
        if shared.join is not None:
            self.ctx.stream_wait(shared.main, shared.stream, shared.join)
        combine_fwd(self.ctx, left.plan, rows, y=total, y_mode="add", stream=shared.main)

    def _logits(self, ctx, x, gate, stream):
        """In fp32, or fp64 where all is, whatever x is."""
        return router_logits_fwd(ctx, x, gate, logits_dtype=router_dtype(x, None), stream=stream)

    def _shared_forward(self, shared, x, training):
        """(rows [T, d], what backward needs): a layer of one expert, whose sigmoid score is the gate."""
        w, ctx, stream, logits, route = self.weights, shared.ctx, shared.stream, None, None
        if "shared_gate" in w:
            logits = self._logits(ctx, x, w["shared_gate"], stream)
            route = router_fwd(ctx, logits, 1, stream=stream, score_function=SIGMOID)
        plan = dispatch_plan(ctx, route.ids if route else shared.ids, 1, stream=stream)
        rows, h = expert_mlp_fwd(ctx, plan, x, w["shared_w1"][None], w["shared_w2"][None], row_weights=row_weights(route), h=training,
                                 stream=stream, **self.options, **ROWS)
        return rows, Routed(logits, route, plan, h)

    def _shared_backward(self, shared, dy, x, left):
        """(their part of dx [T, d], gradients by the weights' names)."""
        w, ctx, stream = self.weights, shared.ctx, shared.stream
        mlp = expert_mlp_bwd(ctx, left.plan, dy, x, w["shared_w1"][None], w["shared_w2"][None], left.h,
                             row_weights=row_weights(left.route), dh=left.h, stream=stream, **self.options, **ROWS)
        grads = {"shared_w1": mlp.dw1[0], "shared_w2": mlp.dw2[0]}
        if left.route is not None:
            dlogits = router_bwd(ctx, left.logits, left.route.ids, mlp.drow_weights[:, None], stream=stream, score_function=SIGMOID)
            gate = router_logits_bwd(ctx, dlogits, x, w["shared_gate"], dx=mlp.dx, dx_mode="add", stream=stream)
            grads["shared_gate"] = gate.dweight
        return mlp.dx, grads


class Beside(NamedTuple):
    """Where the shared experts run: a context, ids of zeros, their stream, the layer's, and the event of their end."""

    ctx: Any
    ids: Any
    stream: Any
    main: Any
    join: Any


def row_weights(route):
    """The weight of the only slot of each token."""
    return None if route is None else route.weights.reshape(-1)
