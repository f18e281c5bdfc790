"""Which of libmoe's activations a model's own function is, found by numbers: nothing is known of particular models.

A model's experts bring `_apply_gate` (fc1's output [S, 2f] to [S, f]) or, without a gate, `act_fn`. The function is given
random numbers in fp64 and compared with every activation of libmoe in every order of gate and up.
"""

import logging

import numpy as np
import torch

from .. import activation_fwd
from .._context import of_device
from .._header import constants
from ..activation import is_gated
from ._define import encode

ACTIVATIONS = [value for name, value in constants.items() if name.startswith("MOE_ACTIVATION_")]
CLAMPED = constants["MOE_ACTIVATION_CLAMPED_SWIGLU"]
ORDERS = [constants[name] for name in ("MOE_GATE_FIRST", "MOE_UP_FIRST", "MOE_GATE_INTERLEAVED")]
INTERLEAVED = constants["MOE_GATE_INTERLEAVED"]
TOLERANCE = 1e-5


def recognise(function, columns, gated):
    """Options of the expert MLP under which it computes what function does on [S, columns]; None where there are none."""
    h = np.random.default_rng(0).standard_normal((24, columns))
    # Small, ordinary and large numbers: rows of the last kind are beyond the clamps that models have.
    h[8:16] *= 4
    h[16:] *= 40
    wanted = _call(function, h)
    if wanted is None or wanted.shape != (24, columns // 2 if gated else columns):
        return None
    for options in _candidates(function, columns, gated):
        ours = activation_fwd(of_device("cpu"), h, **options)
        if np.allclose(ours, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            return encode(options)
    return None


def _candidates(function, columns, gated):
    for activation in ACTIVATIONS:
        if is_gated(activation) == gated and activation != CLAMPED:
            yield from ({"activation": activation, "gate_order": order} for order in (ORDERS if gated else ORDERS[:1]))
    if gated:
        for order in ORDERS:
            parameters = _clamp(function, columns, order)
            if parameters:
                yield {"activation": CLAMPED, "gate_order": order, **parameters}


def _clamp(function, columns, order):
    """alpha and limit of (up + 1) * gate * sigmoid(alpha * gate) with up clamped to the limit, from two points of it."""

    def at(gate, up):
        h = np.empty((1, columns))
        half = columns // 2
        gates, ups = {0: (slice(0, half), slice(half, None)), 1: (slice(half, None), slice(0, half)),
                      INTERLEAVED: (slice(0, None, 2), slice(1, None, 2))}[order]
        h[:, gates], h[:, ups] = gate, up
        out = _call(function, h)
        return None if out is None else float(out.flat[0])

    sigmoid = at(1.0, 0.0)
    if sigmoid is None or not 0.5 < sigmoid < 1:
        return None
    limit = at(1.0, 1e6) / sigmoid - 1
    if not 0 < limit < 1e5:
        return None
    return {"clamp_alpha": float(np.log(sigmoid / (1 - sigmoid))), "clamp_limit": float(limit)}


def _call(function, h):
    """function(h) in fp64 NumPy, whatever is traced, faked or recorded around it; None where it cannot take that."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    try:
        with unset_fake_temporarily(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return function(torch.from_numpy(h)).double().numpy()
    except Exception as error:  # a model's function may fail in any way on what it was not written for
        logging.getLogger(__name__).info("probing an activation: %r", error)
        return None
