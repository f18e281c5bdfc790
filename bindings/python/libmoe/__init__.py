"""Mixture-of-Experts layers on CUDA GPUs and on the CPU, through libmoe.so.

Functions have the C functions' names and take a Context first; arrays are NumPy's on the CPU, anything with `data_ptr()`
(PyTorch), `__cuda_array_interface__` or DLPack elsewhere, and outputs are like inputs. Constants are the header's without
their prefix: `libmoe.SCORE_SIGMOID` is MOE_SCORE_SIGMOID.
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
from .activation import ActivationGrads, activation_bwd, activation_fwd
from .dispatch import (
    CombineGrads,
    DispatchGrads,
    Plan,
    Rows,
    combine_bwd,
    combine_fwd,
    dispatch_bwd,
    dispatch_fwd,
    dispatch_plan,
    sort_chunks,
)
from .expert_mlp import (
    ExpertMlpGrads,
    ExpertMlpOutput,
    ExpertMlpWgrads,
    expert_mlp_bwd,
    expert_mlp_fwd,
    expert_mlp_wgrad,
)
from .grouped_gemm import GroupedGemmGrads, gmm, grouped_gemm_bwd, grouped_gemm_fwd
from .layer import LayerOutput, MoELayer, SideStream
from .load import LoadReport, load_report
from .router import (
    ExpertChoice,
    Kept,
    RouterLogitsGrads,
    RouterLosses,
    RouterOutput,
    SinkhornOutput,
    capacity_bwd,
    capacity_fwd,
    capacity_value,
    expert_choice_bwd,
    expert_choice_fwd,
    router_bias_update,
    router_bwd,
    router_fwd,
    router_logits_bwd,
    router_logits_fwd,
    router_loss_bwd,
    router_loss_fwd,
    sinkhorn,
    sinkhorn_step,
)

globals().update({name.removeprefix("MOE_"): value for name, value in _constants.items()})
