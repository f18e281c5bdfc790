// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_QUICK_H
#define MOE_PARAMS_QUICK_H

#include "types.h"

/// The most threads of a block: forward, of bf16 logits and of others; backward.
constexpr static const int64_t QUICK_THREADS = 768;

constexpr static const int64_t QUICK_WIDE_THREADS = 512;

constexpr static const int64_t QUICK_BWD_THREADS = 256;

/// What joins sums: threads of a team, the most teams of a block, bytes of its shared memory; blocks of the cluster.
constexpr static const int64_t QUICK_JOIN_TEAM = 256;

constexpr static const int64_t QUICK_JOIN_TEAMS = 4;

constexpr static const int64_t QUICK_JOIN_SHARED = 17408;

/// The most experts and slots.
constexpr static const int64_t QUICK_EXPERTS = 512;

struct RouterQuickParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// Bytes of a warp's room in shared memory.
  int32_t room_bytes;
  /// Tables of counts that a block hands over: of all choices, and of those that the aux loss counts.
  int32_t tables;
  /// Words of a block's record, and of each of its tables, which are padded to four.
  int32_t columns;
  int32_t padded;
  /// The tokens of each sequence are shared among so many blocks, each of which hands over a record.
  int32_t sequences;
  int32_t shares;
  /// Tokens from one of a sequence to the next, and from a warp's tokens to its next.
  int32_t step;
  int32_t stride;
  Matrix logits;
  /// 0: no limits; else how many groups, how many are kept, terms of their scores, and fours of experts of each.
  int32_t groups;
  int32_t kept_groups;
  int32_t group_terms;
  int32_t group_fours;
  /// Logits can be read by 16 bytes.
  bool packed;
  /// Ids are int32, weights fp32, and so many of both can be written at a time; 0: they are something else.
  int32_t width;
  /// Of weights.
  float scale;
  /// The softmax over all experts is needed.
  bool exponentials;
  /// Something is summed over tokens: a launch behind joins the blocks' sums.
  bool sums;
  /// Experts are compared by their logits, not by their scores.
  bool by_logit;
  /// The aux loss counts the plain top-k, which is another choice.
  bool counts_plain;
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
  /// [sequences, shares, columns]: sums of scores (with an aux loss) and counts (of each table); [sequences, shares, 2]:
  /// parts of the z-loss and of the real tokens.
  uint32_t *records;
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
  /// Tokens from one of a sequence to the next, and from a warp's tokens to its next.
  int32_t step;
  int32_t stride;
  Matrix logits;
  /// Logits, gradients of logits can be accessed by 16 bytes.
  bool packed;
  bool packed_out;
  /// Of weights.
  float scale;
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
