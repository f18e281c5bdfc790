// Rows of groups through each group's weight, on Hopper: what forward, dgrad and the stages of the expert MLP share.
#pragma once

#include "hopper_gemm.cuh"
#include "hopper_store.cuh"

namespace hopper {

// A [rows, reduction] times B, of each group [outputs, reduction] or, across, [reduction, outputs].
template <class T, int WIDTH, bool TURNS, bool ACROSS, bool GATHERED> struct Rows {
  using Element = T;
  static constexpr int COLUMNS = WIDTH;
  static constexpr bool PINGPONG = TURNS;
  static constexpr bool A_ACROSS = false;
  static constexpr bool B_ACROSS = ACROSS;
  static constexpr bool GATHERS = GATHERED;
  static constexpr bool LARGEST_FIRST = false;
  static constexpr bool MASKS = false;
  static constexpr bool PREPARES = false;
  static constexpr bool ROLLED = false;
  static constexpr bool BOXES = false;
  // Few registers are left beside so many sums.
  static constexpr bool CROWDED = TURNS && WIDTH > 128;
  static constexpr int STAGING = HOPPER_STAGING;
  static constexpr int PLACES = 1;

protected:
  // Units of a group where a tile makes `width` of `outputs` columns.
  __device__ static int units_of_rows(const Span &span, int outputs, int width) {
    return span.rows == 0 ? 0 : units_of(blocks(static_cast<int>(span.rows), TILE_ROWS), blocks(outputs, width));
  }

  __device__ static Tile tile_of_rows(const Work &work, int unit, int rank, int outputs, int width, int depth) {
    const int tile_columns = blocks(outputs, width);
    const Place place = place_of(unit, blocks(work.rows, TILE_ROWS), tile_columns, rank);
    const int row = place.row * TILE_ROWS;
    const int rows = place.column < tile_columns ? work.rows - row : 0;
    return {work.group, work.begin, row, place.column * width, rows, depth, place.shared};
  }

  // Where a tile goes in a matrix that takes 16 bytes at a time: columns `first` and on, so many of which exist.
  __device__ static Target plain_target(const Matrix &matrix, const Tile &tile, int first, int columns) {
    Target to = {};
    to.data = matrix.data + ((tile.begin + tile.row) * matrix.pitch + first) * int64_t(sizeof(T));
    to.pitch = matrix.pitch;
    to.rows = tile.rows;
    to.columns = columns;
    to.alpha = 1.0f;
    to.packed = true;
    return to;
  }
};

}  // namespace hopper
