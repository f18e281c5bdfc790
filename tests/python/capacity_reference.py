"""Capacity and dropping as a queue: slots come one by one in the policy's order, and an expert takes them until it is full."""

import math
from fractions import Fraction

import numpy as np

import libmoe
from philox_reference import philox, uniform

EPSILON = {"fp64": 2.0**-52, "fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}


def capacity(formula, tokens, experts, top_k, factor=1.0, explicit=0, least=0):
    """The formulas; each operation rounded to double, in the order in which it is written."""
    if formula == libmoe.CAPACITY_MEGATRON:
        return min(max(math.ceil(tokens * top_k / experts * factor), least), tokens)
    if formula == libmoe.CAPACITY_DEEPSPEED:
        return max(math.ceil(tokens / experts * factor * top_k), least)
    if formula == libmoe.CAPACITY_MEGABLOCKS:
        return math.floor(tokens * top_k / experts * factor)
    if formula == libmoe.CAPACITY_NLLB:
        return 2 * math.ceil(Fraction(tokens, experts))
    if formula == libmoe.CAPACITY_TOKEN_FRACTION:
        return math.ceil(factor * tokens)
    return explicit


def softmax(logits):
    logits = np.where(np.isnan(logits), -np.inf, logits)
    terms = np.exp(logits - np.maximum(logits.max(1, keepdims=True), -1e300))
    return terms / np.maximum(terms.sum(1, keepdims=True), 1e-300)


def sample_second(ids, weights, logits, random, bound):
    """ids and weights with the second expert drawn anew."""
    seed, offset = random
    experts = logits.shape[1]
    ids, weights = ids.copy(), weights.copy()
    scores = softmax(logits)
    noise = uniform(seed, offset, bound * 2 + len(ids) * experts)[bound * 2:].reshape(len(ids), experts)
    for token in range(len(ids)):
        best = -1
        for expert in range(experts):
            if expert != ids[token, 0]:
                value = logits[token, expert] - np.log(-np.log(noise[token, expert]))
                value = -np.inf if np.isnan(value) else value
                if best < 0 or value > best_value:
                    best, best_value = expert, value
        ids[token, 1], weights[token, 1] = best, scores[token, best]
    return ids, weights


def drop(ids, weights, limit, experts, policy=libmoe.DROP_BY_PROBS, second=libmoe.SECOND_EXPERT_ALL,
         renormalize=libmoe.DROP_KEEP_WEIGHTS, random=(0, 0), real=None, bound=None, epsilon=2.0**-23):
    """Kept ids, kept weights, tokens an expert, drops an expert. Any rows, such as sampled ones, of distinct experts."""
    tokens, top_k = ids.shape
    seed, offset = random
    valid = (ids >= 0) & (ids < experts)
    bits = philox(seed, offset, tokens * top_k).reshape(tokens, top_k)
    candidates = []
    for t in range(tokens):
        for k in range(top_k):
            if valid[t, k] and (real is None or real[t]):
                candidates.append((t, k))
    if second == libmoe.SECOND_EXPERT_RANDOM:
        start = (tokens if bound is None else bound) * 2
        draws = uniform(seed, offset, start + tokens)[start:]
        candidates = [(t, k) for t, k in candidates if k == 0 or np.float32(2) * np.float32(weights[t, 1]) > draws[t]]
    comparable = np.where(np.isnan(weights), -np.inf, weights)
    importance = np.where(valid, comparable, -np.inf).max(1)
    order = {
        libmoe.DROP_BY_PROBS: lambda s: (-comparable[s], s),
        libmoe.DROP_BY_POSITION: lambda s: s,
        libmoe.DROP_RANDOM: lambda s: (-int(bits[s]), s),
        libmoe.DROP_BATCH_PRIORITIZED: lambda s: (s[1], -importance[s[0]], s[0]),
        libmoe.DROP_BY_CHOICE: lambda s: (s[1], s[0]),
    }[policy]
    kept, taken, dropped = np.zeros((tokens, top_k), bool), np.zeros(experts, int), np.zeros(experts, int)
    for slot in sorted(candidates, key=order):
        expert = ids[slot]
        if taken[expert] < limit:
            taken[expert] += 1
            kept[slot] = True
        else:
            dropped[expert] += 1
    return np.where(kept, ids, -1), renormalized(weights, valid, kept, second, renormalize, epsilon), taken, dropped


def renormalized(weights, valid, kept, second, renormalize, epsilon):
    """The weights of kept slots, 0 elsewhere; of any numbers, also complex ones."""
    divided = weights
    if renormalize != libmoe.DROP_KEEP_WEIGHTS:
        summed = valid if renormalize == libmoe.DROP_RENORMALIZE_BEFORE else kept
        sums = np.where(summed, weights, 0).sum(1, keepdims=True)
        divided = weights / np.where(sums.real >= epsilon, sums, epsilon)
        if renormalize == libmoe.DROP_RENORMALIZE_BEFORE and second == libmoe.SECOND_EXPERT_RANDOM:
            divided[:, 1] = weights[:, 1]
    return np.where(kept, divided, 0)
