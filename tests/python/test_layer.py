"""libmoe.MoELayer: a whole layer on arrays, beside loops in fp64 and finite differences of them."""

import numpy as np
import pytest

import harness
import libmoe
from harness import array, host

T, D, F, E, K, G = 9, 6, 5, 4, 2, 3
SHARED = {"shared_w1": (2 * G, D), "shared_w2": (D, G)}
SETS = {
    "routed": {}, "biases": {"b1": (E, 2 * F), "b2": (E, D)}, "shared": SHARED,
    "gated shared": SHARED | {"shared_gate": (1, D)},
}


def drawn(rng, more):
    shapes = {"gate": (E, D), "w1": (E, 2 * F, D), "w2": (E, D, F)} | more
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def silu(v):
    return v / (1 + np.exp(-v))


def mlp(x, w1, w2):
    gate, up = np.split(x @ w1.T, 2, axis=-1)
    return silu(gate) * up @ w2.T


def reference(x, w):
    """softmax, top-k, renormalised; SwiGLU experts; shared experts for every token."""
    logits = x @ w["gate"].T
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.zeros_like(x)
    for t in range(len(x)):
        chosen = np.argsort(-scores[t], kind="stable")[:K]
        for e in chosen:
            h = w["w1"][e] @ x[t] + (w["b1"][e] if "b1" in w else 0)
            out = w["w2"][e] @ (silu(h[:F]) * h[F:]) + (w["b2"][e] if "b2" in w else 0)
            y[t] += scores[t, e] / scores[t, chosen].sum() * out
        if "shared_w1" in w:
            gate = 1 / (1 + np.exp(-(w["shared_gate"] @ x[t])[0])) if "shared_gate" in w else 1
            y[t] += gate * mlp(x[t], w["shared_w1"], w["shared_w2"])
    return y


def slope(function, arrays, name, dy, step=1e-6):
    """The gradient of sum(function * dy) with respect to arrays[name], by central differences."""
    grad = np.zeros_like(arrays[name])
    for place in np.ndindex(grad.shape):
        kept = arrays[name][place]
        values = []
        for value in (kept + step, kept - step):
            arrays[name][place] = value
            values.append((function() * dy).sum())
        arrays[name][place] = kept
        grad[place] = (values[0] - values[1]) / (2 * step)
    return grad


@pytest.mark.parametrize("kind", SETS)
def test_forward_and_backward(ctx, rng, kind):
    dtype, tolerance = ("fp64", 1e-6) if harness.on_cpu() else ("fp32", 5e-3)
    arrays = drawn(rng, SETS[kind]) | {"x": rng.standard_normal((T, D))}
    dy = rng.standard_normal((T, D))
    weights = {name: array(value, dtype) for name, value in arrays.items() if name != "x"}
    layer = libmoe.MoELayer(ctx, weights, K, router={"renormalize": 1})
    out = layer.forward(array(arrays["x"], dtype))
    expected = reference(arrays["x"], arrays)
    assert np.abs(host(out.y) - expected).max() < tolerance
    inference = layer.forward(array(arrays["x"], dtype), training=False)
    assert np.array_equal(host(inference.y), host(out.y)) and inference.saved is None
    # On the CPU the second stream is not taken notice of.
    side = libmoe.SideStream(0x10, 0xE0, 0xF0) if harness.on_cpu() else None
    assert np.array_equal(host(layer.forward(array(arrays["x"], dtype), side=side).y), host(out.y))
    dx, grads = layer.backward(array(dy, dtype), out.saved, side=side)
    assert set(grads) == set(weights)
    for name, ours in {"x": dx, **grads}.items():
        exact = slope(lambda: reference(arrays["x"], arrays), arrays, name, dy)
        assert np.abs(host(ours) - exact).max() < 10 * tolerance * max(1, np.abs(exact).max()), name


def test_losses(ctx, rng):
    weights = {name: array(value, "fp32") for name, value in drawn(rng, {}).items()}
    x, dy = array(rng.standard_normal((T, D)), "fp32"), array(np.zeros((T, D)), "fp32")
    layer = libmoe.MoELayer(ctx, weights, K, router={"z_loss": 1, "z_loss_coeff": 1.0, "aux_loss": libmoe.AUX_LOSS_MEGATRON,
                                                    "aux_loss_coeff": 1.0})
    out = layer.forward(x)
    logits = host(x) @ host(weights["gate"]).T
    assert abs(host(out.z_loss)[0] - (np.log(np.exp(logits).sum(1)) ** 2).mean()) < 1e-2 and host(out.aux_loss)[0] > 0
    zero = array(np.zeros(1), "fp32")
    _, grads = layer.backward(dy, out.saved, zero, zero)
    assert not host(grads["gate"]).any()
    _, grads = layer.backward(dy, layer.forward(x).saved)
    assert host(grads["gate"]).any()


def test_options_and_16_bits(ctx, rng):
    weights = {name: array(value, "bf16") for name, value in drawn(rng, SETS["gated shared"]).items()}
    layer = libmoe.MoELayer(ctx, weights, K, activation=libmoe.ACTIVATION_GEGLU_TANH)
    out = layer.forward(array(rng.standard_normal((T, D)), "bf16"))
    dx, grads = layer.backward(array(rng.standard_normal((T, D)), "bf16"), out.saved)
    assert all(np.isfinite(host(a)).all() for a in (out.y, dx, *grads.values()))


def test_weights_that_do_not_belong(ctx, rng):
    good = {name: array(value, "fp32") for name, value in drawn(rng, SHARED).items()}
    for change in ({"gate": None}, {"shared_w2": None}, {"w3": good["w2"]}):
        names = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(TypeError, match="it must have gate, w1, w2"):
            libmoe.MoELayer(ctx, names, K)
