"""The router: logits, selection, losses, Sinkhorn, expert choice, capacity.

T tokens, d hidden size, E experts, K chosen a token. `**options` are fields of the C description, by name
(`score_function=libmoe.SCORE_SIGMOID, renormalize=1, num_groups=8, ...`): the header says what each means.
"""

from typing import Any, NamedTuple

from ._calls import Call, dtype_of, router_dtype
from ._header import constants


class RouterLogitsGrads(NamedTuple):
    dx: Any
    dweight: Any
    dbias: Any


class RouterOutput(NamedTuple):
    """What router_fwd gives; None where not asked for."""

    ids: Any
    weights: Any
    weights_dense: Any
    byte_mask: Any
    bit_mask: Any
    tokens_per_expert: Any
    aux_counts: Any
    aux_loss: Any
    z_loss: Any


class RouterLosses(NamedTuple):
    aux_loss: Any
    z_loss: Any
    aux_counts: Any


class SinkhornOutput(NamedTuple):
    probs: Any
    log_d0: Any
    log_d1: Any
    iterations: Any
    error: Any


class ExpertChoice(NamedTuple):
    token_ids: Any
    weights: Any
    weights_dense: Any
    byte_mask: Any
    bit_mask: Any


class Kept(NamedTuple):
    """Slots that fit the experts' capacity."""

    kept_ids: Any
    kept_weights: Any
    tokens_per_expert: Any
    dropped_per_expert: Any
    routed_ids: Any
    routed_weights: Any


def router_logits_fwd(ctx, x, weight, *, bias=None, logits=True, jittered_x=None, logits_dtype=None, num_tokens=None,
                      random=None, report=None, stream=None, **options):
    """logits[T, E] = x[T, d] weight[E, d]^T (+ bias[E]); jitter=1 takes (seed, offset) as `random`.

    Returns logits, or (logits, jittered_x) when that is asked for.
    """
    call = Call(ctx, "router_logits_fwd")
    call.takes("T d", x=x)
    call.takes("E d", weight=weight)
    call.takes("E", bias=bias)
    call.gives("T E", logits_dtype, logits=logits)
    call.gives("T d", jittered_x=jittered_x)
    logits, jittered_x = call.args["logits"], call.args["jittered_x"]
    call.run(_logits_desc(call, x, logits, options), stream, num_tokens=num_tokens, random=random, report=report)
    return logits if jittered_x is None else (logits, jittered_x)


def router_logits_bwd(ctx, dlogits, x, weight, *, dx=True, dweight=True, dbias=None, dx_mode=None, dweight_mode=None,
                      dbias_mode=None, num_tokens=None, random=None, report=None, stream=None, **options):
    """RouterLogitsGrads dx[T, d], dweight[E, d], dbias[E] from dlogits[T, E]; options and `random` are the forward's."""
    call = Call(ctx, "router_logits_bwd")
    call.takes("T d", x=x)
    call.takes("E d", weight=weight)
    call.takes("T E", dlogits=dlogits)
    call.gives("T d", dx=dx)
    call.gives("E d", dweight=dweight)
    call.gives("E", dbias=dbias)
    call.run(_logits_desc(call, x, dlogits, options), stream, dx_mode=dx_mode, dweight_mode=dweight_mode,
             dbias_mode=dbias_mode, num_tokens=num_tokens, random=random, report=report)
    return call.collect(RouterLogitsGrads)


def router_fwd(ctx, logits, top_k, *, ids=True, weights=True, weights_dense=None, byte_mask=None, bit_mask=None,
               tokens_per_expert=None, given_ids=None, selection_bias=None, padding_mask=None, sequence_offsets=None,
               global_tokens_per_expert=None, global_num_tokens=None, ids_dtype="int32", weights_dtype=None,
               num_tokens=None, random=None, report=None, stream=None, **options):
    """Scores, top-k, weights, masks, counts and losses of logits[T, E].

    ids[T, K] int32 or int64; weights[T, K] and weights_dense[T, E] fp32 unless weights_dtype says otherwise;
    byte_mask uint8[T, E]; bit_mask uint32[T, ceil(E/32)]; tokens_per_expert int64[E]. `aux_loss=libmoe.AUX_LOSS_...`
    and `z_loss=1` among the options give those losses, each an fp32[1], and aux_counts for backward.
    """
    call = Call(ctx, "router_fwd", K=max(top_k, 0))
    call.takes("T E", logits=logits)
    call.takes("T K", given_ids=given_ids)
    call.takes("E", selection_bias=selection_bias)
    _takes_masks(call, padding_mask, sequence_offsets, global_tokens_per_expert, global_num_tokens)
    call.gives("T K", ids_dtype, ids=ids)
    call.gives("T K", router_dtype(logits, weights_dtype), weights=weights)
    call.gives("T E", router_dtype(logits, weights_dtype), weights_dense=weights_dense)
    call.gives("E", "int64", tokens_per_expert=tokens_per_expert)
    _gives_masks(call, byte_mask, bit_mask)
    _gives_losses(call, options)
    call.run(_router_desc(call, logits, options), stream, num_tokens=num_tokens, random=random, report=report)
    return call.collect(RouterOutput)


def router_bwd(ctx, logits, ids, dweights=None, *, dweights_dense=None, dlogits=True, dlogits_mode=None, aux_counts=None,
               aux_loss_grad=None, z_loss_grad=None, padding_mask=None, sequence_offsets=None,
               global_tokens_per_expert=None, global_num_tokens=None, num_tokens=None, report=None, stream=None,
               **options):
    """dlogits[T, E] from dweights[T, K] (or dweights_dense[T, E]) and from the losses, whose gradients are fp32[1] on
    the device (None: 1). ids, aux_counts and options are the forward's."""
    call = Call(ctx, "router_bwd")
    call.takes("T E", logits=logits, dweights_dense=dweights_dense)
    call.takes("T K", ids=ids, dweights=dweights)
    call.takes("1", aux_loss_grad=aux_loss_grad, z_loss_grad=z_loss_grad)
    call.takes("S E", aux_counts=aux_counts)
    _takes_masks(call, padding_mask, sequence_offsets, global_tokens_per_expert, global_num_tokens)
    call.gives("T E", dlogits=dlogits)
    call.run(_router_desc(call, logits, options), stream, dlogits_mode=dlogits_mode, num_tokens=num_tokens, report=report)
    return call.args["dlogits"]


def router_loss_fwd(ctx, logits, top_k, *, ids=None, padding_mask=None, sequence_offsets=None,
                    global_tokens_per_expert=None, global_num_tokens=None, num_tokens=None, report=None, stream=None,
                    **options):
    """The losses alone, of logits[T, E] and ids[T, K] (None: the plain top-k): RouterLosses, fp32[1] each."""
    call = Call(ctx, "router_loss_fwd", K=max(top_k, 0))
    call.takes("T E", logits=logits)
    call.takes("T K", ids=ids)
    _takes_masks(call, padding_mask, sequence_offsets, global_tokens_per_expert, global_num_tokens)
    _gives_losses(call, options)
    call.run(_router_desc(call, logits, options), stream, num_tokens=num_tokens, report=report)
    return call.collect(RouterLosses)


def router_loss_bwd(ctx, logits, top_k, *, aux_counts=None, dlogits=True, dlogits_mode=None, aux_loss_grad=None,
                    z_loss_grad=None, padding_mask=None, sequence_offsets=None, global_tokens_per_expert=None,
                    global_num_tokens=None, num_tokens=None, report=None, stream=None, **options):
    """dlogits[T, E] of router_loss_fwd."""
    call = Call(ctx, "router_loss_bwd", K=max(top_k, 0))
    call.takes("T E", logits=logits)
    call.takes("1", aux_loss_grad=aux_loss_grad, z_loss_grad=z_loss_grad)
    call.takes("S E", aux_counts=aux_counts)
    _takes_masks(call, padding_mask, sequence_offsets, global_tokens_per_expert, global_num_tokens)
    call.gives("T E", dlogits=dlogits)
    call.run(_router_desc(call, logits, options), stream, dlogits_mode=dlogits_mode, num_tokens=num_tokens, report=report)
    return call.args["dlogits"]


def sinkhorn(ctx, logits, *, probs=None, log_d0=None, log_d1=True, iterations=None, error=None, probs_dtype=None,
             num_tokens=None, report=None, stream=None, **options):
    """Sinkhorn of exp(logits[T, E]): probs[T, E], log_d0 fp32[T], log_d1 fp32[E], iterations int32[1], error fp32[1].

    log_d1 as router_fwd's selection_bias with selection_bias_target=libmoe.BIAS_ON_LOGIT chooses the top-k of probs.
    """
    call = Call(ctx, "sinkhorn")
    call.takes("T E", logits=logits)
    call.gives("T E", router_dtype(logits, probs_dtype), probs=probs)
    call.gives("T", "float32", log_d0=log_d0)
    call.gives("E", "float32", log_d1=log_d1)
    call.gives("1", "int32", iterations=iterations)
    call.gives("1", "float32", error=error)
    call.run(_logits_only_desc(call, logits, options), stream, num_tokens=num_tokens, report=report)
    return call.collect(SinkhornOutput)


def sinkhorn_step(ctx, logits, round, log_d1, column_mass, done, *, total_tokens=None, log_d0=None, iterations=None,
                  error=None, num_tokens=None, report=None, stream=None, **options):
    """One round of Sinkhorn over the tokens of several ranks; see moe_sinkhorn_step_args_t in moe.h.

    For round = first to max_iterations: sinkhorn_step, then, but for the last round, column_mass is all-reduced by sum
    (by maximum after round -2). first is 0; -2 where d1 starts from column sums (SINKHORN_NEOX). The state, the same
    arrays in all rounds: log_d1 and column_mass fp32[E], done int32[1]. total_tokens fp32[1]: those of all ranks.
    """
    call = Call(ctx, "sinkhorn_step")
    call.takes("T E", logits=logits)
    call.takes("E", log_d1=log_d1, column_mass=column_mass)
    call.takes("1", done=done, total_tokens=total_tokens)
    call.gives("T", "float32", log_d0=log_d0)
    call.gives("1", "int32", iterations=iterations)
    call.gives("1", "float32", error=error)
    call.run(_logits_only_desc(call, logits, options), stream, round=round, num_tokens=num_tokens, report=report)
    return SinkhornOutput(None, call.args["log_d0"], log_d1, call.args["iterations"], call.args["error"])


def expert_choice_fwd(ctx, logits, capacity, *, token_ids=True, weights=True, weights_dense=None, byte_mask=None,
                      bit_mask=None, ids_dtype="int32", weights_dtype=None, padding_mask=None, num_tokens=None,
                      report=None, stream=None, **options):
    """Each expert takes its best C = capacity tokens of logits[T, E]: token_ids and weights [E, C], the rest [T, E]."""
    call = Call(ctx, "expert_choice_fwd", C=max(capacity, 0))
    call.takes("T E", logits=logits)
    call.takes("T", padding_mask=padding_mask)
    call.gives("E C", ids_dtype, token_ids=token_ids)
    call.gives("E C", router_dtype(logits, weights_dtype), weights=weights)
    call.gives("T E", router_dtype(logits, weights_dtype), weights_dense=weights_dense)
    _gives_masks(call, byte_mask, bit_mask)
    desc = _logits_only_desc(call, logits, {"capacity": capacity, **options})
    call.run(desc, stream, num_tokens=num_tokens, report=report)
    return call.collect(ExpertChoice)


def expert_choice_bwd(ctx, logits, capacity, *, token_ids=None, dweights=None, byte_mask=None, dweights_dense=None,
                      dlogits=True, dlogits_mode=None, num_tokens=None, report=None, stream=None, **options):
    """dlogits[T, E] from token_ids and dweights [E, C], or from byte_mask and dweights_dense [T, E]."""
    call = Call(ctx, "expert_choice_bwd", C=max(capacity, 0))
    call.takes("T E", logits=logits, byte_mask=byte_mask, dweights_dense=dweights_dense)
    call.takes("E C", token_ids=token_ids, dweights=dweights)
    call.gives("T E", dlogits=dlogits)
    desc = _logits_only_desc(call, logits, {"capacity": capacity, **options})
    call.run(desc, stream, dlogits_mode=dlogits_mode, num_tokens=num_tokens, report=report)
    return call.args["dlogits"]


def router_bias_update(ctx, bias, tokens_per_expert=None, *, scores=None, padding_mask=None, num_tokens=None, report=None,
                       stream=None, **options):
    """Updates bias fp32[E] in place from tokens_per_expert int64[E], or from scores fp32[T, E] (quantile rule; top_k=K)."""
    call = Call(ctx, "router_bias_update")
    call.takes("E", bias=bias, tokens_per_expert=tokens_per_expert)
    call.takes("T E", scores=scores)
    call.takes("T", padding_mask=padding_mask)
    sizes = {"num_experts": call["E"], "num_tokens": call.sizes.get("T", 0)}
    call.run({**sizes, **options}, stream, num_tokens=num_tokens, report=report)
    return bias


def capacity_fwd(ctx, ids, weights, num_experts, *, logits=None, kept_ids=True, kept_weights=True, tokens_per_expert=None,
                 dropped_per_expert=None, padding_mask=None, num_tokens=None, random=None, report=None, stream=None,
                 **options):
    """Drops slots of ids[T, K] beyond the experts' capacity: kept_ids (-1 where dropped), kept_weights (0 there).

    With second_expert=libmoe.SECOND_EXPERT_SAMPLING it draws from logits[T, E] and also gives routed_ids and
    routed_weights, which capacity_bwd takes in place of ids and weights.
    """
    call = Call(ctx, "capacity_fwd", E=num_experts)
    call.takes("T K", ids=ids, weights=weights)
    call.takes("T", padding_mask=padding_mask)
    call.gives("T K", like=ids, kept_ids=kept_ids)
    call.gives("T K", like=weights, kept_weights=kept_weights)
    call.takes("T E", logits=logits)
    call.gives("T K", like=ids, routed_ids=logits is not None)
    call.gives("T K", like=weights, routed_weights=logits is not None)
    call.gives("E", "int64", tokens_per_expert=tokens_per_expert, dropped_per_expert=dropped_per_expert)
    call.run(_capacity_desc(call, options), stream, num_tokens=num_tokens, random=random, report=report)
    return call.collect(Kept)


def capacity_bwd(ctx, weights, ids, kept_ids, dkept_weights, num_experts, *, dweights=True, dweights_mode=None,
                 num_tokens=None, report=None, stream=None, **options):
    """dweights[T, K] from dkept_weights[T, K]; weights and ids are those before dropping, options the forward's."""
    call = Call(ctx, "capacity_bwd", E=num_experts)
    call.takes("T K", weights=weights, ids=ids, kept_ids=kept_ids, dkept_weights=dkept_weights)
    call.gives("T K", dweights=dweights)
    call.run(_capacity_desc(call, options), stream, dweights_mode=dweights_mode, num_tokens=num_tokens, report=report)
    return call.args["dweights"]


def capacity_value(ctx, num_tokens, num_experts, top_k, **options):
    """The capacity that a description gives for so many tokens."""
    return ctx.query("capacity_value", {"num_tokens": num_tokens, "num_experts": num_experts, "top_k": top_k, **options})


def _logits_only_desc(call, logits, options):
    return {"logits_dtype": dtype_of(logits), "num_tokens": call["T"], "num_experts": call["E"], **options}


def _logits_desc(call, x, logits, options):
    return {"dtype": dtype_of(x), "hidden_size": call["d"], **_logits_only_desc(call, logits, options)}


def _router_desc(call, logits, options):
    return _logits_only_desc(call, logits, {"top_k": call["K"], **options})


def _capacity_desc(call, options):
    return {"num_tokens": call["T"], "num_experts": call["E"], "top_k": call["K"], **options}


def _takes_masks(call, padding_mask, sequence_offsets, global_tokens_per_expert, global_num_tokens):
    call.takes("T", padding_mask=padding_mask)
    call.takes("sequences+1", sequence_offsets=sequence_offsets)
    call.takes("E", global_tokens_per_expert=global_tokens_per_expert)
    call.takes("1", global_num_tokens=global_num_tokens)


def _gives_masks(call, byte_mask, bit_mask):
    call.gives("T E", "uint8", byte_mask=byte_mask)
    call.sizes["words"] = -(-call["E"] // 32)
    call.gives("T words", "uint32", bit_mask=bit_mask)


def _gives_losses(call, options):
    """The outputs of the losses that the options turn on."""
    by_sequence = options.get("aux_scope") == constants["MOE_AUX_SCOPE_SEQUENCE"]
    call.sizes["S"] = options.get("num_sequences", 1) if by_sequence else 1
    call.gives("S E", "int64", aux_counts=bool(options.get("aux_loss")))
    call.gives("1", "float32", aux_loss=bool(options.get("aux_loss")), z_loss=bool(options.get("z_loss")))
