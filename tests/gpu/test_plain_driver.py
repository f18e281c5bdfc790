"""The chain on plain driver allocations, as a C client without a framework has them."""

import sanitized


def test_plain_driver_allocations():
    pair = sanitized.Pair(seed=None)
    sanitized.layer(pair, T=211, d=96, f=56, E=6, K=2, dtype=sanitized.BF16, drop=0.1)
    assert pair.calls == 13
