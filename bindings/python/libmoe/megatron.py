"""Megatron-Core's experts by libmoe: in the place of GroupedMLP, TEGroupedMLP or SequentialMLP in a layer's spec.

    from megatron.core.transformer.spec_utils import ModuleSpec
    layer_spec.submodules.mlp.submodules.experts = ModuleSpec(module=libmoe.megatron.Experts)

Behind any token dispatcher, with expert parallelism; each expert whole on its rank (expert_tensor_parallel_size 1). Checkpoints
by state_dict. R rows, E local experts, f expert width, d hidden size.
"""

from ._header import constants
from .torch import expert_rows, grouped_gemm
from .torch._probe import recognise

import torch  # behind libmoe.torch, which says so where it is missing

AT_INPUT, AT_ACTIVATION = constants["MOE_WEIGHTS_AT_INPUT"], constants["MOE_WEIGHTS_AT_ACTIVATION"]


class Experts(torch.nn.Module):
    """(y [R, d], None) of rows [R, d] sorted by expert, tokens_per_expert [E] on the CPU or the GPU, and probs [R].

    `config` is a TransformerConfig, of which fields are read. weight1 [E, 2f, d] (gate first; [E, f, d] without a gate),
    weight2 [E, d, f], with add_bias_linear bias1 and bias2.
    """

    def __init__(self, num_local_experts, config, submodules=None, pg_collection=None, **_):
        super().__init__()
        if getattr(config, "expert_tensor_parallel_size", None) not in (None, 1):
            raise NotImplementedError("libmoe.megatron.Experts needs expert_tensor_parallel_size 1: each expert whole on its rank")
        if getattr(config, "fp8", None) or getattr(config, "fp4", None):
            raise NotImplementedError("libmoe.megatron.Experts computes in the parameters' dtype, not in FP8 or FP4")
        self.config, self.num_local_experts = config, num_local_experts
        hidden, width = getattr(config, "moe_latent_size", None) or config.hidden_size, config.moe_ffn_hidden_size
        gated = config.gated_linear_unit
        columns = 2 * width if gated else width
        self.weight1 = self._new(config.init_method, columns, hidden)
        self.weight2 = self._new(config.output_layer_init_method, hidden, width)
        zeros = torch.nn.init.zeros_
        self.bias1 = self._new(zeros, columns) if config.add_bias_linear else None
        self.bias2 = self._new(zeros, hidden) if config.add_bias_linear else None
        self.options = recognise(self.act, 16 if gated else 8, gated)

    def _new(self, init, *shape):
        config = self.config
        device = "cpu" if getattr(config, "use_cpu_initialization", False) or not torch.cuda.is_available() else "cuda"
        parameter = torch.nn.Parameter(torch.empty(self.num_local_experts, *shape, dtype=config.params_dtype, device=device))
        if getattr(config, "perform_initialization", True):
            for expert in parameter.detach():
                init(expert)
        # Megatron's optimizer reduces what is not expert-parallel over all ranks.
        parameter.allreduce = getattr(config, "expert_model_parallel_size", 1) <= 1
        return parameter

    def act(self, h):
        """What lies between fc1 and fc2, as the configuration says it."""
        config = self.config
        if not config.gated_linear_unit:
            return config.activation_func(h)
        gate, up = h.chunk(2, -1)
        clamp = getattr(config, "activation_func_clamp_value", None)
        if clamp is not None:
            gate, up = gate.clamp(max=clamp), up.clamp(-clamp, clamp)
        return config.activation_func(gate) * (up + getattr(config, "glu_linear_offset", 0.0))

    def forward(self, permuted_local_hidden_states, tokens_per_expert, permuted_probs):
        x, probs = permuted_local_hidden_states, permuted_probs
        sizes = tokens_per_expert.to(x.device, torch.int64, non_blocking=True)
        offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        weights_at = AT_INPUT if getattr(self.config, "moe_apply_probs_on_input", False) else AT_ACTIVATION
        if self.options is not None:
            return expert_rows(x, offsets, self.weight1, self.weight2, probs, self.bias1, self.bias2, encoded=self.options,
                               weights_at=weights_at), None
        return self._around_its_own_function(x, probs, offsets, weights_at), None

    def _around_its_own_function(self, x, probs, offsets, weights_at):
        """fc1, the configuration's function, fc2; probs are on the activation, and on fc2's bias too."""
        probs = probs[:, None]
        if weights_at == AT_INPUT:
            x, probs = (x * probs).to(x.dtype), 1
        h = grouped_gemm(x, self.weight1, offsets, bias=self.bias1)
        y = grouped_gemm((self.act(h) * probs).to(x.dtype), self.weight2, offsets)
        if self.bias2 is None:
            return y
        row = torch.arange(x.shape[0], device=x.device)
        expert = (torch.searchsorted(offsets, row, right=True) - 1).clamp(max=self.num_local_experts - 1)
        return y + (self.bias2[expert] * probs).to(y.dtype)

    def backward_dw(self):
        """Weight gradients are computed with the others, never delayed."""
