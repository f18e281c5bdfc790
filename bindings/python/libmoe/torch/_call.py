"""The shortest way from torch tensors to moe_<op>: structs are filled from templates, descriptors are kept.

A call through libmoe.Context.run costs some 100 us of Python, most of it for arrays of unknown kind; these are torch's.
"""

import ctypes
import functools
import struct

import torch

from .._arrays import CODES
from .._context import Context, initial
from .._header import prototypes, structs
from .._library import call, library, raise_status

# The head of moe_tensor_t: struct_size, dtype, data, row_pitch, group_stride.
TENSOR = struct.Struct("=IiQqq")
POINTER = struct.Struct("=Q")
TENSOR_SIZE = ctypes.sizeof(structs["moe_tensor_t"])


class _Dtypes(dict):
    def __missing__(self, dtype):
        raise TypeError(f"libmoe does not know {dtype}")


DTYPES = _Dtypes({getattr(torch, name): code for name, code in CODES.items() if hasattr(torch, name)})
ALIGNMENT = 256


@functools.cache
def context(device):
    """The process's Context of a torch.device."""
    return Context(str(device))


def open_context(device):
    """Opens a device now rather than at the first call, which may be inside the capture of a CUDA graph."""
    context(torch.empty(0, device=device).device)


class Operation:
    """moe_<name>: operation(device, {"num_tokens": T, ...}, x=x, ids=ids, ...)."""

    def __init__(self, name):
        parameters = {parameter.name: parameter for parameter in prototypes["moe_" + name].parameters}
        self.name = name
        self.desc = structs[parameters["desc"].base]
        args = structs[parameters["args"].base]
        self.template = bytes(initial(args))
        self.places = {
            declaration.name: (getattr(args, declaration.name).offset, declaration.base == "moe_tensor_t")
            for declaration in args.declarations.values()
            if declaration.base == "moe_tensor_t" or declaration.pointers
        }
        if hasattr(args, "random"):
            # The seed of random numbers, as one int64 on the device.
            self.places["seed"] = args.random.offset + structs["moe_random_t"].seed_device.offset, False

    @functools.cached_property
    def function(self):
        return getattr(library(), "moe_" + self.name)

    @functools.lru_cache(maxsize=4096)
    def described(self, device, items):
        """The descriptor and its workspace's bytes."""
        desc = initial(self.desc)
        for field, value in items:
            setattr(desc, field, value)
        size = ctypes.c_uint64()
        call(self.name + "_workspace_size", context(device).handle, ctypes.addressof(desc), ctypes.addressof(size))
        return desc, size.value

    def __call__(self, device, desc, **tensors):
        desc, size = self.described(device, tuple(desc.items()))
        args = bytearray(self.template)
        places = self.places
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.device != device:
                raise RuntimeError(f"libmoe.{self.name}: {name} is on {tensor.device}, other tensors on {device}")
            offset, described = places[name]
            if not described:
                POINTER.pack_into(args, offset, tensor.data_ptr())
                continue
            code = DTYPES.get(tensor.dtype)  # not [...]: the error names the tensor
            if code is None:
                raise TypeError(f"libmoe.{self.name}: {name} has dtype {tensor.dtype}, which libmoe does not know")
            pitch, stride = (0, 0) if tensor.is_contiguous() else pitches(tensor)
            TENSOR.pack_into(args, offset, TENSOR_SIZE, code, tensor.data_ptr(), pitch, stride)
        scratch = address = None
        if size:
            scratch = torch.empty(size + ALIGNMENT - 1, dtype=torch.uint8, device=device)
            address = -(-scratch.data_ptr() // ALIGNMENT) * ALIGNMENT
        stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else None
        held = (ctypes.c_char * len(args)).from_buffer(args)
        status = self.function(context(device).handle, ctypes.addressof(desc), ctypes.addressof(held), address, size, stream)
        if status != 0:
            raise_status(status)


def pitches(tensor):
    """(row_pitch, group_stride) as moe_tensor_t has them, of a tensor with contiguous rows: see `rows`."""
    shape, strides = tensor.shape, tensor.stride()
    return strides[-2] if shape[-2] > 1 else shape[-1], strides[0] if len(shape) == 3 and shape[0] > 1 else 0


def fits(name, tensor, *shape):
    """ValueError unless the tensor, which may be absent, has the shape: the library sees addresses alone."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def rows(tensor):
    """The tensor itself where libmoe can read it, which it does at any pitch of contiguous rows; else a copy."""
    if tensor is None or tensor.is_contiguous():
        return tensor
    shape, strides = tensor.shape, tensor.stride()
    readable = (
        2 <= len(shape) <= 3 and (strides[-1] == 1 or shape[-1] == 1) and (strides[-2] >= shape[-1] or shape[-2] == 1)
        and (len(shape) == 2 or shape[0] == 1 or strides[0] >= shape[-2] * strides[-2])
    )
    return tensor if readable else tensor.contiguous()

