"""NLLB-MoE, whose experts are modules of their own: patch_nllb(model) gives them to libmoe.

The router stays the model's: its capacity, second-expert policy, normalisation and random numbers are torch's. A token goes
to the experts that the router left it, each with its own weight, as in fairseq and in Transformers 4. (Transformers 5.17's
own NllbMoeExperts reads the mask as if it were ids, and uses experts 0 and 1 alone.)
"""

import torch

from ..torch import combine, dispatch, grouped_gemm, make_plan
from ..torch._expert_mlp import row_weights_of

PARTS = {"w1": "fc1.weight", "b1": "fc1.bias", "w2": "fc2.weight", "b2": "fc2.bias"}


def patch_nllb(model):
    """Replaces the experts of each sparse layer by NllbExperts; returns how many. Before an optimizer takes the parameters."""
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

    layers = [module for module in model.modules() if isinstance(module, NllbMoeSparseMLP)]
    for layer in layers:
        if not isinstance(layer.experts, NllbExperts):
            layer.experts = NllbExperts(layer.experts)
    return len(layers)


class NllbExperts(torch.nn.Module):
    """The experts' matrices stacked: w1 [E, f, d], b1, w2 [E, d, f], b2. The state dict keeps the model's names."""

    def __init__(self, experts):
        super().__init__()
        modules = [module for name, module in experts.items() if name.startswith("expert_")]
        self.num_experts = len(modules)
        for name, part in PARTS.items():
            stacked = torch.stack([module.get_parameter(part).detach() for module in modules])
            requires_grad = modules[0].get_parameter(part).requires_grad
            self.register_parameter(name, torch.nn.Parameter(stacked, requires_grad=requires_grad))
        self.act, self.dropout, self.token_dropout = modules[0].act, modules[0].dropout, experts.token_dropout
        self.train(experts.training)
        self.register_state_dict_post_hook(_split)
        self.register_load_state_dict_pre_hook(_stack)

    def forward(self, hidden_states, router_mask, router_probs):
        """hidden_states [T, d]; router_probs [T, E], 0 where a token does not go: at most two an expert's choices."""
        plan = make_plan(router_probs != 0, self.num_experts, min(2, self.num_experts) * hidden_states.shape[0])
        x = hidden_states.to(self.w1.dtype)
        h = grouped_gemm(dispatch(x, plan), self.w1, plan.group_offsets, bias=self.b1)
        h = self.dropout(self.act(h))
        rows = grouped_gemm(h, self.w2, plan.group_offsets, bias=self.b2)
        rows = rows * row_weights_of(router_probs, plan)[:, None].to(rows.dtype)
        if self.token_dropout.p > 0:
            rows = self.token_dropout(rows) if self.training else rows * (1 - self.token_dropout.p)
        return combine(rows, plan).to(hidden_states.dtype)


def _split(module, state, prefix, _):
    for name, part in PARTS.items():
        for number, weight in enumerate(state.pop(prefix + name)):
            state[f"{prefix}expert_{number}.{part}"] = weight


def _stack(module, state, prefix, *_):
    for name, part in PARTS.items():
        keys = [f"{prefix}expert_{number}.{part}" for number in range(module.num_experts)]
        if all(key in state for key in keys):
            state[prefix + name] = torch.stack([state.pop(key) for key in keys])
