"""What tests are written with: arrays on the device under test, poison, guards, tolerances, routings.

Dtypes are named fp64, fp32, fp16, bf16, fp8_e4m3, fp8_e5m2, int32, int64, uint8, uint32.
"""

from types import SimpleNamespace

import ml_dtypes
import numpy as np

# Set from --device.
device = SimpleNamespace(name="cpu")

NUMPY = {
    "fp64": np.float64, "fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2,
    "int32": np.int32, "int64": np.int64, "uint8": np.uint8, "uint32": np.uint32,
}
# Types that torch reads from NumPy as the integers of their bits only.
THROUGH_BITS = {"bf16": (np.int16, "bfloat16"), "fp8_e4m3": (np.uint8, "float8_e4m3fn"), "fp8_e5m2": (np.uint8, "float8_e5m2")}

# Largest ||out - reference|| / ||reference||; tf32 is fp32 data multiplied as TF32.
TOLERANCES = {"fp64": 1e-12, "fp32": 1e-5, "tf32": 1e-3, "fp16": 2e-3, "bf16": 1e-2}


def on_cpu():
    return device.name == "cpu"


def array(x, dtype=None):
    """x on the device, contiguous, as `dtype` (by default its own): NumPy on the CPU, torch on CUDA."""
    x = np.ascontiguousarray(x if dtype is None else np.asarray(x).astype(NUMPY[dtype]))
    return x if on_cpu() else _to_torch(x).to(device.name)


def host(x):
    """A copy as float64 or int64 NumPy, whatever x is."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.double() if x.is_floating_point() else x.long()).numpy()
    x = np.asarray(x)
    return x.astype(np.int64 if x.dtype.kind in "iub" else np.float64)


def bits(x):
    """The bytes of x on the host: for comparisons to the bit."""
    if hasattr(x, "detach"):
        import torch

        x = x.detach().cpu().contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(x).view(np.uint8)


def empty(shape, dtype):
    """Poisoned memory: NaN in floats, 0x7f7f... in integers, so that what is left unwritten is seen."""
    return array(_poison(shape, dtype))


def zeros(shape, dtype):
    return array(np.zeros(shape), dtype)


def report():
    """A zeroed device report."""
    return zeros(3, "int64")


def report_fields(report):
    """(what, place, value) of a device report."""
    what, place, value = host(report)
    return what & 0xFFFFFFFF, place, value


def poisoned(x):
    """Where x still holds the poison, elementwise."""
    x = host(x)
    return np.isnan(x) if x.dtype.kind == "f" else np.isin(x, (0x7F, 0x7F7F7F7F, 0x7F7F7F7F7F7F7F7F))


class Guards:
    """Poisoned outputs inside larger poisoned buffers, whose rest must stay as it was."""

    ZONE = 256

    def __init__(self):
        self.buffers = []

    def __call__(self, shape, dtype, pitch=None):
        """An output [.., rows, columns], its rows `pitch` elements apart."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        zone = self.ZONE // np.dtype(NUMPY[dtype]).itemsize
        pitched = shape if pitch is None else (*shape[:-1], pitch)
        length = int(np.prod(pitched))
        before = _poison(zone + length + zone, dtype)
        buffer = array(before.copy())
        columns = slice(0, shape[-1] if shape else 0)
        inside = np.zeros(before.shape, bool)
        inside[zone:zone + length].reshape(pitched)[..., columns] = True
        self.buffers.append((buffer, before, inside, f"{dtype}{list(shape)}"))
        return buffer[zone:zone + length].reshape(pitched)[..., columns]

    def check(self):
        for buffer, before, inside, name in self.buffers:
            width = before.itemsize
            changed = (bits(buffer).reshape(-1, width) != bits(before).reshape(-1, width)).any(axis=1) & ~inside
            assert not changed.any(), f"{name}: written outside, at element {np.flatnonzero(changed)[0]} of its buffer"


def relative_error(out, reference):
    """||out - reference|| / ||reference||, infinite where anything is not finite in one and not the same in the other."""
    out, reference = host(out), host(reference)
    assert out.shape == reference.shape, f"shape {out.shape}, the reference has {reference.shape}"
    finite = np.isfinite(reference)
    if not np.array_equal(out[~finite], reference[~finite], equal_nan=True) or not np.isfinite(out[finite]).all():
        return np.inf
    out, reference = out[finite], reference[finite]
    norm = np.linalg.norm(reference.ravel())
    return float(np.linalg.norm((out - reference).ravel()) / (norm or 1.0))


def assert_close(out, reference, dtype, what="", factor=1.0):
    """The relative error is within the tolerance of `dtype`, and no element is off by much more than the others."""
    tolerance = TOLERANCES[dtype] * factor
    error = relative_error(out, reference)
    out, reference = host(out), host(reference)
    finite = np.isfinite(reference)
    # What no FP32 output can hold is not asked of one.
    if dtype != "fp64" and np.isfinite(error) and (np.abs(out - reference)[finite] < np.finfo(np.float32).tiny).all():
        return
    assert error <= tolerance, f"{what}: relative error {error:.3g}, at most {tolerance:.3g} for {dtype}"
    if finite.any():
        off, largest = np.abs(out - reference)[finite].max(), np.abs(reference[finite]).max()
        assert off <= 8 * tolerance * (largest or 1.0), f"{what}: an element is off by {off:.3g} of {largest:.3g}"


def rounded(x, dtype):
    """float64 values that `dtype` holds exactly: what the device reads when it is given x."""
    return np.asarray(x).astype(NUMPY[dtype]).astype(np.float64)


def _poison(shape, dtype):
    kind = NUMPY[dtype]
    itemsize = np.dtype(kind).itemsize
    if dtype in ("fp64", "fp32", "fp16", "bf16"):
        return np.full(shape, np.nan, kind)
    # 0x7f is NaN in both FP8 types.
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.full((*shape[:-1], shape[-1] * itemsize) if shape else itemsize, 0x7F, np.uint8).view(kind).reshape(shape)


def _to_torch(x):
    import torch

    name = next(name for name, kind in NUMPY.items() if np.dtype(kind) == x.dtype)
    if name in THROUGH_BITS:
        as_bits, torch_name = THROUGH_BITS[name]
        return torch.from_numpy(x.view(as_bits)).view(getattr(torch, torch_name))
    return torch.from_numpy(x)


def uniform_ids(rng, tokens, experts, top_k):
    """Distinct experts a token, all equally likely."""
    return rng.random((tokens, experts)).argsort(axis=1)[:, :top_k]


def skewed_ids(rng, tokens, experts, top_k):
    """Distinct experts a token, expert e with a likelihood of about 1 / (e + 1)^2."""
    return (rng.gumbel(size=(tokens, experts)) - 2 * np.log(np.arange(experts) + 1)).argsort(axis=1)[:, ::-1][:, :top_k]


def one_expert_ids(rng, tokens, experts, top_k):
    """Every token chooses the same experts."""
    return np.broadcast_to(rng.permutation(experts)[:top_k], (tokens, top_k)).copy()


def empty_experts_ids(rng, tokens, experts, top_k):
    """Only about half of the experts are ever chosen."""
    used = rng.permutation(experts)[:max(top_k, experts // 2)]
    return used[uniform_ids(rng, tokens, len(used), top_k)]


def sentinel_ids(rng, tokens, experts, top_k):
    """A third of the slots is not here: -1, or beyond the experts."""
    ids = uniform_ids(rng, tokens, experts, top_k)
    nowhere = rng.choice([-1, experts, experts + 7], ids.shape)
    return np.where(rng.random(ids.shape) < 1 / 3, nowhere, ids)


# (rng, tokens, experts, top_k) -> ids[tokens, top_k] int64
ROUTINGS = {
    "uniform": uniform_ids, "skewed": skewed_ids, "one_expert": one_expert_ids, "empty_experts": empty_experts_ids,
    "sentinels": sentinel_ids,
}
