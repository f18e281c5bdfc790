// Generated from the Rust sources: do not edit.

#ifndef MOE_PARAMS_GROUPED_GEMM_H
#define MOE_PARAMS_GROUPED_GEMM_H

#include "types.h"

/// Rows and columns of a tile, threads of a block, bytes of its shared memory: as kernels/gemm_fragments.cuh says.
constexpr static const int64_t TILE_ROWS = 128;

constexpr static const int64_t TILE_COLUMNS = 256;

constexpr static const uint32_t THREADS = 256;

constexpr static const uint32_t SHARED = ((4 * (128 + 256)) * 64);

/// Forward and dgrad: `Linear` of src/ops/grouped_gemm.rs.
struct LinearParams {
  Groups groups;
  Matrix a;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  Grouped b;
  /// Data is NULL without a bias.
  Matrix bias;
  Matrix c;
  OutputMode mode;
  int64_t n;
  int64_t k;
  float alpha;
  float beta;
  moe_device_report_t *report;
};

/// out_g[rows, columns] = alpha * left_g^T * right_g (+ beta * out_g).
struct WgradParams {
  Groups groups;
  Matrix left;
  Matrix right;
  /// Index data is NULL where rows are taken as they are.
  Gather left_gather;
  Gather right_gather;
  Grouped out;
  OutputMode mode;
  int64_t rows;
  int64_t columns;
  float alpha;
  float beta;
  moe_device_report_t *report;
};

struct BiasGradParams {
  Groups groups;
  Matrix dc;
  /// Index data is NULL where rows are taken as they are.
  Gather gather;
  RowWeights weights;
  Matrix dbias;
  OutputMode mode;
  int64_t n;
  float beta;
  moe_device_report_t *report;
};

#endif  // MOE_PARAMS_GROUPED_GEMM_H
