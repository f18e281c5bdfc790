//! Activations on the CPU: a row at a time, in fp32 or, for fp64 rows, in fp64.

use rayon::prelude::*;

use crate::cpu::element::{Element, Real, load, store, true_count, with_element};
use crate::cpu::groups::Spans;
use crate::ops::activation::{Activation, Backward, Curve, Extent, Forward};
use crate::report::Report;
use crate::tensor::Matrix;

/// The smallest piece of work worth a thread of its own, in elements.
const PIECE: i64 = 4096;

/// An activation with its constants in the type that it is computed in.
struct Formula<R> {
    curve: Curve,
    alpha: R,
    limit: R,
    shift: R,
}

impl<R: Real> Formula<R> {
    fn new(activation: &Activation) -> Self {
        let real = R::from_f64;
        Formula {
            curve: activation.curve,
            alpha: real(activation.alpha),
            limit: real(activation.limit),
            shift: real(activation.shift),
        }
    }

    /// The curve's value and its slope. NaN stays NaN; the slope of a kink is that of the side below it.
    #[inline(always)]
    fn curve(&self, x: R) -> (R, R) {
        let real = R::from_f64;
        let (zero, half, one) = (real(0.0), real(0.5), real(1.0));
        match self.curve {
            Curve::Swish => {
                let s = one / (one + (-(self.alpha * x)).exp());
                (x * s, s * (one + self.alpha * x * (one - s)))
            }
            Curve::GeluErf => {
                // 1 + erf(x) is erfc(-x), of which nothing cancels.
                let cdf = half * (-(x * real(std::f64::consts::FRAC_1_SQRT_2))).erfc();
                let density = (-(half * x * x)).exp() * real(0.3989422804014327);
                (x * cdf, cdf + x * density)
            }
            Curve::GeluTanh => {
                let (a, b) = (real(2.0 * 0.7978845608028654), real(0.044715));
                // From here on the exponential is 0 or infinite, and x^2 would overflow.
                let c = x.max(real(-40.0)).min(real(40.0));
                // 1 + tanh(u) is 2 / (1 + e^-2u), of which nothing cancels.
                let s = one / (one + (-(a * c * (one + b * c * c))).exp());
                (x * s, s + x * s * (one - s) * a * (one + real(3.0) * b * c * c))
            }
            Curve::Relu if x <= zero => (zero, zero),
            Curve::Relu => (x, one),
            Curve::Relu2 if x <= zero => (zero, zero),
            Curve::Relu2 => (x * x, x + x),
        }
    }

    /// The gate and what up contributes, both clamped; where each still moves with its input.
    #[inline(always)]
    fn clamp(&self, gate: R, up: R) -> (R, R, bool, bool) {
        let (gate_moves, low, high) = (!(gate > self.limit), up < -self.limit, up > self.limit);
        let gate = if gate_moves { gate } else { self.limit };
        let up = if low {
            -self.limit
        } else if high {
            self.limit
        } else {
            up
        };
        (gate, up + self.shift, gate_moves, !(low || high))
    }

    #[inline(always)]
    fn gated(&self, gate: R, up: R) -> R {
        let (gate, up, ..) = self.clamp(gate, up);
        self.curve(gate).0 * up
    }

    /// act, d act / d gate and d act / d up.
    #[inline(always)]
    fn gated_gradient(&self, gate: R, up: R) -> (R, R, R) {
        let zero = R::default();
        let (gate, up, gate_moves, up_moves) = self.clamp(gate, up);
        let (value, slope) = self.curve(gate);
        (value * up, if gate_moves { slope * up } else { zero }, if up_moves { value } else { zero })
    }
}

impl Activation {
    /// Stretches of columns that lie together: (columns of act, first column of the gate, first of up).
    fn stretches(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize, usize)> {
        let (block, ffn, up_first) = (self.block as usize, self.ffn as usize, self.up_first);
        (0..ffn).step_by(block).map(move |start| {
            let (near, far) = (2 * start, 2 * start + block);
            let (gate, up) = if up_first { (far, near) } else { (near, far) };
            (start..start + block, gate, up)
        })
    }

    /// y[f] = weight * act(h).
    ///
    /// # Safety
    /// `h` and `y` are rows of their lengths that nobody else writes.
    pub unsafe fn forward_row<E: Element>(&self, h: *const E, y: *mut E, weight: E::Real) {
        let formula = Formula::new(self);
        let read = |column: usize| unsafe { h.add(column).read() }.to_real();
        for (columns, gate, up) in self.stretches() {
            for (i, column) in columns.enumerate() {
                let act = if self.gated {
                    formula.gated(read(gate + i), read(up + i))
                } else {
                    formula.curve(read(column)).0
                };
                unsafe { y.add(column).write(E::from_real(weight * act)) };
            }
        }
    }

    /// dh = act'(h) * weight * dact; weighted_act = weight * act(h) unless NULL. Gives back <dact, act(h)>.
    ///
    /// # Safety
    /// All are rows of their lengths that nobody else writes; `dh` may be `h`, and `weighted_act` may be `dact`.
    pub unsafe fn backward_row<E: Element>(
        &self,
        h: *const E,
        dact: *const E,
        dh: *mut E,
        weighted_act: *mut E,
        weight: E::Real,
    ) -> E::Real {
        let formula = Formula::new(self);
        let read = |row: *const E, column: usize| unsafe { row.add(column).read() }.to_real();
        let write = |row: *mut E, column: usize, value| unsafe { row.add(column).write(E::from_real(value)) };
        let mut dot = E::Real::default();
        for (columns, gate, up) in self.stretches() {
            for (i, column) in columns.enumerate() {
                let d = read(dact, column);
                let act = if self.gated {
                    let (act, dgate, dup) = formula.gated_gradient(read(h, gate + i), read(h, up + i));
                    write(dh, gate + i, weight * d * dgate);
                    write(dh, up + i, weight * d * dup);
                    act
                } else {
                    let (act, slope) = formula.curve(read(h, column));
                    write(dh, column, weight * d * slope);
                    act
                };
                dot += d * act;
                if !weighted_act.is_null() {
                    write(weighted_act, column, weight * act);
                }
            }
        }
        dot
    }
}

/// Runs `body` for each row, on all cores, and `gap` for each row between groups.
fn for_rows(spans: &Spans, columns: i64, body: impl Fn(i64) + Sync, gap: impl Fn(i64) + Sync) {
    let piece = (PIECE / columns).max(1) as usize;
    spans.rows.par_iter().zip(&spans.ends).for_each(|(rows, &end)| {
        (rows.start as usize..end as usize).into_par_iter().with_min_len(piece).for_each(|row| {
            let row = row as i64;
            if rows.contains(&row) { body(row) } else { gap(row) }
        })
    });
}

impl Extent {
    /// # Safety
    /// The count, or the groups, are live.
    unsafe fn spans(&self, report: &Report) -> Spans {
        match self {
            Extent::Count(count) => Spans::one(unsafe { true_count(count, report) }),
            Extent::Groups(groups) => unsafe { Spans::read(groups, report) },
        }
    }
}

/// # Safety
/// The matrix has such a row, which nobody else accesses.
unsafe fn zero_row<E: Element>(matrix: &Matrix, row: i64, columns: i64) {
    unsafe { std::slice::from_raw_parts_mut(matrix.row::<E>(row), columns as usize) }.fill(E::default());
}

pub fn forward(p: &Forward, report: &Report) {
    // SAFETY: the checks have found room for the rows in every matrix; each row is written by one thread.
    unsafe {
        let spans = p.extent.spans(report);
        let weights = spans.weights(&p.row_weights, report);
        with_element!(p.h.dtype, E => for_rows(
            &spans,
            p.activation.hidden(),
            |row| p.activation.forward_row::<E>(p.h.row(row), p.y.row(row), weight(&weights, row)),
            |row| zero_row::<E>(&p.y, row, p.activation.ffn),
        ));
    }
}

pub fn backward(p: &Backward, report: &Report) {
    // SAFETY: as in `forward`.
    unsafe {
        let spans = p.extent.spans(report);
        let weights = spans.weights(&p.row_weights, report);
        let store_dot = |row, dot| {
            if let Some(to) = &p.drow_weights {
                store(to.dtype, to.data, row, dot);
            }
        };
        with_element!(p.h.dtype, E => for_rows(
            &spans,
            p.activation.hidden(),
            |row| {
                let weighted_act = p.weighted_act.map_or(std::ptr::null_mut(), |act| act.row(row));
                let weight = weight(&weights, row);
                let dot = p.activation.backward_row::<E>(p.h.row(row), p.dy.row(row), p.dh.row(row), weighted_act, weight);
                let start = p.dot_start.map_or(0.0, |start| load(start.dtype, start.data, row));
                store_dot(row, start + dot.to_f64());
            },
            |row| {
                zero_row::<E>(&p.dh, row, p.activation.hidden());
                if let Some(act) = &p.weighted_act {
                    zero_row::<E>(act, row, p.activation.ffn);
                }
                store_dot(row, 0.0);
            },
        ));
    }
}

/// The weight of a row; 1 where there are none.
fn weight<R: Real>(weights: &Option<Vec<f64>>, row: i64) -> R {
    R::from_f64(weights.as_ref().map_or(1.0, |weights| weights[row as usize]))
}
