// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_ACTIVATION_H
#define MOE_PARAMS_ACTIVATION_H

#include "types.h"

constexpr static const int32_t CURVE_SWISH = 0;

constexpr static const int32_t CURVE_GELU_ERF = 1;

constexpr static const int32_t CURVE_GELU_TANH = 2;

constexpr static const int32_t CURVE_RELU = 3;

constexpr static const int32_t CURVE_RELU2 = 4;

/// Element by element.
constexpr static const int32_t ACCESS_ELEMENTS = 0;

/// 16 bytes of each half at a time.
constexpr static const int32_t ACCESS_PACKS = 1;

/// Gate and up by turns, 32 bytes at a time.
constexpr static const int32_t ACCESS_PAIRS = 2;

/// `Activation` of src/ops/activation.rs, but for where the halves lie.
struct Formula {
  /// CURVE_*.
  int32_t curve;
  bool gated;
  float alpha;
  /// Infinite where nothing is clamped.
  float limit;
  float shift;
  /// f: columns of act.
  int32_t ffn;
};

/// How h holds the halves, and how rows are read and written.
struct HalvesLayout {
  /// ACCESS_*.
  int32_t access;
  /// So many columns of one half, then as many of the other.
  int32_t block;
  bool up_first;
};

struct ActivationFwdParams {
  Formula formula;
  HalvesLayout halves;
  /// Threads a row: 32 or ROW_THREADS.
  int32_t team;
  /// Read where there are no groups (count 0).
  Count rows;
  Groups groups;
  RowWeights row_weights;
  Matrix h;
  Matrix y;
  moe_device_report_t *report;
};

struct ActivationBwdParams {
  Formula formula;
  HalvesLayout halves;
  /// Threads a row: 32 or ROW_THREADS.
  int32_t team;
  /// Read where there are no groups (count 0).
  Count rows;
  Groups groups;
  RowWeights row_weights;
  Matrix h;
  Matrix dy;
  Matrix dh;
  /// Of these three, data is NULL for what is not there.
  Matrix drow_weights;
  Matrix dot_start;
  Matrix weighted_act;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_ACTIVATION_H
