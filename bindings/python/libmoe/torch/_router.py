"""Operators of the routers: top-k, Sinkhorn, expert choice, capacity. T tokens, E experts, K slots a token."""

import torch

from .._header import constants
from ._call import DTYPES, Operation, fits, rows
from ._define import decode, encode, no_second_derivative, operator

ROUTER, ROUTER_BWD = Operation("router_fwd"), Operation("router_bwd")
SINKHORN = Operation("sinkhorn")
CHOICE, CHOICE_BWD = Operation("expert_choice_fwd"), Operation("expert_choice_bwd")
CAPACITY, CAPACITY_BWD = Operation("capacity_fwd"), Operation("capacity_bwd")
BIAS_UPDATE = Operation("router_bias_update")
# Encoded options of capacity that make it draw.
RANDOM = (f"policy={constants['MOE_DROP_RANDOM']}", f"second_expert={constants['MOE_SECOND_EXPERT_RANDOM']}")


def route(logits, top_k, *, selection_bias=None, padding_mask=None, given_ids=None, num_sequences=1, encoded="", **options):
    """(ids int32 [T, K], weights [T, K], tokens_per_expert int64 [E], losses fp32 [2]: aux and z) of logits [T, E].

    Options as libmoe.router_fwd has them. Weights are fp32, or fp64 where the logits are.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {list(logits.shape)}; it must be [T, E]")
    options = encode(options, encoded)
    out = torch.ops.libmoe.router.default(logits, top_k, selection_bias, padding_mask, given_ids, num_sequences, options)
    weights, ids, tokens_per_expert, losses, _ = out
    return ids, weights, tokens_per_expert, losses


def sinkhorn(logits, encoded="", **options):
    """log d1, fp32 [E]: top-k of logits + log d1 is the choice. Options as libmoe.sinkhorn has them."""
    return torch.ops.libmoe.sinkhorn.default(logits.detach(), encode(options, encoded))


def expert_choice(logits, capacity, *, padding_mask=None, **options):
    """(weights [T, E], 0 where not chosen, and the mask uint8 [T, E]): each expert takes its best `capacity` tokens."""
    return torch.ops.libmoe.expert_choice.default(logits, capacity, padding_mask, encode(options))


def drop(ids, weights, num_experts, encoded="", *, seed=None, **options):
    """(ids, -1 where dropped, and weights, 0 there): slots beyond an expert's capacity. Options as libmoe.capacity_fwd has them.

    Random choices draw their seed, an int64[1] where ids are, from torch's generator unless it is given.
    """
    options = encode(options, encoded)
    if seed is None and any(option in RANDOM for option in options.split(",")):
        seed = torch.randint(1 << 62, (1,), device=ids.device)
    kept_weights, kept_ids = torch.ops.libmoe.capacity.default(ids, weights, seed, num_experts, options)
    return kept_ids, kept_weights


@torch.no_grad()
def update_bias(bias, tokens_per_expert, rate=1e-3):
    """bias_e += rate * sign(mean(tokens) - tokens_e), in place; over ranks, sum the counts before."""
    desc = {"num_experts": bias.shape[0], "rate": float(rate)}
    BIAS_UPDATE(bias.device, desc, bias=bias, tokens_per_expert=tokens_per_expert)


# ---------------------------------------------------------------- top-k


@operator("router(Tensor logits, SymInt top_k, Tensor? selection_bias, Tensor? padding_mask, Tensor? given_ids,"
          " SymInt num_sequences, str options) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def router(logits, top_k, selection_bias, padding_mask, given_ids, num_sequences, options):
    fits("selection_bias", selection_bias, logits.shape[1])
    fits("given_ids", given_ids, logits.shape[0], top_k)
    fits("padding_mask", None if padding_mask is None else padding_mask.reshape(-1), logits.shape[0])
    logits = rows(logits)
    weights, ids, tokens_per_expert, losses, aux_counts = out = fake_router(
        logits, top_k, selection_bias, padding_mask, given_ids, num_sequences, options)
    chosen = decode(options)
    aux, z = bool(chosen.get("aux_loss")), bool(chosen.get("z_loss"))
    if not (aux and z):
        losses.zero_()
    ROUTER(logits.device, _router_desc(logits, top_k, num_sequences, chosen), logits=logits, ids=ids, weights=weights,
           selection_bias=selection_bias, padding_mask=_bytes(padding_mask), given_ids=given_ids,
           tokens_per_expert=tokens_per_expert, aux_counts=aux_counts if aux else None, aux_loss=losses[:1] if aux else None,
           z_loss=losses[1:] if z else None)
    return out


@router.fake
def fake_router(logits, top_k, selection_bias, padding_mask, given_ids, num_sequences, options):
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, top_k, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    sequences = _counted_sequences(num_sequences, decode(options))
    return (weights, logits.new_empty(tokens, top_k, dtype=torch.int32), logits.new_empty(experts, dtype=torch.int64),
            logits.new_empty(2, dtype=torch.float32), logits.new_empty((sequences, experts), dtype=torch.int64))


def _setup_router(ctx, inputs, output):
    logits, _, _, padding_mask, _, ctx.num_sequences, ctx.options = inputs
    _, ids, tokens_per_expert, _, aux_counts = output
    ctx.mark_non_differentiable(ids, tokens_per_expert, aux_counts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, ids, aux_counts, padding_mask)


@router.backward(_setup_router)
def _(ctx, dweights, _ids, _tokens, dlosses, _counts):
    logits, ids, aux_counts, padding_mask = ctx.saved_tensors
    if dweights is None and dlosses is None:
        return (None,) * 7
    dlogits = torch.ops.libmoe.router_backward.default(logits, ids, dweights, dlosses, aux_counts, padding_mask, ctx.num_sequences,
                                               ctx.options)
    return dlogits, *[None] * 6


@operator("router_backward(Tensor logits, Tensor ids, Tensor? dweights, Tensor? dlosses, Tensor aux_counts,"
          " Tensor? padding_mask, SymInt num_sequences, str options) -> Tensor")
def router_backward(logits, ids, dweights, dlosses, aux_counts, padding_mask, num_sequences, options):
    logits, chosen = rows(logits), decode(options)
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    # An absent gradient of a loss would count as 1.
    dlosses = logits.new_zeros(2, dtype=torch.float32) if dlosses is None else dlosses.contiguous()
    ROUTER_BWD(logits.device, _router_desc(logits, ids.shape[1], num_sequences, chosen), logits=logits, ids=ids,
               dweights=rows(dweights), dlogits=dlogits, padding_mask=_bytes(padding_mask),
               aux_counts=aux_counts if chosen.get("aux_loss") else None, aux_loss_grad=dlosses[:1], z_loss_grad=dlosses[1:])
    return dlogits


@router_backward.fake
def _(logits, ids, dweights, dlosses, aux_counts, padding_mask, num_sequences, options):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


no_second_derivative("router_backward")


def _router_desc(logits, top_k, num_sequences, options):
    return {**_logits_desc(logits), "top_k": top_k, **options, "num_sequences": num_sequences}


def _counted_sequences(num_sequences, options):
    if not options.get("aux_loss"):
        return 0
    return num_sequences if options.get("aux_scope", 0) == constants["MOE_AUX_SCOPE_SEQUENCE"] else 1


# ---------------------------------------------------------------- sinkhorn, expert choice


@operator("sinkhorn(Tensor logits, str options) -> Tensor")
def sinkhorn_op(logits, options):
    logits = rows(logits)
    log_d1 = logits.new_empty(logits.shape[1], dtype=torch.float32)
    SINKHORN(logits.device, _logits_desc(logits) | decode(options), logits=logits, log_d1=log_d1)
    return log_d1


@sinkhorn_op.fake
def _(logits, options):
    return logits.new_empty(logits.shape[1], dtype=torch.float32)


@operator("expert_choice(Tensor logits, SymInt capacity, Tensor? padding_mask, str options) -> (Tensor, Tensor)")
def expert_choice_op(logits, capacity, padding_mask, options):
    fits("padding_mask", None if padding_mask is None else padding_mask.reshape(-1), logits.shape[0])
    logits = rows(logits)
    weights, mask = fake_choice(logits, capacity, padding_mask, options)
    CHOICE(logits.device, _logits_desc(logits) | {"capacity": capacity} | decode(options), logits=logits,
           weights_dense=weights, byte_mask=mask, padding_mask=_bytes(padding_mask))
    return weights, mask


@expert_choice_op.fake
def fake_choice(logits, capacity, padding_mask, options):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape, dtype=dtype), logits.new_empty(logits.shape, dtype=torch.uint8)


def _setup_choice(ctx, inputs, output):
    logits, ctx.capacity, _, ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, output[1])


@expert_choice_op.backward(_setup_choice)
def _(ctx, dweights, _):
    logits, mask = ctx.saved_tensors
    return torch.ops.libmoe.expert_choice_backward.default(logits, mask, dweights, ctx.capacity, ctx.options), None, None, None


@operator("expert_choice_backward(Tensor logits, Tensor mask, Tensor dweights, SymInt capacity, str options) -> Tensor")
def expert_choice_backward(logits, mask, dweights, capacity, options):
    logits = rows(logits)
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    # Tensors without elements have no address, which the library takes for absent ones.
    if logits.numel():
        CHOICE_BWD(logits.device, _logits_desc(logits) | {"capacity": capacity} | decode(options), logits=logits, byte_mask=mask,
                   dweights_dense=rows(dweights), dlogits=dlogits)
    return dlogits


@expert_choice_backward.fake
def _(logits, mask, dweights, capacity, options):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


no_second_derivative("expert_choice_backward")

# ---------------------------------------------------------------- capacity


@operator("capacity(Tensor ids, Tensor weights, Tensor? seed, SymInt num_experts, str options) -> (Tensor, Tensor)")
def capacity_op(ids, weights, seed, num_experts, options):
    fits("weights", weights, *ids.shape)
    fits("seed", seed, 1)
    ids, weights = ids.contiguous(), weights.contiguous()
    kept = fake_capacity(ids, weights, seed, num_experts, options)
    CAPACITY(ids.device, _capacity_desc(ids, num_experts, options), ids=ids, weights=weights, seed=seed, kept_ids=kept[1],
             kept_weights=kept[0])
    return kept


@capacity_op.fake
def fake_capacity(ids, weights, seed, num_experts, options):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (weights, ids))


def _setup_capacity(ctx, inputs, output):
    ids, weights, _, ctx.num_experts, ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(ids, weights, output[1])


@capacity_op.backward(_setup_capacity)
def _(ctx, dkept, _):
    dweights = torch.ops.libmoe.capacity_backward.default(*ctx.saved_tensors, dkept, ctx.num_experts, ctx.options)
    return None, dweights, None, None, None


@operator("capacity_backward(Tensor ids, Tensor weights, Tensor kept_ids, Tensor dkept, SymInt num_experts, str options) -> Tensor")
def capacity_backward(ids, weights, kept_ids, dkept, num_experts, options):
    dweights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    CAPACITY_BWD(ids.device, _capacity_desc(ids, num_experts, options), weights=weights.contiguous(), ids=ids.contiguous(),
                 kept_ids=kept_ids, dkept_weights=dkept.contiguous(), dweights=dweights)
    return dweights


@capacity_backward.fake
def _(ids, weights, kept_ids, dkept, num_experts, options):
    return torch.empty_like(weights, memory_format=torch.contiguous_format)


no_second_derivative("capacity_backward")


def _capacity_desc(ids, num_experts, options):
    return {"num_tokens": ids.shape[0], "num_experts": num_experts, "top_k": ids.shape[1], **decode(options)}


def _logits_desc(logits):
    return {"logits_dtype": DTYPES[logits.dtype], "num_tokens": logits.shape[0], "num_experts": logits.shape[1]}


def _bytes(mask):
    """uint8 [T], 1 = a real token, of a bool mask."""
    return None if mask is None else mask.reshape(-1).contiguous().view(torch.uint8)
