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
