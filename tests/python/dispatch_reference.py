"""moe_dispatch_plan in plain Python, and what tests of dispatch share."""

from types import SimpleNamespace

import numpy as np

from harness import array, host


def plan_reference(
    experts_of_token, num_experts, top_k, *, group_of=None, alignment=1, rows_per_group=0, rows_max=None
):
    """The maps for a list of experts for each token (in slot order; ids that are nowhere included).

    group_of: the local index of each expert, or -1; rows_max: rows that there is room for."""
    group_of = list(range(num_experts)) if group_of is None else list(group_of)
    num_groups = max(group_of, default=-1) + 1
    slots = [(token, expert) for token, experts in enumerate(experts_of_token) for expert in experts[:top_k]]
    members = [[] for _ in range(num_groups)]
    for slot, (token, expert) in enumerate(slots):
        group = group_of[expert] if 0 <= expert < num_experts else -1
        if group >= 0:
            members[group].append(slot)
    room = None if rows_max is None else rows_max // alignment * alignment
    offsets, sizes, slot_of_row, needed = [0], [], [], 0
    for group in members:
        size = rows_per_group or len(group)
        size += -size % alignment
        needed += size
        end = needed if room is None else min(needed, room)
        kept = group[:min(rows_per_group or len(group), end - offsets[-1])]
        sizes.append(len(kept))
        slot_of_row += kept + [-1] * (end - offsets[-1] - len(kept))
        offsets.append(end)
    row_of_slot = [-1] * len(slots)
    for row, slot in enumerate(slot_of_row):
        if slot >= 0:
            row_of_slot[slot] = row
    lengths = [min(len(experts), top_k) for experts in experts_of_token]
    return SimpleNamespace(
        group_offsets=np.array(offsets, np.int64),
        group_sizes=np.array(sizes, np.int64),
        slot_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row_of_slot=np.array(row_of_slot, np.int64),
        slot_of_row=np.array(slot_of_row, np.int64),
        token_of_row=np.array([slots[slot][0] if slot >= 0 else -1 for slot in slot_of_row], np.int64),
        num_rows=offsets[-1],
        rows_needed=needed,
    )


def bit_mask(mask):
    """Words of a byte mask; bits beyond the experts are set, since they must not matter."""
    tokens, experts = mask.shape
    padded = np.ones((tokens, -(-experts // 32) * 32), np.uint8)
    padded[:, :experts] = mask != 0
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


def random_choice(rng, tokens, experts, top_k):
    """Distinct experts a token, some of them everywhere, some nowhere: [tokens, experts] of zero or not zero."""
    mask = np.zeros((tokens, experts), np.uint8)
    score = rng.random((tokens, experts)) + rng.choice([0, 0, 0.5, -9], experts)
    for token in range(tokens):
        number = rng.integers(0, top_k + 1)
        mask[token, np.argsort(-score[token])[:number]] = rng.integers(1, 256)
    return mask


def prefix(x, length):
    """The first `length` entries, on the host."""
    return host(x)[:length]


def padded_map(values, length, dtype):
    """A map with room for `length` entries; those behind the values hold nonsense that must never be used."""
    out = np.full(length, 2**30 + 12345, np.int64)
    out[:len(values)] = values
    return array(out, dtype)
