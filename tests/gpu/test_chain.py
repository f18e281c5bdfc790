"""The chain on the GPU beside float64 torch and beside the CPU backend."""

import libmoe
import pytest
import reference
import torch
from layer import Layer, draw_ids, poisoned

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KINDS = ("even", "skewed", "one", "few", "dropped")
MAPS = ("group_offsets", "group_sizes", "row_of_slot")


def draw_shape(rng):
    """Sizes that divide by nothing, small enough for the CPU backend."""
    E = rng.choice((1, 2, 8, 31, 64))
    return dict(T=rng.choice((1, 3, 127, 500, 1031)), d=rng.choice((8, 64, 100, 264, 512)), f=rng.choice((4, 48, 100, 256)),
                E=E, K=rng.randint(1, min(E, 4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expert_mlp(gpu, cpu, rng, dtype, kind):
    for _ in range(2):
        shape = draw_shape(rng)
        layer = Layer.draw(rng, **shape, dtype=dtype, kind=kind)
        ours = layer.on(gpu)
        maps = reference.plan(layer.ids, layer.E)
        for name in MAPS:
            assert torch.equal(ours[name].long(), maps[name]), (shape, name)
        rows = maps["slot_of_row"].numel()
        for name in ("slot_of_row", "token_of_row"):
            assert torch.equal(ours[name][:rows].long(), maps[name]), (shape, name)
        leaves = {name: t.double().requires_grad_() for name, t in layer.tensors.items() if name != "dy"}
        y = reference.expert_mlp(leaves["x"], leaves["w1"], leaves["w2"], leaves["weights"], layer.ids)
        y.backward(layer.tensors["dy"].double())
        wanted = dict(y=y.detach(), dx=leaves["x"].grad, dw1=leaves["w1"].grad, dw2=leaves["w2"].grad,
                      dweights=leaves["weights"].grad)
        theirs = layer.on(cpu, "cpu")
        for name, ref in wanted.items():
            ref = torch.zeros_like(ours[name]) if ref is None else ref
            # The errors of a few numbers do not average out.
            limit = (2 if ref.numel() >= 64 else 8) * reference.TOLERANCE[dtype]
            off = reference.error(ours[name], ref)
            assert off < limit, (shape, name, off)
            apart = reference.error(ours[name].cpu(), theirs[name])
            assert apart < limit, (shape, name, apart)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_router(gpu, cpu, rng, dtype):
    code = {torch.bfloat16: libmoe.DTYPE_BF16, torch.float16: libmoe.DTYPE_FP16, torch.float32: libmoe.DTYPE_FP32}[dtype]
    for _ in range(6):
        T, E = rng.choice((1, 33, 1000, 4097)), rng.choice((2, 8, 60, 128, 1000))
        K = rng.randint(2, min(E, 16))
        # Distinct logits: with ties torch.topk promises no order.
        base = torch.stack([torch.randperm(E, device="cuda") for _ in range(min(T, 64))])
        logits = ((base - E / 2) / (E / 8))[torch.randint(0, base.shape[0], (T,), device="cuda")].to(dtype)
        if logits[0].unique().numel() < E:
            continue
        desc = dict(logits_dtype=code, num_tokens=T, num_experts=E, top_k=K, renormalize=libmoe.ON)
        slope = torch.randn(T, K, device="cuda")
        found = {}
        for ctx, device in ((gpu, "cuda"), (cpu, "cpu")):
            ids, weights = poisoned(T, K, dtype=torch.int64, device=device), poisoned(T, K, dtype=torch.float32, device=device)
            x, dweights = logits.to(device), slope.to(device)
            dlogits = poisoned(T, E, dtype=torch.float32, device=device)
            ctx.run("router_fwd", desc, dict(logits=x, ids=ids, weights=weights))
            ctx.run("router_bwd", desc, dict(logits=x, ids=ids, dweights=dweights, dlogits=dlogits))
            found[device] = ids.cpu(), weights.cpu(), dlogits.cpu()
        leaf = logits.double().requires_grad_()
        ids, weights = reference.router(leaf, K)
        weights.backward(slope.double())
        for got in found.values():
            assert torch.equal(got[0], ids.cpu()), (T, E, K)
            assert reference.error(got[1], weights.detach().cpu()) < 1e-5, (T, E, K)
            # The gradient of a softmax cancels: its error is that of fp32 scores, not of itself.
            assert reference.error(got[2], leaf.grad.cpu()) < 1e-3, (T, E, K)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_gemm_large(gpu, rng, dtype):
    """Tiles in the thousands, more than the CPU backend's share of time allows."""
    code = {torch.bfloat16: libmoe.DTYPE_BF16, torch.float16: libmoe.DTYPE_FP16, torch.float32: libmoe.DTYPE_FP32}[dtype]
    E, n, k, T = 16, 1536, 1024, 4096
    ids = draw_ids(rng, T, E, 2, "skewed")
    offsets = reference.plan(ids, E)["group_offsets"]
    R = int(offsets[-1])
    a, b = torch.randn(R, k, device="cuda").to(dtype), (torch.randn(E, n, k, device="cuda") * k**-0.5).to(dtype)
    dc, c = torch.randn(R, n, device="cuda").to(dtype), poisoned(R, n, dtype=dtype)
    da, db = poisoned(R, k, dtype=dtype), torch.ones(E, n, k, device="cuda")
    desc = dict(dtype=code, rows_max=R, n=n, k=k, num_groups=E)
    gpu.run("grouped_gemm_fwd", desc, dict(a=a, b=b, c=c, group_offsets=offsets))
    gpu.run("grouped_gemm_bwd", desc, dict(dc=dc, a=a, b=b, da=da, db=db, db_mode="add", group_offsets=offsets))
    for e in range(E):
        rows = slice(int(offsets[e]), int(offsets[e + 1]))
        A, B, D = a[rows].double(), b[e].double(), dc[rows].double()
        for name, got, ref in (("c", c[rows], A @ B.T), ("da", da[rows], D @ B), ("db", db[e], D.T @ A + 1)):
            assert reference.error(got, ref) < reference.TOLERANCE[dtype], (name, e)
