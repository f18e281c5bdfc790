// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_HOPPER_H
#define MOE_PARAMS_HOPPER_H

#include "types.h"

struct HopperLinearParams {
  /// Unused where A is gathered.
  BoxSource a_boxes;
  BoxSource b_boxes;
  LinearParams linear;
  /// Of the ring of copies.
  int32_t stages;
};

struct HopperWgradParams {
  /// Unused where `left` is gathered.
  BoxSource a_boxes;
  BoxSource b_boxes;
  WgradParams wgrad;
  /// Of the ring of copies.
  int32_t stages;
  /// `out` is written with rows and columns swapped.
  bool transposed;
};

#endif  // MOE_PARAMS_HOPPER_H
