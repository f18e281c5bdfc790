// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_LOGITS_PARTS_H
#define MOE_PARAMS_LOGITS_PARTS_H

#include "types.h"

/// Gradients made ready for kernels/hopper_gate.cuh, and summed for the bias.
struct RouterSplitParams {
  Count tokens;
  int32_t experts;
  Matrix dlogits;
  /// [1 or 2, T, pitch] of bf16: each, and its rest if that is wanted. NULL: not wanted.
  uint8_t *parts;
  int64_t pitch;
  bool rest;
  /// [blocks, E], sums of `span` tokens each; NULL: not wanted.
  double *dbias_parts;
  int64_t span;
  moe_device_report_t *report;
};

/// Joins parts: out[rows, columns] = sum of the parts (+ bias); dbias[experts] = sum of its parts.
struct RouterJoinParams {
  const uint8_t *partials;
  /// Parts are fp64.
  bool wide;
  int32_t splits;
  Count rows;
  int64_t columns;
  Matrix bias;
  Matrix out;
  OutputMode mode;
  /// Not 0: so many columns are a tile, which has a part for each cluster with a share of it (kernels/router_shares.cuh).
  int64_t tile;
  int32_t tiles;
  int32_t clusters;
  Count tokens;
  /// NULL: there are none.
  const double *dbias_parts;
  int32_t dbias_splits;
  int32_t experts;
  Matrix dbias;
  OutputMode dbias_mode;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_LOGITS_PARTS_H
