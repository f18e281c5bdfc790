// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_HOPPER_H
#define MOE_PARAMS_HOPPER_H

#include "types.h"

/// Tiles that the teams of a block take by turns, or together.
struct Shape;

struct HopperLinearParams {
  /// Unused where A is gathered.
  TensorMap a_map;
  TensorMap b_map;
  /// One for each group, in place of `b_map`, where weights are given by pointers.
  const TensorMap *b_maps;
  LinearParams linear;
  /// Of the ring of copies.
  int32_t stages;
};

struct HopperWgradParams {
  /// Unused where `left` is gathered.
  TensorMap a_map;
  TensorMap b_map;
  WgradParams wgrad;
  /// Of the ring of copies.
  int32_t stages;
  /// `out` is written with rows and columns swapped.
  bool transposed;
};



#endif  // MOE_PARAMS_HOPPER_H
