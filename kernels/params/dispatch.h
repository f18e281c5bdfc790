// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_DISPATCH_H
#define MOE_PARAMS_DISPATCH_H

#include "types.h"

/// Rows that a block takes at a time where rows, not tokens, are handed out.
constexpr static const int64_t DISPATCH_UNIT = 8;

/// The most threads of a block that copies rows, of one that sums a part of a token's, and of one that hands a token on to
/// its rows.
constexpr static const int64_t DISPATCH_THREADS = 512;

constexpr static const int64_t COMBINE_FWD_THREADS = 128;

constexpr static const int64_t COMBINE_FEW_COLUMNS = 2;

constexpr static const int64_t COMBINE_THREADS = 256;

/// The most warps of a block that plans, and the most threads of one that plans by ids.
constexpr static const int64_t DISPATCH_PLAN_WARPS = 16;

constexpr static const int64_t DISPATCH_PLAN_THREADS = 1024;

constexpr static const int32_t DISPATCH_IDS = 0;

constexpr static const int32_t DISPATCH_BYTE_MASK = 1;

constexpr static const int32_t DISPATCH_BIT_MASK = 2;

constexpr static const int32_t DISPATCH_WEIGHTS_NONE = 0;

constexpr static const int32_t DISPATCH_WEIGHTS_SLOT = 1;

constexpr static const int32_t DISPATCH_WEIGHTS_ROW = 2;

constexpr static const int32_t DISPATCH_WEIGHTS_DENSE = 3;

struct DispatchPlanParams {
  Count tokens;
  int64_t experts;
  int64_t top_k;
  int64_t expert_begin;
  int64_t groups;
  int64_t alignment;
  int64_t rows_per_group;
  int64_t rows;
  /// DISPATCH_IDS, DISPATCH_BYTE_MASK or DISPATCH_BIT_MASK.
  int32_t choice;
  bool strict_ids;
  Matrix chosen;
  const int32_t *expert_map;
  int64_t *group_offsets;
  int64_t *group_sizes;
  Matrix slot_offsets;
  Matrix row_of_slot;
  Matrix slot_of_row;
  Matrix token_of_row;
  /// Slots of a warp, a multiple of 32, and how many tokens and slots of a token 32 slots are; by ids alone.
  int64_t run;
  uint32_t step_tokens;
  uint32_t step_k;
  /// Columns of a row of counts: one a group, one for slots, and up to a multiple of four.
  int64_t columns;
  /// [blocks, columns]: slots of each block in each group; in the column behind the groups, all its slots. By ids
  /// columns are the groups, up to a multiple of four.
  uint32_t *counts;
  /// [blocks, columns] and twice as many: what stands in shared memory where there is enough; else NULL.
  uint32_t *histogram;
  int64_t *places;
  moe_device_report_t *report;
};

/// Maps; data is NULL where one is absent.
struct DispatchMaps {
  Count tokens;
  int64_t top_k;
  int64_t rows;
  int64_t groups;
  int64_t expert_begin;
  Matrix token_of_row;
  Matrix slot_of_row;
  Matrix row_of_slot;
  Matrix slot_offsets;
  const int64_t *group_offsets;
  moe_device_report_t *report;
};

struct DispatchWeights {
  /// DISPATCH_WEIGHTS_*.
  int32_t kind;
  Matrix values;
};

/// Gradients of weights; data is NULL where one is not wanted.
struct DispatchWeightGradients {
  /// [S].
  Matrix slot;
  /// [R].
  Matrix row;
  /// [T, experts].
  Matrix dense;
  int64_t experts;
};

struct DispatchFwdParams {
  DispatchMaps maps;
  /// Pitches and columns count chunks, as many bytes as a thread copies at once.
  Matrix x;
  Matrix rows;
  int64_t columns;
  DispatchWeights weights;
  Matrix row_weights;
};

/// Also the backward of dispatch, which has no weights but may have their gradients.
struct CombineFwdParams {
  DispatchMaps maps;
  Matrix rows;
  /// Its data may be NULL.
  Matrix y;
  OutputMode y_mode;
  int64_t hidden;
  /// Maps and weights are older than the launch before this one: they may be read while that still runs.
  bool early;
  /// Rows and y can be accessed 16 bytes at a time.
  bool packs;
  /// Blocks that have a token together, each some of its columns.
  uint32_t parts;
  DispatchWeights weights;
  /// Gradients a row, that go to slots and experts.
  Matrix drow_weights;
  DispatchWeightGradients dweights;
};

struct CombineBwdParams {
  DispatchMaps maps;
  Matrix dy;
  /// Data is NULL where no gradient of weights is wanted.
  Matrix rows;
  /// Its data may be NULL.
  Matrix drows;
  int64_t hidden;
  /// dy, rows and drows can be accessed 16 bytes at a time.
  bool packs;
  DispatchWeights weights;
  DispatchWeightGradients dweights;
};

struct SortChunksParams {
  int64_t rows;
  int64_t chunks;
  bool inverse;
  const int64_t *chunk_sizes;
  const int32_t *order;
  /// [chunks + 1]: where each chunk begins in the unsorted order.
  int64_t *unsorted;
  /// [chunks + 1]: where the chunks begin in the sorted order.
  int64_t *sorted;
  /// Pitches and columns count chunks of bytes, as in DispatchFwdParams.
  Matrix x;
  Matrix y;
  int64_t columns;
  Matrix row_weights;
  Matrix sorted_row_weights;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_DISPATCH_H
