// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_HOPPER_H
#define MOE_PARAMS_HOPPER_H

#include "types.h"

/// The most stages of the ring of copies.
constexpr static const int32_t HOPPER_STAGES = 8;

/// Tiles that are found ahead, and bytes of each.
constexpr static const int32_t HOPPER_HANDED = 8;

constexpr static const int32_t HOPPER_HANDED_BYTES = 32;

/// Bytes in which a warp lays 16 rows out; and so many times as many where old values of gradients are copied ahead.
constexpr static const int32_t HOPPER_STAGING = 2048;

constexpr static const int32_t HOPPER_PLACES = 3;

/// The same where outputs are stored by boxes, but for tiles of 192 columns.
constexpr static const int32_t HOPPER_BOX_PLACES = 2;

struct HopperLinearParams {
  /// Unused where A is gathered.
  BoxSource a_boxes;
  BoxSource b_boxes;
  /// By which whole rows of C are stored, if they are.
  TensorMap c_boxes;
  bool boxed;
  /// Of the ring of copies.
  int32_t stages;
  LinearParams linear;
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
