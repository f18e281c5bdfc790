//! The update of the selection bias on a GPU.

use crate::abi::types::*;
use crate::check::Count;
use crate::cuda::{Device, Launch};
use crate::error::Result;
use crate::ops::router::bias_update::{Data, Rule, Update};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use super::{ceil_div, key_tile, tile_bytes};

/// Threads of a block that takes experts, at least as many as there can be, and of one that takes tokens.
pub const BIAS_THREADS: i64 = 1024;
pub const BIAS_ROW_THREADS: i64 = 256;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterBiasSignParams {
    pub experts: i32,
    pub rate: f32,
    pub bias: *mut f32,
    pub tokens_per_expert: *const i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterBiasQuantileParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// Tokens of a tile.
    pub tile: i32,
    pub decay: f64,
    pub scores: Matrix,
    pub padding_mask: *const u8,
    pub bias: *mut f32,
    /// [E, T].
    pub keys: *mut u32,
    pub report: *mut moe_device_report_t,
}

pub fn layout(rule: &Rule, experts: i64) -> (Layout, Part) {
    let mut layout = Layout::default();
    let keys = match rule {
        Rule::Sign { .. } => layout.part(0),
        Rule::Quantile { bound, .. } => layout.part(experts * bound * 4),
    };
    (layout, keys)
}

pub fn run(
    device: &Device,
    problem: &Update,
    (workspace, keys): (Workspace, Part),
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let (experts, bias) = (problem.experts, problem.bias);
    device.run(report, stream, |launcher| match problem.data {
        Data::Sign { rate, tokens_per_expert } => {
            let params = RouterBiasSignParams { experts: experts as i32, rate: rate as f32, bias, tokens_per_expert };
            let block = BIAS_THREADS as u32;
            let launch = Launch { kernel: "router_bias_sign", grid: [1, 1, 1], block, ..Default::default() };
            launcher.launch(&launch, &params)
        }
        Data::Quantile { decay, top_k, tokens, scores, padding_mask } => {
            let tile = key_tile(experts, 4);
            let params = RouterBiasQuantileParams {
                tokens,
                experts: experts as i32,
                top_k: top_k as i32,
                tile: tile as i32,
                decay,
                scores,
                padding_mask,
                bias,
                keys: workspace.at(keys),
                report: launcher.report,
            };
            let blocks = ceil_div(tokens.bound, tile).min(8 * i64::from(device.multiprocessors)) as u32;
            let rows = Launch {
                kernel: "router_bias_margins",
                grid: [blocks, 1, 1],
                block: BIAS_ROW_THREADS as u32,
                shared: tile_bytes(tile, experts, 4) as u32,
                ..Default::default()
            };
            launcher.launch(&rows, &params)?;
            let columns = Launch {
                kernel: "router_bias_quantile",
                grid: [experts as u32, 1, 1],
                block: BIAS_THREADS as u32,
                ..Default::default()
            };
            launcher.launch(&columns, &params)
        }
    })
}
