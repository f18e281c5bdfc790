"""A byte-level language model: the embeddings of the last bytes, one residual feed-forward layer, 256 logits.

Forward and backward by hand, in NumPy or torch through `arrays.Arrays`; Adam.
"""

import numpy as np

from layers import normal

CONTEXT, EMBEDDING = 16, 16
EPSILON = 1e-6


class Model:
    """logits = norm(x + layer(norm(x))) W_out, x = [embeddings of the CONTEXT bytes before] W_in."""

    def __init__(self, xp, rng, layer, hidden):
        self.xp, self.layer = xp, layer
        wide = CONTEXT * EMBEDDING
        self.weights = {
            "embedding": xp.array(normal(rng, 256, EMBEDDING, scale=1.0)),
            "w_in": xp.array(normal(rng, wide, hidden, scale=wide**-0.5)),
            "w_out": xp.array(normal(rng, hidden, 256, scale=0.5 * hidden**-0.5)),
        }

    def parameters(self):
        return {**self.weights, **{f"layer.{name}": w for name, w in self.layer.weights.items()}}

    def logits(self, contexts, training=False):
        w = self.weights
        embedded = w["embedding"][contexts].reshape(contexts.shape[0], -1)
        x = embedded @ w["w_in"]
        into, scale_in = self.norm(x)
        y, saved = self.layer.forward(into, training)
        out, scale_out = self.norm(x + y)
        return out @ w["w_out"], (embedded, into, scale_in, saved, out, scale_out)

    def loss(self, contexts, targets):
        """Mean bits a byte."""
        logits, _ = self.logits(contexts)
        return float(self.nats(logits, targets)[0] / np.log(2))

    def gradients(self, contexts, targets):
        """(mean bits a byte, gradients by the names of `parameters`, what the layer saved)."""
        w = self.weights
        logits, (embedded, into, scale_in, saved, out, scale_out) = self.logits(contexts, training=True)
        nats, dlogits = self.nats(logits, targets)
        dsum = self.norm_backward(dlogits @ w["w_out"].T, out, scale_out)
        dinto, layer = self.layer.backward(dsum, saved)
        dx = dsum + self.norm_backward(dinto, into, scale_in)
        dembedded = (dx @ w["w_in"].T).reshape(-1, EMBEDDING)
        grads = {"embedding": self.xp.sum_by(contexts.reshape(-1), dembedded, 256), "w_in": embedded.T @ dx,
                 "w_out": out.T @ dlogits}
        return float(nats / np.log(2)), {**grads, **{f"layer.{name}": g for name, g in layer.items()}}, saved

    def nats(self, logits, targets):
        """Mean cross-entropy and its gradient by the logits."""
        xp, tokens = self.xp, targets.shape[0]
        row = xp.range(tokens)
        shifted = logits - xp.amax(logits, -1)[:, None]
        probs = xp.exp(shifted)
        total = probs.sum(-1)
        nats = (xp.log(total) - shifted[row, targets]).sum() / tokens
        probs /= total[:, None]
        probs[row, targets] -= 1
        probs /= tokens
        return nats, probs

    def norm(self, x):
        """RMSNorm without a gain: y and the factor of each row."""
        scale = 1 / self.xp.sqrt((x * x).sum(-1) / x.shape[1] + EPSILON)
        return x * scale[:, None], scale

    def norm_backward(self, dy, y, scale):
        return (dy - y * ((dy * y).sum(-1) / y.shape[1])[:, None]) * scale[:, None]


class Adam:
    """Adam with a warm-up and a cosine to a tenth of the rate."""

    def __init__(self, xp, parameters, rate, steps):
        self.xp, self.parameters, self.rate, self.steps, self.step = xp, parameters, rate, steps, 0
        # The two moments and room to compute in.
        self.state = {name: [xp.zeros_like(w) for _ in range(3)] for name, w in parameters.items()}

    def update(self, gradients, beta1=0.9, beta2=0.99, warm_up=50):
        self.step += 1
        cosine = 0.55 + 0.45 * np.cos(np.pi * self.step / self.steps)
        rate = self.rate * min(1.0, self.step / warm_up) * cosine
        rate *= np.sqrt(1 - beta2**self.step) / (1 - beta1**self.step)
        for name, weight in self.parameters.items():
            gradient, (first, second, room) = gradients[name], self.state[name]
            first *= beta1
            first += self.xp.multiply(gradient, 1 - beta1, out=room)
            second *= beta2
            gradient *= gradient
            gradient *= 1 - beta2
            second += gradient
            self.xp.sqrt(second, out=room)
            room += 1e-8
            self.xp.divide(first, room, out=room)
            room *= rate
            weight -= room
