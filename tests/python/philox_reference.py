"""Philox4x32-10 in NumPy, and what docs/conventions.md makes of it."""

import numpy as np


def philox(seed, offset, count):
    """The first `count` elements, 32 bits each."""
    mask = 0xFFFFFFFF
    out = []
    for block in range(-(-count // 4)):
        counter = (offset + block) & 0xFFFFFFFFFFFFFFFF
        c = [counter & mask, counter >> 32, 0, 0]
        k = [seed & mask, seed >> 32]
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
            k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
        out += c
    return np.array(out[:count], np.uint64)


def uniform(seed, offset, count):
    return ((philox(seed, offset, count) >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
