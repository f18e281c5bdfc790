"""MegaBlocks' layers by libmoe: dMoE, which drops no token, and MoE with a capacity, with MegaBlocks' arguments and names.

    args = Arguments(hidden_size=64, ffn_hidden_size=128, moe_num_experts=8, moe_top_k=2, mlp_type="glu", return_bias=False)
    layer = dMoE(args)
    y = layer(x)                                  # x [sequence, batch, hidden]
    loss = loss + batched_load_balancing_loss(args)
    clear_load_balancing_loss()

State dicts of MegaBlocks' own layers load as they are. E experts, f expert width, d hidden size.
"""

import dataclasses
import functools
from collections.abc import Callable

from ._header import constants
from .torch import combine, dispatch, drop, expert_mlp, grouped_gemm, make_plan, route
from .torch._probe import recognise

import torch  # behind libmoe.torch, which says so where it is missing

IN_OUT = constants["MOE_WEIGHT_IN_OUT"]
_LOSSES = []


@dataclasses.dataclass
class Arguments:
    """Those of megablocks.layers.arguments.Arguments that mean something here; expert parallelism is not among them."""

    hidden_size: int = 1024
    ffn_hidden_size: int = 4096
    num_layers: int = 1
    bias: bool = True
    return_bias: bool = True
    activation_fn: Callable = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    moe_num_experts: int = 1
    moe_top_k: int = 1
    # Of MoE: 0 drops nothing.
    moe_capacity_factor: float = 1
    # p of the norm that the weights of a token are divided by; None: they are left as they are.
    moe_normalize_expert_weights: float | None = None
    moe_loss_weight: float = 0.1
    moe_jitter_eps: float | None = None
    moe_lbl_in_fp32: bool = False
    # "mlp" or "glu".
    mlp_type: str = "mlp"
    # Saves x alone for backward and computes fc1 again.
    memory_optimized_mlp: bool = False
    uniform_expert_assignment: bool = False
    fp16: bool = False
    bf16: bool = False
    device: torch.device | str | None = None
    init_method: Callable = functools.partial(torch.nn.init.normal_, mean=0.0, std=0.02)
    output_layer_init_method: Callable = functools.partial(torch.nn.init.normal_, mean=0.0, std=0.02)

    @property
    def dtype(self):
        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else torch.float32


def from_megatron(megatron_args):
    """Arguments of what Megatron's have under the same names."""
    names = [field.name for field in dataclasses.fields(Arguments)]
    return Arguments(**{name: getattr(megatron_args, name) for name in names if hasattr(megatron_args, name)})


class dMoE(torch.nn.Module):  # noqa: N801 (MegaBlocks' name)
    """y like x [sequence, batch, d], and the bias where args.return_bias; without it the bias is added."""

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.router = LearnedRouter(args)
        self.experts = torch.nn.Module()
        self.experts.mlp = Mlp(args)
        bias = torch.zeros(args.hidden_size, device=args.device, dtype=args.dtype) if args.bias else None
        self.experts.bias = None if bias is None else torch.nn.Parameter(bias)

    def forward(self, x):
        scores, weights, ids, load = self.router(x)
        if self.training and self.args.moe_loss_weight > 0:
            _LOSSES.append((load, scores))
        ids, weights = self.drop(ids, weights)
        y = self.experts.mlp(x.reshape(-1, x.shape[-1]), ids, weights).view(x.shape)
        bias = self.experts.bias
        if self.args.return_bias:
            return y, bias
        return y if bias is None else y + bias

    def drop(self, ids, weights):
        return ids, weights


class MoE(dMoE):
    """Each expert takes the first floor(tokens * top_k / experts * moe_capacity_factor) of its slots in token order."""

    def drop(self, ids, weights):
        if not self.args.moe_capacity_factor:
            return ids, weights
        return drop(ids, weights, self.args.moe_num_experts, formula=constants["MOE_CAPACITY_MEGABLOCKS"],
                    capacity_factor=float(self.args.moe_capacity_factor), policy=constants["MOE_DROP_BY_POSITION"])


class LearnedRouter(torch.nn.Module):
    """scores [T, E], weights and ids [T, K], tokens_per_expert int64 [E]. layer.weight [E, d]."""

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.layer = torch.nn.Linear(args.hidden_size, args.moe_num_experts, bias=False, device=args.device, dtype=args.dtype)
        args.init_method(self.layer.weight)

    def forward(self, x):
        args = self.args
        if self.training and args.moe_jitter_eps is not None:
            x = x * torch.empty_like(x).uniform_(1 - args.moe_jitter_eps, 1 + args.moe_jitter_eps)
        logits = self.layer(x.reshape(-1, x.shape[-1]))
        given = None
        if args.uniform_expert_assignment:
            slots = torch.arange(logits.shape[0] * args.moe_top_k, device=x.device, dtype=torch.int32)
            given = (slots % args.moe_num_experts).view(-1, args.moe_top_k)
        selection = constants["MOE_SELECT_TOPK" if given is None else "MOE_SELECT_GIVEN"]
        ids, weights, load, _ = route(logits, args.moe_top_k, given_ids=given, selection=selection)
        if args.moe_normalize_expert_weights:
            weights = weights / torch.linalg.vector_norm(weights, ord=args.moe_normalize_expert_weights, dim=-1, keepdim=True)
        return logits.softmax(-1), weights, ids, load


class Mlp(torch.nn.Module):
    """w1, w2 and for glu v1, each [E*f, d]: y = (act(x w1^T) * x v1^T) w2 for an expert's rows."""

    def __init__(self, args):
        super().__init__()
        if args.mlp_type not in ("mlp", "glu"):
            raise ValueError(f"mlp_type is {args.mlp_type!r}; it must be mlp or glu")
        self.args = args
        gated = args.mlp_type == "glu"

        def new(init):
            weight = torch.nn.Parameter(torch.empty(args.moe_num_experts * args.ffn_hidden_size, args.hidden_size,
                                                    device=args.device, dtype=args.dtype))
            init(weight)
            return weight

        self.w1, self.w2 = new(args.init_method), new(args.output_layer_init_method)
        self.v1 = new(args.init_method) if gated else None
        self.options = recognise(self.act, 16 if gated else 8, gated)

    def act(self, h):
        """What lies between the two matrices, of h [R, 2f] gated or [R, f]."""
        if self.args.mlp_type == "mlp":
            return self.args.activation_fn(h)
        gate, up = h.chunk(2, -1)
        return self.args.activation_fn(gate) * up

    def forward(self, x, ids, weights):
        shape = self.args.moe_num_experts, self.args.ffn_hidden_size, self.args.hidden_size
        w1, w2 = self.w1.view(shape), self.w2.view(shape)
        if self.v1 is not None:
            w1 = torch.cat([w1, self.v1.view(shape)], 1)
        plan = make_plan(ids, shape[0])
        if self.options is not None:
            recompute = self.args.memory_optimized_mlp
            return expert_mlp(x, plan, w1, w2, weights, recompute=recompute, encoded=self.options, w2_layout=IN_OUT)
        h = grouped_gemm(dispatch(x, plan), w1, plan.group_offsets)
        return combine(grouped_gemm(self.act(h), w2, plan.group_offsets, b_layout=IN_OUT), plan, weights)


def get_load_balancing_loss():
    """(tokens_per_expert, scores) of each layer since the last clear."""
    return _LOSSES


def clear_load_balancing_loss():
    _LOSSES.clear()


def batched_load_balancing_loss(args):
    """moe_loss_weight * E / (num_layers * T * K) * sum over layers and experts of tokens * mean score."""
    if len(_LOSSES) != args.num_layers:
        raise ValueError(f"{len(_LOSSES)} layers ran since the last clear_load_balancing_loss(); num_layers is {args.num_layers}")
    loads, scores = zip(*_LOSSES)
    tokens = scores[0].shape[0]
    scores = torch.cat([s.float() if args.moe_lbl_in_fp32 else s for s in scores], 1).mean(0)
    scale = args.moe_num_experts * args.moe_loss_weight / (args.num_layers * tokens * args.moe_top_k)
    return scale * torch.dot(torch.cat(loads).to(scores.dtype), scores)
