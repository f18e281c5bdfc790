"""moe_router_fwd and _bwd against float64 references, over all pairs of their options."""

import itertools

import numpy as np
import pytest

import harness
import libmoe
import router_reference as reference
from harness import array, assert_close, empty, host, poisoned, report, report_fields, rounded, zeros

SIZES = [
    # tokens, experts, top_k, groups, kept groups
    (33, 8, 2, 4, 2), (18, 64, 8, 8, 4), (6, 128, 8, 8, 4), (1, 16, 4, 4, 2), (7, 6, 6, 1, 1), (12, 48, 6, 3, 2),
    (5, 256, 8, 8, 4), (2, 1024, 64, 16, 8), (15, 40, 1, 5, 1), (12, 33, 5, 11, 5), (0, 8, 2, 2, 1), (8, 2, 2, 2, 2),
]
FACTORS = {
    "size": SIZES,
    "logits": ["fp32", "fp16", "bf16", "fp64"],
    "out": ["fp32", "fp16", "bf16", "fp64"],
    "math": ["default", "fp64"],
    "values": ["randn", "ties", "holes", "large"],
    "score": ["softmax", "sigmoid", "sqrtsoftplus"],
    "order": ["before", "after"],
    "renormalize": [False, True],
    "scaling_factor": [0.0, 2.5],
    "bias": [None, "score", "logit"],
    "groups": [None, "topk_sum", "top2_sum", "max"],
    "selection": ["topk", "given", "balanced"],
    "ids": ["int32", "int64"],
    "mask": [False, True],
    "count": [None, "int32", "int64"],
    "aux_loss": ["off", "megatron", "transformers", "deepspeed", "megablocks"],
    "aux_scope": ["batch", "sequence", "global"],
    "sequence_layout": ["major", "minor", "offsets"],
    "z_loss": [False, True],
    "dense_grad": [False, True],
    "mode": ["overwrite", "add", "device"],
}


def pairs(values):
    return set(itertools.combinations(enumerate(values), 2))


def all_pairs(rng):
    """Cases that together hold every pair of values of any two factors."""
    names, levels = list(FACTORS), list(FACTORS.values())
    places = [range(len(level)) for level in levels]
    missing = {((a, i), (b, j)) for a, b in itertools.combinations(range(len(names)), 2)
               for i in places[a] for j in places[b]}
    while missing:
        (a, i), (b, j) = min(missing)
        tries = []
        for _ in range(20):
            case = [int(rng.integers(len(level))) for level in levels]
            case[a], case[b] = i, j
            tries.append((len(missing & pairs(case)), case))
        case = max(tries)[1]
        missing -= pairs(case)
        yield {name: level[i] for name, level, i in zip(names, levels, case)}


def draw_logits(rng, case, bias):
    """Logits that the dtype holds exactly, and on which no choice hangs on a rounding."""
    tokens, experts = case["num_tokens"], case["num_experts"]
    dtype = case["logits"]

    def draw(shape):
        x = rng.normal(size=shape) * {"large": 3000.0}.get(case["values"], 2.0)
        if case["values"] == "large":
            # Scores are as saturated in float64 as in fp32: what only one of them tells from 1 is no tie there.
            x += np.copysign(100.0, x)
        if case["values"] == "ties":
            x = np.round(x)
        x = rounded(x, dtype)
        if case["values"] == "holes":
            x[rng.random(shape) < 0.15] = -np.inf
            x[rng.random(shape) < 0.05] = np.nan
            if rng.random() < 0.1:
                x[:] = -np.inf
        return x

    logits = np.array([draw(experts) for _ in range(tokens)]).reshape(tokens, experts)
    for t in range(tokens):
        for _ in range(200):
            scale = 1 if case["values"] != "large" else 1e4
            if reference.choose(case, reference.clean(logits[t]), bias)[1] > 1e-5 * scale:
                break
            logits[t] = draw(experts)
    return logits


def build(rng, chosen):
    """A complete problem: case, description, inputs."""
    case = dict(chosen)
    tokens, experts, top_k, groups, kept = case["size"]
    case.update(num_tokens=tokens, num_experts=experts, top_k=top_k, num_groups=0, top_groups=0, group_score="max")
    if case["groups"]:
        case.update(num_groups=groups, top_groups=kept, group_score=case["groups"])
        if case["groups"] == "topk_sum" and (top_k % kept or top_k // kept > experts // groups):
            case.update(top_groups=1 if top_k <= experts // groups else groups, num_groups=groups)
            if top_k % case["top_groups"]:
                case.update(num_groups=1, top_groups=1)
    case["bias_target"] = case["bias"] or "score"
    case["num_layers"], case["aux_loss_coeff"], case["z_loss_coeff"] = 3, 0.7, 0.3
    divisors = [n for n in range(1, tokens + 1) if tokens % n == 0] or [1]
    case["num_sequences"] = int(rng.choice(divisors[:4]))
    if not harness.on_cpu():
        case["logits"], case["out"] = (("fp32" if d == "fp64" else d) for d in (case["logits"], case["out"]))
    bias = rounded(rng.normal(size=experts), "fp32") if case["bias"] else None
    logits = draw_logits(rng, case, bias)
    true = tokens if case["count"] is None else int(rng.integers(0, tokens + 1))
    offsets = np.sort(rng.integers(0, tokens + 1, case["num_sequences"] + 1))
    return dict(
        case=case, logits=logits, bias=bias, true=true, offsets=offsets,
        given=harness.sentinel_ids(rng, tokens, experts, top_k),
        mask=(rng.random(tokens) < 0.8).astype(np.uint8) if case["mask"] else None,
        global_counts=rounded(rng.random(experts) * 50, "fp32"),
        global_tokens=float(rng.integers(20, 90)) if rng.random() < 0.5 else None,
    )


def description(case):
    def constant(prefix, word):
        return getattr(libmoe, f"{prefix}_{word.upper()}")

    return {
        "logits_dtype": case["logits"], "num_tokens": case["num_tokens"], "num_experts": case["num_experts"],
        "top_k": case["top_k"], "score_function": constant("SCORE", case["score"]),
        "softmax_order": constant("SOFTMAX", case["order"] + "_TOPK"), "renormalize": int(case["renormalize"]),
        "math": constant("MATH", case["math"]), "scaling_factor": case["scaling_factor"],
        "selection": constant("SELECT", case["selection"]),
        "selection_bias_target": constant("BIAS_ON", case["bias_target"]), "num_groups": case["num_groups"],
        "top_groups": case["top_groups"], "group_score": constant("GROUP_SCORE", case["group_score"]),
        "aux_loss": constant("AUX_LOSS", case["aux_loss"]), "aux_scope": constant("AUX_SCOPE", case["aux_scope"]),
        "sequence_layout": constant("SEQUENCE", case["sequence_layout"]), "num_sequences": case["num_sequences"],
        "num_layers": case["num_layers"], "aux_loss_coeff": case["aux_loss_coeff"], "z_loss": int(case["z_loss"]),
        "z_loss_coeff": case["z_loss_coeff"],
    }


def shared_inputs(p):
    case = p["case"]
    inputs = {"num_tokens": None if case["count"] is None else array(np.array([p["true"]]), case["count"])}
    inputs["padding_mask"] = None if p["mask"] is None else array(p["mask"], "uint8")
    if case["sequence_layout"] == "offsets":
        inputs["sequence_offsets"] = array(p["offsets"], "int64")
    if case["aux_scope"] == "global":
        inputs["global_tokens_per_expert"] = array(p["global_counts"], "fp32")
        if p["global_tokens"] is not None:
            inputs["global_num_tokens"] = array(np.array([p["global_tokens"]]), "fp32")
    return inputs


def pitched(guarded, shape, dtype, rng):
    return guarded(shape, dtype, pitch=shape[1] + int(rng.integers(0, 3)))


def forward(ctx, guarded, rng, p):
    case = p["case"]
    tokens, experts, top_k = case["num_tokens"], case["num_experts"], case["top_k"]
    sequences = case["num_sequences"] if case["aux_scope"] == "sequence" else 1
    poisoned_tail = p["logits"].copy()
    poisoned_tail[p["true"]:] = np.nan
    out = {
        "ids": pitched(guarded, (tokens, top_k), case["ids"], rng),
        "weights": pitched(guarded, (tokens, top_k), case["out"], rng),
        "weights_dense": pitched(guarded, (tokens, experts), case["out"], rng),
        "byte_mask": pitched(guarded, (tokens, experts), "uint8", rng),
        "bit_mask": pitched(guarded, (tokens, -(-experts // 32)), "uint32", rng),
        "tokens_per_expert": guarded(experts, "int64"),
        "aux_counts": guarded((sequences, experts), "int64"),
        "aux_loss": guarded(1, "fp32"),
        "z_loss": guarded(1, "fp32"),
    }
    inputs = {"logits": array(poisoned_tail, case["logits"]), "report": report(), "random": (1234, 5)}
    if case["selection"] == "given":
        inputs["given_ids"] = array(p["given"], case["ids"])
    if p["bias"] is not None:
        inputs["selection_bias"] = array(p["bias"], "fp32")
    ctx.run("router_fwd", description(case), {**inputs, **out, **shared_inputs(p)})
    return out, inputs


def expected_ids(p, out):
    case, true = p["case"], p["true"]
    if case["selection"] == "given":
        return np.where((p["given"] < 0) | (p["given"] >= case["num_experts"]), -1, p["given"])[:true]
    if case["selection"] == "balanced":
        # Which ones is tested apart.
        return host(out["ids"])[:true]
    rows = reference.clean(p["logits"][:true])
    return np.array([reference.choose(case, row, p["bias"])[0] for row in rows], int).reshape(true, case["top_k"])


def tolerance(case):
    # fp32 scores of logits in the thousands keep only some digits of their differences; fp32 counts for all else.
    return case["out"] if case["out"] in ("fp16", "bf16") else "fp32" if case["math"] == "default" else case["out"]


def check_forward(p, out):
    case, true = p["case"], p["true"]
    logits = reference.clean(p["logits"][:true])
    ids = expected_ids(p, out)
    assert np.array_equal(host(out["ids"])[:true], ids)
    assert all(poisoned(out[name][true:]).all() for name in ("ids", "weights", "weights_dense", "byte_mask", "bit_mask"))
    weights = np.array([reference.weights(case, row, chosen) for row, chosen in zip(logits, ids)]).reshape(ids.shape)
    dense = np.zeros((true, case["num_experts"]))
    chosen = np.zeros(dense.shape, int)
    for t, k in zip(*np.nonzero(ids >= 0)):
        dense[t, ids[t, k]] += weights[t, k]
        chosen[t, ids[t, k]] = 1
    kind = tolerance(case)
    # Scores of large negative logits are below what any type holds.
    floor = 1 if case["values"] == "large" else 0
    assert_close(host(out["weights"])[:true] + floor, weights + floor, kind, "weights", factor=2)
    assert_close(host(out["weights_dense"])[:true] + floor, dense + floor, kind, "dense weights", factor=2)
    assert np.array_equal(host(out["byte_mask"])[:true], chosen)
    words = host(out["bit_mask"])[:true]
    assert np.array_equal(words[:, np.arange(case["num_experts"]) // 32] >> (np.arange(case["num_experts"]) % 32) & 1, chosen)
    real = np.ones(true, bool) if p["mask"] is None else p["mask"][:true] != 0
    per_expert = np.bincount(ids[real][ids[real] >= 0], minlength=case["num_experts"])
    assert np.array_equal(host(out["tokens_per_expert"]), per_expert)
    losses = reference_losses(p)
    if case["aux_loss"] != "off":
        assert np.array_equal(host(out["aux_counts"]), losses.counts)
        assert_close(out["aux_loss"], [losses.total(losses.aux_of_token)], "fp32", "aux loss", factor=2)
    if case["z_loss"]:
        assert_close(out["z_loss"], [losses.total(losses.z_of_token)], "fp32", "z-loss", factor=2)


def reference_losses(p):
    case = p["case"]
    logits = reference.clean(p["logits"][:p["true"]])
    return reference.Losses(case, logits, case["num_tokens"], p["mask"], p["offsets"], p["global_counts"], p["global_tokens"])


def check_report(p, inputs):
    what, place, _ = report_fields(inputs["report"])
    nan = np.flatnonzero(np.isnan(p["logits"][:p["true"]]))
    assert (what == libmoe.FAULT_NAN_LOGIT and place in nan) if len(nan) else what == libmoe.FAULT_NONE


def refused(case):
    """Whether backward has no gradient to give."""
    constant = case["score"] == "softmax" and (case["order"] == "after" or case["renormalize"])
    return case["top_k"] == 1 and constant


def backward(ctx, guarded, rng, p, out):
    case, true = p["case"], p["true"]
    shape = (case["num_tokens"], case["num_experts"])
    dense = case["dense_grad"]
    dweights = rounded(rng.normal(size=shape if dense else (shape[0], case["top_k"])), case["out"])
    dlogits = pitched(guarded, shape, case["logits"], rng)
    before = rounded(rng.normal(size=shape), case["logits"])
    mode, add = {"overwrite": ("overwrite", False), "add": ("add", True), "device": (None, bool(rng.integers(2)))}[case["mode"]]
    dlogits[:true] = array(before[:true], case["logits"])
    grads = rounded(rng.normal(size=2), "fp32")
    tail = p["logits"].copy()
    tail[true:] = np.nan
    args = {
        "logits": array(tail, case["logits"]), "ids": out["ids"], "dlogits": dlogits,
        "dweights_dense" if dense else "dweights": array(dweights, case["out"]),
        "dlogits_mode": mode or array(np.array([3 * int(add)]), "int32"), "aux_counts": out["aux_counts"],
        "aux_loss_grad": array(grads[:1], "fp32"), "z_loss_grad": array(grads[1:], "fp32"), **shared_inputs(p),
    }
    ctx.run("router_bwd", description(case), args)
    rows, ids, losses = reference.clean(p["logits"][:true]), host(out["ids"])[:true], reference_losses(p)
    want = np.array([
        reference.gradient(lambda row: token_objective(case, row, t, ids[t], dweights[t], dense, losses, grads), rows[t])
        for t in range(true)
    ]).reshape(true, shape[1])
    assert poisoned(dlogits[true:]).all()
    got = host(dlogits[:true]) - (before[:true] if add else 0)
    kind = case["logits"] if case["logits"] in ("fp16", "bf16") else "fp32" if case["math"] == "default" else case["logits"]
    kind = "fp32" if kind == "fp64" else kind
    if case["values"] == "large" or np.abs(want).max(initial=0) < 1e-3:
        # Weights near 0 and 1, or no token with two choices: what is left of the gradient is below the rounding of
        # dweights, which are about 1.
        got, want = got + 1, want + 1
    # Sums are rounded where the old values are.
    factor = 2 if not add else 2 * (1 + np.abs(before).max(initial=0) / (np.abs(want).max(initial=0) or 1.0))
    assert_close(got, want, kind, "dlogits", factor=factor)


def token_objective(case, row, t, ids, dweights, dense, losses, grads):
    """What backward differentiates, of one token."""
    weights = reference.weights(case, row, ids)
    slope = np.array([0.0 if e < 0 else dweights[e] if dense else dweights[k] for k, e in enumerate(ids)])
    return (weights * slope).sum() + grads[0] * losses.aux_of_token(t, row) + grads[1] * losses.z_of_token(t, row)


def test_pairs_of_options(ctx, guarded, rng):
    cases = list(all_pairs(rng))
    for number, chosen in enumerate(cases):
        p = build(rng, chosen)
        try:
            out, inputs = forward(ctx, guarded, rng, p)
            check_forward(p, out)
            check_report(p, inputs)
            if refused(p["case"]):
                with pytest.raises(libmoe.InvalidArgument, match="always 1"):
                    backward(ctx, guarded, rng, p, out)
            else:
                backward(ctx, guarded, rng, p, out)
            guarded.check()
        except BaseException as error:
            error.add_note(f"case {number} of {len(cases)}: {p['case']}, true tokens {p['true']}")
            raise
