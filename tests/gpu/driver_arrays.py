"""Arrays on plain driver allocations: no torch, no CUDA runtime. What a C client has."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

cuda = ctypes.CDLL("libcuda.so.1")


def check(code: int, call: str) -> None:
    if code:
        raise RuntimeError(f"{call} failed with {code}")


class Gpu:
    """The primary context of GPU 0, current on this thread."""

    def __init__(self):
        check(cuda.cuInit(0), "cuInit")
        context = ctypes.c_void_p()
        check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), "cuDevicePrimaryCtxRetain")
        check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")

    def synchronize(self):
        check(cuda.cuCtxSynchronize(), "cuCtxSynchronize")


class DeviceArray:
    """A contiguous array with the few attributes by which libmoe knows a tensor."""

    device = SimpleNamespace(type="cuda", index=0)

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(np.atleast_1d(shape).tolist()) if np.ndim(shape) else (int(shape),), np.dtype(dtype)
        self.nbytes = max(1, int(np.prod(self.shape)) * self.dtype.itemsize)
        pointer = ctypes.c_uint64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(self.nbytes)), "cuMemAlloc")
        self.pointer = pointer.value

    def __del__(self):
        cuda.cuMemFree_v2(ctypes.c_uint64(self.pointer))

    def data_ptr(self):
        return self.pointer

    def element_size(self):
        return self.dtype.itemsize

    def stride(self):
        return tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))

    @classmethod
    def of(cls, array):
        array = np.ascontiguousarray(array)
        new = cls(array.shape, array.dtype)
        size = ctypes.c_size_t(array.nbytes)
        check(cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(new.pointer), array.ctypes.data_as(ctypes.c_void_p), size), "cuMemcpyHtoD")
        return new

    def numpy(self):
        array = np.empty(self.shape, self.dtype)
        size = ctypes.c_size_t(array.nbytes)
        check(cuda.cuMemcpyDtoH_v2(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(self.pointer), size), "cuMemcpyDtoH")
        return array
