// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_SINKHORN_H
#define MOE_PARAMS_SINKHORN_H

#include "types.h"

/// Bits of the fraction of a sum over the grid; one more for a sum just above 1; the rest counts blocks.
constexpr static const int32_t GRID_SUM_FRACTION = 55;

/// Rows that a thread's registers keep, of 4 columns and of 16.
constexpr static const int32_t SINKHORN_KEPT_4 = 4;

constexpr static const int32_t SINKHORN_KEPT_16 = 2;

/// The logits, and the lanes that share a row of them.
struct SinkhornRows {
  Matrix logits;
  Count tokens;
  int32_t experts;
  /// Lanes that share a row: a power of two up to 32.
  int32_t lanes;
  /// Rows can be read by four elements at a time.
  bool quads;
};

/// What all blocks share of four columns: a line of the L2 cache, so that additions to different ones hardly wait for each other.
struct SharedColumns {
  /// The sums of even and of odd rounds.
  uint64_t totals[2][4];
  uint32_t maxima[4];
  uint32_t unused[12];
};

/// Of the kernels sinkhorn_<columns a lane>_<lanes a row>.
struct SinkhornParams {
  SinkhornRows rows;
  /// Data is NULL where it is not wanted.
  Matrix probs;
  bool probs_quads;
  bool column_sums;
  bool relative;
  /// Rows of a block that stay in shared memory, a multiple of those that it handles at once.
  int32_t resident;
  /// Floats from one such row to the next.
  int32_t pitch;
  int32_t max_iterations;
  float tolerance;
  /// What the blocks share of the columns.
  SharedColumns *shared;
  /// The rest may be NULL: not wanted.
  float *log_d0;
  float *log_d1;
  int32_t *iterations;
  float *error;
  moe_device_report_t *report;
};

/// Of the kernels sinkhorn_step_*.
struct SinkhornStepParams {
  SinkhornRows rows;
  int32_t round;
  /// Blocks of the masses' launch.
  int32_t blocks;
  /// No masses are wanted any more.
  bool last;
  bool column_sums;
  bool relative;
  float tolerance;
  /// NULL: the true T.
  const float *total_tokens;
  float *log_d1;
  float *column_mass;
  int32_t *done;
  float *log_d0;
  int32_t *iterations;
  float *error;
  /// [blocks, E].
  float *partials;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_SINKHORN_H
