//! Which tiles the Hopper kernels use. benches/tune measures what the table says.

use super::hopper::TILE_ROWS;
use crate::groups::Groups;

/// What tiles of a width cost, of rows as they lie and of rows that an index names.
#[derive(Clone, Copy)]
struct Costs {
    /// Products a second beside those of 192 columns.
    rate: [f64; 2],
    /// Steps of 64 of the reduction that a tile's plain epilogue costs besides.
    epilogue: [f64; 2],
}

/// Tiles of 128 rows that the teams of a block take by turns, or (of 256 columns) together.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub columns: i64,
    /// Where warps store their outputs, and where the copy engine does, by boxes.
    by_warps: Costs,
    by_boxes: Costs,
}

const fn costs(rate: [f64; 2], epilogue: [f64; 2]) -> Costs {
    Costs { rate, epilogue }
}

#[rustfmt::skip]
pub(crate) const SHAPES: [Shape; 4] = [
    Shape { columns: 128, by_warps: costs([0.99, 0.91], [3.2, 2.8]), by_boxes: costs([0.98, 0.90], [2.4, 2.2]) },
    Shape { columns: 176, by_warps: costs([1.00, 0.98], [2.7, 2.5]), by_boxes: costs([0.99, 0.97], [2.1, 2.0]) },
    Shape { columns: 192, by_warps: costs([1.00, 1.00], [2.5, 2.4]), by_boxes: costs([1.00, 1.00], [2.1, 2.1]) },
    Shape { columns: 256, by_warps: costs([0.94, 1.03], [3.4, 3.9]), by_boxes: costs([0.95, 1.02], [2.7, 3.1]) },
];

impl Shape {
    /// So many sums by turns leave registers for plain outputs only.
    pub fn crowded(&self) -> bool {
        matches!(self.columns, 176 | 192)
    }

    /// Whether an operand that lies across can be copied by blocks of 64 columns.
    pub fn of_blocks(&self) -> bool {
        self.columns % 64 == 0
    }
}

/// The width of tiles that a measurement asks for.
fn forced() -> Option<i64> {
    #[cfg(feature = "tune")]
    return std::env::var("MOE_TUNE_COLUMNS").ok().and_then(|columns| columns.parse().ok());
    #[cfg(not(feature = "tune"))]
    None
}

/// Whether outputs may be stored by boxes: a measurement may ask for warps.
pub(crate) fn boxes_allowed() -> bool {
    #[cfg(feature = "tune")]
    return std::env::var("MOE_TUNE_BOXES").map_or(true, |allowed| allowed != "0");
    #[cfg(not(feature = "tune"))]
    true
}

/// What decides about tiles.
pub(crate) struct Sizes {
    /// Tiles of 128 rows of all groups: as many as there may be, each as likely.
    pub row_tiles: [f64; 2],
    pub columns: i64,
    pub depth: i64,
    /// What the epilogue costs, in plain stores.
    pub epilogue: f64,
    pub gathered: bool,
    pub boxed: bool,
}

/// The tiles along the rows of groups whose sizes the device alone knows: as many rows each, or the last tile of each half full.
/// A group that has rows has a tile.
pub(crate) fn row_tiles(groups: &Groups) -> [f64; 2] {
    let (rows, groups) = (groups.rows_max as f64 / TILE_ROWS as f64, groups.count.min(groups.rows_max).max(1) as f64);
    [groups * (rows / groups).ceil(), (rows + groups / 2.0).max(groups)]
}

impl Sizes {
    /// As many tiles of `columns` as a multiprocessor makes: blocks take them by rounds, and the last takes as long as the others.
    fn rounds(&self, columns: i64, multiprocessors: i32) -> f64 {
        let across = (self.columns as f64 / columns as f64).ceil();
        let rounds = self.row_tiles.map(|tiles| (tiles * across / f64::from(multiprocessors)).ceil().max(1.0));
        rounds.iter().sum::<f64>() / rounds.len() as f64
    }

    /// The place in SHAPES of what takes least time.
    pub fn best_shape(&self, multiprocessors: i32, allowed: impl Fn(&Shape) -> bool) -> usize {
        let cost = |shape: &Shape| {
            let steps = (self.depth as f64 / 64.0).ceil();
            let kind = usize::from(self.gathered);
            let Costs { rate, epilogue } = if self.boxed { shape.by_boxes } else { shape.by_warps };
            let tile = shape.columns as f64 * (steps + self.epilogue * epilogue[kind]) / rate[kind];
            self.rounds(shape.columns, multiprocessors) * tile
        };
        let forced = forced();
        let shapes = (0..SHAPES.len()).filter(|&shape| allowed(&SHAPES[shape]));
        let shapes = shapes.filter(|&shape| forced.is_none_or(|columns| SHAPES[shape].columns == columns));
        shapes.min_by(|&a, &b| cost(&SHAPES[a]).total_cmp(&cost(&SHAPES[b]))).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The width for groups of so many rows each on so many multiprocessors.
    fn columns(groups: i64, rows: i64, columns: i64, depth: i64, multiprocessors: i32) -> i64 {
        let groups =
            Groups { count: groups, rows_max: groups * rows, offsets: std::ptr::null(), sizes: std::ptr::null() };
        let sizes =
            Sizes { row_tiles: row_tiles(&groups), columns, depth, epilogue: 1.0, gathered: false, boxed: true };
        SHAPES[sizes.best_shape(multiprocessors, |_| true)].columns
    }

    #[test]
    fn tiles_that_are_one_round_are_as_narrow_as_that_allows() {
        assert_eq!(columns(2, 374, 768, 7168, 132), 128);
        assert_eq!(columns(16, 128, 1536, 2048, 132), 192);
        // 128 tiles of 128 columns, 96 of 176.
        assert_eq!(columns(4, 64, 4096, 2048, 132), 128);
        assert_eq!(columns(4, 64, 4096, 2048, 100), 176);
    }

    #[test]
    fn of_many_tiles_the_rate_decides() {
        assert_eq!(columns(128, 1024, 4096, 2048, 132), columns(128, 1024, 4096, 2048, 78));
    }
}
