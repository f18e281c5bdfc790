// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_EXPERT_CHOICE_H
#define MOE_PARAMS_EXPERT_CHOICE_H

#include "types.h"

/// Threads of a block that takes tokens, and of one that takes an expert.
constexpr static const int64_t CHOICE_ROW_THREADS = 256;

constexpr static const int64_t CHOICE_COLUMN_THREADS = 1024;

/// Outputs' data is NULL where one is absent.
struct ExpertChoiceParams {
  Count tokens;
  int32_t experts;
  /// Tokens of a tile.
  int32_t tile;
  int64_t capacity;
  Matrix logits;
  Matrix token_ids;
  Matrix weights;
  Matrix dense;
  Matrix byte_mask;
  Matrix bit_mask;
  const uint8_t *padding_mask;
  /// [E, T] of 32 or, in fp64, 64 bits.
  uint8_t *keys;
  /// [E]: the key above which all are chosen, and the last token of those that have it.
  uint8_t *cuts;
  int64_t *last_ties;
  moe_device_report_t *report;
};

struct ExpertChoiceBwdParams {
  Count tokens;
  int32_t experts;
  int64_t capacity;
  Matrix logits;
  /// Without data the gradient is compact.
  Matrix byte_mask;
  Matrix token_ids;
  Matrix dweights;
  Matrix dlogits;
  OutputMode mode;
  /// [T, E] and [E, C]: place + 1 of the first, and of the one behind each; 0: none.
  uint32_t *heads;
  uint32_t *links;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_EXPERT_CHOICE_H
