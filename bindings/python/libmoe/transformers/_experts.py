"""The experts interface of Transformers: experts_forward(module, hidden_states, top_k_index, top_k_weights).

The module tells whether it has a gate and biases, and whether its matrices are transposed; what it does between them is
found by a probe. T tokens, d hidden size, E experts, K slots a token, f expert width.
"""

import inspect

import torch
from torch._dynamo.comptime import comptime
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation
from transformers.utils import logging

from .._header import constants
from ..torch import combine, dispatch, expert_mlp, grouped_gemm, make_plan
from ..torch._define import autocast
from ..torch._probe import recognise

logger = logging.get_logger(__name__)
LAYOUTS = {False: constants["MOE_WEIGHT_OUT_IN"], True: constants["MOE_WEIGHT_IN_OUT"]}
DTYPES = {torch.float32, torch.bfloat16, torch.float16}
# What register() was told.
FALLBACK = {"name": None}
# {(id of the config, name of the experts' class): options}, "" where the model's own function is called; and the configs,
# which keep their ids.
_RECOGNISED, _CONFIGS = {}, []
OWN = "own"
# What the interface says of a module, as far as this file knows; newer versions may say more.
KNOWN = {"experts_class", "experts_interface", "is_concatenated", "is_transposed", "has_bias", "has_gate", "has_post_expert_norm"}
UNKNOWN = {name: parameter.default for name, parameter in inspect.signature(use_experts_implementation).parameters.items()
           if name not in KNOWN}


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    w1 = _local(self.gate_up_proj if self.has_gate else self.up_proj)
    w2 = _local(self.down_proj)
    if not (w1.dtype in DTYPES or (w1.dtype == torch.float64 and w1.device.type == "cpu")):
        return _elsewhere(self, f"weights of {w1.dtype} on {w1.device.type}", hidden_states, top_k_index, top_k_weights)
    if hasattr(w1, "__tensor_flatten__") and not hasattr(w1, "trigger_wait"):
        # A quantizer's, which tells the dtype that it computes in; what waits for a collective is a tensor.
        return _elsewhere(self, f"weights that are {type(w1).__name__}", hidden_states, top_k_index, top_k_weights)
    strange = [name for name, default in UNKNOWN.items() if getattr(self, name, default) != default]
    if strange:
        return _elsewhere(self, f"experts with {', '.join(strange)}", hidden_states, top_k_index, top_k_weights)
    b1 = b2 = None
    if self.has_bias:
        b1 = _local(self.gate_up_proj_bias if self.has_gate else self.up_proj_bias)
        b2 = _local(self.down_proj_bias)
    options = _options(self)
    x, w1, w2, b1, b2 = autocast(hidden_states.reshape(-1, hidden_states.shape[-1]), w1, w2, b1, b2)
    x = x.to(w1.dtype)
    ids = top_k_index.reshape(-1, top_k_index.shape[-1])
    weights = top_k_weights.reshape(-1, top_k_weights.shape[-1])
    if weights.shape[1] != ids.shape[1]:
        # Dense weights [T, E]; ids beyond the last expert are empty slots.
        weights = weights.gather(1, ids.clamp(0, weights.shape[1] - 1).long())
    layout = LAYOUTS[self.is_transposed]
    plan = make_plan(ids, w1.shape[0])
    if options == OWN:
        y = _around_its_own_function(self, x, plan, w1, w2, b1, b2, weights, layout)
    else:
        y = expert_mlp(x, plan, w1, w2, weights, b1, b2, encoded=options, w1_layout=layout, w2_layout=layout)
    return y.view(hidden_states.shape).to(hidden_states.dtype)


def _around_its_own_function(self, x, plan, w1, w2, b1, b2, weights, layout):
    """dispatch, fc1, the model's function, fc2, combine."""
    h = grouped_gemm(dispatch(x, plan), w1, plan.group_offsets, bias=b1, b_layout=layout)
    act = self._apply_gate(h) if self.has_gate else self.act_fn(h)
    rows = grouped_gemm(act.to(h.dtype), w2, plan.group_offsets, bias=b2, b_layout=layout)
    if _post_norm(self):
        # Rows of empty slots are undefined, and must not reach the norm's gradient.
        there = (torch.arange(rows.shape[0], device=rows.device) < plan.group_offsets[-1])[:, None]
        rows = torch.where(there, self.post_expert_norm(torch.where(there, rows, 0)), 0).to(h.dtype)
    return combine(rows, plan, weights)


def _post_norm(self):
    """Whether each expert's output is normed, which versions from 5.18 on may ask for."""
    return getattr(self, "has_post_expert_norm", False)


def quantized_forward(self, hidden_states, top_k_index, top_k_weights):
    """What is registered for experts whose weights a quantizer has replaced."""
    return _elsewhere(self, f"quantized experts ({type(self).__name__})", hidden_states, top_k_index, top_k_weights)


def _elsewhere(self, what, *inputs):
    """The implementation that the user allowed for what libmoe cannot compute."""
    name = FALLBACK["name"]
    if name is None:
        raise NotImplementedError(f'libmoe does not compute {what}; libmoe.transformers.register(fallback="grouped_mm") allows '
                                  "another implementation for them")
    logger.warning_once(f"libmoe does not compute {what}: {name} does")
    interface = ALL_EXPERTS_FUNCTIONS
    if hasattr(self, "gate_up_proj_scale_inv"):
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS as interface
    # The module's forward is the interface's dispatcher around its own: __wrapped__ is that.
    function = type(self).forward.__wrapped__ if name == "eager" else interface[name]
    return function(self, *inputs)


# ---------------------------------------------------------------- what the module computes between its matrices


def _options(self):
    """Options of the expert MLP, or OWN. Probed at first use; while torch.compile traces, aside from the trace."""
    if torch.compiler.is_dynamo_compiling():
        comptime(_probe_while_compiling)
        return _recognised(id(self.config), type(self).__name__)
    options = self.__dict__.get("_libmoe_options")
    return _probe(self) if options is None else options


def _probe_while_compiling(trace):
    _probe(trace.get_local("self")._i_will_not_complain_if_bc_breaks_VariableTracker().value)


@torch.compiler.assume_constant_result
def _recognised(config, name):
    return _RECOGNISED[config, name]


def _probe(self):
    columns = (self.gate_up_proj if self.has_gate else self.up_proj).shape[-1 if self.is_transposed else -2]
    options = recognise(self._apply_gate if self.has_gate else self.act_fn, int(columns), self.has_gate) or OWN
    if _post_norm(self):
        options = OWN
    elif options == OWN:
        logger.warning_once(f"libmoe: the activation of {type(self).__name__} is none of libmoe's; it is computed by the model's "
                            "own function between grouped GEMMs")
    key = id(self.config), type(self).__name__
    if key not in _RECOGNISED:
        _CONFIGS.append(self.config)
    # Layers of one model that differ in their activation: compiled, each calls its own function.
    _RECOGNISED[key] = options if _RECOGNISED.get(key, options) == options else OWN
    self.__dict__["_libmoe_options"] = options
    return options


def _local(tensor):
    """This rank's part of a DTensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
