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
