"""PyTorch modules: TopKRouter and Experts, differentiable, on CPU and CUDA tensors.

    router, experts = TopKRouter(d, E, top_k=2, aux_loss_coeff=1e-2), Experts(E, d, f)
    ids, weights, loss = router(x)
    y = experts(x, ids, weights)
"""

import functools
import math

import torch
from torch.autograd.function import once_differentiable

from . import (
    AUX_LOSS_MEGATRON,
    AUX_LOSS_OFF,
    Context,
    Plan,
    activation,
    dispatch_plan,
    expert_mlp_bwd,
    expert_mlp_fwd,
    router_bwd,
    router_fwd,
)


@functools.cache
def context(device):
    """The process's Context of a torch.device."""
    return Context(str(device))


class Experts(torch.nn.Module):
    """y_t = sum_k weights_tk * W2_e act(W1_e x_t + b1_e) + b2_e, with e = ids_tk.

    w1 [E, 2f, d] (gate first; [E, f, d] without a gate), w2 [E, d, f]. Options are those of libmoe.expert_mlp_fwd
    (activation, gate_order, weights_at, math, ...).
    """

    def __init__(self, num_experts, hidden_size, ffn_size, *, bias=False, device=None, dtype=None, **options):
        super().__init__()
        wide = ffn_size * (2 if activation.is_gated(options.get("activation", activation.SWIGLU)) else 1)
        new = functools.partial(torch.empty, device=device, dtype=dtype)
        self.w1 = torch.nn.Parameter(new(num_experts, wide, hidden_size))
        self.w2 = torch.nn.Parameter(new(num_experts, hidden_size, ffn_size))
        self.b1 = torch.nn.Parameter(new(num_experts, wide)) if bias else None
        self.b2 = torch.nn.Parameter(new(num_experts, hidden_size)) if bias else None
        self.options = options
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Uniform within 1/sqrt(inputs), as torch.nn.Linear's."""
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            bound = 1 / math.sqrt(weight.shape[-1])
            weight.uniform_(-bound, bound)
            if bias is not None:
                bias.uniform_(-bound, bound)

    def forward(self, x, ids, weights):
        """x [..., d], ids [..., K] (-1: an empty slot), weights [..., K] of any floating dtype; y is like x."""
        flat, ids, weights = (t.reshape(math.prod(t.shape[:-1]), t.shape[-1]) for t in (x, ids, weights))
        y = _Experts.apply(flat, ids, weights, self.w1, self.w2, self.b1, self.b2, self.options)
        return y.view(x.shape)


class TopKRouter(torch.nn.Module):
    """logits = x weight^T, top-k of their scores. Options are those of libmoe.router_fwd (score_function, ...)."""

    def __init__(self, hidden_size, num_experts, top_k, *, aux_loss_coeff=0.0, z_loss_coeff=0.0, device=None, **options):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(num_experts, hidden_size, device=device))
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.top_k = top_k
        aux_loss = AUX_LOSS_MEGATRON if aux_loss_coeff else AUX_LOSS_OFF
        self.options = {"aux_loss": aux_loss, "aux_loss_coeff": aux_loss_coeff, "z_loss": int(bool(z_loss_coeff)),
                        "z_loss_coeff": z_loss_coeff, **options}

    def forward(self, x):
        """ids int32 [..., K], weights fp32 [..., K] and the loss, a scalar to be added to the model's."""
        logits = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight)
        ids, weights, loss = _Route.apply(logits.reshape(-1, logits.shape[-1]), self.top_k, self.options)
        shape = (*x.shape[:-1], self.top_k)
        return ids.view(shape), weights.view(shape), loss


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ids, weights, w1, w2, b1, b2, options):
        moe = context(x.device)
        x, ids, weights = _rows(x), ids.contiguous(), weights.contiguous()
        plan = dispatch_plan(moe, ids, w1.shape[0])
        training = any(ctx.needs_input_grad)
        y, h = expert_mlp_fwd(moe, plan, x, w1, w2, weights, b1=b1, b2=b2, h=training, **options)
        maps = [plan.group_offsets, plan.group_sizes, plan.row_of_slot, plan.slot_of_row, plan.token_of_row]
        ctx.save_for_backward(x, weights, w1, w2, b1, b2, h, *maps)
        ctx.plan = plan._replace(**dict.fromkeys(Plan._fields[:6]))
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weights, w1, w2, b1, b2, h, *maps = ctx.saved_tensors
        plan = ctx.plan._replace(**dict(zip(Plan._fields, maps)))
        dx, _, dweights, dw1, dw2, db1, db2, _ = ctx.needs_input_grad
        grads = expert_mlp_bwd(context(x.device), plan, _rows(dy), x, w1, w2, h, weights, b1=b1, b2=b2, dx=dx, dw1=dw1, dw2=dw2,
                               db1=db1, db2=db2, dweights=dweights, **ctx.options)
        return grads.dx, None, grads.dweights, grads.dw1, grads.dw2, grads.db1, grads.db2, None


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, top_k, options):
        out = router_fwd(context(logits.device), logits, top_k, **options)
        losses = [loss[0] for loss in (out.aux_loss, out.z_loss) if loss is not None]
        loss = sum(losses) if losses else logits.new_zeros((), dtype=torch.float32)
        ctx.mark_non_differentiable(out.ids)
        ctx.save_for_backward(logits, out.ids, out.aux_counts)
        ctx.options = options
        return out.ids, out.weights, loss

    @staticmethod
    @once_differentiable
    def backward(ctx, _, dweights, dloss):
        logits, ids, counts = ctx.saved_tensors
        dloss = dloss.reshape(1).contiguous()
        dlogits = router_bwd(context(logits.device), logits, ids, dweights.contiguous(), aux_counts=counts,
                             aux_loss_grad=dloss, z_loss_grad=dloss, **ctx.options)
        return dlogits, None, None


def _rows(x):
    """x with contiguous rows, which libmoe reads at any pitch."""
    return x if x.shape[-1] == 0 or (x.stride(-1) == 1 and x.stride(0) >= x.shape[-1]) else x.contiguous()
