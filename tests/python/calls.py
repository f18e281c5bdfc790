"""A small valid call of every operation, for tests that ask the same of all of them. A function of the header that is missing
here fails test_misuse.py. Several variants where one call cannot have every field."""

from types import SimpleNamespace

import numpy as np

import libmoe as m

# Tokens, hidden size, expert width, experts, experts a token, rows allocated, capacity.
T, D, F, E, K, R, C = 6, 8, 4, 4, 2, 16, 3
IDS = np.array([[0, 1], [1, 3], [0, 3], [1, 0], [3, 1], [0, 1]])
# The plan of IDS, with groups padded to 2 rows; the last two rows are not in use.
SIZES = np.bincount(IDS.reshape(-1), minlength=E)
OFFSETS = np.concatenate([[0], np.cumsum((SIZES + 1) // 2 * 2)])
SLOT_OF_ROW = np.full(R, -1)
for expert in range(E):
    slots = np.flatnonzero(IDS.reshape(-1) == expert)
    SLOT_OF_ROW[OFFSETS[expert]:OFFSETS[expert] + len(slots)] = slots
ROW_OF_SLOT = np.array([np.flatnonzero(SLOT_OF_ROW == slot)[0] for slot in range(T * K)])
TOKEN_OF_ROW = np.where(SLOT_OF_ROW < 0, -1, SLOT_OF_ROW // K)


class Out(SimpleNamespace):
    """An output, to be filled with a pattern and surrounded by canaries."""


def out(*shape, dtype=np.float32):
    return Out(shape=shape, dtype=dtype)


def values(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).uniform(0.1, 1.0, shape).astype(dtype)


def i32(x):
    return np.array(x, np.int32)


def i64(x):
    return np.array(x, np.int64)


def call(name, desc, required, optional=None, variant=""):
    """`required`: absent, the call is refused, and the message names the argument."""
    return SimpleNamespace(name=name, variant=variant, desc=desc, required=set(required), args={**required, **(optional or {})})


REPORT = Out(shape=(3,), dtype=np.int64, fill=0)
COUNT = {"num_tokens": i64([T]), "report": REPORT}
MASK = {"padding_mask": np.array([1, 1, 0, 1, 1, 1], np.uint8)}
RANDOM = {"random": (7, 9)}
IDS32 = i32(IDS)

LOGITS = {"dtype": "fp32", "logits_dtype": "fp32", "num_tokens": T, "hidden_size": D, "num_experts": E, "jitter": 1, "jitter_eps": 0.1}
LOSSES = {
    "logits_dtype": "fp32", "num_tokens": T, "num_experts": E, "top_k": K, "aux_loss": m.AUX_LOSS_MEGABLOCKS, "num_layers": 2,
    "aux_loss_coeff": 0.1, "z_loss": 1, "z_loss_coeff": 0.1,
}
BY_SEQUENCE = {"aux_scope": m.AUX_SCOPE_SEQUENCE, "sequence_layout": m.SEQUENCE_OFFSETS, "num_sequences": 2}
GLOBAL = {"aux_scope": m.AUX_SCOPE_GLOBAL}
SEQUENCES = {"sequence_offsets": i64([0, 4, T])}
TOTALS = {"global_tokens_per_expert": values(E), "global_num_tokens": values(1)}
ROUTER = LOSSES | {"renormalize": 1, "scaling_factor": 2.0, "num_groups": 2, "top_groups": 2}
GRADS = {"aux_loss_grad": values(1), "z_loss_grad": values(1)}
SINKHORN = {"logits_dtype": "fp32", "num_tokens": T, "num_experts": E, "max_iterations": 4, "tolerance": 1e-3}
CHOICE = {"logits_dtype": "fp32", "num_tokens": T, "num_experts": E, "capacity": C}
CAPACITY = {"num_tokens": T, "num_experts": E, "top_k": K, "formula": m.CAPACITY_EXPLICIT, "capacity": C, "min_capacity": 1}
PLAN = {"num_tokens": T, "num_experts": E, "top_k": K, "num_local_experts": E, "alignment": 2, "rows_max": R}
PERMUTE = {
    "dtype": "fp32", "num_tokens": T, "hidden_size": D, "top_k": K, "rows_max": R, "num_experts": E, "num_groups": E,
}
GEMM = {"dtype": "fp32", "rows_max": R, "n": F, "k": D, "num_groups": E, "alpha": 2.0, "beta": 0.5}
ACTIVATION = {"dtype": "fp32", "rows_max": R, "ffn_size": F, "activation": m.ACTIVATION_CLAMPED_SWIGLU,
              "gate_order": m.GATE_INTERLEAVED, "gate_block": 2, "clamp_limit": 7.0, "clamp_alpha": 1.7}
MLP = ACTIVATION | {"num_tokens": T, "top_k": K, "num_experts": E, "hidden_size": D}
ON_ROWS = {"input_layout": m.LAYOUT_ROWS, "output_layout": m.LAYOUT_ROWS, "gate_order": m.GATE_FIRST, "gate_block": 0,
           "num_tokens": 0, "top_k": 1}
QUANTIZE = {"dtype": "fp32", "rows_max": R, "columns": 128, "num_groups": 1}
EP = {"dtype": "fp32", "num_tokens": T, "max_tokens_per_rank": T, "hidden_size": D, "num_experts": E, "num_local_experts": E,
      "top_k": K, "alignment": 1}

OFFSETS64 = {"group_offsets": i64(OFFSETS)}
SIZES64 = {"group_sizes": i64(SIZES)}
SLOT_OFFSETS = {"slot_offsets": i32(np.arange(T + 1) * K)}
BY_ROW = {"token_of_row": i32(TOKEN_OF_ROW)}
SLOTS = {"slot_of_row": i32(SLOT_OF_ROW)}
BY_SLOT = {"row_of_slot": i32(ROW_OF_SLOT)}
MAPS = BY_ROW | SLOTS | BY_SLOT
WEIGHTS = {"weights": values(T, K)}
ROWS_COUNT = {"num_rows": i64([int(OFFSETS[-1])]), "report": REPORT}

CALLS = [
    call("router_logits_fwd", LOGITS, {"x": values(T, D), "weight": values(E, D), "logits": out(T, E)},
         {"bias": values(E), "jittered_x": out(T, D)} | COUNT | RANDOM),
    call("router_logits_bwd", LOGITS, {"dlogits": values(T, E), "x": values(T, D), "weight": values(E, D)},
         {"dx": out(T, D), "dweight": out(E, D), "dbias": out(E), "dx_mode": "add", "dweight_mode": "add", "dbias_mode": "add"}
         | COUNT | RANDOM),
    call("router_fwd", ROUTER | BY_SEQUENCE, {"logits": values(T, E)} | SEQUENCES,
         {"ids": out(T, K, dtype=np.int32), "weights": out(T, K), "weights_dense": out(T, E), "byte_mask": out(T, E, dtype=np.uint8),
          "bit_mask": out(T, 1, dtype=np.uint32), "selection_bias": values(E), "tokens_per_expert": out(E, dtype=np.int64),
          "aux_counts": out(2, E, dtype=np.int64), "aux_loss": out(1), "z_loss": out(1)} | MASK | COUNT | RANDOM),
    call("router_fwd", ROUTER | GLOBAL | {"selection": m.SELECT_GIVEN}, {"logits": values(T, E), "given_ids": IDS32},
         {"weights": out(T, K), "aux_loss": out(1)} | TOTALS, "given ids"),
    call("router_bwd", ROUTER | BY_SEQUENCE,
         {"logits": values(T, E), "ids": IDS32, "dlogits": out(T, E), "aux_counts": i64(np.ones((2, E)))} | SEQUENCES,
         {"dweights": values(T, K), "dlogits_mode": "add"} | MASK | GRADS | COUNT),
    call("router_bwd", ROUTER | GLOBAL, {"logits": values(T, E), "ids": IDS32, "dlogits": out(T, E)},
         {"dweights_dense": values(T, E)} | TOTALS, "dense weights"),
    call("router_loss_fwd", LOSSES | BY_SEQUENCE, {"logits": values(T, E)} | SEQUENCES,
         {"ids": IDS32, "aux_counts": out(2, E, dtype=np.int64), "aux_loss": out(1), "z_loss": out(1)} | MASK | COUNT),
    call("router_loss_fwd", LOSSES | GLOBAL, {"logits": values(T, E)}, {"aux_loss": out(1)} | TOTALS, "global"),
    call("router_loss_bwd", LOSSES | BY_SEQUENCE,
         {"logits": values(T, E), "dlogits": out(T, E), "aux_counts": i64(np.ones((2, E)))} | SEQUENCES,
         {"dlogits_mode": "add"} | MASK | GRADS | COUNT),
    call("router_loss_bwd", LOSSES | GLOBAL, {"logits": values(T, E), "dlogits": out(T, E)}, TOTALS, "global"),
    call("sinkhorn", SINKHORN, {"logits": values(T, E)},
         {"probs": out(T, E), "log_d0": out(T), "log_d1": out(E), "iterations": out(1, dtype=np.int32), "error": out(1)} | COUNT),
    call("sinkhorn_step", SINKHORN,
         {"logits": values(T, E), "log_d1": out(E), "column_mass": out(E), "done": out(1, dtype=np.int32)},
         {"round": 1, "total_tokens": values(1), "log_d0": out(T), "iterations": out(1, dtype=np.int32), "error": out(1)} | COUNT),
    call("expert_choice_fwd", CHOICE, {"logits": values(T, E)},
         {"token_ids": out(E, C, dtype=np.int32), "weights": out(E, C), "weights_dense": out(T, E),
          "byte_mask": out(T, E, dtype=np.uint8), "bit_mask": out(T, 1, dtype=np.uint32)} | MASK | COUNT),
    call("expert_choice_bwd", CHOICE,
         {"logits": values(T, E), "token_ids": i32(np.arange(E * C).reshape(E, C) % T), "dlogits": out(T, E)},
         {"dweights": values(E, C), "dlogits_mode": "add"} | COUNT),
    call("expert_choice_bwd", CHOICE, {"logits": values(T, E), "byte_mask": np.ones((T, E), np.uint8), "dlogits": out(T, E)},
         {"dweights_dense": values(T, E)}, "dense weights"),
    call("router_bias_update", {"rule": m.BIAS_UPDATE_SIGN, "num_experts": E, "rate": 0.01},
         {"bias": out(E), "tokens_per_expert": i64(SIZES)}),
    call("router_bias_update",
         {"rule": m.BIAS_UPDATE_QUANTILE, "num_experts": E, "rate": 0.01, "ema_decay": 0.5, "num_tokens": T, "top_k": K},
         {"bias": out(E), "scores": values(T, E)}, MASK | COUNT, "quantile"),
    call("capacity_fwd", CAPACITY | {"policy": m.DROP_RANDOM},
         {"ids": IDS32, "weights": values(T, K), "kept_ids": out(T, K, dtype=np.int32), "kept_weights": out(T, K)},
         {"tokens_per_expert": out(E, dtype=np.int64), "dropped_per_expert": out(E, dtype=np.int64)} | MASK | COUNT | RANDOM),
    call("capacity_fwd", CAPACITY | {"second_expert": m.SECOND_EXPERT_SAMPLING, "renormalize": m.DROP_RENORMALIZE_AFTER},
         {"ids": IDS32, "weights": values(T, K), "kept_ids": out(T, K, dtype=np.int32), "kept_weights": out(T, K),
          "logits": values(T, E), "routed_ids": out(T, K, dtype=np.int32), "routed_weights": out(T, K)}, RANDOM, "sampling"),
    call("capacity_bwd", CAPACITY | {"renormalize": m.DROP_RENORMALIZE_BEFORE},
         {"weights": values(T, K), "ids": IDS32, "kept_ids": IDS32, "dkept_weights": values(T, K), "dweights": out(T, K)},
         {"dweights_mode": "add"} | COUNT),
    call("dispatch_plan", PLAN, {"ids": IDS32, "group_offsets": out(E + 1, dtype=np.int64), "row_of_slot": out(T * K, dtype=np.int32)},
         {"expert_map": i32(range(E)), "group_sizes": out(E, dtype=np.int64), "slot_offsets": out(T + 1, dtype=np.int32),
          "slot_of_row": out(R, dtype=np.int32), "token_of_row": out(R, dtype=np.int32)} | COUNT),
    call("dispatch_plan", PLAN | {"rows_per_group": 4},
         {"byte_mask": np.eye(T, E, dtype=np.uint8), "group_offsets": out(E + 1, dtype=np.int64),
          "row_of_slot": out(T * K, dtype=np.int32), "slot_offsets": out(T + 1, dtype=np.int32)}, {}, "byte mask"),
    call("dispatch_plan", PLAN,
         {"bit_mask": np.full((T, 1), 3, np.uint32), "group_offsets": out(E + 1, dtype=np.int64),
          "row_of_slot": out(T * K, dtype=np.int32), "slot_offsets": out(T + 1, dtype=np.int32)}, {}, "bit mask"),
    call("dispatch_fwd", PERMUTE, {"x": values(T, D), "rows": out(R, D)} | BY_ROW | OFFSETS64 | SLOTS,
         WEIGHTS | {"row_weights": out(R)} | BY_SLOT | SLOT_OFFSETS | COUNT),
    call("dispatch_fwd", PERMUTE, {"x": values(T, D), "rows": out(R, D)} | BY_ROW | OFFSETS64,
         {"weights_dense": values(T, E), "row_weights": out(R)}, "dense weights"),
    call("dispatch_bwd", PERMUTE, {"drows": values(R, D)} | BY_SLOT,
         {"dx": out(T, D), "dx_mode": "add", "drow_weights": values(R), "dweights": out(T, K)} | SLOT_OFFSETS | COUNT),
    call("dispatch_bwd", PERMUTE, {"drow_weights": values(R)} | BY_SLOT | OFFSETS64, {"dweights_dense": out(T, E)}, "dense weights"),
    call("combine_fwd", PERMUTE, {"rows": values(R, D), "y": out(T, D)} | BY_SLOT, WEIGHTS | {"y_mode": "add"} | SLOT_OFFSETS | COUNT),
    call("combine_fwd", PERMUTE, {"rows": values(R, D), "y": out(T, D)} | BY_SLOT, {"row_weights": values(R)}, "weights a row"),
    call("combine_fwd", PERMUTE, {"rows": values(R, D), "y": out(T, D)} | BY_SLOT | OFFSETS64,
         {"weights_dense": values(T, E)}, "dense weights"),
    call("combine_bwd", PERMUTE, {"dy": values(T, D), "rows": values(R, D)} | MAPS | OFFSETS64,
         WEIGHTS | {"drows": out(R, D), "dweights": out(T, K)} | SLOT_OFFSETS | COUNT),
    call("combine_bwd", PERMUTE, {"dy": values(T, D), "rows": values(R, D)} | BY_ROW | OFFSETS64,
         {"row_weights": values(R), "drows": out(R, D), "drow_weights": out(R)}, "weights a row"),
    call("combine_bwd", PERMUTE, {"dy": values(T, D), "rows": values(R, D)} | BY_ROW | BY_SLOT | OFFSETS64,
         {"weights_dense": values(T, E), "drows": out(R, D), "dweights_dense": out(T, E)}, "dense weights"),
    call("sort_chunks", {"dtype": "fp32", "rows_max": R, "hidden_size": D, "num_chunks": 3},
         {"x": values(R, D), "y": out(R, D), "chunk_sizes": i64([2, 5, 3]), "order": i32([2, 0, 1])},
         {"row_weights": values(R), "sorted_row_weights": out(R), "report": REPORT}),
    call("grouped_gemm_fwd", GEMM,
         {"a": values(T, D), "b": values(E, F, D), "c": out(R, F)} | OFFSETS64,
         {"bias": values(E, F), "c_mode": "add", "row_index": i32(TOKEN_OF_ROW), "a_rows": T, "report": REPORT}),
    call("grouped_gemm_fwd", GEMM, {"a": values(R, D), "b": values(E, F, D), "c": out(R, F)} | SIZES64, {}, "sizes"),
    call("grouped_gemm_bwd", GEMM,
         {"dc": values(R, F), "a": values(T, D), "b": values(E, F, D)} | OFFSETS64,
         {"da": out(R, D), "db": out(E, F, D), "dbias": out(E, F), "da_mode": "add", "db_mode": "add", "dbias_mode": "add",
          "row_index": i32(TOKEN_OF_ROW), "a_rows": T, "report": REPORT}),
    call("grouped_gemm_bwd", GEMM, {"dc": values(R, F), "a": values(R, D)} | SIZES64, {"db": out(E, F, D)}, "sizes"),
    call("activation_fwd", ACTIVATION, {"h": values(R, 2 * F), "y": out(R, F)}, {"row_weights": values(R)} | ROWS_COUNT),
    call("activation_bwd", ACTIVATION, {"h": values(R, 2 * F), "dy": values(R, F), "dh": out(R, 2 * F)},
         {"row_weights": values(R), "drow_weights": out(R), "weighted_act": out(R, F)} | ROWS_COUNT),
    call("expert_mlp_fwd", MLP,
         {"x": values(T, D), "w1": values(E, 2 * F, D), "w2": values(E, D, F), "y": out(T, D)} | OFFSETS64 | BY_ROW | BY_SLOT,
         WEIGHTS | SLOTS | SIZES64 | SLOT_OFFSETS | COUNT
         | {"y_mode": "add", "b1": values(E, 2 * F), "b2": values(E, D), "h": out(R, 2 * F)}),
    call("expert_mlp_fwd", MLP | ON_ROWS,
         {"x": values(R, D), "w1": values(E, F, D), "w2": values(E, D, F), "y": out(R, D)} | OFFSETS64,
         {"w1_up": values(E, F, D), "row_weights": values(R)}, "rows"),
    call("expert_mlp_bwd", MLP,
         {"dy": values(T, D), "x": values(T, D), "w1": values(E, 2 * F, D), "w2": values(E, D, F), "dh": out(R, 2 * F)}
         | OFFSETS64 | BY_ROW | BY_SLOT,
         WEIGHTS | SLOTS | SIZES64 | SLOT_OFFSETS | COUNT
         | {"h": values(R, 2 * F), "b1": values(E, 2 * F), "b2": values(E, D), "dx": out(T, D), "dw1": out(E, 2 * F, D),
            "dw2": out(E, D, F), "db1": out(E, 2 * F), "db2": out(E, D), "dweights": out(T, K), "dx_mode": "add", "dw_mode": "add",
            "db_mode": "add"}),
    call("expert_mlp_bwd", MLP | ON_ROWS,
         {"dy": values(R, D), "x": values(R, D), "w1": values(E, F, D), "w2": values(E, D, F), "dh": out(R, 2 * F)} | OFFSETS64,
         {"w1_up": values(E, F, D), "row_weights": values(R), "h": values(R, 2 * F), "dx": out(R, D), "dw1": out(E, F, D),
          "dw1_up": out(E, F, D), "drow_weights": out(R), "weighted_act": out(R, F)}, "rows"),
    call("expert_mlp_wgrad", MLP,
         {"dy": values(T, D), "x": values(T, D), "dh": values(R, 2 * F), "weighted_act": values(R, F)} | OFFSETS64 | BY_ROW,
         WEIGHTS | SLOTS | BY_SLOT | SIZES64 | SLOT_OFFSETS | COUNT
         | {"dw1": out(E, 2 * F, D), "dw2": out(E, D, F), "db1": out(E, 2 * F), "db2": out(E, D), "dw_mode": "add", "db_mode": "add"}),
    call("expert_mlp_wgrad", MLP | ON_ROWS,
         {"dy": values(R, D), "x": values(R, D), "dh": values(R, 2 * F), "weighted_act": values(R, F)} | OFFSETS64,
         {"row_weights": values(R), "dw1": out(E, F, D), "dw1_up": out(E, F, D), "dw2": out(E, D, F)}, "rows"),
    call("quantize", QUANTIZE, {"x": values(R, 128)},
         {"q": {"data": out(R, 128, dtype=np.uint8), "dtype": "fp8_e4m3", "scale": out(R), "scale_kind": m.SCALE_BLOCK_1X128,
                "scale_dtype": "fp32"},
          "q_transposed": {"data": out(128, R, dtype=np.uint8), "dtype": "fp8_e4m3", "scale": out(128),
                           "scale_kind": m.SCALE_BLOCK_1X128, "scale_dtype": "fp32"},
          "group_offsets": i64([0, R])} | ROWS_COUNT),
    call("dequantize", QUANTIZE,
         {"q": {"data": np.ones((R, 128), np.uint8), "dtype": "fp8_e4m3", "scale": values(R), "scale_kind": m.SCALE_BLOCK_1X128,
                "scale_dtype": "fp32"}, "x": out(R, 128)},
         {"group_offsets": i64([0, R])} | ROWS_COUNT),
    call("ep_dispatch_fwd", EP, {"x": values(T, D), "ids": IDS32, "rows": out(R, D), "group_offsets": out(E + 1, dtype=np.int64)}),
    call("ep_dispatch_bwd", EP, {"drows": values(R, D), "dx": out(T, D)}),
    call("ep_combine_fwd", EP, {"rows": values(R, D), "y": out(T, D)}),
    call("ep_combine_bwd", EP, {"dy": values(T, D), "drows": out(R, D)}),
    call("tp_reduce", {"dtype": "fp32", "num_tokens": T, "hidden_size": D}, {"x": values(T, D), "y": out(T, D)}),
]

# Questions about a description beside the _workspace_size of each operation: whose description, and the answer's name.
QUERIES = {"capacity_value": "capacity_fwd", "dispatch_rows_max": "dispatch_plan", "ep_handle_size": "ep_dispatch_fwd"}
