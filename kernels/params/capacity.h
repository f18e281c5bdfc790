// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_CAPACITY_H
#define MOE_PARAMS_CAPACITY_H

#include "types.h"

/// Threads of a block that takes slots, and how many slots it takes at a time.
constexpr static const int64_t CAPACITY_THREADS = 512;

constexpr static const int64_t CAPACITY_UNIT = 4096;

/// Threads of a block that takes an expert: as many as there can be experts.
constexpr static const int64_t CAPACITY_EXPERTS = 1024;

/// Threads of a block that takes tokens.
constexpr static const int64_t CAPACITY_ROW_THREADS = 256;

/// What drawing the second expert reads and writes.
struct CapacitySampleParams {
  Count tokens;
  int32_t experts;
  Matrix ids;
  Matrix weights;
  Matrix logits;
  Matrix routed_ids;
  Matrix routed_weights;
  moe_random_t random;
  moe_device_report_t *report;
};

struct CapacityParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// MOE_CAPACITY_*, and what they read.
  int32_t formula;
  double factor;
  int64_t least;
  int64_t fixed;
  /// MOE_DROP_*, MOE_SECOND_EXPERT_*.
  int32_t policy;
  int32_t second;
  int32_t renormalize;
  /// The slot whose weight is left as it is; -1: none.
  int32_t spared;
  /// What a sum of weights counts as at least.
  double epsilon;
  /// As routed.
  Matrix ids;
  Matrix weights;
  Matrix kept_ids;
  Matrix kept_weights;
  const uint8_t *padding_mask;
  moe_random_t random;
  /// NULL: not wanted.
  int64_t *tokens_per_expert;
  int64_t *dropped_per_expert;
  /// [E]: lengths of the lists, and where they end.
  uint64_t *counts;
  uint64_t *cursors;
  /// [T*K]: slots and keys, list after list; and whether a slot stays.
  int64_t *slots;
  uint64_t *keys;
  uint8_t *kept;
  moe_device_report_t *report;
};

struct CapacityBwdParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  int32_t spared;
  double epsilon;
  /// Without data weights are not divided.
  Matrix weights;
  /// With data weights are divided by the sum of all of them, else of those that are kept.
  Matrix ids;
  Matrix kept_ids;
  Matrix dkept_weights;
  Matrix dweights;
  OutputMode mode;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_CAPACITY_H
