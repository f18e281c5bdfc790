"""moe_router_loss_fwd and _bwd against float64 references."""

import itertools

import numpy as np
import pytest

import harness
import libmoe
import router_reference as reference
from harness import array, assert_close, host, poisoned, report, report_fields, rounded
from test_router import shared_inputs

CONVENTIONS = ["megatron", "transformers", "deepspeed", "megablocks"]
SCOPES = [("batch", "major"), ("sequence", "major"), ("sequence", "minor"), ("sequence", "offsets"), ("global", "major")]


def problem(rng, tokens, experts, top_k, **more):
    case = dict(
        num_tokens=tokens, num_experts=experts, top_k=top_k, logits="fp32", score="softmax", math="default",
        aux_loss="megatron", aux_scope="batch", sequence_layout="major", num_sequences=3, num_layers=4,
        aux_loss_coeff=0.5, z_loss=True, z_loss_coeff=0.25, count=None, values="randn",
    )
    case.update(more)
    true = tokens if case["count"] is None else int(rng.integers(tokens // 2, tokens + 1))
    logits = rounded(rng.normal(size=(tokens, experts)) * 2, case["logits"])
    return dict(
        case=case, logits=logits, true=true, offsets=np.array([1, tokens // 3, tokens // 2, tokens - 1]),
        mask=(rng.random(tokens) < 0.7).astype(np.uint8) if rng.random() < 0.5 else None,
        ids=harness.sentinel_ids(rng, tokens, experts, top_k) if rng.random() < 0.5 else None,
        global_counts=rounded(rng.random(experts) * 50, "fp32"),
        global_tokens=float(rng.integers(20, 90)) if rng.random() < 0.5 else None,
    )


def description(case):
    names = {"score": "SCORE", "math": "MATH", "aux_loss": "AUX_LOSS", "aux_scope": "AUX_SCOPE", "sequence_layout": "SEQUENCE"}
    desc = {name: getattr(libmoe, f"{prefix}_{case[name].upper()}") for name, prefix in names.items()}
    desc["score_function"] = desc.pop("score")
    desc["logits_dtype"] = case["logits"]
    plain = ("num_tokens", "num_experts", "top_k", "num_sequences", "num_layers", "aux_loss_coeff", "z_loss_coeff")
    return {**desc, **{name: case[name] for name in plain}, "z_loss": int(case["z_loss"])}


def run(ctx, guarded, rng, p):
    case, true = p["case"], p["true"]
    tokens, experts = case["num_tokens"], case["num_experts"]
    tail = p["logits"].copy()
    tail[true:] = np.nan
    sequences = case["num_sequences"] if case["aux_scope"] == "sequence" else 1
    counts, aux, z = guarded((sequences, experts), "int64"), guarded(1, "fp32"), guarded(1, "fp32")
    said = report()
    inputs = {"logits": array(tail, case["logits"]), "report": said, **shared_inputs(p)}
    ctx.run("router_loss_fwd", description(case), {
        **inputs, "ids": None if p["ids"] is None else array(p["ids"], "int32"), "aux_counts": counts, "aux_loss": aux,
        "z_loss": z,
    })
    rows = reference.clean(p["logits"][:true])
    losses = reference.Losses(case, rows, tokens, p["mask"], p["offsets"], p["global_counts"], p["global_tokens"], p["ids"])
    if case["aux_loss"] != "off":
        assert np.array_equal(host(counts), losses.counts)
        assert_close(aux, [losses.total(losses.aux_of_token)], "fp32", "aux loss", factor=2)
    else:
        assert poisoned(counts).all() and poisoned(aux).all()
    if case["z_loss"]:
        assert_close(z, [losses.total(losses.z_of_token)], "fp32", "z-loss", factor=2)
    assert report_fields(said)[0] == libmoe.FAULT_NONE
    if case["aux_loss"] == "off" and not case["z_loss"]:
        return
    grads = rounded(rng.normal(size=2), "fp32")
    dlogits = guarded((tokens, experts), case["logits"], pitch=experts + 1)
    ctx.run("router_loss_bwd", description(case), {
        **inputs, "dlogits": dlogits, "aux_counts": counts, "aux_loss_grad": array(grads[:1], "fp32"),
        "z_loss_grad": array(grads[1:], "fp32"),
    })
    want = np.array([
        reference.gradient(lambda row: grads[0] * losses.aux_of_token(t, row) + grads[1] * losses.z_of_token(t, row), rows[t])
        for t in range(true)
    ]).reshape(true, experts)
    kind = "fp32" if case["logits"] == "fp64" else case["logits"]
    if kind == "fp16":
        # Small gradients: below 6e-5 fp16 has steps of 6e-8, whatever the value.
        assert np.abs(host(dlogits[:true]) - want).max(initial=0) <= 1e-7 + 8e-3 * np.abs(want).max(initial=0)
    else:
        assert_close(dlogits[:true], want, kind, "dlogits", factor=4)
    assert poisoned(dlogits[true:]).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("scope, layout", SCOPES)
def test_conventions_and_scopes(ctx, guarded, rng, convention, scope, layout):
    for score, z in itertools.product(["softmax", "sigmoid", "sqrtsoftplus"], [False, True]):
        dtypes = ["fp32", "bf16", "fp16"] + (["fp64"] if harness.on_cpu() else [])
        run(ctx, guarded, rng, problem(
            rng, 21, int(rng.choice([5, 8, 33])), int(rng.choice([1, 2, 4])), aux_loss=convention, aux_scope=scope,
            sequence_layout=layout, score=score, z_loss=z, logits=str(rng.choice(dtypes)),
            count=rng.choice([None, "int64"]),
        ))


def test_z_alone_needs_no_top_k(ctx, guarded, rng):
    run(ctx, guarded, rng, {**problem(rng, 9, 8, 0, aux_loss="off"), "ids": None})


def test_layers_concatenated(ctx, guarded, rng):
    """As Transformers: the logits of all layers in one matrix, the mask repeated."""
    p = problem(rng, 4 * 12, 8, 2, aux_loss="transformers")
    p["mask"] = np.tile((rng.random(12) < 0.6).astype(np.uint8), 4)
    run(ctx, guarded, rng, p)


@pytest.mark.parametrize("sequences", [1, 64, 4096])
def test_many_sequences(ctx, rng, sequences):
    tokens, experts, top_k = 4096, 16, 2
    p = problem(rng, tokens, experts, top_k, aux_scope="sequence", num_sequences=sequences, z_loss=False)
    case = p["case"]
    counts, aux = harness.empty((sequences, experts), "int64"), harness.empty(1, "fp32")
    ctx.run("router_loss_fwd", description(case), {"logits": array(p["logits"], "fp32"), "aux_counts": counts, "aux_loss": aux})
    s = np.exp(p["logits"])
    s /= s.sum(axis=1, keepdims=True)
    chosen = np.argsort(-p["logits"], axis=1, kind="stable")[:, :top_k]
    n = np.zeros((tokens, experts))
    np.put_along_axis(n, chosen, 1, axis=1)
    n, s = n.reshape(sequences, -1, experts).sum(axis=1), s.reshape(sequences, -1, experts).sum(axis=1)
    assert np.array_equal(host(counts), n)
    length = tokens / sequences
    assert_close(aux, [0.5 * experts / top_k * (s * n).sum(axis=1).mean() / length**2], "fp32")


def test_uniform_scores_cost_the_coefficient(ctx):
    tokens, experts, top_k = 64, 8, 2
    logits = np.zeros((tokens, experts))
    ids = (np.arange(tokens)[:, None] * top_k + np.arange(top_k)) % experts
    for convention, expected in [("megatron", 0.5), ("transformers", 1.0), ("deepspeed", 0.5), ("megablocks", 0.125)]:
        p = problem(np.random.default_rng(0), tokens, experts, top_k, aux_loss=convention, z_loss=False)
        aux = harness.empty(1, "fp32")
        ctx.run("router_loss_fwd", description(p["case"]), {
            "logits": array(logits, "fp32"), "ids": array(ids, "int64"), "aux_loss": aux,
        })
        assert_close(aux, [expected], "fp32", convention)


@pytest.mark.parametrize("change, words", [
    ({"aux_loss_coeff": float("inf")}, "aux_loss_coeff"), ({"z_loss_coeff": float("nan")}, "z_loss_coeff"),
    ({"num_sequences": 4}, "num_sequences"), ({"num_sequences": 0}, "num_sequences"), ({"aux_loss": 5}, "aux_loss"),
    ({"top_k": 9}, "top_k"), ({"top_k": 0}, "top_k"), ({"aux_scope": -1}, "aux_scope"), ({"num_layers": -1}, "num_layers"),
    ({"z_loss": 7}, "z_loss"), ({"score_function": 3}, "score_function"), ({"math": libmoe.MATH_TF32}, "math"),
    ({"aux_scope": libmoe.AUX_SCOPE_GLOBAL}, "global_tokens_per_expert"),
    ({"sequence_layout": libmoe.SEQUENCE_OFFSETS}, "sequence_offsets"),
])
def test_bad_descriptions(ctx, rng, change, words):
    p = problem(rng, 9, 8, 2, aux_scope="sequence")
    aux = harness.empty(1, "fp32")
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("router_loss_fwd", {**description(p["case"]), **change}, {"logits": array(p["logits"], "fp32"), "aux_loss": aux})
    assert poisoned(aux).all()


def test_backward_needs_a_loss_and_its_counts(ctx, rng):
    p = problem(rng, 9, 8, 2)
    args = {"logits": array(p["logits"], "fp32"), "dlogits": harness.empty((9, 8), "fp32")}
    with pytest.raises(libmoe.InvalidArgument, match="aux_counts"):
        ctx.run("router_loss_bwd", description(p["case"]), args)
    with pytest.raises(libmoe.InvalidArgument, match="gradient is zero"):
        ctx.run("router_loss_bwd", {**description(p["case"]), "aux_loss": 0, "z_loss": 0}, args)


def test_offsets_that_go_down(ctx, rng):
    """Reported, and never followed out of the tokens."""
    p = problem(rng, 12, 4, 2, aux_scope="sequence", sequence_layout="offsets", num_sequences=3, z_loss=False)
    said, aux = report(), harness.empty(1, "fp32")
    counts = harness.empty((3, 4), "int64")
    ctx.run("router_loss_fwd", description(p["case"]), {
        "logits": array(p["logits"], "fp32"), "aux_loss": aux, "aux_counts": counts, "report": said,
        "sequence_offsets": array(np.array([0, 1 << 40, -5, 6]), "int64"),
    })
    assert report_fields(said)[0] == libmoe.FAULT_GROUP_OFFSET
    assert (host(counts) >= 0).all() and (host(counts).sum(axis=1) <= 24).all()
    ctx.run("router_loss_bwd", description(p["case"]), {
        "logits": array(p["logits"], "fp32"), "aux_counts": counts, "dlogits": harness.empty((12, 4), "fp32"),
        "sequence_offsets": array(np.array([0, 1 << 40, -5, 6]), "int64"),
    })
