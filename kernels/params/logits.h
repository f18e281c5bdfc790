// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_LOGITS_H
#define MOE_PARAMS_LOGITS_H

#include "types.h"

/// Tokens of a tile of the tensor cores, and elements of a step along the sum.
constexpr static const int64_t GATE_TOKENS = 128;

constexpr static const int64_t GATE_STEP = 64;

/// Columns of x that a block of the gradient of the weights has.
constexpr static const int64_t GATE_COLUMNS = 128;

/// Rows and columns of a tile of plain multiplication.
constexpr static const int64_t GATE_PLAIN = 64;

/// Tokens of a stage of Hopper's gradient of the weights: what its sums are dealt by.
constexpr static const int64_t GATE_SHARE = 32;

/// Bytes in which a warp of Hopper's kernels lays its outputs out.
constexpr static const int64_t GATE_STAGING = 2048;

/// Of every kernel that multiplies. Data is NULL where a tensor is absent.
struct RouterGateParams {
  Count tokens;
  int64_t hidden;
  int32_t experts;
  bool jitter;
  float eps;
  moe_random_t random;
  Matrix x;
  Matrix weight;
  Matrix bias;
  Matrix logits;
  Matrix jittered_x;
  Matrix dlogits;
  Matrix dx;
  OutputMode dx_mode;
  /// [splits, rows, columns] of sums of so many elements each; NULL: the sum is whole.
  uint8_t *partials;
  int64_t span;
  /// Of the weights, in the gradient of x: 2 to 4.
  int32_t stages;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_LOGITS_H
