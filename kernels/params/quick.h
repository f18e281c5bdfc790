// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_QUICK_H
#define MOE_PARAMS_QUICK_H

#include "types.h"

/// The most threads of a block, forward and backward.
constexpr static const int64_t QUICK_THREADS = 512;

constexpr static const int64_t QUICK_BWD_THREADS = 256;

/// The most experts and slots.
constexpr static const int64_t QUICK_EXPERTS = 512;

struct RouterQuickParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// Lanes of a token.
  int32_t lanes;
  /// Bytes of a warp's lists.
  int32_t list_bytes;
  /// Tables of counts that a block hands over: of all choices, and of those that the aux loss counts.
  int32_t tables;
  Matrix logits;
  /// 0: no limits; else how many groups, how many are kept, terms of their scores, and fours of experts of each.
  int32_t groups;
  int32_t kept_groups;
  int32_t group_terms;
  int32_t group_fours;
  /// Logits can be read by 16 bytes; ids are int32, weights fp32, and both can be written by four.
  bool packed;
  bool quads;
  /// The softmax over all experts is needed.
  bool exponentials;
  /// Something is summed over tokens: the first block waits for all.
  bool sums;
  /// Experts are compared by their logits, not by their scores.
  bool by_logit;
  RouterWeighting weighting;
  /// NULL: none.
  const float *bias;
  Matrix ids;
  Matrix weights;
  /// Outputs with a column an expert: whether there are any, and whether weights can be written by 16 bytes.
  bool spread;
  bool packed_dense;
  Matrix dense;
  Matrix byte_mask;
  Matrix bit_mask;
  RouterLosses losses;
  /// [blocks, E], [blocks, tables, E], [blocks, 2]: sums of scores, counts, parts of the z-loss and of the real tokens.
  float *scores;
  uint32_t *counts;
  float *parts;
  /// The rest may be NULL: not wanted.
  int64_t *tokens_per_expert;
  int64_t *aux_counts;
  float *aux_loss;
  float *z_loss;
  moe_device_report_t *report;
};

struct RouterQuickBwdParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// Lanes of a token, tokens of a warp at a time, and floats from one of their rows to the next.
  int32_t lanes;
  int32_t tile;
  int32_t pitch;
  Matrix logits;
  /// Logits, gradients of logits can be accessed by 16 bytes; ids are int32 and dweights fp32, to be read by four.
  bool packed;
  bool packed_out;
  bool quads;
  RouterWeighting weighting;
  /// Without data there is no gradient of weights.
  Matrix ids;
  /// `dense`: a column an expert, else a slot.
  Matrix dweights;
  bool dense;
  Matrix dlogits;
  OutputMode mode;
  RouterLosses losses;
  const int64_t *aux_counts;
  /// NULL: 1.
  const float *aux_grad;
  const float *z_grad;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_QUICK_H
