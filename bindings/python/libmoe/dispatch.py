"""Dispatch and combine: ids or a mask to a plan, tokens to rows and back.

T tokens, d hidden size, E experts (E_local here), K slots a token, S = T*K slots, R rows.
"""

from typing import Any, NamedTuple

from ._calls import Call, dtype_of


class Plan(NamedTuple):
    """Where each slot's row lies. For rows that are already permuted, Plan(group_offsets, rows_max=R) is enough."""

    # int64[E_local + 1]; the last is the number of rows.
    group_offsets: Any
    # int64[E_local], rows without padding.
    group_sizes: Any = None
    # [S], -1 where the slot is not here.
    row_of_slot: Any = None
    # [R], -1 for padding.
    slot_of_row: Any = None
    token_of_row: Any = None
    # [T + 1]; None: token t has slots t*K .. t*K + K-1.
    slot_offsets: Any = None
    num_tokens: int | None = None
    top_k: int = 1
    rows_max: int | None = None
    # All experts, and the first local one: read for dense weights.
    num_experts: int = 0
    expert_begin: int = 0

    @property
    def num_groups(self):
        return self.group_offsets.shape[0] - 1

    def sizes(self):
        """What the letters of the shapes stand for, as far as the plan knows."""
        sizes = {"T": self.num_tokens, "K": self.top_k, "R": self.rows_max}
        return {letter: size for letter, size in sizes.items() if size is not None}


class Rows(NamedTuple):
    rows: Any
    row_weights: Any


class DispatchGrads(NamedTuple):
    dx: Any
    dweights: Any


class CombineGrads(NamedTuple):
    drows: Any
    dweights: Any
    drow_weights: Any
    dweights_dense: Any


def dispatch_plan(ctx, ids=None, num_experts=None, *, byte_mask=None, bit_mask=None, top_k=None, expert_map=None,
                  num_local_experts=0, expert_begin=0, rows_max=0, map_dtype="int32", num_tokens=None, report=None,
                  stream=None, **options):
    """The Plan of ids[T, K], of byte_mask uint8[T, E] or of bit_mask uint32[T, ceil(E/32)].

    With a mask, top_k is the most slots a token can have (default E). expert_map int32[E] is each expert's local index
    or -1. Options: alignment, rows_per_group, strict_ids.
    """
    call = Call(ctx, "dispatch_plan")
    call.takes("T K", ids=ids)
    if num_experts is None and byte_mask is None:
        raise TypeError("num_experts is required with ids and with bit_mask")
    call.sizes["E"] = byte_mask.shape[1] if num_experts is None else num_experts
    call.sizes["words"] = -(-call["E"] // 32)
    call.takes("T E", byte_mask=byte_mask)
    call.takes("T words", bit_mask=bit_mask)
    call.takes("E", expert_map=expert_map)
    if "T" not in call.sizes:
        raise TypeError("dispatch_plan needs ids, byte_mask or bit_mask")
    call.sizes.setdefault("K", top_k or call["E"])
    desc = {"num_tokens": call["T"], "num_experts": call["E"], "top_k": call["K"], "expert_begin": expert_begin,
            "num_local_experts": num_local_experts, "rows_max": rows_max, **options}
    desc["rows_max"] = call.sizes["R"] = rows_max or ctx.query("dispatch_rows_max", desc)
    local = num_local_experts or (call["E"] if expert_map is not None else call["E"] - expert_begin)
    call.sizes.update({"L": local, "L+1": local + 1, "T+1": call["T"] + 1})
    call.gives("L+1", "int64", group_offsets=True)
    call.gives("L", "int64", group_sizes=True)
    call.sizes["S"] = call["T"] * call["K"]
    call.gives("S", map_dtype, row_of_slot=True)
    call.gives("R", map_dtype, slot_of_row=True, token_of_row=True)
    call.gives("T+1", map_dtype, slot_offsets=ids is None)
    call.run(desc, stream, num_tokens=num_tokens, report=report)
    sizes = {"num_tokens": call["T"], "top_k": call["K"], "rows_max": call["R"], "num_experts": call["E"]}
    maps = {name: call.args[name] for name in Plan._fields if name in call.args}
    return Plan(**maps, **sizes, expert_begin=expert_begin)


def dispatch_fwd(ctx, plan, x, weights=None, *, weights_dense=None, rows=True, row_weights=None, num_tokens=None,
                 report=None, stream=None):
    """Permute: rows[R, d] of x[T, d]; row_weights[R] of weights[T, K] or weights_dense[T, E] where one is given."""
    call = Call(ctx, "dispatch_fwd", E=plan.num_experts, **plan.sizes())
    call.takes("T d", x=x)
    call.takes("T*K", weights=weights)
    call.takes("T E", weights_dense=weights_dense)
    given = weights if weights is not None else weights_dense
    call.gives("R d", rows=rows)
    call.gives("R", like=given, row_weights=given is not None if row_weights is None else row_weights)
    call.run(_permute_desc(plan, x), stream, **_maps(plan), num_tokens=num_tokens, report=report)
    return call.collect(Rows)


def dispatch_bwd(ctx, plan, drows, drow_weights=None, *, dx=True, dx_mode=None, dweights=None, num_tokens=None,
                 report=None, stream=None):
    """dx[T, d] of drows[R, d], and dweights[T, K] of drow_weights[R] where that is given."""
    call = Call(ctx, "dispatch_bwd", **plan.sizes())
    call.takes("R d", drows=drows)
    call.takes("R", drow_weights=drow_weights)
    call.gives("T d", dx=dx)
    call.gives("T*K", like=drow_weights, dweights=drow_weights is not None if dweights is None else dweights)
    maps = {"row_of_slot": plan.row_of_slot, "slot_offsets": plan.slot_offsets}
    call.run(_permute_desc(plan, drows), stream, **maps, dx_mode=dx_mode, num_tokens=num_tokens, report=report)
    return call.collect(DispatchGrads)


def combine_fwd(ctx, plan, rows, weights=None, *, row_weights=None, weights_dense=None, y=True, y_mode=None,
                num_tokens=None, report=None, stream=None):
    """Unpermute: y[T, d] = sum of rows[R, d] times weights[T, K], row_weights[R] or weights_dense[T, E], or plain."""
    call = Call(ctx, "combine_fwd", E=plan.num_experts, **plan.sizes())
    call.takes("R d", rows=rows)
    _takes_weights(call, weights, row_weights, weights_dense)
    call.gives("T d", y=y)
    maps = {"row_of_slot": plan.row_of_slot, "slot_offsets": plan.slot_offsets, "group_offsets": plan.group_offsets}
    call.run(_permute_desc(plan, rows), stream, **maps, y_mode=y_mode, num_tokens=num_tokens, report=report)
    return call.args["y"]


def combine_bwd(ctx, plan, dy, rows=None, weights=None, *, row_weights=None, weights_dense=None, drows=True,
                dweights=None, drow_weights=None, dweights_dense=None, num_tokens=None, report=None, stream=None):
    """CombineGrads of dy[T, d]: drows[R, d], and with rows[R, d] the gradient of the weights that are given."""
    call = Call(ctx, "combine_bwd", E=plan.num_experts, **plan.sizes())
    call.takes("T d", dy=dy)
    call.takes("R d", rows=rows)
    _takes_weights(call, weights, row_weights, weights_dense)
    call.gives("R d", drows=drows)

    def wanted(given, weight):
        return rows is not None and weight is not None if given is None else given

    call.gives("T*K", like=weights, dweights=wanted(dweights, weights))
    call.gives("R", like=row_weights, drow_weights=wanted(drow_weights, row_weights))
    call.gives("T E", like=weights_dense, dweights_dense=wanted(dweights_dense, weights_dense))
    call.run(_permute_desc(plan, dy), stream, **_maps(plan), num_tokens=num_tokens, report=report)
    return call.collect(CombineGrads)


def sort_chunks(ctx, x, chunk_sizes, order, *, row_weights=None, y=True, sorted_row_weights=None, report=None,
                stream=None, **options):
    """x[R, d]'s chunks in the order int32[num_chunks]; chunk_sizes int64[num_chunks]. direction=libmoe.SORT_INVERSE undoes.

    Returns y, or (y, sorted_row_weights) with row_weights[R].
    """
    call = Call(ctx, "sort_chunks")
    call.takes("R d", x=x)
    call.takes("chunks", chunk_sizes=chunk_sizes, order=order)
    call.takes("R", row_weights=row_weights)
    call.gives("R d", y=y)
    moved = row_weights is not None if sorted_row_weights is None else sorted_row_weights
    call.gives("R", like=row_weights, sorted_row_weights=moved)
    desc = {"dtype": dtype_of(x), "rows_max": call["R"], "hidden_size": call["d"], "num_chunks": call["chunks"], **options}
    call.run(desc, stream, report=report)
    y, moved = call.args["y"], call.args["sorted_row_weights"]
    return y if moved is None else (y, moved)


def _permute_desc(plan, x):
    return {"dtype": dtype_of(x), "hidden_size": x.shape[1], "num_tokens": plan.num_tokens, "top_k": plan.top_k,
            "rows_max": plan.rows_max, "num_experts": plan.num_experts, "num_groups": plan.num_groups,
            "expert_begin": plan.expert_begin}


def _maps(plan):
    """All that a gather of rows may read."""
    return {name: getattr(plan, name) for name in
            ("token_of_row", "slot_of_row", "group_offsets", "row_of_slot", "slot_offsets")}


def _takes_weights(call, weights, row_weights, weights_dense):
    call.takes("T*K", weights=weights)
    call.takes("R", row_weights=row_weights)
    call.takes("T E", weights_dense=weights_dense)
