"""Arrays of NumPy, PyTorch, CuPy and whoever speaks DLPack or __cuda_array_interface__, as pointers with a shape."""

import ctypes
import functools
import math
from typing import NamedTuple

import numpy as np

from ._header import constants

# Names that NumPy (with ml_dtypes), PyTorch and CuPy give to the element types.
NAMES = {
    "float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "float64": "FP64", "float8_e4m3fn": "FP8_E4M3",
    "float8_e5m2": "FP8_E5M2", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "bool": "UINT8",
    "uint32": "UINT32", "float8_e8m0fnu": "E8M0",
}
CODES = {name: constants["MOE_DTYPE_" + dtype] for name, dtype in NAMES.items()}
LIBRARY_NAMES = {code: name for name, code in CODES.items() if name != "bool"}


class View(NamedTuple):
    """Where an array lies. Strides count elements; device is -1 for the CPU, else the CUDA ordinal, None if unknown."""

    pointer: int
    dtype: str
    itemsize: int
    shape: tuple
    strides: tuple
    device: int
    # What keeps the memory alive.
    owner: object

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def contiguous(self):
        return _contiguous(self.shape, self.strides)


@functools.cache
def dtype_name(dtype):
    """`float32` of np.float32, torch.float32, "fp32", "float32", MOE_DTYPE_FP32."""
    if isinstance(dtype, int):
        name = LIBRARY_NAMES.get(dtype)
    elif isinstance(dtype, str):
        name = next((n for n, short in NAMES.items() if dtype.lower() in (n, short.lower()) and n != "bool"), None)
    elif type(dtype).__module__.startswith("torch"):
        name = str(dtype).removeprefix("torch.")
    else:
        name = np.dtype(dtype).name
    if name is None:
        raise TypeError(f"dtype {dtype!r} is none of {', '.join(CODES)}")
    return name


def dtype_code(dtype):
    """MOE_DTYPE_* of anything that `dtype_name` reads."""
    name = dtype_name(dtype)
    if name not in CODES:
        raise TypeError(f"dtype {name} is none of {', '.join(CODES)}")
    return CODES[name]


INTERFACES = ("data_ptr", "__cuda_array_interface__", "__dlpack__")


def is_array(x):
    return isinstance(x, np.ndarray) or any(map(functools.partial(hasattr, x), INTERFACES))


def view(name, x):
    """The View of an array; TypeError naming the argument if it is none."""
    if isinstance(x, np.ndarray):
        itemsize = x.itemsize
        strides = tuple([stride // itemsize for stride in x.strides])
        return View(x.__array_interface__["data"][0], dtype_name(x.dtype), itemsize, x.shape, strides, -1, x)
    if not is_array(x):
        raise TypeError(f"{name} is {type(x).__name__}: not an array")
    if hasattr(x, "data_ptr"):
        device = {"cpu": -1, "cuda": x.device.index}.get(x.device.type)
        if device is None:
            raise TypeError(f"{name} is on {x.device}: neither the CPU nor CUDA")
        shape, strides = tuple(x.shape), tuple(x.stride())
        return View(x.data_ptr(), dtype_name(x.dtype), x.element_size(), shape, strides, device, x)
    if hasattr(x, "__cuda_array_interface__"):
        return _cuda_view(x)
    return _dlpack_view(name, x)


def matrix_layout(name, array):
    """(row_pitch, group_stride) of an array [..., rows, columns]; 0 where contiguous, as moe_tensor_t has it."""
    if array.contiguous:
        return 0, 0
    shape, strides = array.shape, array.strides
    if len(shape) > 3 or len(shape) < 2 or (shape[-1] > 1 and strides[-1] != 1) or min(strides) < 0:
        raise ValueError(
            f"{name} has shape {shape} and strides {strides}: its rows must be contiguous, at most [groups, rows, columns]"
        )
    # The stride of a single row means nothing.
    pitch = strides[-2] if shape[-2] > 1 else shape[-1]
    if pitch < shape[-1]:
        raise ValueError(f"{name} has shape {shape} and strides {strides}: its rows overlap")
    group = strides[0] if len(shape) == 3 and shape[0] > 1 else 0
    return pitch, group


def array_library(x):
    """The seam for allocation: `Numpy`, `Torch` or `Cupy`, whichever x is of."""
    module = type(x).__module__.partition(".")[0]
    return {"torch": Torch, "cupy": Cupy}.get(module, Numpy)


class Numpy:
    """Allocation of CPU arrays."""

    @staticmethod
    def empty(shape, dtype, device):
        name = dtype_name(dtype)
        if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
            import ml_dtypes  # an array of such a type exists only where this does

            return np.empty(shape, getattr(ml_dtypes, name))
        return np.empty(shape, name)

    @staticmethod
    def scratch(size, device, stream):
        """`size` bytes, 256-byte aligned."""
        buffer = np.empty(size + 255, np.uint8)
        start = -buffer.ctypes.data % 256
        return buffer[start:start + size]

    @staticmethod
    def pointers(addresses, device, stream):
        return np.array(addresses, np.uint64)

    @staticmethod
    def stream(device):
        return 0


class Torch:
    """Allocation of PyTorch tensors; scratch and pointers on CUDA alone."""

    @staticmethod
    def empty(shape, dtype, device):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype_name(dtype)), device=_torch_device(device))

    @staticmethod
    def scratch(size, device, stream):
        import torch

        with _torch_stream(device, stream):
            return torch.empty(size, dtype=torch.uint8, device=_torch_device(device))

    @staticmethod
    def pointers(addresses, device, stream):
        import torch

        with _torch_stream(device, stream):
            return torch.tensor(addresses, dtype=torch.int64, device=_torch_device(device))

    @staticmethod
    def stream(device):
        import torch

        return torch.cuda.current_stream(device).cuda_stream if device >= 0 else 0


class Cupy:
    """Allocation of CuPy arrays."""

    @staticmethod
    def empty(shape, dtype, device):
        import cupy

        with cupy.cuda.Device(device):
            return cupy.empty(shape, Numpy.empty(0, dtype, -1).dtype)

    @staticmethod
    def scratch(size, device, stream):
        import cupy

        with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream):
            return cupy.empty(size, cupy.uint8)

    @staticmethod
    def pointers(addresses, device, stream):
        import cupy

        with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream):
            return cupy.array(addresses, cupy.uint64)

    @staticmethod
    def stream(device):
        import cupy

        with cupy.cuda.Device(device):
            return cupy.cuda.get_current_stream().ptr


def _torch_stream(device, stream):
    """Torch frees and reuses memory in the order of the stream that was current when it was allocated."""
    import torch

    current = torch.cuda.current_stream(device)
    if stream == current.cuda_stream:
        return torch.cuda.stream(current)
    # An ExternalStream of 0 would be a new stream.
    other = torch.cuda.ExternalStream(stream, device=device) if stream else torch.cuda.default_stream(device)
    return torch.cuda.stream(other)


def _torch_device(device):
    return "cpu" if device < 0 else f"cuda:{device}"


def _contiguous(shape, strides):
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _row_major(shape):
    return tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))


def _cuda_view(x):
    interface = x.__cuda_array_interface__
    pointer, _ = interface["data"]
    dtype, shape = np.dtype(getattr(x, "dtype", interface["typestr"])), tuple(interface["shape"])
    strides = interface.get("strides")
    strides = _row_major(shape) if strides is None else tuple(stride // dtype.itemsize for stride in strides)
    device = getattr(getattr(x, "device", None), "id", None)
    return View(pointer or 0, dtype.name, dtype.itemsize, shape, strides, device, x)


class _DLTensor(ctypes.Structure):
    """dlpack.h's DLTensor, the first member of DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


# DLDataTypeCode and bits to names.
_DLPACK_DTYPES = {
    (0, 32): "int32", (0, 64): "int64", (1, 8): "uint8", (1, 32): "uint32", (1, 64): "uint64", (2, 16): "float16",
    (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16", (6, 8): "bool", (10, 8): "float8_e4m3fn",
    (12, 8): "float8_e5m2", (14, 8): "float8_e8m0fnu",
}
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST = 1, 2, 3


def _dlpack_view(name, x):
    capsule = x.__dlpack__()
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    dtype = _DLPACK_DTYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise TypeError(f"{name} has DLPack type ({tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes)")
    if tensor.device_type not in (_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST):
        raise TypeError(f"{name} is on DLPack device type {tensor.device_type}: neither the CPU nor CUDA")
    shape = tuple(tensor.shape[:tensor.ndim])
    strides = tuple(tensor.strides[:tensor.ndim]) if tensor.strides else _row_major(shape)
    device = tensor.device_id if tensor.device_type == _DLPACK_CUDA else -1
    # The capsule, unconsumed, frees the tensor when it goes.
    pointer = (tensor.data or 0) + tensor.byte_offset
    return View(pointer, dtype, tensor.bits // 8, shape, strides, device, capsule)
