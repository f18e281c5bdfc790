// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_DECODE_H
#define MOE_PARAMS_DECODE_H

#include "types.h"

/// Threads of a block: warps that multiply, and behind them warps that load.
constexpr static const int32_t DECODE_MULTIPLIERS = 128;

constexpr static const int32_t DECODE_LOADERS = 64;

/// Bytes of weights that a slot of the pipeline holds; of a token's row as many as DECODE_TOKEN at least.
constexpr static const int32_t DECODE_WEIGHTS = 16384;

constexpr static const int32_t DECODE_TOKEN = 128;

/// Sizes of boxes.
constexpr static const uintptr_t DECODE_BOXES = 4;

/// The most slots.
constexpr static const int32_t DECODE_SLOTS = 10;

/// c[r] = alpha * a[r] * op(w_g)^T + bias[g] (+ beta * c[r]), or weight[r] * act of such a sum.
struct DecodeParams {
  /// Of `weight` and of `up`, where `boxed`: boxes of 8 rows, of 16, 32 and 64.
  TensorMap boxes[2][DECODE_BOXES];
  bool boxed;
  Groups groups;
  Matrix a;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  /// The gate's alone where `up` is there.
  Grouped weight;
  /// Data and pointers are NULL where `weight` is all.
  Grouped up;
  /// Data is NULL without a bias. Of an activation it is h's.
  Matrix bias;
  /// Of an activation alone.
  Formula formula;
  RowWeights row_weights;
  Matrix c;
  /// Of a plain product alone.
  OutputMode mode;
  float alpha;
  float beta;
  /// Columns of c, and of a.
  int32_t n;
  int32_t k;
  /// h holds so many columns of one half, then as many of the other.
  int32_t block;
  bool up_first;
  /// Weights, groups and the gather are older than the launch before this one: they may be read while that still runs.
  bool early;
  /// The most rows that go through weights at a time.
  int32_t tokens;
  /// Bytes of shared memory: of the table of groups, and of the slots behind it.
  int32_t table;
  int32_t room;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_DECODE_H
