"""More than 2^31 elements."""

import libmoe
import pytest
import reference
import torch


@pytest.fixture
def big(rng):
    """[R, d] bf16 of more than 2^31 elements; its rows repeat a small random block, each scaled by its number."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    R, d = 1_100_003, 2048
    x = torch.empty(R, d, device="cuda", dtype=torch.bfloat16)
    x.normal_()
    yield x
    del x
    torch.cuda.empty_cache()


def test_dispatch_and_combine(gpu, big):
    R, d = big.shape
    T = R
    perm = torch.randperm(R, device="cuda").int()
    inverse = torch.empty_like(perm)
    inverse[perm.long()] = torch.arange(R, device="cuda", dtype=torch.int32)
    offsets = torch.tensor([0, R // 3, R], device="cuda")
    desc = dict(dtype=libmoe.DTYPE_BF16, num_tokens=T, hidden_size=d, top_k=1, rows_max=R, num_groups=2)
    rows, y = torch.empty_like(big), torch.empty_like(big)
    gpu.run("dispatch_fwd", desc, dict(x=big, rows=rows, token_of_row=perm, group_offsets=offsets))
    gpu.run("combine_fwd", desc, dict(rows=rows, row_of_slot=inverse, y=y))
    for part in torch.randint(0, R - 1000, (6,)).tolist() + [R - 1000]:
        assert torch.equal(rows[part : part + 1000], big[perm[part : part + 1000].long()]), part
        assert torch.equal(y[part : part + 1000], big[part : part + 1000]), part


def test_grouped_gemm(gpu, big):
    R, k = big.shape
    n, E = 2048, 3
    b = torch.randn(E, n, k, device="cuda", dtype=torch.bfloat16) * k**-0.5
    c = torch.empty(R, n, device="cuda", dtype=torch.bfloat16)
    offsets = torch.tensor([0, 5, 5 + R // 2, R], device="cuda")
    gpu.run("grouped_gemm_fwd", dict(dtype=libmoe.DTYPE_BF16, rows_max=R, n=n, k=k, num_groups=E),
            dict(a=big, b=b, c=c, group_offsets=offsets))
    for e, rows in ((0, slice(0, 5)), (1, slice(5 + R // 2 - 300, 5 + R // 2)), (2, slice(R - 300, R))):
        ref = big[rows].double() @ b[e].double().T
        assert reference.error(c[rows], ref) < reference.TOLERANCE[torch.bfloat16], e


@pytest.mark.parametrize("layout", (libmoe.WEIGHT_OUT_IN, libmoe.WEIGHT_IN_OUT))
def test_grouped_gemm_of_many_weights(gpu, rng, layout):
    """1024 groups, most of them of one row, with more than 2^31 elements of weights and of their gradients."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GB of free GPU memory")
    torch.cuda.empty_cache()
    compare_groups(gpu, "cuda", layout, E=1024, n=2048, k=1032)


@pytest.mark.parametrize("E", (2048, 2049, 5000))
def test_grouped_gemm_of_many_groups(gpu, rng, E):
    """As many as the Hopper kernels' schedule has room for, and more, which the portable ones take."""
    compare_groups(gpu, "cuda", libmoe.WEIGHT_OUT_IN, E=E, n=136, k=72)


def compare_groups(ctx, device, layout, E, n, k):
    sizes = torch.ones(E, device=device, dtype=torch.int64)
    sizes[5], sizes[E - 3] = 0, 300
    R, starts = int(sizes.sum()), sizes.cumsum(0) - sizes

    def draw(*size):
        return torch.empty(*size, device=device, dtype=torch.bfloat16).normal_()

    out_in = layout == libmoe.WEIGHT_OUT_IN
    a, dc, b = draw(R, k), draw(R, n), draw(E, n, k) if out_in else draw(E, k, n)
    c, da, db = (torch.full_like(t, float("nan")) for t in (dc, a, b))
    desc = dict(dtype=libmoe.DTYPE_BF16, rows_max=R, n=n, k=k, num_groups=E, b_layout=layout)
    ctx.run("grouped_gemm_fwd", desc, dict(a=a, b=b, c=c, group_sizes=sizes))
    ctx.run("grouped_gemm_bwd", desc, dict(dc=dc, a=a, b=b, da=da, db=db, group_sizes=sizes))
    for e in (0, 4, 5, 6, E // 2, E - 3, E - 2, E - 1):
        rows = slice(int(starts[e]), int(starts[e] + sizes[e]))
        weight = (b[e] if out_in else b[e].T).double()
        x, slope = a[rows].double(), dc[rows].double()
        grad = slope.T @ x if out_in else x.T @ slope
        for found, wanted in ((c[rows], x @ weight.T), (da[rows], slope @ weight), (db[e], grad)):
            assert found.isfinite().all(), e
            if wanted.numel() and wanted.any():
                assert reference.error(found, wanted) < reference.TOLERANCE[torch.bfloat16], e
            else:
                assert not found.any(), e
