// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_FUSED_H
#define MOE_PARAMS_FUSED_H

#include "types.h"

/// act = weight * act(x W1^T + b1), and h where it is kept (kernels/hopper_glu.cuh).
struct HopperGluParams {
  /// Unused where x is gathered.
  BoxSource a_boxes;
  BoxSource gate_boxes;
  BoxSource up_boxes;
  Groups groups;
  Matrix a;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  Formula formula;
  int32_t k;
  /// Where the halves begin in their weights.
  int32_t gate_outer;
  int32_t up_outer;
  /// Where they begin in the bias and in h.
  int32_t gate_at;
  int32_t up_at;
  /// Of the ring of copies.
  int32_t stages;
  /// Data is NULL without a bias.
  Matrix bias;
  RowWeights row_weights;
  /// Data is NULL where h is not kept.
  Matrix h;
  Matrix act;
  moe_device_report_t *report;
};

/// Back through fc2 and the activation (kernels/hopper_glu_bwd.cuh).
struct HopperGluBwdParams {
  /// Unused where dy is gathered.
  BoxSource a_boxes;
  /// Of W2.
  BoxSource b_boxes;
  Groups groups;
  Matrix a;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  Formula formula;
  /// d.
  int32_t k;
  /// Where the halves begin in h and in dh.
  int32_t gate_at;
  int32_t up_at;
  /// Of the ring of copies.
  int32_t stages;
  RowWeights row_weights;
  Matrix h;
  Matrix dh;
  /// Data is NULL where it is not wanted.
  Matrix weighted_act;
  /// [R, dots_of_row]: <dact, act> by parts; NULL where it is not wanted.
  float *dots;
  int64_t dots_of_row;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_FUSED_H
