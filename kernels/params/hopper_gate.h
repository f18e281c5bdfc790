// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_HOPPER_GATE_H
#define MOE_PARAMS_HOPPER_GATE_H

#include "types.h"

struct HopperGateParams {
  BoxSource x;
  BoxSource weight;
  BoxSource gradient;
  /// Of the gradient: bf16 numbers that each is the sum of.
  int32_t parts;
  /// Of the ring of copies.
  int32_t stages;
  RouterGateParams gate;
};

#endif  // MOE_PARAMS_HOPPER_GATE_H
