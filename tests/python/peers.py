"""What tests beside other routers share: poisoned outputs, and a comparison."""

import harness
import torch


def new(*size, dtype=torch.float32):
    return torch.full(size, float("nan") if dtype.is_floating_point else 99, dtype=dtype, device=harness.device.name)


def close(ours, theirs, tolerance=2e-5):
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)
    assert error < tolerance, float(error)
