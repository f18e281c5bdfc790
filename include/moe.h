/* libmoe: Mixture-of-Experts layers on CUDA GPUs and on the CPU.
 *
 * Generated from the Rust sources: do not edit. The conventions of all functions (ownership, streams, workspaces,
 * errors, threads, determinism) stand in docs/conventions.md. */
#ifndef MOE_H
#define MOE_H

#include <stddef.h>
#include <stdint.h>

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/** A CUDA stream: cudaStream_t and CUstream alike. NULL is the legacy default stream; on the CPU it must be NULL. */
typedef struct CUstream_st *moe_stream_t;

/** A CUDA event: cudaEvent_t and CUevent alike. */
typedef struct CUevent_st *moe_event_t;

/* ---------------------------------------------------------------- status */

#define MOE_STATUS_SUCCESS 0

/** An argument is wrong. Nothing was enqueued, no output was touched. */
#define MOE_STATUS_INVALID_ARGUMENT 1

/** A valid request that this build, backend or version does not serve. Nothing was enqueued. */
#define MOE_STATUS_UNSUPPORTED 2

/** libcuda.so.1 is missing, unusable or too old. */
#define MOE_STATUS_NO_DRIVER 3

/** There is no such device, or it is older than compute capability 8.0. */
#define MOE_STATUS_UNSUPPORTED_DEVICE 4

/** A CUDA driver call failed, perhaps from an earlier fault of the caller's. Outputs are undefined. */
#define MOE_STATUS_DRIVER_ERROR 5

/** libnccl.so.2 is missing or unusable. */
#define MOE_STATUS_NO_NCCL 6

/** An NCCL call failed. Outputs are undefined. */
#define MOE_STATUS_NCCL_ERROR 7

/** MOE_CHECK=1 only: a kernel reported a fault (see moe_device_report_t). */
#define MOE_STATUS_DEVICE_FAULT 8

/** A defect of libmoe. Nothing unwinds into the caller. */
#define MOE_STATUS_INTERNAL_ERROR 9

/** What a call returned; MOE_STATUS_SUCCESS is 0. The thread's message is moe_last_error_message(). */
typedef int32_t moe_status_t;

/* ---------------------------------------------------------------- types */

#define MOE_DTYPE_FP32 1

#define MOE_DTYPE_FP16 2

#define MOE_DTYPE_BF16 3

/** CPU backend only: for gradient checks. */
#define MOE_DTYPE_FP64 4

#define MOE_DTYPE_FP8_E4M3 5

#define MOE_DTYPE_FP8_E5M2 6

#define MOE_DTYPE_INT32 7

#define MOE_DTYPE_INT64 8

/** Byte masks: zero or not zero. */
#define MOE_DTYPE_UINT8 9

/** Bit masks: expert e is bit e % 32 of word e / 32. */
#define MOE_DTYPE_UINT32 10

/** Power-of-two scales: value = 2^(byte - 127). */
#define MOE_DTYPE_E8M0 11

/** How FP32 operands are multiplied, and what routers accumulate in. */
#define MOE_MATH_DEFAULT 0

/** FP32 GEMMs may round their operands to TF32. */
#define MOE_MATH_TF32 1

/** Router mathematics in fp64. */
#define MOE_MATH_FP64 2

/** Which elements share a scale. */
#define MOE_SCALE_NONE 0

/** One scale a tensor, or one a group of a grouped tensor. */
#define MOE_SCALE_TENSOR 1

/** One scale a row. */
#define MOE_SCALE_ROW 2

/** One scale for every 128 consecutive elements of a row. */
#define MOE_SCALE_BLOCK_1X128 3

/** One scale for every block of 128 rows by 128 columns. */
#define MOE_SCALE_BLOCK_128X128 4

/** The output is written. */
#define MOE_OUTPUT_OVERWRITE 0

/** The result is added to what the output holds. */
#define MOE_OUTPUT_ADD 1

/** ADD where *add is not 0 when the operation runs, else OVERWRITE: changes between replays of a CUDA graph. */
#define MOE_OUTPUT_FROM_DEVICE 2

/** What a kernel clamped or skipped. */
#define MOE_FAULT_NONE 0

/** An expert id outside -1 .. num_experts-1 (strict ids only). place: slot; value: the id. */
#define MOE_FAULT_EXPERT_ID 1

/** A token index of a map is outside the tokens. place: row; value: the index. */
#define MOE_FAULT_TOKEN_INDEX 2

/** A row index of a map is outside the rows. place: slot; value: the index. */
#define MOE_FAULT_ROW_INDEX 3

/** A group offset is negative, above the rows, or below its predecessor. place: group; value: the offset. */
#define MOE_FAULT_GROUP_OFFSET 4

/** A group size is negative or larger than its group. place: group; value: the size. */
#define MOE_FAULT_GROUP_SIZE 5

/** A device count is outside 0 .. bound. place: the bound; value: the count. */
#define MOE_FAULT_COUNT 6

/** More slots or rows than the caller made room for. place: the room; value: how many there are. */
#define MOE_FAULT_OVERFLOW 7

/** A logit is NaN. place: token*num_experts + expert. */
#define MOE_FAULT_NAN_LOGIT 8

/** A slot index of a map is outside the slots. place: row or token; value: the index. */
#define MOE_FAULT_SLOT_INDEX 9

/** An entry of a chunk order, a rank map or an expert map is out of range. place: its place; value: the entry. */
#define MOE_FAULT_MAP_ENTRY 10

/** A pointer to a group's matrix is no multiple of 16 bytes where a kernel copies by tensor maps. place: group; value: the address. */
#define MOE_FAULT_POINTER 11

/** Weight matrices [E, out, in] (row-major, as nn.Linear holds them). */
#define MOE_WEIGHT_OUT_IN 0

/** Weight matrices [E, in, out] (row-major). */
#define MOE_WEIGHT_IN_OUT 1

/** Element type of a tensor; 0 is invalid, never a default. */
typedef int32_t moe_dtype_t;

/**
 * A matrix, a vector, or E of them. Absent where an argument is optional: data and pointers both NULL.
 *
 * Element (row, column) of group g lies at data + g*group_stride + row*row_pitch + column, or, when
 * `pointers` is given, at pointers[g] + row*row_pitch + column. Pitches and strides count elements.
 */
typedef struct moe_tensor_t {
  /** sizeof(moe_tensor_t). */
  uint32_t struct_size;
  /** MOE_DTYPE_*. */
  moe_dtype_t dtype;
  /** The data, or NULL when `pointers` is given. */
  void *data;
  /** Elements from one row to the next; 0: rows are contiguous. */
  int64_t row_pitch;
  /** Elements from one group to the next; 0: groups are contiguous. */
  int64_t group_stride;
  /**
   * A device array of E device pointers; a NULL entry is an absent or frozen expert and is skipped. Pointers to 16-bit
   * weights are multiples of 16 bytes: on Hopper others are reported (MOE_FAULT_POINTER) and skipped.
   */
  void *const *pointers;
  /** Scales of an FP8 tensor. */
  void *scale;
  /** MOE_SCALE_*. */
  int32_t scale_kind;
  /** Element type of the scales: MOE_DTYPE_FP32 or MOE_DTYPE_E8M0. */
  moe_dtype_t scale_dtype;
  /** Scales from one row of scales to the next; 0: contiguous. */
  int64_t scale_row_pitch;
  /** Scales from one group to the next; 0: contiguous. */
  int64_t scale_group_stride;
  /** A device array of E pointers to scales, beside `pointers`. */
  void *const *scale_pointers;
  /** Zero; room for zero points. */
  uint64_t reserved[4];
} moe_tensor_t;

/** A count that only the device knows. NULL: the host's upper bound is the count. */
typedef struct moe_count_t {
  /** One device integer; values below 0 count as 0, values above the bound as the bound (and are reported). */
  const void *device;
  /** MOE_DTYPE_INT32 or MOE_DTYPE_INT64; ignored when `device` is NULL. */
  moe_dtype_t dtype;
  int32_t reserved;
} moe_count_t;

/** Whether an output is overwritten or added to. */
typedef struct moe_output_mode_t {
  /** MOE_OUTPUT_*. */
  int32_t mode;
  int32_t reserved;
  /** One device integer, for MOE_OUTPUT_FROM_DEVICE. */
  const int32_t *add;
} moe_output_mode_t;

/** Philox4x32-10 (Salmon et al. 2011). Element i uses counter offset + i/4 and lane i%4. */
typedef struct moe_random_t {
  uint64_t seed;
  uint64_t offset;
  /** Device values that replace `seed` and `offset`, so that each replay of a CUDA graph draws anew. */
  const uint64_t *seed_device;
  const uint64_t *offset_device;
} moe_random_t;

/**
 * In device memory (host memory for the CPU backend), zeroed by the caller. The first fault wins; read it
 * after your own synchronisation. moe_device_report_message() turns it into words.
 */
typedef struct moe_device_report_t {
  /** MOE_FAULT_*. */
  int32_t what;
  int32_t reserved;
  /** Which element: see the fault. */
  int64_t place;
  int64_t value;
} moe_device_report_t;

#define MOE_TENSOR_INIT \
  { sizeof(moe_tensor_t), 0, NULL, 0, 0, NULL, NULL, 0, 0, 0, 0, NULL, { 0 } }

#define MOE_COUNT_INIT \
  { NULL, 0, 0 }

#define MOE_OUTPUT_MODE_INIT \
  { 0, 0, NULL }

#define MOE_RANDOM_INIT \
  { 0, 0, NULL, NULL }

#define MOE_DEVICE_REPORT_INIT \
  { 0, 0, 0, 0 }

/* ---------------------------------------------------------------- context */

/** The CPU backend: the same functions on host pointers. */
#define MOE_DEVICE_CPU -1

/** A device and everything about it that is slow to find out. Any number of threads may share one. */
typedef struct moe_context_t moe_context_t;

/** What a context runs on. */
typedef struct moe_context_info_t {
  /** sizeof(moe_context_info_t), set by the caller. */
  uint32_t struct_size;
  /** The ordinal given to moe_context_create, or MOE_DEVICE_CPU. */
  int32_t device;
  /** Streaming multiprocessors; on the CPU, threads. */
  int32_t multiprocessors;
  /** Compute capability, 10*major + minor; 0 on the CPU. */
  int32_t compute_capability;
  /** CUDA version of the driver, 1000*major + 10*minor; 0 on the CPU. */
  int32_t driver_version;
  int32_t reserved;
} moe_context_info_t;

/**
 * Opens a GPU by its ordinal, or the CPU backend with MOE_DEVICE_CPU. Everything slow happens here: the driver
 * and the architecture are checked, the kernels loaded. A GPU's primary context is retained until
 * moe_context_destroy; the thread's current context stays as it was.
 */
moe_status_t moe_context_create(int32_t device,
                                struct moe_context_t **ctx);

/** Closes a context. Work that was enqueued with it may still run; no call with it may be under way. NULL is allowed. */
moe_status_t moe_context_destroy(struct moe_context_t *ctx);

/** What a context runs on. `info->struct_size` is set by the caller. */
moe_status_t moe_context_info(const struct moe_context_t *ctx, struct moe_context_info_t *info);

/**
 * What is enqueued on `stream` from now on waits for what `other` holds now. `event`, the caller's, is recorded for that;
 * the call can be captured, and then takes `stream` into the graph of `other`. On the CPU nothing is to be done, and
 * `event` may be NULL.
 */
moe_status_t moe_stream_wait(const struct moe_context_t *ctx,
                             moe_stream_t stream,
                             moe_stream_t other,
                             moe_event_t event);

/** 10000*major + 100*minor + patch of the library that was loaded. */
int32_t moe_version(void);

/** A status in words; never NULL. */
const char *moe_status_string(moe_status_t status);

/**
 * Function, argument, value and limit of this thread's last failed call; "" if none. Valid until the next failure
 * on this thread.
 */
const char *moe_last_error_message(void);

/** Writes a device report, which the caller has copied to the host, as text: at most `size` bytes with the final 0. */
moe_status_t moe_device_report_message(const moe_device_report_t *report,
                                       char *buffer,
                                       uint64_t size);

#define MOE_CONTEXT_INFO_INIT \
  { sizeof(moe_context_info_t), 0, 0, 0, 0, 0 }

/* ---------------------------------------------------------------- router */

/** s = softmax(L) over the experts. */
#define MOE_SCORE_SOFTMAX 0

/** s = sigmoid(L) (DeepSeek-V3, Llama-4). */
#define MOE_SCORE_SIGMOID 1

/** s = sqrt(softplus(L)) (DeepSeek-V4). */
#define MOE_SCORE_SQRTSOFTPLUS 2

/** Softmax over all experts, then top-k of it (Mixtral, Qwen3-MoE, OLMoE). */
#define MOE_SOFTMAX_BEFORE_TOPK 0

/** Top-k of the logits, then softmax over the k (GPT-OSS, Megatron's default). */
#define MOE_SOFTMAX_AFTER_TOPK 1

/** A switch that is off. */
#define MOE_OFF 0

/** A switch that is on. */
#define MOE_ON 1

/** Experts are chosen by score (plus bias, within group limits). */
#define MOE_SELECT_TOPK 0

/** The caller gives the ids (router replay, hash routing); weights are computed for them. */
#define MOE_SELECT_GIVEN 1

/** Uniformly spread Philox-random ids that ignore the logits, for benchmarks. */
#define MOE_SELECT_BALANCED 2

/** The selection bias is added to the scores (DeepSeek-V3). */
#define MOE_BIAS_ON_SCORE 0

/** The selection bias is added to the logits (Sinkhorn's log d1). */
#define MOE_BIAS_ON_LOGIT 1

/** Score of a group of experts: sum of its top (top_k/top_groups) biased scores (Megatron). */
#define MOE_GROUP_SCORE_TOPK_SUM 0

/** Sum of its two best biased scores (DeepSeek-V3, vLLM, Transformers). */
#define MOE_GROUP_SCORE_TOP2_SUM 1

/** Its best biased score (DeepSeek-V2). */
#define MOE_GROUP_SCORE_MAX 2

/** No auxiliary loss. */
#define MOE_AUX_LOSS_OFF 0

/** coeff * E/(K*T^2) * sum_e (sum_t s_te) * n_e (Switch, GShard, Megatron-Core). */
#define MOE_AUX_LOSS_MEGATRON 1

/** K times Megatron's (load_balancing_loss_func of Transformers). */
#define MOE_AUX_LOSS_TRANSFORMERS 2

/** E * sum_e mean_t(gate) * mean_t(mask of the first choice) (DeepSpeed top-1 and top-2). */
#define MOE_AUX_LOSS_DEEPSPEED 3

/** Megatron's, divided by num_layers (MegaBlocks). */
#define MOE_AUX_LOSS_MEGABLOCKS 4

/** One loss over all tokens. */
#define MOE_AUX_SCOPE_BATCH 0

/** One loss a sequence, averaged over the sequences. */
#define MOE_AUX_SCOPE_SEQUENCE 1

/** n_e and T are given by the caller, summed over ranks or averaged over micro-batches. */
#define MOE_AUX_SCOPE_GLOBAL 2

/** Token t belongs to sequence t / (num_tokens/num_sequences) (Transformers: b*S+s). */
#define MOE_SEQUENCE_MAJOR 0

/** Token t belongs to sequence t % num_sequences (Megatron: s*B+b). */
#define MOE_SEQUENCE_MINOR 1

/** sequence_offsets says. */
#define MOE_SEQUENCE_OFFSETS 2

/** d1 started at 1, relative stopping test, tolerance 1e-4, at most 100 iterations. */
#define MOE_SINKHORN_DEFAULT 0

/** Megatron-Core: d1 started at 1, absolute test, tolerance 1e-4; at most 1000 iterations (Megatron has no bound). */
#define MOE_SINKHORN_MEGATRON 1

/** GPT-NeoX: d1 started at 1/(E * column sums of exp(L)), absolute test, tolerance 1e-4, at most 3 iterations. */
#define MOE_SINKHORN_NEOX 2

/** The preset's. */
#define MOE_SINKHORN_START_DEFAULT 0

/** d1 = 1. */
#define MOE_SINKHORN_START_ONES 1

/** d1 = 1/(E * column sums of exp(L)); where such a sum is 0, 1/(E * 1e-8). */
#define MOE_SINKHORN_START_COLUMN_SUMS 2

/** The preset's. */
#define MOE_SINKHORN_STOP_DEFAULT 0

/** mean_e |d1_old - d1| <= tolerance. */
#define MOE_SINKHORN_STOP_ABSOLUTE 1

/** max_e |d1_old/d1 - 1| <= tolerance. */
#define MOE_SINKHORN_STOP_RELATIVE 2

/** bias_e += rate * sign(mean(n) - n_e), sign(0) = 0 (DeepSeek-V3, Megatron-Core's get_updated_expert_bias). */
#define MOE_BIAS_UPDATE_SIGN 0

/**
 * Quantile balancing (Megatron-Core's qb_dual_update, whose beta is our -bias): with a_t the (K+1)-th largest of
 * s_te + bias_e over the experts and q_e the (floor(T*K/E) + 1)-th largest of s_te - a_t over the tokens,
 * bias_e = ema_decay * bias_e - (1 - ema_decay) * q_e. A q_e that is not finite leaves bias_e as it is.
 */
#define MOE_BIAS_UPDATE_QUANTILE 1

/** The desc's `capacity`. */
#define MOE_CAPACITY_EXPLICIT 0

/** ceil((T*K/E) * factor), at least min_capacity, then at most T (Megatron-Core). */
#define MOE_CAPACITY_MEGATRON 1

/** ceil(T/E * factor * K), at least min_capacity (DeepSpeed). */
#define MOE_CAPACITY_DEEPSPEED 2

/** floor(T*K/E * factor) (MegaBlocks). */
#define MOE_CAPACITY_MEGABLOCKS 3

/** 2 * ceil(T/E) (NLLB-MoE). */
#define MOE_CAPACITY_NLLB 4

/** ceil(factor * T) (NLLB-MoE's moe_eval_capacity_token_fraction). */
#define MOE_CAPACITY_TOKEN_FRACTION 5

/** Each expert keeps its C slots of the largest weight; ties: the lower token. */
#define MOE_DROP_BY_PROBS 0

/** Each expert keeps its first C slots in token order. */
#define MOE_DROP_BY_POSITION 1

/**
 * Each expert keeps C random slots (DeepSpeed's random token selection): those with the largest random bits; ties: the
 * lower token. Random element: the slot, t*K + k.
 */
#define MOE_DROP_RANDOM 2

/**
 * First choices before second ones, tokens in order of their largest weight (NLLB-MoE, batch-prioritised); ties: the
 * lower token.
 */
#define MOE_DROP_BATCH_PRIORITIZED 3

/** First choices before second ones, tokens in order (GShard, NLLB-MoE). */
#define MOE_DROP_BY_CHOICE 4

/** Every choice beyond the first is routed. */
#define MOE_SECOND_EXPERT_ALL 0

/**
 * The second expert is drawn anew: the highest logit + Gumbel noise, -log(-log(u)), among all but the first; its weight
 * is softmax(logits) there (NLLB-MoE; K = 2). Random element: num_tokens*K + t*E + expert, num_tokens the desc's.
 */
#define MOE_SECOND_EXPERT_SAMPLING 1

/**
 * The second expert stays where twice its weight exceeds u (NLLB-MoE; K = 2). Random element: num_tokens*K + t,
 * num_tokens the desc's.
 */
#define MOE_SECOND_EXPERT_RANDOM 2

/** Weights after dropping are left as they are (Megatron-Core). */
#define MOE_DROP_KEEP_WEIGHTS 0

/**
 * The weights that a token keeps are divided by their sum, which counts as at least the machine epsilon of the weights'
 * dtype (DeepSpeed, Transformers' NLLB-MoE).
 */
#define MOE_DROP_RENORMALIZE_AFTER 1

/**
 * The same with all K weights, before dropping (NLLB-MoE's default). With MOE_SECOND_EXPERT_RANDOM the second weight is
 * left as it is, as Transformers has it.
 */
#define MOE_DROP_RENORMALIZE_BEFORE 2

/**
 * The router's GEMM: logits[T, E] = x[T, d] * weight[E, d]^T (+ bias[E]), with optional input jitter.
 * x, weight, bias, dx: one of FP32, FP16, BF16 (FP64 on the CPU); logits, dlogits: that or FP32;
 * dweight, dbias: any of them.
 */
typedef struct moe_router_logits_desc_t {
  uint32_t struct_size;
  /** Dtype of x and weight. */
  moe_dtype_t dtype;
  /** Dtype of the logits. */
  moe_dtype_t logits_dtype;
  /** MOE_MATH_DEFAULT (fp32 accumulation), MOE_MATH_TF32 or MOE_MATH_FP64. */
  int32_t math;
  /** Upper bound of the tokens, T. */
  int64_t num_tokens;
  /** d. */
  int64_t hidden_size;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** MOE_ON: x is multiplied by uniform(1 - jitter_eps, 1 + jitter_eps) (Switch). Random element: t*d + column. */
  int32_t jitter;
  int32_t reserved;
  double jitter_eps;
} moe_router_logits_desc_t;

typedef struct moe_router_logits_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t x;
  /** [E, d]. */
  moe_tensor_t weight;
  /** Out: [T, E]. */
  moe_tensor_t logits;
  /** [E]; optional. */
  moe_tensor_t bias;
  /** Out: x after jitter, [T, d]; optional (Mixtral's experts read it too). */
  moe_tensor_t jittered_x;
  /** True T; optional. */
  moe_count_t num_tokens;
  moe_random_t random;
  moe_device_report_t *report;
} moe_router_logits_fwd_args_t;

/** dx = dlogits * weight (times the jitter), dweight = dlogits^T * x, dbias = sum_t dlogits. Each output is optional. */
typedef struct moe_router_logits_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t dlogits;
  /** [T, d], before jitter; needed for dweight. */
  moe_tensor_t x;
  /** [E, d]; needed for dx. */
  moe_tensor_t weight;
  /** Out: [T, d]; optional. */
  moe_tensor_t dx;
  /** Out: [E, d]; optional. */
  moe_tensor_t dweight;
  /** Out: [E]; optional. */
  moe_tensor_t dbias;
  moe_output_mode_t dx_mode;
  moe_output_mode_t dweight_mode;
  moe_output_mode_t dbias_mode;
  moe_count_t num_tokens;
  /** The forward's. */
  moe_random_t random;
  moe_device_report_t *report;
} moe_router_logits_bwd_args_t;

/**
 * Scores, selection, weights and losses of a router.
 * logits, dlogits: FP32, FP16, BF16 (FP64 on the CPU); ids: INT32 or INT64; weights: FP32, FP16, BF16 (FP64 on
 * the CPU), whatever the logits are; masks: UINT8 or UINT32.
 * Ties: the higher value, then the lower expert. NaN counts as -inf, with gradient 0, and is reported.
 */
typedef struct moe_router_desc_t {
  uint32_t struct_size;
  moe_dtype_t logits_dtype;
  /** Upper bound of the tokens, T. */
  int64_t num_tokens;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** K, 1 to min(E, 64). */
  int64_t top_k;
  /** MOE_SCORE_*. */
  int32_t score_function;
  /** MOE_SOFTMAX_*; read for MOE_SCORE_SOFTMAX alone. */
  int32_t softmax_order;
  /** MOE_ON: the K weights are divided by their sum (+ 1e-20; for K > 1 with sigmoid and sqrtsoftplus). */
  int32_t renormalize;
  /** MOE_MATH_DEFAULT (fp32) or MOE_MATH_FP64. */
  int32_t math;
  /** Multiplies the weights; 0 means 1. */
  double scaling_factor;
  /** MOE_SELECT_*. */
  int32_t selection;
  /** MOE_BIAS_*; read when selection_bias is given. */
  int32_t selection_bias_target;
  /** G, groups of consecutive experts; 0: no group limit. Divides E. */
  int64_t num_groups;
  /** g, how many groups a token may choose from. */
  int64_t top_groups;
  /** MOE_GROUP_SCORE_*. */
  int32_t group_score;
  /** MOE_AUX_LOSS_*. */
  int32_t aux_loss;
  /** MOE_AUX_SCOPE_*. */
  int32_t aux_scope;
  /** MOE_SEQUENCE_*. */
  int32_t sequence_layout;
  /** Sequences, for MOE_AUX_SCOPE_SEQUENCE. */
  int64_t num_sequences;
  /** Layers, for MOE_AUX_LOSS_MEGABLOCKS; 0 means 1. */
  int64_t num_layers;
  double aux_loss_coeff;
  /** MOE_ON: z-loss, coeff * mean_t logsumexp(L_t)^2. */
  int32_t z_loss;
  int32_t reserved;
  double z_loss_coeff;
} moe_router_desc_t;

typedef struct moe_router_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** Out: [T, K]; optional. */
  moe_tensor_t ids;
  /** Out: [T, K]; optional. */
  moe_tensor_t weights;
  /** Out: [T, E], zero where not chosen; optional. */
  moe_tensor_t weights_dense;
  /** Out: UINT8 [T, E]; optional. */
  moe_tensor_t byte_mask;
  /** Out: UINT32 [T, ceil(E/32)]; optional. */
  moe_tensor_t bit_mask;
  /** In, for MOE_SELECT_GIVEN: [T, K]; -1 or >= E: an empty slot. */
  moe_tensor_t given_ids;
  /** In: float[E]; optional. Changes the choice, never the weights. */
  const float *selection_bias;
  /** In: uint8[T], 1 = a real token; optional. Masked tokens count in no loss and no count. */
  const uint8_t *padding_mask;
  /** In: int64[num_sequences + 1], for MOE_SEQUENCE_OFFSETS. */
  const int64_t *sequence_offsets;
  /** In: float[E], for MOE_AUX_SCOPE_GLOBAL: tokens an expert. */
  const float *global_tokens_per_expert;
  /** In: one float, for MOE_AUX_SCOPE_GLOBAL: the tokens they come from; NULL: the true T. */
  const float *global_num_tokens;
  /** Out: int64[E], tokens of each expert; optional. */
  int64_t *tokens_per_expert;
  /**
   * Out: int64[S, E], S = num_sequences or 1: the counts of the aux loss, before dropping; backward needs
   * them when aux_loss is on.
   */
  int64_t *aux_counts;
  /** Out: one float; optional. */
  float *aux_loss;
  /** Out: one float; optional. */
  float *z_loss;
  /** True T; optional. */
  moe_count_t num_tokens;
  /** For MOE_SELECT_BALANCED: random element t draws token t's choice. */
  moe_random_t random;
  moe_device_report_t *report;
} moe_router_fwd_args_t;

typedef struct moe_router_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E], the forward's. */
  moe_tensor_t logits;
  /** [T, K], the forward's. */
  moe_tensor_t ids;
  /** [T, K]; this or dweights_dense; both absent: the losses' gradient alone. */
  moe_tensor_t dweights;
  /** [T, E]. */
  moe_tensor_t dweights_dense;
  /** Out: [T, E]. */
  moe_tensor_t dlogits;
  moe_output_mode_t dlogits_mode;
  const uint8_t *padding_mask;
  const int64_t *sequence_offsets;
  const float *global_tokens_per_expert;
  const float *global_num_tokens;
  /** The forward's aux_counts. */
  const int64_t *aux_counts;
  /** One device float: the gradient of aux_loss; NULL means 1. */
  const float *aux_loss_grad;
  /** One device float: the gradient of z_loss; NULL means 1. */
  const float *z_loss_grad;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_router_bwd_args_t;

/** The losses alone, on given logits, ids and mask. The fields mean what they mean in moe_router_desc_t. */
typedef struct moe_router_loss_desc_t {
  uint32_t struct_size;
  moe_dtype_t logits_dtype;
  int64_t num_tokens;
  int64_t num_experts;
  int64_t top_k;
  int32_t score_function;
  int32_t math;
  int32_t aux_loss;
  int32_t aux_scope;
  int32_t sequence_layout;
  int32_t z_loss;
  int64_t num_sequences;
  int64_t num_layers;
  double aux_loss_coeff;
  double z_loss_coeff;
} moe_router_loss_desc_t;

typedef struct moe_router_loss_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** [T, K]; absent: the plain top-k of the scores. */
  moe_tensor_t ids;
  const uint8_t *padding_mask;
  const int64_t *sequence_offsets;
  const float *global_tokens_per_expert;
  const float *global_num_tokens;
  /** Out: int64[S, E]; backward needs it when aux_loss is on. */
  int64_t *aux_counts;
  /** Out: one float; optional. */
  float *aux_loss;
  /** Out: one float; optional. */
  float *z_loss;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_router_loss_fwd_args_t;

typedef struct moe_router_loss_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** Out: [T, E]. */
  moe_tensor_t dlogits;
  moe_output_mode_t dlogits_mode;
  const uint8_t *padding_mask;
  const int64_t *sequence_offsets;
  const float *global_tokens_per_expert;
  const float *global_num_tokens;
  const int64_t *aux_counts;
  const float *aux_loss_grad;
  const float *z_loss_grad;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_router_loss_bwd_args_t;

/**
 * Sinkhorn normalisation of C = exp(logits) (S-BASE, Clark et al. 2022). An iteration is
 * d0_t = 1/(T*(sum_e d1_e*C_te + 1e-8)), then d1_e = 1/(E*(sum_t d0_t*C_te + 1e-8)). It works on shifted logits, so that
 * none of them overflows; with infinite ones, +inf and what exceeds FP32 counts as FP32's largest number.
 * logits: FP32, FP16, BF16 (FP64 on the CPU); probs: any of them. No tokens: log_d1 = 0, no iterations, error 0.
 */
typedef struct moe_sinkhorn_desc_t {
  uint32_t struct_size;
  moe_dtype_t logits_dtype;
  /** Upper bound of the tokens of this rank, T. */
  int64_t num_tokens;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** MOE_SINKHORN_*. */
  int32_t preset;
  /** MOE_SINKHORN_START_*. */
  int32_t start;
  /** MOE_SINKHORN_STOP_*. */
  int32_t stop;
  /** At most so many rounds; 0: the preset's. Always finite. */
  int32_t max_iterations;
  /** 0: the preset's. */
  double tolerance;
} moe_sinkhorn_desc_t;

typedef struct moe_sinkhorn_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** Out: P = diag(d0) exp(L) diag(d1), [T, E]; optional. */
  moe_tensor_t probs;
  /** Out: float[T], log d0; optional. */
  float *log_d0;
  /** Out: float[E], log d1; optional. As a selection bias on the logits it gives the top-k of P. */
  float *log_d1;
  /** Out: one int32, iterations done; optional. */
  int32_t *iterations;
  /** Out: one float, the stopping test's last value: above the tolerance where max_iterations ended it; optional. */
  float *error;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_sinkhorn_args_t;

/**
 * Sinkhorn over the tokens of several ranks: max_iterations + 1 calls on each rank, with an all-reduce between them.
 *
 * For round = 0 to max_iterations:
 * - moe_sinkhorn_step with this round;
 * - if round < max_iterations: all-reduce column_mass, E floats, by sum.
 *
 * Round 0 starts log_d1 and writes this rank's column_mass. Round r > 0 takes the summed column_mass, does iteration r
 * of log_d1 and writes the column_mass for the next; the last round writes none. Once the stopping test holds, which all
 * ranks find in the same round, done is set and the rounds that are left write zeros to column_mass and nothing else: the
 * loop needs no look at the device and can be captured. Then top-k of logits + log_d1 is the choice, as after moe_sinkhorn.
 *
 * Started from column sums (MOE_SINKHORN_NEOX) the loop begins at round -2, and it is the maximum over the ranks that
 * column_mass is all-reduced to after round -2; the sum after all others.
 *
 * All ranks give the same description but for num_tokens. log_d1, column_mass and done are the state: leave them alone
 * between the calls.
 */
typedef struct moe_sinkhorn_step_args_t {
  uint32_t struct_size;
  /** 0 (started from column sums: -2) to max_iterations. */
  int32_t round;
  /** [T, E], this rank's. */
  moe_tensor_t logits;
  /** One device float: the tokens of all ranks; NULL: this rank's are all. */
  const float *total_tokens;
  /** In and out: float[E], the state; round 0 starts it. */
  float *log_d1;
  /**
   * In and out: float[E]. Out: the part of P's column sums before the columns are scaled that this rank's tokens
   * have; in: all ranks' parts.
   */
  float *column_mass;
  /** In and out: one int32, not 0 once converged; round 0 starts it. */
  int32_t *done;
  /** Out: float[T], log d0, so that P = exp(L + log d0 + log d1) in the end; optional. */
  float *log_d0;
  /** Out: one int32, iterations done; optional. */
  int32_t *iterations;
  /** Out: one float, the stopping test's last value, 0 before round 1; optional. */
  float *error;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_sinkhorn_step_args_t;

/**
 * Expert choice (Zhou et al. 2022): each expert takes its top-C tokens by score, s = softmax(L) over the experts; ties:
 * the lower token. A token may have 0 to E experts. A token is taken even with score 0 (logit -inf), unless masked.
 * logits, dlogits: FP32, FP16, BF16 (FP64 on the CPU); token_ids: INT32 or INT64; weights and their gradients: FP32,
 * FP16, BF16 (FP64 on the CPU), whatever the logits are. Among infinite logits +inf counts as FP32's largest number.
 */
typedef struct moe_expert_choice_desc_t {
  uint32_t struct_size;
  moe_dtype_t logits_dtype;
  int64_t num_tokens;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** C, at least 0; where an expert has fewer tokens to choose from, its last places hold token -1 and weight 0. */
  int64_t capacity;
  /** MOE_MATH_DEFAULT (scores are fp32) or MOE_MATH_FP64. */
  int32_t math;
  int32_t reserved;
} moe_expert_choice_desc_t;

typedef struct moe_expert_choice_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** Out: [E, C], the tokens of each expert in ascending order, as dispatch orders its rows; optional. */
  moe_tensor_t token_ids;
  /** Out: [E, C], their scores; optional. */
  moe_tensor_t weights;
  /** Out: [T, E], zero where not chosen; optional. With a mask, the input of moe_dispatch_plan. */
  moe_tensor_t weights_dense;
  /** Out: UINT8 [T, E]; optional. */
  moe_tensor_t byte_mask;
  /** Out: UINT32 [T, ceil(E/32)]; optional. */
  moe_tensor_t bit_mask;
  /** In: uint8[T], 1 = a real token; optional. Masked tokens are never chosen. */
  const uint8_t *padding_mask;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_expert_choice_fwd_args_t;

/**
 * dlogits_te = s_te * (g_te - sum_i s_ti*g_ti), where g is the gradient of the weights that were chosen, 0 elsewhere.
 * Given as dweights with token_ids, or as dweights_dense with byte_mask.
 */
typedef struct moe_expert_choice_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, E]. */
  moe_tensor_t logits;
  /** [E, C], the forward's; with dweights. */
  moe_tensor_t token_ids;
  /** [E, C]. */
  moe_tensor_t dweights;
  /** UINT8 [T, E], the forward's; with dweights_dense. */
  moe_tensor_t byte_mask;
  /** [T, E]. */
  moe_tensor_t dweights_dense;
  /** Out: [T, E]. */
  moe_tensor_t dlogits;
  moe_output_mode_t dlogits_mode;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_expert_choice_bwd_args_t;

/**
 * The aux-loss-free selection bias. Over ranks: sum tokens_per_expert first (SIGN), or average the biases afterwards
 * (QUANTILE, as Megatron-Core does).
 */
typedef struct moe_router_bias_update_desc_t {
  uint32_t struct_size;
  /** MOE_BIAS_UPDATE_*. */
  int32_t rule;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** 0 means 1e-3; for MOE_BIAS_UPDATE_SIGN. */
  double rate;
  /** How much of the old bias stays, 0 to 1 (Megatron-Core: 0); for MOE_BIAS_UPDATE_QUANTILE. */
  double ema_decay;
  /** Upper bound of the tokens, T; for MOE_BIAS_UPDATE_QUANTILE. */
  int64_t num_tokens;
  /** K, 1 to E - 1; for MOE_BIAS_UPDATE_QUANTILE. */
  int64_t top_k;
} moe_router_bias_update_desc_t;

typedef struct moe_router_bias_update_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** In and out: float[E]. */
  float *bias;
  /** In: int64[E], for MOE_BIAS_UPDATE_SIGN. */
  const int64_t *tokens_per_expert;
  /** In: FP32 [T, E], for MOE_BIAS_UPDATE_QUANTILE. NaN counts as -inf and is reported. */
  moe_tensor_t scores;
  /** In: uint8[T], 1 = a real token; optional, for MOE_BIAS_UPDATE_QUANTILE: T and the quantiles are of real tokens. */
  const uint8_t *padding_mask;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_router_bias_update_args_t;

/**
 * Expert capacity and token dropping. ids: INT32 or INT64; weights: FP32, FP16, BF16 (FP64 on the CPU), all of one dtype.
 * An id of -1 or >= E is an empty slot: it stays empty, and its weight counts nowhere. A NaN weight counts as -inf where
 * weights are compared. To pad to capacity, give C to moe_dispatch_desc_t's rows_per_group.
 */
typedef struct moe_capacity_desc_t {
  uint32_t struct_size;
  /** MOE_CAPACITY_*. */
  int32_t formula;
  /** Upper bound of the tokens, T; the capacity is computed from the true T, padding tokens included. */
  int64_t num_tokens;
  /** E, 1 to 1024. */
  int64_t num_experts;
  /** K, 1 to min(E, 64). */
  int64_t top_k;
  /** C, for MOE_CAPACITY_EXPLICIT; at least 0. */
  int64_t capacity;
  /** At least 0; for MOE_CAPACITY_MEGATRON, MOE_CAPACITY_DEEPSPEED. */
  int64_t min_capacity;
  /** Not negative; 0 means 1. All formulas are computed in double, from left to right. */
  double capacity_factor;
  /** MOE_DROP_BY_*, MOE_DROP_RANDOM, MOE_DROP_BATCH_PRIORITIZED. */
  int32_t policy;
  /** MOE_SECOND_EXPERT_*. */
  int32_t second_expert;
  /** MOE_DROP_KEEP_WEIGHTS, MOE_DROP_RENORMALIZE_*. */
  int32_t renormalize;
  int32_t reserved;
} moe_capacity_desc_t;

typedef struct moe_capacity_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, K]. */
  moe_tensor_t ids;
  /** [T, K]. */
  moe_tensor_t weights;
  /** Out: [T, K], -1 where dropped; may be `ids`. */
  moe_tensor_t kept_ids;
  /** Out: [T, K], 0 where dropped; may be `weights`. */
  moe_tensor_t kept_weights;
  /** Out: int64[E], after dropping; optional. */
  int64_t *tokens_per_expert;
  /** Out: int64[E], slots dropped for want of capacity; optional. */
  int64_t *dropped_per_expert;
  /** In: uint8[T], 1 = a real token; optional. The slots of the others become empty and count nowhere. */
  const uint8_t *padding_mask;
  /** In, for MOE_SECOND_EXPERT_SAMPLING: FP32, FP16, BF16 (FP64 on the CPU) [T, E]. NaN counts as -inf and is reported. */
  moe_tensor_t logits;
  /** Out, for MOE_SECOND_EXPERT_SAMPLING: [T, K], ids with the second expert drawn; the ids of the router's backward. */
  moe_tensor_t routed_ids;
  /** Out, for MOE_SECOND_EXPERT_SAMPLING: [T, K], their weights. Backward takes both in place of ids and weights. */
  moe_tensor_t routed_weights;
  moe_count_t num_tokens;
  moe_random_t random;
  moe_device_report_t *report;
} moe_capacity_fwd_args_t;

/** The gradient of kept_weights; the choice has none. */
typedef struct moe_capacity_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, K], before dropping; needed for MOE_DROP_RENORMALIZE_*. */
  moe_tensor_t weights;
  /** [T, K], the forward's ids, before dropping; needed for MOE_DROP_RENORMALIZE_BEFORE. */
  moe_tensor_t ids;
  /** [T, K], the forward's. */
  moe_tensor_t kept_ids;
  /** [T, K]. */
  moe_tensor_t dkept_weights;
  /** Out: [T, K]. */
  moe_tensor_t dweights;
  moe_output_mode_t dweights_mode;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_capacity_bwd_args_t;

/** The router's GEMM, forward. */
moe_status_t moe_router_logits_fwd(const moe_context_t *ctx,
                                   const struct moe_router_logits_desc_t *desc,
                                   const struct moe_router_logits_fwd_args_t *args,
                                   void *workspace,
                                   uint64_t workspace_size,
                                   moe_stream_t stream);

/** Bytes of workspace that moe_router_logits_fwd needs. */
moe_status_t moe_router_logits_fwd_workspace_size(const moe_context_t *ctx,
                                                  const struct moe_router_logits_desc_t *desc,
                                                  uint64_t *bytes);

/** The router's GEMM, backward. */
moe_status_t moe_router_logits_bwd(const moe_context_t *ctx,
                                   const struct moe_router_logits_desc_t *desc,
                                   const struct moe_router_logits_bwd_args_t *args,
                                   void *workspace,
                                   uint64_t workspace_size,
                                   moe_stream_t stream);

/** Bytes of workspace that moe_router_logits_bwd needs. */
moe_status_t moe_router_logits_bwd_workspace_size(const moe_context_t *ctx,
                                                  const struct moe_router_logits_desc_t *desc,
                                                  uint64_t *bytes);

/** Scores, top-k, weights, masks, counts and losses. */
moe_status_t moe_router_fwd(const moe_context_t *ctx,
                            const struct moe_router_desc_t *desc,
                            const struct moe_router_fwd_args_t *args,
                            void *workspace,
                            uint64_t workspace_size,
                            moe_stream_t stream);

/** Bytes of workspace that moe_router_fwd needs. */
moe_status_t moe_router_fwd_workspace_size(const moe_context_t *ctx,
                                           const struct moe_router_desc_t *desc,
                                           uint64_t *bytes);

/**
 * The gradient of moe_router_fwd's weights and losses with respect to the logits. Refused where it is identically zero
 * (K = 1 with weights that are always 1).
 */
moe_status_t moe_router_bwd(const moe_context_t *ctx,
                            const struct moe_router_desc_t *desc,
                            const struct moe_router_bwd_args_t *args,
                            void *workspace,
                            uint64_t workspace_size,
                            moe_stream_t stream);

/** Bytes of workspace that moe_router_bwd needs. */
moe_status_t moe_router_bwd_workspace_size(const moe_context_t *ctx,
                                           const struct moe_router_desc_t *desc,
                                           uint64_t *bytes);

/** The router's losses alone. */
moe_status_t moe_router_loss_fwd(const moe_context_t *ctx,
                                 const struct moe_router_loss_desc_t *desc,
                                 const struct moe_router_loss_fwd_args_t *args,
                                 void *workspace,
                                 uint64_t workspace_size,
                                 moe_stream_t stream);

/** Bytes of workspace that moe_router_loss_fwd needs. */
moe_status_t moe_router_loss_fwd_workspace_size(const moe_context_t *ctx,
                                                const struct moe_router_loss_desc_t *desc,
                                                uint64_t *bytes);

/** The gradient of moe_router_loss_fwd. */
moe_status_t moe_router_loss_bwd(const moe_context_t *ctx,
                                 const struct moe_router_loss_desc_t *desc,
                                 const struct moe_router_loss_bwd_args_t *args,
                                 void *workspace,
                                 uint64_t workspace_size,
                                 moe_stream_t stream);

/** Bytes of workspace that moe_router_loss_bwd needs. */
moe_status_t moe_router_loss_bwd_workspace_size(const moe_context_t *ctx,
                                                const struct moe_router_loss_desc_t *desc,
                                                uint64_t *bytes);

/** Sinkhorn normalisation, to convergence in one launch. */
moe_status_t moe_sinkhorn(const moe_context_t *ctx,
                          const struct moe_sinkhorn_desc_t *desc,
                          const struct moe_sinkhorn_args_t *args,
                          void *workspace,
                          uint64_t workspace_size,
                          moe_stream_t stream);

/** Bytes of workspace that moe_sinkhorn needs. */
moe_status_t moe_sinkhorn_workspace_size(const moe_context_t *ctx,
                                         const struct moe_sinkhorn_desc_t *desc,
                                         uint64_t *bytes);

/** One round of Sinkhorn, for reductions over ranks between the rounds. */
moe_status_t moe_sinkhorn_step(const moe_context_t *ctx,
                               const struct moe_sinkhorn_desc_t *desc,
                               const struct moe_sinkhorn_step_args_t *args,
                               void *workspace,
                               uint64_t workspace_size,
                               moe_stream_t stream);

/** Bytes of workspace that moe_sinkhorn_step needs. */
moe_status_t moe_sinkhorn_step_workspace_size(const moe_context_t *ctx,
                                              const struct moe_sinkhorn_desc_t *desc,
                                              uint64_t *bytes);

/** Expert choice. */
moe_status_t moe_expert_choice_fwd(const moe_context_t *ctx,
                                   const struct moe_expert_choice_desc_t *desc,
                                   const struct moe_expert_choice_fwd_args_t *args,
                                   void *workspace,
                                   uint64_t workspace_size,
                                   moe_stream_t stream);

/** Bytes of workspace that moe_expert_choice_fwd needs. */
moe_status_t moe_expert_choice_fwd_workspace_size(const moe_context_t *ctx,
                                                  const struct moe_expert_choice_desc_t *desc,
                                                  uint64_t *bytes);

/** The gradient of moe_expert_choice_fwd's weights. */
moe_status_t moe_expert_choice_bwd(const moe_context_t *ctx,
                                   const struct moe_expert_choice_desc_t *desc,
                                   const struct moe_expert_choice_bwd_args_t *args,
                                   void *workspace,
                                   uint64_t workspace_size,
                                   moe_stream_t stream);

/** Bytes of workspace that moe_expert_choice_bwd needs. */
moe_status_t moe_expert_choice_bwd_workspace_size(const moe_context_t *ctx,
                                                  const struct moe_expert_choice_desc_t *desc,
                                                  uint64_t *bytes);

/** Updates the selection bias from the load of the experts. */
moe_status_t moe_router_bias_update(const moe_context_t *ctx,
                                    const struct moe_router_bias_update_desc_t *desc,
                                    const struct moe_router_bias_update_args_t *args,
                                    void *workspace,
                                    uint64_t workspace_size,
                                    moe_stream_t stream);

/** Bytes of workspace that moe_router_bias_update needs. */
moe_status_t moe_router_bias_update_workspace_size(const moe_context_t *ctx,
                                                   const struct moe_router_bias_update_desc_t *desc,
                                                   uint64_t *bytes);

/** Drops the slots that exceed the experts' capacity. */
moe_status_t moe_capacity_fwd(const moe_context_t *ctx,
                              const struct moe_capacity_desc_t *desc,
                              const struct moe_capacity_fwd_args_t *args,
                              void *workspace,
                              uint64_t workspace_size,
                              moe_stream_t stream);

/** Bytes of workspace that moe_capacity_fwd needs. */
moe_status_t moe_capacity_fwd_workspace_size(const moe_context_t *ctx,
                                             const struct moe_capacity_desc_t *desc,
                                             uint64_t *bytes);

/** The gradient of moe_capacity_fwd's weights. */
moe_status_t moe_capacity_bwd(const moe_context_t *ctx,
                              const struct moe_capacity_desc_t *desc,
                              const struct moe_capacity_bwd_args_t *args,
                              void *workspace,
                              uint64_t workspace_size,
                              moe_stream_t stream);

/** Bytes of workspace that moe_capacity_bwd needs. */
moe_status_t moe_capacity_bwd_workspace_size(const moe_context_t *ctx,
                                             const struct moe_capacity_desc_t *desc,
                                             uint64_t *bytes);

/** The capacity that a description gives for num_tokens tokens. */
moe_status_t moe_capacity_value(const moe_context_t *ctx,
                                const struct moe_capacity_desc_t *desc,
                                int64_t *capacity);

#define MOE_ROUTER_LOGITS_DESC_INIT \
  { sizeof(moe_router_logits_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_ROUTER_LOGITS_FWD_ARGS_INIT \
  { sizeof(moe_router_logits_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, MOE_RANDOM_INIT, NULL }

#define MOE_ROUTER_LOGITS_BWD_ARGS_INIT \
  { sizeof(moe_router_logits_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_COUNT_INIT, MOE_RANDOM_INIT, NULL }

#define MOE_ROUTER_DESC_INIT \
  { sizeof(moe_router_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_ROUTER_FWD_ARGS_INIT \
  { sizeof(moe_router_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, MOE_RANDOM_INIT, NULL }

#define MOE_ROUTER_BWD_ARGS_INIT \
  { sizeof(moe_router_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, NULL }

#define MOE_ROUTER_LOSS_DESC_INIT \
  { sizeof(moe_router_loss_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_ROUTER_LOSS_FWD_ARGS_INIT \
  { sizeof(moe_router_loss_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, NULL }

#define MOE_ROUTER_LOSS_BWD_ARGS_INIT \
  { sizeof(moe_router_loss_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, NULL }

#define MOE_SINKHORN_DESC_INIT \
  { sizeof(moe_sinkhorn_desc_t), 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_SINKHORN_ARGS_INIT \
  { sizeof(moe_sinkhorn_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, NULL }

#define MOE_SINKHORN_STEP_ARGS_INIT \
  { sizeof(moe_sinkhorn_step_args_t), 0, MOE_TENSOR_INIT, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MOE_COUNT_INIT, NULL }

#define MOE_EXPERT_CHOICE_DESC_INIT \
  { sizeof(moe_expert_choice_desc_t), 0, 0, 0, 0, 0, 0 }

#define MOE_EXPERT_CHOICE_FWD_ARGS_INIT \
  { sizeof(moe_expert_choice_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

#define MOE_EXPERT_CHOICE_BWD_ARGS_INIT \
  { sizeof(moe_expert_choice_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_COUNT_INIT, NULL }

#define MOE_ROUTER_BIAS_UPDATE_DESC_INIT \
  { sizeof(moe_router_bias_update_desc_t), 0, 0, 0, 0, 0, 0 }

#define MOE_ROUTER_BIAS_UPDATE_ARGS_INIT \
  { sizeof(moe_router_bias_update_args_t), 0, NULL, NULL, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

#define MOE_CAPACITY_DESC_INIT \
  { sizeof(moe_capacity_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_CAPACITY_FWD_ARGS_INIT \
  { sizeof(moe_capacity_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, MOE_RANDOM_INIT, NULL }

#define MOE_CAPACITY_BWD_ARGS_INIT \
  { sizeof(moe_capacity_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_COUNT_INIT, NULL }

/* ---------------------------------------------------------------- dispatch */

/**
 * Rows come chunk by chunk; output chunk i is input chunk order[i] (rank-major <-> expert-major). Rows beyond the
 * chunks are not written. Sizes and entries that are out of range are clamped or skipped, and reported.
 */
#define MOE_SORT_FORWARD 0

/** The backward of MOE_SORT_FORWARD: input chunk i goes to the place of chunk order[i]. */
#define MOE_SORT_INVERSE 1

/**
 * ids or a mask -> group sizes, group offsets and the maps between slots and rows (CSR).
 *
 * A slot is one chosen expert of a token. From ids, slot t*K + k is token t's k-th; from a mask, slots are
 * counted in token order, then ascending expert, and slot_offsets says where each token's begin.
 * Rows are sorted by expert, then by token, then by slot; each group is padded to a multiple of `alignment`.
 * An id below 0 or >= num_experts, or of an expert that is not local, is skipped: its slot's row is -1.
 * S, the slots there is room for, is T*K. A mask's token with more than K experts keeps its first K; that is reported.
 * Slots and rows beyond the true counts are not written. Group starts are multiples of `alignment`; where rows_max is
 * too small, groups end at its last such multiple and the slots behind are dropped and reported.
 * ids: INT32 or INT64; maps: INT32 or INT64, all of one dtype.
 */
typedef struct moe_dispatch_desc_t {
  uint32_t struct_size;
  /** MOE_ON: ids other than -1 that are outside 0 .. num_experts-1 are reported (they are skipped all the same). */
  int32_t strict_ids;
  /** Upper bound of the tokens, T. */
  int64_t num_tokens;
  /** E, all experts; at least 1. */
  int64_t num_experts;
  /** K, slots a token; with a mask, the most slots a token can have (0: E). */
  int64_t top_k;
  /** First local expert. */
  int64_t expert_begin;
  /** E_local; 0: from expert_begin to the last (with expert_map: E). */
  int64_t num_local_experts;
  /** Group sizes are rounded up to a multiple of this power of two, 1 to 256; 0 means 1. */
  int64_t alignment;
  /**
   * Every group gets exactly so many rows (pad to capacity), rounded up to `alignment`; 0: as many as it has.
   * A group's slots beyond these are dropped, the last ones first; that is no fault.
   */
  int64_t rows_per_group;
  /** R, rows that the caller has allocated; 0: moe_dispatch_rows_max. */
  int64_t rows_max;
} moe_dispatch_desc_t;

typedef struct moe_dispatch_plan_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, K]; or one of the masks. */
  moe_tensor_t ids;
  /** UINT8 [T, E]. */
  moe_tensor_t byte_mask;
  /** UINT32 [T, ceil(E/32)]. */
  moe_tensor_t bit_mask;
  /** int32[E], local index of each expert or -1; optional. Replaces expert_begin, which is 0 then. */
  const int32_t *expert_map;
  /** Out: int64[E_local + 1], where each group starts; the last is the number of rows. */
  int64_t *group_offsets;
  /** Out: int64[E_local], rows of each group without padding and without what was dropped; optional. */
  int64_t *group_sizes;
  /** Out: [T + 1], where each token's slots begin and the last ones end; optional with ids, where it is t*K. */
  moe_tensor_t slot_offsets;
  /** Out: [S]: the row of each slot, -1 where it is not here or was dropped. */
  moe_tensor_t row_of_slot;
  /** Out: [R]: the slot of each row, -1 for padding; optional. Written up to the last group's end. */
  moe_tensor_t slot_of_row;
  /** Out: [R]: the token of each row, -1 for padding; optional. */
  moe_tensor_t token_of_row;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_dispatch_plan_args_t;

/**
 * Sizes of permute, unpermute. Rows: [R, d]; tokens: [T, d].
 * Maps: INT32 or INT64, each its own; weights and their gradients: FP32, FP16 or BF16 (FP64 on the CPU), whatever
 * `dtype` is; slots: at most S = T*K.
 *
 * Maps are never trusted: a token, slot or row that is out of range is skipped and reported, its row is zero and
 * its weight's gradient 0; a token has at most K slots. Rows from group_offsets[num_groups] on, tokens from
 * num_tokens on and their slots are neither read nor written.
 */
typedef struct moe_permute_desc_t {
  uint32_t struct_size;
  /** FP32, FP16, BF16 (FP64 on the CPU); any dtype in moe_dispatch_fwd, which copies. */
  moe_dtype_t dtype;
  /** Upper bound of the tokens, T. */
  int64_t num_tokens;
  /** d. */
  int64_t hidden_size;
  /** Most slots a token has, K. */
  int64_t top_k;
  /** Upper bound of the rows, R. */
  int64_t rows_max;
  /** Experts of dense weights [T, E]; read when they are given. */
  int64_t num_experts;
  /** Groups of group_offsets. */
  int64_t num_groups;
  /** The expert of group 0, for dense weights. */
  int64_t expert_begin;
} moe_permute_desc_t;

/**
 * rows[r] = x[token_of_row[r]]; padding rows become zero. Rows from group_offsets[num_groups] on are not written.
 * FP8 rows take their scales with them where these are one a row or one for every 128 columns of it.
 */
typedef struct moe_dispatch_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t x;
  /** Out: [R, d]. */
  moe_tensor_t rows;
  /** [R]. */
  moe_tensor_t token_of_row;
  /** int64[num_groups + 1]. */
  const int64_t *group_offsets;
  /** [R]; needed for weights a slot. */
  moe_tensor_t slot_of_row;
  /** [S]; optional: with it a GPU reads each token once, not once for every row. */
  moe_tensor_t row_of_slot;
  /** [T + 1], beside row_of_slot; absent: token t has slots t*K .. t*K + K-1. */
  moe_tensor_t slot_offsets;
  /** In: a weight a slot, [S] (of ids: [T, K]); optional. */
  moe_tensor_t weights;
  /** In: [T, E]; optional, instead of weights. */
  moe_tensor_t weights_dense;
  /** Out: the weight of each row, [R], 0 for padding; needed with weights; without them each weight is 1. */
  moe_tensor_t row_weights;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_dispatch_fwd_args_t;

/** dx[t] = sum of drows over the token's rows, in slot order. */
typedef struct moe_dispatch_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, d]. */
  moe_tensor_t drows;
  /** [S]. */
  moe_tensor_t row_of_slot;
  /** [T + 1]; absent: token t has slots t*K .. t*K + K-1. */
  moe_tensor_t slot_offsets;
  /** Out: [T, d]; optional. */
  moe_tensor_t dx;
  moe_output_mode_t dx_mode;
  /** In: the gradient of row_weights, [R]; optional. */
  moe_tensor_t drow_weights;
  /** Out: [S], 0 where the slot is not here; optional, with drow_weights. */
  moe_tensor_t dweights;
  /** Out: [T, E], 0 where not chosen; optional, with drow_weights and group_offsets. */
  moe_tensor_t dweights_dense;
  /** int64[num_groups + 1]; needed for dweights_dense. */
  const int64_t *group_offsets;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_dispatch_bwd_args_t;

/** y[t] = sum over the token's slots, in order, of weight * rows[row_of_slot]; plain sum without weights. */
typedef struct moe_combine_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, d]. */
  moe_tensor_t rows;
  /** [S]. */
  moe_tensor_t row_of_slot;
  /** Out: [T, d]. */
  moe_tensor_t y;
  moe_output_mode_t y_mode;
  /** [T + 1]; absent: token t has slots t*K .. t*K + K-1. */
  moe_tensor_t slot_offsets;
  /** A weight a slot, [S]; optional. */
  moe_tensor_t weights;
  /** A weight a row, [R]; optional, instead of weights. */
  moe_tensor_t row_weights;
  /** [T, E]; optional, instead of weights. Needs group_offsets. */
  moe_tensor_t weights_dense;
  /** int64[num_groups + 1]; needed for weights_dense. */
  const int64_t *group_offsets;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_combine_fwd_args_t;

/** drows[r] = weight * dy[token], padding rows zero; dweight = <dy[token], rows[r]>. */
typedef struct moe_combine_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t dy;
  /** [R]. */
  moe_tensor_t token_of_row;
  /** [R]; needed for weights a slot. */
  moe_tensor_t slot_of_row;
  /** int64[num_groups + 1]. */
  const int64_t *group_offsets;
  /** [R, d], the forward's; needed for the weights' gradient. */
  moe_tensor_t rows;
  /** [S]; needed for dweights. */
  moe_tensor_t row_of_slot;
  /** [T + 1]; absent: token t has slots t*K .. t*K + K-1. */
  moe_tensor_t slot_offsets;
  /** The forward's: one of the three, or none. */
  moe_tensor_t weights;
  moe_tensor_t row_weights;
  moe_tensor_t weights_dense;
  /** Out: [R, d]; optional. */
  moe_tensor_t drows;
  /** Out: [S], 0 where the slot is not here; optional. */
  moe_tensor_t dweights;
  /** Out: [R]; optional. */
  moe_tensor_t drow_weights;
  /** Out: [T, E], 0 where not chosen; optional. */
  moe_tensor_t dweights_dense;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_combine_bwd_args_t;

typedef struct moe_sort_chunks_desc_t {
  uint32_t struct_size;
  /** Any dtype: rows are copied. */
  moe_dtype_t dtype;
  /** Upper bound of the rows, R. */
  int64_t rows_max;
  int64_t hidden_size;
  int64_t num_chunks;
  /** MOE_SORT_*. */
  int32_t direction;
  int32_t reserved;
} moe_sort_chunks_desc_t;

typedef struct moe_sort_chunks_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, d]. */
  moe_tensor_t x;
  /** Out: [R, d]. */
  moe_tensor_t y;
  /** int64[num_chunks], rows of each chunk in the unsorted order (that of MOE_SORT_FORWARD's input). */
  const int64_t *chunk_sizes;
  /** int32[num_chunks], a permutation. */
  const int32_t *order;
  /** [R], moved along; optional. */
  moe_tensor_t row_weights;
  /** Out: [R]; with row_weights. */
  moe_tensor_t sorted_row_weights;
  moe_device_report_t *report;
} moe_sort_chunks_args_t;

/** Ids or a mask to group sizes, group offsets and maps. */
moe_status_t moe_dispatch_plan(const moe_context_t *ctx,
                               const struct moe_dispatch_desc_t *desc,
                               const struct moe_dispatch_plan_args_t *args,
                               void *workspace,
                               uint64_t workspace_size,
                               moe_stream_t stream);

/** Bytes of workspace that moe_dispatch_plan needs. */
moe_status_t moe_dispatch_plan_workspace_size(const moe_context_t *ctx,
                                              const struct moe_dispatch_desc_t *desc,
                                              uint64_t *bytes);

/** Permute: tokens to rows. */
moe_status_t moe_dispatch_fwd(const moe_context_t *ctx,
                              const struct moe_permute_desc_t *desc,
                              const struct moe_dispatch_fwd_args_t *args,
                              void *workspace,
                              uint64_t workspace_size,
                              moe_stream_t stream);

/** Bytes of workspace that moe_dispatch_fwd needs. */
moe_status_t moe_dispatch_fwd_workspace_size(const moe_context_t *ctx,
                                             const struct moe_permute_desc_t *desc,
                                             uint64_t *bytes);

/** The gradient of moe_dispatch_fwd. */
moe_status_t moe_dispatch_bwd(const moe_context_t *ctx,
                              const struct moe_permute_desc_t *desc,
                              const struct moe_dispatch_bwd_args_t *args,
                              void *workspace,
                              uint64_t workspace_size,
                              moe_stream_t stream);

/** Bytes of workspace that moe_dispatch_bwd needs. */
moe_status_t moe_dispatch_bwd_workspace_size(const moe_context_t *ctx,
                                             const struct moe_permute_desc_t *desc,
                                             uint64_t *bytes);

/** Unpermute: the weighted or plain sum of a token's rows. */
moe_status_t moe_combine_fwd(const moe_context_t *ctx,
                             const struct moe_permute_desc_t *desc,
                             const struct moe_combine_fwd_args_t *args,
                             void *workspace,
                             uint64_t workspace_size,
                             moe_stream_t stream);

/** Bytes of workspace that moe_combine_fwd needs. */
moe_status_t moe_combine_fwd_workspace_size(const moe_context_t *ctx,
                                            const struct moe_permute_desc_t *desc,
                                            uint64_t *bytes);

/** The gradient of moe_combine_fwd. */
moe_status_t moe_combine_bwd(const moe_context_t *ctx,
                             const struct moe_permute_desc_t *desc,
                             const struct moe_combine_bwd_args_t *args,
                             void *workspace,
                             uint64_t workspace_size,
                             moe_stream_t stream);

/** Bytes of workspace that moe_combine_bwd needs. */
moe_status_t moe_combine_bwd_workspace_size(const moe_context_t *ctx,
                                            const struct moe_permute_desc_t *desc,
                                            uint64_t *bytes);

/** Reorders chunks of rows whose sizes are on the device. */
moe_status_t moe_sort_chunks(const moe_context_t *ctx,
                             const struct moe_sort_chunks_desc_t *desc,
                             const struct moe_sort_chunks_args_t *args,
                             void *workspace,
                             uint64_t workspace_size,
                             moe_stream_t stream);

/** Bytes of workspace that moe_sort_chunks needs. */
moe_status_t moe_sort_chunks_workspace_size(const moe_context_t *ctx,
                                            const struct moe_sort_chunks_desc_t *desc,
                                            uint64_t *bytes);

/** Rows to allocate for a plan: an upper bound of group_offsets' last entry. */
moe_status_t moe_dispatch_rows_max(const moe_context_t *ctx,
                                   const struct moe_dispatch_desc_t *desc,
                                   int64_t *rows);

#define MOE_DISPATCH_DESC_INIT \
  { sizeof(moe_dispatch_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_DISPATCH_PLAN_ARGS_INIT \
  { sizeof(moe_dispatch_plan_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

#define MOE_PERMUTE_DESC_INIT \
  { sizeof(moe_permute_desc_t), 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_DISPATCH_FWD_ARGS_INIT \
  { sizeof(moe_dispatch_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

#define MOE_DISPATCH_BWD_ARGS_INIT \
  { sizeof(moe_dispatch_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

#define MOE_COMBINE_FWD_ARGS_INIT \
  { sizeof(moe_combine_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

#define MOE_COMBINE_BWD_ARGS_INIT \
  { sizeof(moe_combine_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

#define MOE_SORT_CHUNKS_DESC_INIT \
  { sizeof(moe_sort_chunks_desc_t), 0, 0, 0, 0, 0, 0 }

#define MOE_SORT_CHUNKS_ARGS_INIT \
  { sizeof(moe_sort_chunks_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL }

/* ---------------------------------------------------------------- grouped_gemm */

/**
 * C_g[M_g, N] = alpha * A_g[M_g, K] * op(B_g) (+ bias_g[N]) (+ beta * C_g), rows of A sorted by group.
 * A, B: FP32, FP16 or BF16, both the same (FP64 on the CPU); bias, C, dA, dB, dbias: that or FP32, each its own.
 */
typedef struct moe_grouped_gemm_desc_t {
  uint32_t struct_size;
  /** Dtype of A and B. */
  moe_dtype_t dtype;
  /** Upper bound of the rows of A, all groups together. */
  int64_t rows_max;
  /** N. */
  int64_t n;
  /** K. */
  int64_t k;
  /** E. */
  int64_t num_groups;
  /** MOE_WEIGHT_OUT_IN (B is [E, N, K]) or MOE_WEIGHT_IN_OUT ([E, K, N]). */
  int32_t b_layout;
  /** MOE_MATH_DEFAULT or MOE_MATH_TF32. */
  int32_t math;
  /** 0 means 1. */
  double alpha;
  /** Multiplies what an output holds when its mode is ADD; 0 means 1. */
  double beta;
} moe_grouped_gemm_desc_t;

typedef struct moe_grouped_gemm_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, K]; or, with row_index, [any, K]. */
  moe_tensor_t a;
  /** [E, N, K] or [E, K, N]; stacked or by pointers. Rows of a NULL expert are not written. */
  moe_tensor_t b;
  /** Out: [R, N]. */
  moe_tensor_t c;
  moe_output_mode_t c_mode;
  /** int64[E + 1], where each group starts; this or group_sizes. */
  const int64_t *group_offsets;
  /**
   * int64[E]: without group_offsets, groups lie one behind the other; with them, the true rows of
   * padded groups: rows beyond them are neither read nor written.
   */
  const int64_t *group_sizes;
  /** [E, N]; optional. */
  moe_tensor_t bias;
  /**
   * INT32 or INT64 [R]: row r of A is a[row_index[r]]; a negative one is a row of zeros, and so is one that
   * is out of range, which is reported; optional.
   */
  moe_tensor_t row_index;
  /** Rows of `a` where row_index is given. */
  int64_t a_rows;
  moe_device_report_t *report;
} moe_grouped_gemm_fwd_args_t;

/**
 * dA = alpha * dC * op(B)^T; dB = alpha * A^T * dC in B's layout; dbias = sum of dC's rows. Each output is optional.
 * dB and dbias of an empty group are written as zeros (or kept, with ADD).
 */
typedef struct moe_grouped_gemm_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, N]. */
  moe_tensor_t dc;
  /** [R, K], or [any, K] with row_index; needed for dB. */
  moe_tensor_t a;
  /** Needed for dA. */
  moe_tensor_t b;
  /** Out: [R, K]; optional. */
  moe_tensor_t da;
  /** Out: B's layout; optional; stacked or by pointers (NULL: skipped). */
  moe_tensor_t db;
  /** Out: [E, N]; optional. */
  moe_tensor_t dbias;
  moe_output_mode_t da_mode;
  moe_output_mode_t db_mode;
  moe_output_mode_t dbias_mode;
  const int64_t *group_offsets;
  const int64_t *group_sizes;
  /** The forward's; dA has one row for each r, ungathered. */
  moe_tensor_t row_index;
  int64_t a_rows;
  moe_device_report_t *report;
} moe_grouped_gemm_bwd_args_t;

/** C_g = alpha * A_g * op(B_g) (+ bias_g) (+ beta * C_g). */
moe_status_t moe_grouped_gemm_fwd(const moe_context_t *ctx,
                                  const struct moe_grouped_gemm_desc_t *desc,
                                  const struct moe_grouped_gemm_fwd_args_t *args,
                                  void *workspace,
                                  uint64_t workspace_size,
                                  moe_stream_t stream);

/** Bytes of workspace that moe_grouped_gemm_fwd needs where b is given by pointers; stacked weights need none. */
moe_status_t moe_grouped_gemm_fwd_workspace_size(const moe_context_t *ctx,
                                                 const struct moe_grouped_gemm_desc_t *desc,
                                                 uint64_t *bytes);

/** dgrad and wgrad. */
moe_status_t moe_grouped_gemm_bwd(const moe_context_t *ctx,
                                  const struct moe_grouped_gemm_desc_t *desc,
                                  const struct moe_grouped_gemm_bwd_args_t *args,
                                  void *workspace,
                                  uint64_t workspace_size,
                                  moe_stream_t stream);

/** Bytes of workspace that moe_grouped_gemm_bwd needs where b is given by pointers; stacked weights need none. */
moe_status_t moe_grouped_gemm_bwd_workspace_size(const moe_context_t *ctx,
                                                 const struct moe_grouped_gemm_desc_t *desc,
                                                 uint64_t *bytes);

#define MOE_GROUPED_GEMM_DESC_INIT \
  { sizeof(moe_grouped_gemm_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_GROUPED_GEMM_FWD_ARGS_INIT \
  { sizeof(moe_grouped_gemm_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, 0, NULL }

#define MOE_GROUPED_GEMM_BWD_ARGS_INIT \
  { sizeof(moe_grouped_gemm_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, NULL, NULL, MOE_TENSOR_INIT, 0, NULL }

/* ---------------------------------------------------------------- activation */

/** silu(gate) * up. */
#define MOE_ACTIVATION_SWIGLU 0

/** gelu(gate) * up, exact (erf). */
#define MOE_ACTIVATION_GEGLU_ERF 1

/** gelu(gate) * up, tanh approximation. */
#define MOE_ACTIVATION_GEGLU_TANH 2

/** gate * sigmoid(1.702 gate) * up. */
#define MOE_ACTIVATION_QUICK_GEGLU 3

/** relu(gate) * up. */
#define MOE_ACTIVATION_REGLU 4

/** gate = min(gate, limit), up = clamp(up, -limit, limit), (up + 1) * gate * sigmoid(alpha gate) (GPT-OSS). */
#define MOE_ACTIVATION_CLAMPED_SWIGLU 5

/** Without a gate. */
#define MOE_ACTIVATION_SILU 6

#define MOE_ACTIVATION_GELU_ERF 7

#define MOE_ACTIVATION_GELU_TANH 8

#define MOE_ACTIVATION_RELU 9

/** relu(h)^2. */
#define MOE_ACTIVATION_RELU2 10

/** h = [gate | up]. */
#define MOE_GATE_FIRST 0

/** h = [up | gate]. */
#define MOE_UP_FIRST 1

/** h = gate, up, gate, up ... in blocks of gate_block columns (1: GPT-OSS). */
#define MOE_GATE_INTERLEAVED 2

/**
 * y = act(h) (* row weight). h: [R, 2f] gated, [R, f] not; y: [R, f].
 * h, y: FP32, FP16 or BF16 (FP64 on the CPU); row weights: any of them.
 */
typedef struct moe_activation_desc_t {
  uint32_t struct_size;
  moe_dtype_t dtype;
  /** Upper bound of the rows. */
  int64_t rows_max;
  /** f. */
  int64_t ffn_size;
  /** MOE_ACTIVATION_*. */
  int32_t activation;
  /** MOE_GATE_*, MOE_UP_FIRST. */
  int32_t gate_order;
  /** For MOE_GATE_INTERLEAVED; 0 means 1. Divides f. */
  int64_t gate_block;
  /** For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 7. */
  double clamp_limit;
  /** For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 1.702. */
  double clamp_alpha;
} moe_activation_desc_t;

typedef struct moe_activation_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, 2f] or [R, f]. */
  moe_tensor_t h;
  /** Out: [R, f]. */
  moe_tensor_t y;
  /** [R]; optional. */
  moe_tensor_t row_weights;
  /** True R; optional. */
  moe_count_t num_rows;
  moe_device_report_t *report;
} moe_activation_fwd_args_t;

typedef struct moe_activation_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, 2f] or [R, f], the forward's. */
  moe_tensor_t h;
  /** [R, f]. */
  moe_tensor_t dy;
  /** Out: like h; may be h itself. */
  moe_tensor_t dh;
  /** [R]; optional. */
  moe_tensor_t row_weights;
  /** Out: [R], <dy, act(h)>; optional, with row_weights. */
  moe_tensor_t drow_weights;
  /** Out: weight * act(h), [R, f]: the forward's y again; optional. */
  moe_tensor_t weighted_act;
  moe_count_t num_rows;
  moe_device_report_t *report;
} moe_activation_bwd_args_t;

/** y = act(h), times a weight a row if given. */
moe_status_t moe_activation_fwd(const moe_context_t *ctx,
                                const struct moe_activation_desc_t *desc,
                                const struct moe_activation_fwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/** Bytes of workspace that moe_activation_fwd needs. */
moe_status_t moe_activation_fwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_activation_desc_t *desc,
                                               uint64_t *bytes);

/** The gradient of moe_activation_fwd. */
moe_status_t moe_activation_bwd(const moe_context_t *ctx,
                                const struct moe_activation_desc_t *desc,
                                const struct moe_activation_bwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/** Bytes of workspace that moe_activation_bwd needs. */
moe_status_t moe_activation_bwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_activation_desc_t *desc,
                                               uint64_t *bytes);

#define MOE_ACTIVATION_DESC_INIT \
  { sizeof(moe_activation_desc_t), 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_ACTIVATION_FWD_ARGS_INIT \
  { sizeof(moe_activation_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

#define MOE_ACTIVATION_BWD_ARGS_INIT \
  { sizeof(moe_activation_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

/* ---------------------------------------------------------------- expert_mlp */

/** Tokens: gathered inside (input), combined inside (output). */
#define MOE_LAYOUT_TOKENS 0

/** Rows that are already permuted: no gather, no combine. */
#define MOE_LAYOUT_ROWS 1

/** Router weights multiply the expert's output. */
#define MOE_WEIGHTS_AT_COMBINE 0

/** Router weights multiply the activation (and fc2's bias): Megatron's memory-efficient order. */
#define MOE_WEIGHTS_AT_ACTIVATION 1

/** Router weights multiply the expert's input (Llama-4). */
#define MOE_WEIGHTS_AT_INPUT 2

/**
 * y = sum_k w_tk * (W2_e act(W1_e x_t + b1_e) + b2_e).
 * x, W1, W2, h, dh, weighted_act, dy: one of FP32, FP16, BF16 (FP64 on the CPU); y, dx: that or FP32; router
 * weights and their gradients: any of them; biases: that of x or FP32; dW, db: that of x or FP32.
 */
typedef struct moe_expert_mlp_desc_t {
  uint32_t struct_size;
  /** Dtype of x, W1, W2, h. */
  moe_dtype_t dtype;
  /** Upper bound of the tokens, T; read where a layout is MOE_LAYOUT_TOKENS or weights are a slot's. */
  int64_t num_tokens;
  /** Upper bound of the rows, R. */
  int64_t rows_max;
  /** Most slots a token has, K. */
  int64_t top_k;
  /** E: the experts of W1 and W2, that is the local ones. */
  int64_t num_experts;
  /** d. */
  int64_t hidden_size;
  /** f. */
  int64_t ffn_size;
  /** MOE_LAYOUT_*. */
  int32_t input_layout;
  /** MOE_LAYOUT_*. */
  int32_t output_layout;
  /** MOE_WEIGHTS_AT_*. */
  int32_t weights_at;
  /** MOE_MATH_DEFAULT or MOE_MATH_TF32. */
  int32_t math;
  /** MOE_WEIGHT_OUT_IN (W1 is [E, 2f, d]) or MOE_WEIGHT_IN_OUT ([E, d, 2f]). */
  int32_t w1_layout;
  /** MOE_WEIGHT_OUT_IN (W2 is [E, d, f]) or MOE_WEIGHT_IN_OUT ([E, f, d]). */
  int32_t w2_layout;
  /** MOE_ACTIVATION_*. */
  int32_t activation;
  /** MOE_GATE_*, MOE_UP_FIRST: the order of W1's 2f outputs and of h. */
  int32_t gate_order;
  /** For MOE_GATE_INTERLEAVED; 0 means 1. */
  int64_t gate_block;
  /** For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 7. */
  double clamp_limit;
  /** For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 1.702. */
  double clamp_alpha;
  /** MOE_ON: a token's result has the same bits whatever the batch (the CPU backend answers UNSUPPORTED). */
  int32_t batch_invariant;
  int32_t reserved;
} moe_expert_mlp_desc_t;

/**
 * The maps of moe_dispatch_plan. Needed: group_offsets always; token_of_row with input TOKENS; row_of_slot
 * with output TOKENS; slot_of_row where weights a slot go to rows (all but the combine of output TOKENS).
 * An expert is absent where W1 or W2 has a NULL entry: it contributes nothing and its rows are not read. Rows of y
 * that belong to absent experts, or to padding that group_sizes tells of, are written as zeros.
 */
typedef struct moe_expert_mlp_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d] or [R, d]. */
  moe_tensor_t x;
  /** [E, 2f, d] or [E, d, 2f]; without a gate f for 2f; with w1_up: the gate alone. */
  moe_tensor_t w1;
  /** [E, d, f] or [E, f, d]. */
  moe_tensor_t w2;
  /** Out: [T, d] or [R, d]. */
  moe_tensor_t y;
  moe_output_mode_t y_mode;
  /** int64[E + 1]. */
  const int64_t *group_offsets;
  /** int64[E], true rows of padded groups; optional. */
  const int64_t *group_sizes;
  moe_tensor_t token_of_row;
  moe_tensor_t slot_of_row;
  moe_tensor_t row_of_slot;
  /** [T + 1]; absent: token t has slots t*K .. t*K + K-1. */
  moe_tensor_t slot_offsets;
  /** A weight a slot, [S]; optional. */
  moe_tensor_t weights;
  /** A weight a row, [R]; optional, instead of weights. */
  moe_tensor_t row_weights;
  /** The up half of W1 as a tensor of its own, [E, f, d] or [E, d, f]; optional, not with MOE_GATE_INTERLEAVED. */
  moe_tensor_t w1_up;
  /** [E, 2f], in the order of h; optional. */
  moe_tensor_t b1;
  /** [E, d]; optional. */
  moe_tensor_t b2;
  /** Out: fc1's output, [R, 2f]: what backward needs; absent: inference. */
  moe_tensor_t h;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_expert_mlp_fwd_args_t;

/**
 * Each output but dh is optional. Without dw1, dw2, db1, db2 and with weighted_act: delayed wgrad.
 * Needed: group_offsets always; token_of_row with input or output TOKENS; row_of_slot for dweights, and for dx with
 * input TOKENS; slot_of_row with weights; x for dW1, without h, and for gradients of weights at the input.
 * Rows of dx, dh and weighted_act of absent experts and of known padding are written as zeros.
 */
typedef struct moe_expert_mlp_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d] or [R, d], like y. */
  moe_tensor_t dy;
  /** The forward's. */
  moe_tensor_t x;
  moe_tensor_t w1;
  moe_tensor_t w2;
  /** The forward's; absent: fc1 is computed again (lower memory). */
  moe_tensor_t h;
  const int64_t *group_offsets;
  const int64_t *group_sizes;
  moe_tensor_t token_of_row;
  moe_tensor_t slot_of_row;
  moe_tensor_t row_of_slot;
  moe_tensor_t slot_offsets;
  moe_tensor_t weights;
  moe_tensor_t row_weights;
  moe_tensor_t w1_up;
  moe_tensor_t b1;
  moe_tensor_t b2;
  /** Out: [T, d] or [R, d], like x. */
  moe_tensor_t dx;
  /** Out: W1's layout; by pointers a NULL entry is a frozen expert. */
  moe_tensor_t dw1;
  moe_tensor_t dw1_up;
  moe_tensor_t dw2;
  /** Out: [E, 2f]. */
  moe_tensor_t db1;
  /** Out: [E, d]. */
  moe_tensor_t db2;
  /** Out: [S], 0 where the slot is not here. */
  moe_tensor_t dweights;
  /** Out: [R]. */
  moe_tensor_t drow_weights;
  /** Out: the gradient of h, [R, 2f]; required; may be h itself. */
  moe_tensor_t dh;
  /** Out: fc2's input as dW2 needs it, [R, f]; absent: it goes to the workspace. */
  moe_tensor_t weighted_act;
  moe_output_mode_t dx_mode;
  /** Of dw1, dw1_up, dw2. */
  moe_output_mode_t dw_mode;
  /** Of db1, db2. */
  moe_output_mode_t db_mode;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_expert_mlp_bwd_args_t;

/**
 * dW1 and db1 from x and dh; dW2 and db2 from weighted_act and dy. Each output is optional: fc1 and fc2 apart.
 * Without W1 and W2 absent experts are not known here: where their rows must not be read, give them group_sizes of 0.
 */
typedef struct moe_expert_mlp_wgrad_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** As given to moe_expert_mlp_bwd; needed for dw2, db2. */
  moe_tensor_t dy;
  /** Needed for dw1. */
  moe_tensor_t x;
  /** moe_expert_mlp_bwd's; needed for dw1, db1. */
  moe_tensor_t dh;
  /** moe_expert_mlp_bwd's; needed for dw2. */
  moe_tensor_t weighted_act;
  const int64_t *group_offsets;
  const int64_t *group_sizes;
  moe_tensor_t token_of_row;
  moe_tensor_t slot_of_row;
  moe_tensor_t row_of_slot;
  moe_tensor_t slot_offsets;
  moe_tensor_t weights;
  moe_tensor_t row_weights;
  /** Out: W1's layout; with dw1_up: the gate's alone. */
  moe_tensor_t dw1;
  moe_tensor_t dw1_up;
  moe_tensor_t dw2;
  moe_tensor_t db1;
  moe_tensor_t db2;
  moe_output_mode_t dw_mode;
  moe_output_mode_t db_mode;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_expert_mlp_wgrad_args_t;

/** Gather, fc1, activation, fc2, combine. */
moe_status_t moe_expert_mlp_fwd(const moe_context_t *ctx,
                                const struct moe_expert_mlp_desc_t *desc,
                                const struct moe_expert_mlp_fwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/** Bytes of workspace that moe_expert_mlp_fwd needs. */
moe_status_t moe_expert_mlp_fwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_expert_mlp_desc_t *desc,
                                               uint64_t *bytes);

/** The gradients of moe_expert_mlp_fwd. */
moe_status_t moe_expert_mlp_bwd(const moe_context_t *ctx,
                                const struct moe_expert_mlp_desc_t *desc,
                                const struct moe_expert_mlp_bwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/** Bytes of workspace that moe_expert_mlp_bwd needs. */
moe_status_t moe_expert_mlp_bwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_expert_mlp_desc_t *desc,
                                               uint64_t *bytes);

/** Delayed weight gradients, from what moe_expert_mlp_bwd left in dh and weighted_act. */
moe_status_t moe_expert_mlp_wgrad(const moe_context_t *ctx,
                                  const struct moe_expert_mlp_desc_t *desc,
                                  const struct moe_expert_mlp_wgrad_args_t *args,
                                  void *workspace,
                                  uint64_t workspace_size,
                                  moe_stream_t stream);

/** Bytes of workspace that moe_expert_mlp_wgrad needs. */
moe_status_t moe_expert_mlp_wgrad_workspace_size(const moe_context_t *ctx,
                                                 const struct moe_expert_mlp_desc_t *desc,
                                                 uint64_t *bytes);

#define MOE_EXPERT_MLP_DESC_INIT \
  { sizeof(moe_expert_mlp_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_EXPERT_MLP_FWD_ARGS_INIT \
  { sizeof(moe_expert_mlp_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_COUNT_INIT, NULL }

#define MOE_EXPERT_MLP_BWD_ARGS_INIT \
  { sizeof(moe_expert_mlp_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_COUNT_INIT, NULL }

#define MOE_EXPERT_MLP_WGRAD_ARGS_INIT \
  { sizeof(moe_expert_mlp_wgrad_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_OUTPUT_MODE_INIT, MOE_COUNT_INIT, NULL }

/* ---------------------------------------------------------------- quantize */

/** Scales are amax / (largest finite value). */
#define MOE_SCALE_ROUNDING_EXACT 0

/** Scales are rounded up to a power of two. */
#define MOE_SCALE_ROUNDING_POWER_OF_TWO 1

/**
 * x[R, C] <-> q[R, C] with scales (the tensor's scale_kind), and q's transpose with scales of its own.
 * x: FP32, FP16 or BF16; q: FP8_E4M3 or FP8_E5M2.
 */
typedef struct moe_quantize_desc_t {
  uint32_t struct_size;
  /** Dtype of x. */
  moe_dtype_t dtype;
  /** Upper bound of the rows, R. */
  int64_t rows_max;
  /** C. */
  int64_t columns;
  /** Groups whose scales are separate; 0 means 1. */
  int64_t num_groups;
  /** MOE_SCALE_ROUNDING_*. */
  int32_t scale_rounding;
  int32_t reserved;
} moe_quantize_desc_t;

typedef struct moe_quantize_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, C]. */
  moe_tensor_t x;
  /** Out: [R, C] and its scales; optional. */
  moe_tensor_t q;
  /** Out: [C, R] and its scales; optional. */
  moe_tensor_t q_transposed;
  /** int64[num_groups + 1]; optional. */
  const int64_t *group_offsets;
  moe_count_t num_rows;
  moe_device_report_t *report;
} moe_quantize_args_t;

typedef struct moe_dequantize_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, C] and its scales. */
  moe_tensor_t q;
  /** Out: [R, C]. */
  moe_tensor_t x;
  /** int64[num_groups + 1]; optional. */
  const int64_t *group_offsets;
  moe_count_t num_rows;
  moe_device_report_t *report;
} moe_dequantize_args_t;

/**
 * FP32, FP16 or BF16 to FP8 with scales.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_quantize(const moe_context_t *ctx,
                          const struct moe_quantize_desc_t *desc,
                          const struct moe_quantize_args_t *args,
                          void *workspace,
                          uint64_t workspace_size,
                          moe_stream_t stream);

/** Bytes of workspace that moe_quantize needs. */
moe_status_t moe_quantize_workspace_size(const moe_context_t *ctx,
                                         const struct moe_quantize_desc_t *desc,
                                         uint64_t *bytes);

/**
 * FP8 with scales to FP32, FP16 or BF16.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_dequantize(const moe_context_t *ctx,
                            const struct moe_quantize_desc_t *desc,
                            const struct moe_dequantize_args_t *args,
                            void *workspace,
                            uint64_t workspace_size,
                            moe_stream_t stream);

/** Bytes of workspace that moe_dequantize needs. */
moe_status_t moe_dequantize_workspace_size(const moe_context_t *ctx,
                                           const struct moe_quantize_desc_t *desc,
                                           uint64_t *bytes);

#define MOE_QUANTIZE_DESC_INIT \
  { sizeof(moe_quantize_desc_t), 0, 0, 0, 0, 0, 0 }

#define MOE_QUANTIZE_ARGS_INIT \
  { sizeof(moe_quantize_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

#define MOE_DEQUANTIZE_ARGS_INIT \
  { sizeof(moe_dequantize_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, MOE_COUNT_INIT, NULL }

/* ---------------------------------------------------------------- parallel */

/** Sizes stay on the device; buffers are bounded by max_tokens_per_rank. */
#define MOE_EP_SIZES_ON_DEVICE 0

/** Exact sizes: the host synchronises once. */
#define MOE_EP_SIZES_EXACT 1

/** Every rank gets the sum. */
#define MOE_TP_ALL_REDUCE 0

/** Every rank gets its share of the tokens (sequence parallelism). */
#define MOE_TP_REDUCE_SCATTER 1

/** A group of ranks that exchange rows. Made by moe_comm_from_nccl or moe_comm_from_callbacks. */
typedef struct moe_comm_t moe_comm_t;

/**
 * A transport of the caller's own. Each function enqueues on the stream (or is done on return) and gives 0, or
 * another number for failure. bytes are those a rank sends to each rank.
 */
typedef struct moe_comm_callbacks_t {
  uint32_t struct_size;
  int32_t rank;
  int32_t num_ranks;
  int32_t reserved;
  /** Passed to each function. */
  void *user;
  /** Rank r's block i of `send` becomes rank i's block r of `recv`; all blocks have `bytes` bytes. */
  int32_t (*all_to_all)(void *user, const void *send, void *recv, int64_t bytes, moe_stream_t stream);
  /** In place sum of `count` elements. */
  int32_t (*all_reduce)(void *user, void *data, int64_t count, moe_dtype_t dtype, moe_stream_t stream);
  /** recv[count] = this rank's part of the sum of all ranks' send[num_ranks*count]. */
  int32_t (*reduce_scatter)(void *user,
                            const void *send,
                            void *recv,
                            int64_t count,
                            moe_dtype_t dtype,
                            moe_stream_t stream);
} moe_comm_callbacks_t;

/** Expert parallelism: rows to the ranks of their experts and back. */
typedef struct moe_ep_desc_t {
  uint32_t struct_size;
  moe_dtype_t dtype;
  /** Upper bound of this rank's tokens. */
  int64_t num_tokens;
  /** Upper bound of the rows that this rank receives from each rank; more are dropped and reported. */
  int64_t max_tokens_per_rank;
  int64_t hidden_size;
  /** All experts. */
  int64_t num_experts;
  int64_t num_local_experts;
  int64_t top_k;
  int64_t alignment;
  /** MOE_EP_SIZES_*. */
  int32_t sizes;
  int32_t reserved;
} moe_ep_desc_t;

typedef struct moe_ep_dispatch_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t x;
  /** [T, K]. */
  moe_tensor_t ids;
  /** [T, K]; optional. */
  moe_tensor_t weights;
  /** int32[num_experts]; NULL: contiguous ranges. */
  const int32_t *rank_of_expert;
  /** int32[num_experts]; NULL: contiguous ranges. */
  const int32_t *local_of_expert;
  /** Out: expert-major rows, [R, d]. */
  moe_tensor_t rows;
  /** Out: [R]; with weights. */
  moe_tensor_t row_weights;
  /** Out: int64[num_local_experts + 1]. */
  int64_t *group_offsets;
  /** State for combine and the backwards; moe_ep_handle_size bytes on the device. */
  void *handle;
  uint64_t handle_size;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_ep_dispatch_fwd_args_t;

typedef struct moe_ep_dispatch_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, d]. */
  moe_tensor_t drows;
  /** [R]; optional. */
  moe_tensor_t drow_weights;
  /** Out: [T, d]. */
  moe_tensor_t dx;
  moe_output_mode_t dx_mode;
  /** Out: [T, K]; with drow_weights. */
  moe_tensor_t dweights;
  /** The forward's. */
  const void *handle;
  uint64_t handle_size;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_ep_dispatch_bwd_args_t;

typedef struct moe_ep_combine_fwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [R, d]. */
  moe_tensor_t rows;
  /** [T, K]; optional. */
  moe_tensor_t weights;
  /** Out: [T, d]. */
  moe_tensor_t y;
  moe_output_mode_t y_mode;
  /** The dispatch's. */
  const void *handle;
  uint64_t handle_size;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_ep_combine_fwd_args_t;

typedef struct moe_ep_combine_bwd_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t dy;
  /** [T, K]; optional. */
  moe_tensor_t weights;
  /** [R, d], the forward's; needed for dweights. */
  moe_tensor_t rows;
  /** Out: [R, d]. */
  moe_tensor_t drows;
  /** Out: [T, K]; optional. */
  moe_tensor_t dweights;
  const void *handle;
  uint64_t handle_size;
  moe_count_t num_tokens;
  moe_device_report_t *report;
} moe_ep_combine_bwd_args_t;

/** Tensor parallelism of each expert: one reduction after the combine. */
typedef struct moe_tp_reduce_desc_t {
  uint32_t struct_size;
  moe_dtype_t dtype;
  int64_t num_tokens;
  int64_t hidden_size;
  /** MOE_TP_*. */
  int32_t mode;
  int32_t reserved;
} moe_tp_reduce_desc_t;

typedef struct moe_tp_reduce_args_t {
  uint32_t struct_size;
  uint32_t reserved;
  /** [T, d]. */
  moe_tensor_t x;
  /** Out: [T, d] or [T/num_ranks, d]; may be x for MOE_TP_ALL_REDUCE. */
  moe_tensor_t y;
  moe_device_report_t *report;
} moe_tp_reduce_args_t;

/**
 * Wraps the caller's ncclComm_t, which must outlive the communicator.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_comm_from_nccl(const moe_context_t *ctx, void *nccl_comm, struct moe_comm_t **comm);

/**
 * A communicator over the caller's own transport.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_comm_from_callbacks(const moe_context_t *ctx,
                                     const struct moe_comm_callbacks_t *callbacks,
                                     struct moe_comm_t **comm);

/**
 * Registers a buffer that peers may write to: every rank calls it in the same order with the same size.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_comm_register(struct moe_comm_t *comm, void *buffer, uint64_t bytes);

/** Frees a communicator, not what it wraps. NULL is allowed. */
moe_status_t moe_comm_destroy(struct moe_comm_t *comm);

/**
 * Bytes of the handle that carries state from moe_ep_dispatch_fwd to the other calls.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_handle_size(const moe_context_t *ctx, const struct moe_ep_desc_t *desc, uint64_t *bytes);

/**
 * Rows to the ranks of their experts, sorted by expert.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_dispatch_fwd(const moe_context_t *ctx,
                                 const struct moe_comm_t *comm,
                                 const struct moe_ep_desc_t *desc,
                                 const struct moe_ep_dispatch_fwd_args_t *args,
                                 void *workspace,
                                 uint64_t workspace_size,
                                 moe_stream_t stream);

/**
 * Bytes of workspace that moe_ep_dispatch_fwd needs.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_dispatch_fwd_workspace_size(const moe_context_t *ctx,
                                                const struct moe_ep_desc_t *desc,
                                                uint64_t *bytes);

/**
 * The gradient of moe_ep_dispatch_fwd.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_dispatch_bwd(const moe_context_t *ctx,
                                 const struct moe_comm_t *comm,
                                 const struct moe_ep_desc_t *desc,
                                 const struct moe_ep_dispatch_bwd_args_t *args,
                                 void *workspace,
                                 uint64_t workspace_size,
                                 moe_stream_t stream);

/**
 * Bytes of workspace that moe_ep_dispatch_bwd needs.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_dispatch_bwd_workspace_size(const moe_context_t *ctx,
                                                const struct moe_ep_desc_t *desc,
                                                uint64_t *bytes);

/**
 * Rows back to their ranks, and the weighted sum.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_combine_fwd(const moe_context_t *ctx,
                                const struct moe_comm_t *comm,
                                const struct moe_ep_desc_t *desc,
                                const struct moe_ep_combine_fwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/**
 * Bytes of workspace that moe_ep_combine_fwd needs.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_combine_fwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_ep_desc_t *desc,
                                               uint64_t *bytes);

/**
 * The gradient of moe_ep_combine_fwd.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_combine_bwd(const moe_context_t *ctx,
                                const struct moe_comm_t *comm,
                                const struct moe_ep_desc_t *desc,
                                const struct moe_ep_combine_bwd_args_t *args,
                                void *workspace,
                                uint64_t workspace_size,
                                moe_stream_t stream);

/**
 * Bytes of workspace that moe_ep_combine_bwd needs.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_ep_combine_bwd_workspace_size(const moe_context_t *ctx,
                                               const struct moe_ep_desc_t *desc,
                                               uint64_t *bytes);

/**
 * The reduction after the combine of tensor-parallel experts.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_tp_reduce(const moe_context_t *ctx,
                           const struct moe_comm_t *comm,
                           const struct moe_tp_reduce_desc_t *desc,
                           const struct moe_tp_reduce_args_t *args,
                           void *workspace,
                           uint64_t workspace_size,
                           moe_stream_t stream);

/**
 * Bytes of workspace that moe_tp_reduce needs.
 *
 * Not built yet: answers MOE_STATUS_UNSUPPORTED.
 */
moe_status_t moe_tp_reduce_workspace_size(const moe_context_t *ctx,
                                          const struct moe_tp_reduce_desc_t *desc,
                                          uint64_t *bytes);

#define MOE_COMM_CALLBACKS_INIT \
  { sizeof(moe_comm_callbacks_t), 0, 0, 0, NULL, NULL, NULL, NULL }

#define MOE_EP_DESC_INIT \
  { sizeof(moe_ep_desc_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#define MOE_EP_DISPATCH_FWD_ARGS_INIT \
  { sizeof(moe_ep_dispatch_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, NULL, 0, MOE_COUNT_INIT, NULL }

#define MOE_EP_DISPATCH_BWD_ARGS_INIT \
  { sizeof(moe_ep_dispatch_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, MOE_TENSOR_INIT, NULL, 0, MOE_COUNT_INIT, NULL }

#define MOE_EP_COMBINE_FWD_ARGS_INIT \
  { sizeof(moe_ep_combine_fwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_OUTPUT_MODE_INIT, NULL, 0, MOE_COUNT_INIT, NULL }

#define MOE_EP_COMBINE_BWD_ARGS_INIT \
  { sizeof(moe_ep_combine_bwd_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL, 0, MOE_COUNT_INIT, NULL }

#define MOE_TP_REDUCE_DESC_INIT \
  { sizeof(moe_tp_reduce_desc_t), 0, 0, 0, 0, 0 }

#define MOE_TP_REDUCE_ARGS_INIT \
  { sizeof(moe_tp_reduce_args_t), 0, MOE_TENSOR_INIT, MOE_TENSOR_INIT, NULL }

#ifdef __cplusplus
}
#endif

#endif /* MOE_H */
