// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_BIAS_UPDATE_H
#define MOE_PARAMS_BIAS_UPDATE_H

#include "types.h"

/// Threads of a block that takes experts, at least as many as there can be, and of one that takes tokens.
constexpr static const int64_t BIAS_THREADS = 1024;

constexpr static const int64_t BIAS_ROW_THREADS = 256;

struct RouterBiasSignParams {
  int32_t experts;
  float rate;
  float *bias;
  const int64_t *tokens_per_expert;
};

struct RouterBiasQuantileParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// Tokens of a tile.
  int32_t tile;
  double decay;
  Matrix scores;
  const uint8_t *padding_mask;
  float *bias;
  /// [E, T].
  uint32_t *keys;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_BIAS_UPDATE_H
