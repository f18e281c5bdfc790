"""The two layers that are compared, forward and backward through libmoe's functions.

T tokens, d hidden size, f expert width, E experts, K chosen a token.
"""

import libmoe
import numpy as np


class MoE:
    """y = sum of the K best experts' SwiGLU MLPs, weighted by the router (Mixtral's), with losses that keep the load even."""

    def __init__(self, ctx, xp, rng, hidden, width, experts, top_k):
        self.ctx, self.xp, self.top_k = ctx, xp, top_k
        self.losses = {"renormalize": 1, "aux_loss": libmoe.AUX_LOSS_MEGATRON, "aux_loss_coeff": 1e-2, "z_loss": 1,
                       "z_loss_coeff": 1e-3}
        self.weights = {
            "gate": xp.array(normal(rng, experts, hidden, scale=hidden**-0.5)),
            "w1": xp.array(normal(rng, experts, 2 * width, hidden, scale=hidden**-0.5)),
            "w2": xp.array(normal(rng, experts, hidden, width, scale=width**-0.5)),
        }
        self.flops_a_row = 2 * 3 * hidden * width

    @property
    def experts(self):
        return self.weights["w1"].shape[0]

    def forward(self, x, training=True):
        """y[T, d] of x[T, d], and what backward needs."""
        w = self.weights
        logits = libmoe.router_logits_fwd(self.ctx, x, w["gate"])
        route = libmoe.router_fwd(self.ctx, logits, self.top_k, **self.losses)
        plan = libmoe.dispatch_plan(self.ctx, route.ids, self.experts)
        y, h = libmoe.expert_mlp_fwd(self.ctx, plan, x, w["w1"], w["w2"], route.weights, h=training)
        return y, (x, logits, route, plan, h)

    def backward(self, dy, saved):
        """dx and the gradients of the weights, those of the losses among them."""
        x, logits, route, plan, h = saved
        w = self.weights
        mlp = libmoe.expert_mlp_bwd(self.ctx, plan, dy, x, w["w1"], w["w2"], h, route.weights, dh=h)
        dlogits = libmoe.router_bwd(self.ctx, logits, route.ids, mlp.dweights, aux_counts=route.aux_counts, **self.losses)
        router = libmoe.router_logits_bwd(self.ctx, dlogits, x, w["gate"], dx=mlp.dx, dx_mode="add")
        return mlp.dx, {"gate": router.dweight, "w1": mlp.dw1, "w2": mlp.dw2}

    def load(self, saved):
        """The share of the rows that each expert got."""
        sizes = self.xp.host(saved[3].group_sizes)
        return sizes / max(sizes.sum(), 1)

    def rows(self, saved):
        """How many rows went through an expert."""
        return int(self.xp.host(saved[3].group_offsets)[-1])


class Dense:
    """One SwiGLU MLP of the same active parameters: an expert that every token goes to, with no router."""

    def __init__(self, ctx, xp, rng, hidden, width):
        self.ctx, self.xp = ctx, xp
        self.weights = {
            "w1": xp.array(normal(rng, 1, 2 * width, hidden, scale=hidden**-0.5)),
            "w2": xp.array(normal(rng, 1, hidden, width, scale=width**-0.5)),
        }

    def forward(self, x, training=True):
        w, rows = self.weights, {"input_layout": libmoe.LAYOUT_ROWS, "output_layout": libmoe.LAYOUT_ROWS}
        plan = libmoe.Plan(self.xp.array(np.array([0, x.shape[0]])), rows_max=x.shape[0])
        y, h = libmoe.expert_mlp_fwd(self.ctx, plan, x, w["w1"], w["w2"], h=training, **rows)
        return y, (x, plan, h, rows)

    def backward(self, dy, saved):
        x, plan, h, rows = saved
        w = self.weights
        grads = libmoe.expert_mlp_bwd(self.ctx, plan, dy, x, w["w1"], w["w2"], h, dh=h, **rows)
        return grads.dx, {"w1": grads.dw1, "w2": grads.dw2}


def normal(rng, *shape, scale):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def error_against_float64(moe, x):
    """The largest difference of a layer call from float64, relative to the largest output, and the largest one among
    the gradients likewise. Loops over tokens and experts, and takes nothing from libmoe but the choice of experts."""
    xp = moe.xp
    y, saved = moe.forward(x)
    dy = xp.array(np.random.default_rng(0).standard_normal(tuple(x.shape)).astype(np.float32))
    ids, h_saved = xp.host(saved[2].ids), saved
    losses, moe.losses = moe.losses, {**moe.losses, "aux_loss_coeff": 0.0, "z_loss_coeff": 0.0}
    dx, grads = moe.backward(dy, h_saved)
    moe.losses = losses
    x, dy, gate, w1, w2 = (xp.host(a).astype(np.float64) for a in (x, dy, *(moe.weights[n] for n in ("gate", "w1", "w2"))))
    logits = x @ gate.T
    chosen = np.exp(np.take_along_axis(logits, ids, 1))
    weights = chosen / chosen.sum(1, keepdims=True)
    y64, dx64, dlogits = np.zeros_like(x), np.zeros_like(x), np.zeros_like(logits)
    grads64 = {"gate": np.zeros_like(gate), "w1": np.zeros_like(w1), "w2": np.zeros_like(w2)}
    width = w2.shape[2]
    dweights = np.zeros_like(weights)
    for e in range(moe.experts):
        t, k = np.nonzero(ids == e)
        h = x[t] @ w1[e].T
        g, up = h[:, :width], h[:, width:]
        sigmoid = 1 / (1 + np.exp(-g))
        act = g * sigmoid * up
        out = act @ w2[e].T
        scaled = weights[t, k][:, None]
        np.add.at(y64, t, scaled * out)
        dweights[t, k] = (dy[t] * out).sum(1)
        dact = (scaled * dy[t]) @ w2[e]
        dh = np.concatenate([dact * up * sigmoid * (1 + g * (1 - sigmoid)), dact * g * sigmoid], axis=1)
        grads64["w1"][e], grads64["w2"][e] = dh.T @ x[t], (scaled * dy[t]).T @ act
        np.add.at(dx64, t, dh @ w1[e])
    np.put_along_axis(dlogits, ids, weights * (dweights - (weights * dweights).sum(1, keepdims=True)), 1)
    grads64["gate"], dx64 = dlogits.T @ x, dx64 + dlogits @ gate

    def off(ours, reference):
        return float(np.abs(xp.host(ours) - reference).max() / np.abs(reference).max())

    return off(y, y64), max(off(dx, dx64), *(off(grads[name], grads64[name]) for name in grads64))
