"""Mixture-of-Experts layers on CUDA GPUs and on the CPU, through libmoe.so.

Constants are the header's without their prefix: `libmoe.SCORE_SIGMOID` is MOE_SCORE_SIGMOID.
"""

from ._context import Context
from ._header import constants as _constants
from ._library import (
    DeviceFault,
    DriverError,
    Error,
    InternalError,
    InvalidArgument,
    NcclError,
    NoDriver,
    NoNccl,
    Unsupported,
    UnsupportedDevice,
    version,
)

globals().update({name.removeprefix("MOE_"): value for name, value in _constants.items()})
