// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_EXPERT_MLP_H
#define MOE_PARAMS_EXPERT_MLP_H

#include "types.h"

struct ScaleRowsParams {
  Groups groups;
  int64_t columns;
  Matrix from;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  RowWeights row_weights;
  Matrix to;
  OutputMode mode;
  /// Threads a row: 32 or ROW_THREADS.
  int32_t team;
  /// Rows are read and written by 16 bytes.
  bool packed;
  moe_device_report_t *report;
};

struct RowDotsParams {
  Groups groups;
  int64_t columns;
  Matrix a;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  Matrix b;
  Matrix dots;
  bool b_by_group;
  /// Rows are read by 16 bytes.
  bool packed;
  /// Threads a row: 32 or ROW_THREADS.
  int32_t team;
  moe_device_report_t *report;
};

/// sums[r] = start[r] + parts[r, 0] + parts[r, 1] + ..., for each true row; 0 in gaps.
struct RowSumsParams {
  Groups groups;
  /// [R, count].
  const float *parts;
  int64_t count;
  /// Data is NULL where sums begin at 0; may be `sums`.
  Matrix start;
  Matrix sums;
  moe_device_report_t *report;
};

struct ZeroGapsParams {
  Groups groups;
  uint8_t *data;
  /// Bytes from one row to the next, and of a row.
  int64_t pitch;
  int64_t bytes;
  OutputMode mode;
  moe_device_report_t *report;
};

struct PresentSizesParams {
  Groups groups;
  /// E pointers each; NULL for weights that are not given by pointers.
  uint8_t *const *pointers[3];
  int64_t *sizes;
};

#endif  // MOE_PARAMS_EXPERT_MLP_H
