//! Which tiles the Hopper kernels use. benches/tune measures what the table says.

/// Tiles of 128 rows that the teams of a block take by turns, or (of 256 columns) together.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub columns: i64,
    /// Products a second beside those of 192 columns, of rows as they lie and of rows that an index names.
    rate: [f64; 2],
    /// Steps of 64 of the reduction that a tile's plain epilogue costs besides, of both.
    epilogue: [f64; 2],
}

#[rustfmt::skip]
pub(crate) const SHAPES: [Shape; 4] = [
    Shape { columns: 128, rate: [0.99, 0.92], epilogue: [3.7, 3.2] },
    Shape { columns: 176, rate: [1.00, 0.98], epilogue: [3.1, 2.8] },
    Shape { columns: 192, rate: [1.00, 1.00], epilogue: [2.8, 2.7] },
    Shape { columns: 256, rate: [0.95, 1.03], epilogue: [4.3, 4.6] },
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

/// The place in SHAPES of what takes least time for outputs of `columns` and a reduction of about `depth`, where the
/// epilogue costs so many times that of a plain store.
pub(crate) fn best_shape(
    columns: i64,
    depth: i64,
    epilogue: f64,
    gathered: bool,
    allowed: impl Fn(&Shape) -> bool,
) -> usize {
    let cost = |shape: &Shape| {
        let tiles = (columns as f64 / shape.columns as f64).ceil();
        let steps = (depth as f64 / 64.0).ceil();
        let kind = usize::from(gathered);
        tiles * shape.columns as f64 * (steps + epilogue * shape.epilogue[kind]) / shape.rate[kind]
    };
    let forced = forced();
    let shapes = (0..SHAPES.len()).filter(|&shape| allowed(&SHAPES[shape]));
    let shapes = shapes.filter(|&shape| forced.is_none_or(|columns| SHAPES[shape].columns == columns));
    shapes.min_by(|&a, &b| cost(&SHAPES[a]).total_cmp(&cost(&SHAPES[b]))).unwrap_or(0)
}
