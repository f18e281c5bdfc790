"""The routers as modules: TopKRouter, SinkhornRouter, ExpertChoiceRouter. T tokens, E experts, K slots a token."""

import math

import torch

from .._header import constants, structs
from ._define import autocasting, checked, encode
from ._router import expert_choice, route, sinkhorn, update_bias

SOFTMAX, SIGMOID = constants["MOE_SCORE_SOFTMAX"], constants["MOE_SCORE_SIGMOID"]


class Router(torch.nn.Module):
    """logits = x weight^T, in fp32 also under autocast; weight [E, d]."""

    def __init__(self, hidden_size, num_experts, device=None, dtype=None):
        super().__init__()
        self.num_experts = num_experts
        self.weight = torch.nn.Parameter(torch.empty(num_experts, hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def extra_repr(self):
        return f"hidden_size={self.weight.shape[1]}, num_experts={self.num_experts}"

    def reset_parameters(self):
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def logits(self, x):
        """[T, E] of x [..., d], in the weight's dtype."""
        x = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        if not autocasting(x.device.type):
            return torch.nn.functional.linear(x, self.weight)
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.linear(x, self.weight)


class TopKRouter(Router):
    """The K best experts of a token. Options are those of libmoe.router_fwd (score_function, renormalize, num_groups, ...).

    expert_bias=True adds a buffer of that name to the scores for the choice alone (DeepSeek-V3) and counts
    tokens_per_expert while training; update_bias() moves the bias against the load.
    """

    def __init__(self, hidden_size, num_experts, top_k, *, aux_loss_coeff=0.0, z_loss_coeff=0.0, expert_bias=False, device=None,
                 dtype=None, **options):
        super().__init__(hidden_size, num_experts, device, dtype)
        self.top_k = top_k
        self.options = checked(structs["moe_router_desc_t"], _losses(aux_loss_coeff, z_loss_coeff) | options, "TopKRouter")
        self.register_buffer("expert_bias", torch.zeros(num_experts, device=device) if expert_bias else None)
        counts = torch.zeros(num_experts, dtype=torch.int64, device=device) if expert_bias else None
        self.register_buffer("tokens_per_expert", counts, persistent=False)

    def forward(self, x, padding_mask=None):
        """ids int32 [..., K], weights fp32 [..., K] and the loss, a scalar to be added to the model's. padding_mask bool
        [...], True = a real token: the others count in no loss and no load."""
        num_sequences = x.shape[0] if x.dim() > 2 else 1
        bias = None if self.expert_bias is None else self.expert_bias.float()
        ids, weights, load, losses = route(self.logits(x), self.top_k, selection_bias=bias, padding_mask=padding_mask,
                                           num_sequences=num_sequences, encoded=self.options)
        if self.tokens_per_expert is not None and self.training and not recomputing():
            self.tokens_per_expert += load
        shape = (*x.shape[:-1], self.top_k)
        return ids.view(shape), weights.view(shape), losses.sum()

    def update_bias(self, rate=1e-3):
        """After an optimizer's step: expert_bias += rate * sign(mean load - load). Over ranks, sum tokens_per_expert before."""
        update_bias(self.expert_bias, self.tokens_per_expert, rate)
        self.tokens_per_expert.zero_()


def recomputing():
    """Whether activation checkpointing runs a forward again, which it does within backward."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class SinkhornRouter(Router):
    """Experts chosen by Sinkhorn's balanced assignment in training, by score in evaluation (S-BASE, Megatron-Core).

    Weights are sigmoid(logits) for K = 1, else softmax over all experts, and alone carry the gradient. Options are those of
    libmoe.sinkhorn (preset, max_iterations, tolerance, ...).
    """

    def __init__(self, hidden_size, num_experts, top_k=1, *, renormalize=False, z_loss_coeff=0.0, device=None, dtype=None,
                 **options):
        super().__init__(hidden_size, num_experts, device, dtype)
        self.top_k = top_k
        self.options = checked(structs["moe_sinkhorn_desc_t"], options, "SinkhornRouter")
        self.weighting = encode({
            "score_function": SIGMOID if top_k == 1 else SOFTMAX, "renormalize": int(renormalize),
            "selection_bias_target": constants["MOE_BIAS_ON_LOGIT"], **_losses(0.0, z_loss_coeff)})

    def forward(self, x):
        logits = self.logits(x)
        bias = sinkhorn(logits, self.options) if self.training else None
        ids, weights, _, losses = route(logits, self.top_k, selection_bias=bias, encoded=self.weighting)
        shape = (*x.shape[:-1], self.top_k)
        return ids.view(shape), weights.view(shape), losses.sum()


class ExpertChoiceRouter(Router):
    """Each expert takes its best C = ceil(T * capacity_factor / E) tokens (Zhou et al. 2022): a token has 0 to E experts.

    Gives a mask and dense weights, [..., E], for Experts. It looks at all tokens of a batch: not for causal decoding.
    """

    def __init__(self, hidden_size, num_experts, capacity_factor=2.0, *, device=None, dtype=None):
        super().__init__(hidden_size, num_experts, device, dtype)
        self.capacity_factor = capacity_factor

    def capacity(self, tokens):
        return min(math.ceil(tokens * self.capacity_factor / self.num_experts), tokens)

    def forward(self, x, padding_mask=None):
        """The mask uint8 [..., E], weights fp32 [..., E] and a loss of 0: the load is even by construction."""
        logits = self.logits(x)
        weights, mask = expert_choice(logits, self.capacity(logits.shape[0]), padding_mask=padding_mask)
        shape = (*x.shape[:-1], self.num_experts)
        return mask.view(shape), weights.view(shape), logits.new_zeros((), dtype=torch.float32)


def _losses(aux_loss_coeff, z_loss_coeff):
    """The router's descriptor fields of the two losses."""
    aux = constants["MOE_AUX_LOSS_MEGATRON" if aux_loss_coeff else "MOE_AUX_LOSS_OFF"]
    return {"aux_loss": aux, "aux_loss_coeff": float(aux_loss_coeff), "z_loss": int(bool(z_loss_coeff)),
            "z_loss_coeff": float(z_loss_coeff)}
