// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_TOPK_H
#define MOE_PARAMS_TOPK_H

#include "types.h"

/// Threads of a block.
constexpr static const int64_t ROUTER_THREADS = 256;

/// Slots that a lane of the backward takes.
constexpr static const int64_t ROUTER_SLOTS = 8;

/// Blocks of a multiprocessor at most, where blocks wait for each other.
constexpr static const int64_t ROUTER_BLOCKS = 4;

/// What the losses are and read.
struct RouterLosses {
  bool aux;
  bool z;
  /// Counts come from the caller.
  bool global;
  /// MOE_SCORE_*.
  int32_t score;
  /// How many of a token's choices are counted.
  int32_t counted;
  /// MOE_SEQUENCE_*.
  int32_t layout;
  int64_t sequences;
  /// Tokens a sequence, for MOE_SEQUENCE_MAJOR.
  int64_t length;
  /// Loss of a sequence of n tokens: aux_scale / n^2 * sum_e (sum_t s_te) * n_e.
  double aux_scale;
  double z_scale;
  const uint8_t *padding_mask;
  const int64_t *sequence_offsets;
  const float *global_counts;
  const float *global_tokens;
};

/// How the chosen experts' logits become weights.
struct RouterWeighting {
  /// MOE_SCORE_*.
  int32_t score;
  bool over_chosen;
  bool divided;
  double scale;
};

struct RouterFwdParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  Matrix logits;
  RouterWeighting weighting;
  /// MOE_SELECT_*.
  int32_t selection;
  /// Experts are compared by their logits, not by their scores.
  bool by_logit;
  /// 0: no limits.
  int32_t groups;
  int32_t kept_groups;
  /// A group's score is the sum of its so many best.
  int32_t group_terms;
  /// NULL: none.
  const float *bias;
  /// Outputs; data is NULL where one is absent.
  Matrix ids;
  Matrix weights;
  Matrix dense;
  Matrix byte_mask;
  Matrix bit_mask;
  Matrix given;
  moe_random_t random;
  RouterLosses losses;
  /// The aux loss counts the choices themselves, not the plain top-k.
  bool count_choices;
  /// Something is summed over tokens: blocks wait for each other.
  bool sums;
  /// NULL: not wanted.
  int64_t *tokens_per_expert;
  /// [sequences, experts]; NULL without aux loss.
  int64_t *aux_counts;
  /// [sequences, experts]: sums of scores in fixed point; NULL without aux loss.
  int64_t *score_sums;
  /// What 1 is in it.
  double one;
  /// [sequences]: real tokens; NULL without aux loss.
  int64_t *lengths;
  /// [blocks, 3]: parts of the aux loss, of the z-loss, and of the real tokens.
  double *parts;
  /// NULL: not wanted.
  float *aux_loss;
  float *z_loss;
  moe_device_report_t *report;
};

struct RouterBwdParams {
  Count tokens;
  int32_t experts;
  int32_t top_k;
  /// Lanes of a token, and each lane's groups of four experts.
  int32_t lanes;
  int32_t quads;
  Matrix logits;
  RouterWeighting weighting;
  /// Without data there is no gradient of weights.
  Matrix ids;
  Matrix dweights;
  Matrix ddense;
  Matrix dlogits;
  OutputMode mode;
  RouterLosses losses;
  const int64_t *aux_counts;
  /// [sequences]: real tokens, where padding makes them differ; else NULL.
  const int64_t *lengths;
  /// NULL: 1.
  const float *aux_grad;
  const float *z_grad;
  moe_device_report_t *report;
};

/// Counts the real tokens of each sequence.
struct RouterLengthsParams {
  Count tokens;
  RouterLosses losses;
  int64_t *lengths;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_TOPK_H
