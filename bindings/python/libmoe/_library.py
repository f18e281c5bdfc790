"""libmoe.so: found, loaded, its functions typed by the header; and the exceptions that statuses become."""

import ctypes
import functools
import os
from pathlib import Path

from ._header import constants, prototypes


class Error(Exception):
    """A call failed. `status` is its MOE_STATUS_*, `message` says what and why."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status
        self.message = message


class InvalidArgument(Error, ValueError):
    """An argument is wrong. Nothing was enqueued, no output was touched."""


class Unsupported(Error, NotImplementedError):
    """A valid request that this build, backend or version does not serve."""


class NoDriver(Error):
    """libcuda.so.1 is missing, unusable or too old."""


class UnsupportedDevice(Error):
    """There is no such device, or it is too old."""


class DriverError(Error, RuntimeError):
    """A CUDA driver call failed, perhaps from an earlier fault of the caller's."""


class NoNccl(Error):
    """libnccl.so.2 is missing or unusable."""


class NcclError(Error, RuntimeError):
    """An NCCL call failed."""


class DeviceFault(Error):
    """MOE_CHECK=1 only: a kernel reported a fault."""


class InternalError(Error, RuntimeError):
    """A defect of libmoe."""


ERRORS = {
    constants["MOE_STATUS_INVALID_ARGUMENT"]: InvalidArgument,
    constants["MOE_STATUS_UNSUPPORTED"]: Unsupported,
    constants["MOE_STATUS_NO_DRIVER"]: NoDriver,
    constants["MOE_STATUS_UNSUPPORTED_DEVICE"]: UnsupportedDevice,
    constants["MOE_STATUS_DRIVER_ERROR"]: DriverError,
    constants["MOE_STATUS_NO_NCCL"]: NoNccl,
    constants["MOE_STATUS_NCCL_ERROR"]: NcclError,
    constants["MOE_STATUS_DEVICE_FAULT"]: DeviceFault,
    constants["MOE_STATUS_INTERNAL_ERROR"]: InternalError,
}


def locate():
    """$LIBMOE, the packaged copy, the source tree's build, or the name that the system's loader knows."""
    if "LIBMOE" in os.environ:
        return os.environ["LIBMOE"]
    here = Path(__file__).resolve()
    for path in (here.with_name("libmoe.so"), here.parents[3] / "target" / "release" / "libmoe.so"):
        if path.exists():
            return str(path)
    return "libmoe.so.0"


@functools.cache
def library():
    """The loaded library with the header's prototypes set."""
    path = locate()
    try:
        loaded = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"libmoe cannot be loaded from {path!r}: {error}. Set LIBMOE to its path.") from error
    for prototype in prototypes.values():
        function = getattr(loaded, prototype.name)
        function.restype = prototype.result
        function.argtypes = [parameter.ctype for parameter in prototype.parameters]
    found, described = loaded.moe_version() // 100, constants["MOE_VERSION_MAJOR"] * 100 + constants["MOE_VERSION_MINOR"]
    if found != described:
        raise ImportError(f"{path!r} is libmoe {_dotted(found)}, the header beside this package {_dotted(described)}")
    return loaded


def version():
    """The version of the library that was loaded."""
    number = library().moe_version()
    return f"{_dotted(number // 100)}.{number % 100}"


def _dotted(number):
    return f"{number // 100}.{number % 100}"


def call(name, *arguments):
    """Calls moe_<name>; a status other than success becomes its exception."""
    status = getattr(library(), "moe_" + name)(*arguments)
    if status != 0:
        raise_status(status)


def raise_status(status):
    """The exception of this thread's last failed call."""
    loaded = library()
    message = loaded.moe_last_error_message().decode() or loaded.moe_status_string(status).decode()
    raise ERRORS.get(status, Error)(status, message)
