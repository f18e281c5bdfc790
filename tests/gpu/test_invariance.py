"""A token's result is the same, to the bit, in whatever batch it comes, where a caller asks for that."""

import libmoe
import pytest
import torch
from layer import draw_ids, poisoned

NAMES = {torch.bfloat16: libmoe.DTYPE_BF16, torch.float16: libmoe.DTYPE_FP16}


def forward(gpu, x, ids, weights, w1, w2):
    (T, d), K, (E, _, f) = x.shape, ids.shape[1], w2.shape
    plan = dict(num_tokens=T, num_experts=E, top_k=K)
    R = gpu.query("dispatch_rows_max", plan)
    ints = lambda size, dtype=torch.int32: poisoned(size, dtype=dtype)
    maps = dict(group_offsets=ints(E + 1, torch.int64), row_of_slot=ints(T * K), slot_of_row=ints(R), token_of_row=ints(R))
    y = poisoned(T, d, dtype=x.dtype)
    desc = dict(dtype=NAMES[x.dtype], num_tokens=T, rows_max=R, top_k=K, num_experts=E, hidden_size=d, ffn_size=f,
                batch_invariant=libmoe.ON)
    gpu.run("dispatch_plan", plan, dict(ids=ids, **maps))
    gpu.run("expert_mlp_fwd", desc, dict(x=x, w1=w1, w2=w2, y=y, weights=weights, **maps))
    return y


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
@pytest.mark.parametrize("d,f,E,K", [(1024, 768, 8, 2), (264, 136, 64, 6), (2048, 1408, 16, 4)])
def test_a_part_of_a_batch(gpu, rng, d, f, E, K, dtype):
    """Batches of so different sizes that other tiles fit them best."""
    T = 6000
    randn = lambda *size, scale=1.0: (torch.randn(*size, device="cuda") * scale).to(dtype)
    x, w1, w2 = randn(T, d), randn(E, 2 * f, d, scale=d**-0.5), randn(E, d, f, scale=f**-0.5)
    ids, weights = draw_ids(rng, T, E, K, "skewed"), torch.rand(T, K, device="cuda")
    whole = forward(gpu, x, ids, weights, w1, w2)
    for part in (1, 3, 40, rng.randrange(100, 300), 700, rng.randrange(1000, 5000)):
        assert torch.equal(forward(gpu, x[:part], ids[:part].contiguous(), weights[:part].contiguous(), w1, w2), whole[:part]), part
