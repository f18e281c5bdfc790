"""moe_router_logits_fwd and _bwd against float64."""

import numpy as np
import pytest

import harness
import libmoe
from harness import array, assert_close, bits, empty, host, poisoned, rounded
from philox_reference import uniform

SHAPES = [(5, 16, 8), (1, 7, 3), (130, 64, 24), (600, 40, 1), (9, 256, 256), (17, 33, 65), (0, 8, 4), (3, 2048, 128), (150, 64, 300)]
# Rows of 16 bytes and bf16 alone, which Hopper's own kernels take: around the edges of their tiles, of 64 to 256 experts, 128 tokens and
# up to 512 columns.
TILES = [
    (300, 136, 8), (513, 200, 40), (129, 64, 64), (260, 1032, 100), (700, 72, 128), (333, 520, 200), (64, 264, 256), (40, 2056, 16),
]
DTYPES = ["bf16", "fp16", "fp32", pytest.param("fp64", marks=pytest.mark.cpu)]


def problem(rng, shape, dtype, jitter=0.0, **more):
    tokens, hidden, experts = shape
    desc = {
        "dtype": dtype, "logits_dtype": dtype, "num_tokens": tokens, "hidden_size": hidden, "num_experts": experts,
        "jitter": int(jitter > 0), "jitter_eps": jitter, **more,
    }
    x = rounded(rng.normal(size=(tokens, hidden)), dtype)
    weight = rounded(rng.normal(size=(experts, hidden)) / np.sqrt(hidden), dtype)
    factor = np.ones(x.shape)
    if jitter:
        factor = 1 + jitter * (2 * uniform(99, 7, x.size).reshape(x.shape) - 1)
    return desc, x, weight, factor


def read_as(x, factor, dtype):
    """What the router reads: x after jitter, rounded."""
    return rounded(x * factor, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jitter", [0.0, 0.2])
@pytest.mark.parametrize("math", ["DEFAULT", "FP64"])
def test_forward_and_backward(ctx, guarded, rng, shape, dtype, jitter, math):
    check(ctx, guarded, rng, shape, dtype, dtype if rng.random() < 0.5 else "fp32", jitter, math)


@pytest.mark.parametrize("shape", TILES)
@pytest.mark.parametrize("logits_dtype", ["fp32", "bf16"])
def test_tiles(ctx, guarded, rng, shape, logits_dtype):
    check(ctx, guarded, rng, shape, "bf16", logits_dtype)


def check(ctx, guarded, rng, shape, dtype, logits_dtype, jitter=0.0, math="DEFAULT"):
    """Of a random number of the tokens, which the device alone knows."""
    desc, x, weight, factor = problem(rng, shape, dtype, jitter, math=getattr(libmoe, f"MATH_{math}"))
    desc["logits_dtype"] = logits_dtype
    tokens, hidden, experts = shape
    true = int(rng.integers(0, tokens + 1))
    x[true:] = np.nan
    count = array(np.array([true]), "int32")
    bias = rounded(rng.normal(size=experts), "fp32") if rng.random() < 0.5 else None
    common = {"num_tokens": count, "random": (99, 7)}
    logits = guarded((tokens, experts), logits_dtype, pitch=experts + int(rng.integers(0, 3)))
    jittered = guarded((tokens, hidden), dtype) if jitter else None
    ctx.run("router_logits_fwd", desc, {
        "x": array(x, dtype), "weight": array(weight, dtype), "logits": logits, "jittered_x": jittered,
        "bias": None if bias is None else array(bias, "fp32"), **common,
    })
    read = read_as(x, factor, dtype)[:true]
    narrow = lambda kind: "fp32" if kind == "fp64" and jitter else kind
    tolerance = narrow(logits_dtype if logits_dtype in ("bf16", "fp16") else "fp32" if dtype != "fp64" or logits_dtype == "fp32" else "fp64")
    # A jittered element may round the other way where fp32 and float64 differ.
    tolerance = dtype if jitter and dtype in ("bf16", "fp16") else tolerance
    assert_close(logits[:true], read @ weight.T + (0 if bias is None else bias), tolerance, "logits")
    assert poisoned(logits[true:]).all()
    if jitter:
        assert_close(jittered[:true], read, narrow(dtype), "jittered x")
        assert poisoned(jittered[true:]).all()

    dlogits = rounded(rng.normal(size=(tokens, experts)), logits_dtype)
    grad_dtype = "fp32" if dtype != "fp64" else "fp64"
    add = bool(rng.integers(2))
    outputs = {
        "dx": (guarded((tokens, hidden), dtype), dlogits @ weight * factor, dtype),
        "dweight": (guarded((experts, hidden), grad_dtype), dlogits[:true].T @ read, grad_dtype),
        "dbias": (guarded(experts, grad_dtype), dlogits[:true].sum(axis=0), grad_dtype),
    }
    wanted = {name: rng.random() < 0.8 for name in outputs}
    before = {}
    for name, (out, want, kind) in outputs.items():
        before[name] = rounded(rng.normal(size=want.shape), kind)
        rows = true if name == "dx" else len(want)
        out[:rows] = array(before[name][:rows], kind)
    tail = dlogits.copy()
    tail[true:] = np.nan
    ctx.run("router_logits_bwd", desc, {
        "dlogits": array(tail, logits_dtype), "x": array(x, dtype) if wanted["dweight"] else None,
        "weight": array(weight, dtype) if wanted["dx"] else None, **common,
        **{name: out for name, (out, _, _) in outputs.items() if wanted[name]},
        **{f"{name}_mode": "add" if add else "overwrite" for name in outputs},
    })
    assert poisoned(outputs["dx"][0][true:]).all()
    for name, (out, want, kind) in outputs.items():
        rows = true if name == "dx" else len(want)
        want = before[name] + (want if add else want - before[name]) if wanted[name] else before[name]
        assert_close(out[:rows], want[:rows], narrow(kind) if name != "dweight" or not jitter or dtype in ("fp32", "fp64") else dtype, name)


@pytest.mark.cpu
def test_fp64_accumulation_of_fp32(ctx, rng):
    desc, x, weight, _ = problem(rng, (4, 4096, 8), "fp32", math=libmoe.MATH_FP64)
    x[:, ::2] *= 1e6
    x[:, 1::2] = -x[:, ::2]
    weight[:, 1::2] = weight[:, ::2]
    logits = empty((4, 8), "fp32")
    x[:, 0] += 1
    ctx.run("router_logits_fwd", desc, {"x": array(x, "fp32"), "weight": array(weight, "fp32"), "logits": logits})
    assert_close(logits, rounded(x, "fp32") @ weight.T, "fp32", factor=0.1)


def test_repeats_to_the_bit(ctx, rng):
    desc, x, weight, _ = problem(rng, (300, 512, 32), "bf16", jitter=0.1)
    dlogits = array(rng.normal(size=(300, 32)), "bf16")
    runs = []
    for _ in range(3):
        logits, dx, dweight, dbias = empty((300, 32), "bf16"), empty((300, 512), "bf16"), empty((32, 512), "fp32"), empty(32, "fp32")
        common = {"x": array(x, "bf16"), "weight": array(weight, "bf16"), "random": (3, 4)}
        ctx.run("router_logits_fwd", desc, {**common, "logits": logits})
        ctx.run("router_logits_bwd", desc, {**common, "dlogits": dlogits, "dx": dx, "dweight": dweight, "dbias": dbias})
        runs.append([bits(out).tobytes() for out in (logits, dx, dweight, dbias)])
    assert runs[0] == runs[1] == runs[2]


def test_seed_and_offset_on_the_device(ctx, rng):
    desc, x, weight, factor = problem(rng, (6, 12, 4), "fp32", jitter=0.3)
    logits = empty((6, 4), "fp32")
    seeds = {"seed": array(np.array([99]), "int64"), "offset": array(np.array([7]), "int64")}
    ctx.run("router_logits_fwd", desc, {"x": array(x, "fp32"), "weight": array(weight, "fp32"), "logits": logits, "random": seeds})
    assert_close(logits, read_as(x, factor, "fp32") @ weight.T, "fp32")


@pytest.mark.parametrize("change, words", [
    ({"hidden_size": 0}, "hidden_size"), ({"num_experts": 1025}, "num_experts"), ({"num_tokens": -1}, "num_tokens"),
    ({"jitter": 2}, "jitter"), ({"jitter_eps": float("nan")}, "jitter_eps"), ({"jitter_eps": -0.1}, "jitter_eps"),
    ({"math": 3}, "math"), ({"dtype": "int32"}, "dtype"), ({"logits_dtype": "fp16"}, "logits_dtype"), ({"reserved": 1}, "reserved"),
])
def test_bad_descriptions(ctx, rng, change, words):
    desc, x, weight, _ = problem(rng, (4, 8, 4), "bf16")
    logits = empty((4, 4), "bf16")
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("router_logits_fwd", {**desc, **change}, {"x": array(x, "bf16"), "weight": array(weight, "bf16"), "logits": logits})
    assert poisoned(logits).all()


def test_what_an_output_needs(ctx, rng):
    desc, x, weight, _ = problem(rng, (4, 8, 4), "fp32")
    dlogits = array(rng.normal(size=(4, 4)), "fp32")
    with pytest.raises(libmoe.InvalidArgument, match="args.weight"):
        ctx.run("router_logits_bwd", desc, {"dlogits": dlogits, "dx": empty((4, 8), "fp32"), "x": array(x, "fp32")})
    with pytest.raises(libmoe.InvalidArgument, match="args.x"):
        ctx.run("router_logits_bwd", desc, {"dlogits": dlogits, "dweight": empty((4, 8), "fp32"), "weight": array(weight, "fp32")})
