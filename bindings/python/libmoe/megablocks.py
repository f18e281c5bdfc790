"""MegaBlocks' layers by libmoe: dMoE, which drops no token, and MoE with a capacity, with MegaBlocks' arguments and names.

    args = Arguments(hidden_size=64, ffn_hidden_size=128, moe_num_experts=8, moe_top_k=2, mlp_type="glu", return_bias=False)
    layer = dMoE(args)
    y = layer(x)                                  # x [sequence, batch, hidden]
    loss = loss + batched_load_balancing_loss(args)
    clear_load_balancing_loss()

State dicts of MegaBlocks' own layers load as they are; MoE's, whose matrices are [E, d, f] and [E, f, d] there, become [E*f, d] as dMoE's.
E experts, f expert width, d hidden size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ._header import constants
from .torch import combine, dispatch, drop, expert_mlp, grouped_gemm, make_plan, route
from .torch._define import autocast
from .torch._probe import recognise

import torch  # behind libmoe.torch, which says so where it is missing

IN_OUT = constants["MOE_WEIGHT_IN_OUT"]
_LOSSES, _LOGITS = [], []


@dataclasses.dataclass
class Arguments:
    """Those of megablocks.layers.arguments.Arguments. Expert parallelism is refused; mlp_impl and remat_act_fn change nothing."""

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
    moe_expert_model_parallelism: bool = False
    expert_parallel_group: Any = None
    # How many layers batched_load_balancing_loss expects: num_layers over the stages, or so many.
    pipeline_model_parallel_size: int = 1
    num_layers_per_virtual_pipeline_stage: int | None = None
    # "mlp" or "glu".
    mlp_type: str = "mlp"
    mlp_impl: str = "grouped"
    # Saves x alone for backward and computes fc1 again.
    memory_optimized_mlp: bool = False
    uniform_expert_assignment: bool = False
    fp16: bool = False
    bf16: bool = False
    device: torch.device | str | None = None
    init_method: Callable = functools.partial(torch.nn.init.normal_, mean=0.0, std=0.02)
    output_layer_init_method: Callable = functools.partial(torch.nn.init.normal_, mean=0.0, std=0.02)
    # A dense MLP beside the experts, of layers fc_cls; weighted: a token's mean over its experts and this one.
    shared_expert: bool = False
    fc_cls: Callable = torch.nn.Linear
    fc_kwargs: dict = dataclasses.field(default_factory=dict)
    remat_act_fn: bool = True
    shared_expert_hidden_size: int | None = None
    shared_expert_weighted_sum: bool = False
    moe_zloss_weight: float = 0
    moe_zloss_in_fp32: bool = False

    def __post_init__(self):
        if self.moe_expert_model_parallelism:
            raise ValueError("moe_expert_model_parallelism is True; libmoe.megablocks has whole layers on each rank alone")
        if self.shared_expert_hidden_size is None:
            self.shared_expert_hidden_size = self.ffn_hidden_size

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
        self.shared_expert = SharedMlp(args) if args.shared_expert else None

    def forward(self, x):
        (x,) = autocast(x)
        scores, weights, ids, load = self.router(x)
        if self.training and self.args.moe_loss_weight > 0:
            _LOSSES.append((load, scores))
        ids, weights = self.drop(ids, weights)
        y = self.experts.mlp(x.reshape(-1, x.shape[-1]), ids, weights).view(x.shape)
        bias = self.experts.bias
        if bias is not None and not self.args.return_bias:
            y = y + bias
        if self.shared_expert is not None:
            top_k, shared = self.args.moe_top_k, self.shared_expert(x)
            y = (shared + top_k * y) / (top_k + 1) if self.args.shared_expert_weighted_sum else shared + y
        return (y, bias) if self.args.return_bias else y

    def drop(self, ids, weights):
        return ids, weights


class MoE(dMoE):
    """Each expert takes the first floor(tokens * top_k / experts * moe_capacity_factor) of its slots in token order; all where
    that is 0."""

    def drop(self, ids, weights):
        if int(self.args.moe_capacity_factor * (self.args.moe_top_k * ids.shape[0] / self.args.moe_num_experts)) == 0:
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
        if args.moe_zloss_weight:
            _LOGITS.append(logits)
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
        self.register_load_state_dict_pre_hook(_flatten)

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
        x, w1, w2 = autocast(x, w1, w2)
        plan = make_plan(ids, shape[0])
        if self.options is not None:
            recompute = self.args.memory_optimized_mlp
            return expert_mlp(x, plan, w1, w2, weights, recompute=recompute, encoded=self.options, w2_layout=IN_OUT)
        h = grouped_gemm(dispatch(x, plan), w1, plan.group_offsets)
        return combine(grouped_gemm(self.act(h), w2, plan.group_offsets, b_layout=IN_OUT), plan, weights)


def _flatten(mlp, state, prefix, *_):
    """MoE's matrices as MegaBlocks saves them."""
    for name, transposed in (("w1", True), ("w2", False)):
        weight = state.get(prefix + name)
        if weight is not None and weight.dim() == 3:
            state[prefix + name] = (weight.transpose(1, 2) if transposed else weight).reshape(-1, mlp.args.hidden_size)


class SharedMlp(torch.nn.Module):
    """down_proj(act(up_proj(x))), for glu down_proj(act(gate_proj(x)) * up_proj(x))."""

    def __init__(self, args):
        super().__init__()
        self.act = args.activation_fn
        options = {"bias": args.bias, "device": args.device}
        if args.fc_cls is torch.nn.Linear:
            options["dtype"] = args.dtype
        options |= args.fc_kwargs
        self.up_proj = args.fc_cls(args.hidden_size, args.shared_expert_hidden_size, **options)
        self.down_proj = args.fc_cls(args.shared_expert_hidden_size, args.hidden_size, **options)
        self.gate_proj = args.fc_cls(args.hidden_size, args.shared_expert_hidden_size, **options) if args.mlp_type == "glu" else None

    def forward(self, x):
        up = self.up_proj(x)
        return self.down_proj(self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up)


def batched_router_zloss(args):
    """moe_zloss_weight * mean of logsumexp(logits)^2, one a layer since the last clear."""
    logits = [one.float() if args.moe_zloss_in_fp32 else one for one in _LOGITS]
    return args.moe_zloss_weight * torch.stack([one.logsumexp(1).square().mean() for one in logits]) if logits else 0


def clear_router_zloss():
    _LOGITS.clear()


def get_load_balancing_loss():
    """(tokens_per_expert, scores) of each layer since the last clear."""
    return _LOSSES


def clear_load_balancing_loss():
    _LOSSES.clear()


def batched_load_balancing_loss(args):
    """moe_loss_weight * E / (num_layers * T * K) * sum over layers and experts of tokens * mean score."""
    if args.moe_loss_weight == 0:
        return 0.0
    layers = args.num_layers_per_virtual_pipeline_stage or args.num_layers // args.pipeline_model_parallel_size
    if len(_LOSSES) != layers:
        raise ValueError(f"{len(_LOSSES)} layers ran since the last clear_load_balancing_loss(); num_layers is {layers} here")
    loads, scores = zip(*_LOSSES)
    tokens = scores[0].shape[0]
    scores = torch.cat([s.float() if args.moe_lbl_in_fp32 else s for s in scores], 1).mean(0)
    scale = args.moe_num_experts * args.moe_loss_weight / (args.num_layers * tokens * args.moe_top_k)
    return scale * torch.dot(torch.cat(loads).to(scores.dtype), scores)
