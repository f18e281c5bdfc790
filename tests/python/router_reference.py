"""Routers in float64, token by token, as SEMANTICS reads: no code shared with the library.

A case is a dict of the header's field names with words for its constants. Functions of a row of logits also take
complex rows, so that gradients come by complex steps, exact to rounding.
"""

import numpy as np

STEP = 1e-200


def softmax(row):
    present = row.real > -np.inf
    out = np.zeros_like(row)
    if present.any():
        out[present] = np.exp(row[present] - row[present].real.max())
        out /= out.sum()
    return out


def logsumexp(row):
    present = row[row.real > -np.inf]
    top = present.real.max()
    return top + np.log(np.exp(present - top).sum())


def log1p(x):
    """log(1 + x) to all digits, for complex numbers too."""
    return np.where(abs(x) < 1e-6, x - x * x / 2 + x**3 / 3, np.log(1 + x))


def sigmoid(row):
    out = np.zeros_like(row)
    present = row.real > -np.inf
    l = row[present]
    small = np.exp(np.where(l.real > 0, -l, l))
    out[present] = np.where(l.real > 0, 1, small) / (1 + small)
    return out


def sqrtsoftplus(row):
    out = np.zeros_like(row)
    present = row.real > -np.inf
    l = row[present]
    small = log1p(np.exp(np.where(l.real > 0, -l, l)))
    softplus = np.where(l.real > 0, l + small, small)
    # Where e^l leaves the digits of 1 + e^l, and before it underflows.
    tail = l.real < -30
    half = np.exp(np.where(tail, l, 0) / 2)
    out[present] = np.where(tail, half * (1 - half * half / 4), np.sqrt(softplus))
    return out


SCORES = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": sqrtsoftplus}


def clean(logits):
    """NaN counts as -inf."""
    logits = np.array(logits, np.float64)
    logits[np.isnan(logits)] = -np.inf
    return logits


def best(values, k, among=None):
    """The k largest, ties to the lower index, and the smallest difference that decided anything."""
    among = range(len(values)) if among is None else among
    order = sorted(among, key=lambda i: (-values[i], i))
    sorted_values = np.array([values[i] for i in order[:k + 1]])
    gaps = -np.diff(sorted_values[np.isfinite(sorted_values)])
    return order[:k], min(gaps[gaps > 0], default=np.inf)


def choose(case, row, bias=None):
    """A token's experts, best first, and the smallest margin at which they were chosen where rounding matters."""
    experts, k = case["num_experts"], case["top_k"]
    if not (row > -np.inf).any():
        return list(range(k)), np.inf
    raw = case["score"] == "softmax" and case["order"] == "after"
    if raw or (bias is not None and case["bias_target"] == "logit"):
        values = row
    else:
        values = SCORES[case["score"]](row)
    if bias is not None:
        values = values + bias
    keys, margin = (row if bias is None else values), np.inf
    among = range(experts)
    if case["num_groups"]:
        size = experts // case["num_groups"]
        terms = {"topk_sum": k // case["top_groups"], "top2_sum": min(2, size), "max": 1}[case["group_score"]]
        sums = [np.sort(group)[::-1][:terms].sum() for group in values.reshape(-1, size)]
        kept, margin = best(np.array(sums), case["top_groups"])
        among = [e for e in range(experts) if e // size in kept]
    ids, gap = best(keys, k, among)
    return ids, min(margin, gap) if bias is not None else margin


def weights(case, row, ids):
    """The weights of the slots `ids`; 0 in empty ones."""
    here = [0 <= e < len(row) for e in ids]
    if case["score"] == "softmax" and case["order"] == "after":
        s = softmax(np.array([row[e] if ok else -np.inf for e, ok in zip(ids, here)]))
    else:
        every = SCORES[case["score"]](row)
        s = np.array([every[e] if ok else 0 * every[0] for e, ok in zip(ids, here)])
        if case["renormalize"] and case["score"] == "softmax":
            # Shifted to the chosen, so that tiny scores do not vanish.
            s = softmax(np.array([row[e] if ok else -np.inf for e, ok in zip(ids, here)]))
        elif case["renormalize"] and case["top_k"] > 1:
            s = s / (s.sum() + 1e-20)
    return s * (case.get("scaling_factor") or 1)


def aux_scores(case, row):
    s = SCORES[case["score"]](row)
    return s if case["score"] == "softmax" else s / (s.sum() + 1e-20)


def sequence_of(case, token, tokens, offsets=None):
    if case["aux_scope"] != "sequence":
        return 0
    count = case["num_sequences"]
    if case["sequence_layout"] == "major":
        return token // (tokens // count)
    if case["sequence_layout"] == "minor":
        return token % count
    inside = [s for s in range(count) if offsets[s] <= token < offsets[s + 1]]
    return inside[0] if inside else None


class Losses:
    """The losses of a batch. `bound` is the description's num_tokens; logits hold the true tokens."""

    def __init__(self, case, logits, bound, mask=None, offsets=None, global_counts=None, global_tokens=None, ids=None):
        self.case, self.logits = case, logits
        tokens, experts = logits.shape
        sequences = case["num_sequences"] if case["aux_scope"] == "sequence" else 1
        self.real = np.ones(tokens, bool) if mask is None else np.asarray(mask[:tokens]) != 0
        self.sequence = [sequence_of(case, t, bound, offsets) for t in range(tokens)]
        self.counts = np.zeros((sequences, experts), np.int64)
        self.lengths = np.zeros(sequences)
        for t in np.flatnonzero(self.real):
            if self.sequence[t] is None:
                continue
            self.lengths[self.sequence[t]] += 1
            chosen = best(logits[t], case["top_k"])[0] if ids is None else ids[t]
            for e in chosen[:1] if case["aux_loss"] == "deepspeed" else chosen:
                if 0 <= e < experts:
                    self.counts[self.sequence[t], e] += 1
        self.n, self.length = self.counts.astype(float), self.lengths
        if case["aux_scope"] == "global":
            self.n = np.asarray(global_counts, float)[None]
            self.length = self.lengths if global_tokens is None else np.array([float(global_tokens)])
        k, e = case["top_k"], experts
        per = {"megatron": e / k if k else 0, "transformers": e, "deepspeed": e, "off": 0,
               "megablocks": e / ((k or 1) * (case.get("num_layers") or 1))}[case["aux_loss"]]
        self.factor = case["aux_loss_coeff"] * per / sequences

    def aux_of_token(self, t, row):
        """The part of the aux loss that is linear in a token's scores."""
        if self.case["aux_loss"] == "off" or not self.real[t] or self.sequence[t] is None:
            return 0.0
        s = self.sequence[t]
        return self.factor * (aux_scores(self.case, row) * self.n[s]).sum() / self.length[s] ** 2

    def z_of_token(self, t, row):
        if not self.case["z_loss"] or not self.real[t] or not (row.real > -np.inf).any():
            return 0.0
        return self.case["z_loss_coeff"] * logsumexp(row) ** 2 / self.real.sum()

    def total(self, of_token):
        return sum(of_token(t, row) for t, row in enumerate(self.logits))


def gradient(f, row):
    """df/drow by complex steps; 0 where the row is -inf."""
    out = np.zeros(len(row))
    for e in np.flatnonzero(row > -np.inf):
        stepped = row.astype(complex)
        stepped[e] += 1j * STEP
        out[e] = np.imag(f(stepped)) / STEP
    return out
