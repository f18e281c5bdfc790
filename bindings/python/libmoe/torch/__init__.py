"""PyTorch: modules and functions on CPU and CUDA tensors, differentiable, for eager mode, torch.compile and CUDA graphs.

    router, experts = TopKRouter(d, E, top_k=2, aux_loss_coeff=1e-2), Experts(E, d, f)
    ids, weights, loss = router(x)
    y = experts(x, ids, weights)

Functions: make_plan, dispatch, combine, expert_mlp, expert_rows, grouped_gemm, gmm, route, sinkhorn, expert_choice, drop.
They are operators of torch.ops.libmoe.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("libmoe.torch needs PyTorch 2.8 or newer: pip install torch") from error

if tuple(map(int, _torch.__version__.split(".")[:2])) < (2, 8):
    raise ImportError(f"libmoe.torch needs PyTorch 2.8 or newer; this is {_torch.__version__}: pip install --upgrade torch")

from ._call import context, open_context
from ._dispatch import Plan, combine, dispatch, make_plan
from ._expert_mlp import expert_mlp, expert_rows
from ._grouped_gemm import gmm, grouped_gemm
from ._router import drop, expert_choice, route, sinkhorn, update_bias
from .experts import Experts, SharedExperts
from .layer import MoELayer
from .routers import ExpertChoiceRouter, SinkhornRouter, TopKRouter

__all__ = [
    "Experts", "ExpertChoiceRouter", "MoELayer", "Plan", "SharedExperts", "SinkhornRouter", "TopKRouter", "combine", "context",
    "dispatch", "drop", "expert_choice", "expert_mlp", "expert_rows", "gmm", "grouped_gemm", "make_plan", "open_context", "route",
    "sinkhorn", "update_bias",
]
