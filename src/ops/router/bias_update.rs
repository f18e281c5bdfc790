//! router: the update of the selection bias: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::check::{self, Count};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::router::bias_update as cuda;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::{Matrix, matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::{MAX_EXPERTS, MAX_TOP_K};

/// A checked description.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    Sign { rate: f64 },
    Quantile { decay: f64, bound: i64, top_k: i64 },
}

/// moe_router_bias_update, checked.
pub struct Update {
    pub experts: i64,
    pub bias: *mut f32,
    pub data: Data,
}

pub enum Data {
    Sign { rate: f64, tokens_per_expert: *const i64 },
    Quantile { decay: f64, top_k: i64, tokens: Count, scores: Matrix, padding_mask: *const u8 },
}

impl Rule {
    fn check(desc: &moe_router_bias_update_desc_t) -> Result<(Rule, i64)> {
        let rule = check::mode("desc.rule", desc.rule, MOE_BIAS_UPDATE_QUANTILE)?;
        let experts = check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?;
        let rate = check::coefficient("desc.rate", desc.rate, 1e-3)?;
        if !(0.0..=1.0).contains(&desc.ema_decay) {
            return Err(Error::argument("desc.ema_decay", desc.ema_decay, "0 to 1"));
        }
        let bound = check::rows("desc.num_tokens", desc.num_tokens)?;
        if rule == MOE_BIAS_UPDATE_SIGN {
            check::range("desc.top_k", desc.top_k, 0..=MAX_TOP_K)?;
            return Ok((Rule::Sign { rate }, experts));
        }
        if experts == 1 {
            return Err(Error::argument("desc.num_experts", 1, "at least 2 with MOE_BIAS_UPDATE_QUANTILE"));
        }
        let top_k = check::range("desc.top_k", desc.top_k, 1..=MAX_TOP_K.min(experts - 1))?;
        Ok((Rule::Quantile { decay: desc.ema_decay, bound, top_k }, experts))
    }
}

pub fn router_bias_update(
    ctx: &moe_context_t,
    desc: &moe_router_bias_update_desc_t,
    args: &moe_router_bias_update_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let (rule, experts) = Rule::check(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let bias = check::present("args.bias", args.bias)?.cast_mut();
    let data = match rule {
        Rule::Sign { rate } => {
            let tokens_per_expert = check::present("args.tokens_per_expert", args.tokens_per_expert)?;
            Data::Sign { rate, tokens_per_expert }
        }
        Rule::Quantile { decay, bound, top_k } => Data::Quantile {
            decay,
            top_k,
            tokens: check::count("args.num_tokens", &args.num_tokens, bound)?,
            scores: matrix("args.scores", &args.scores, &[Dtype::Fp32], bound, experts)?,
            padding_mask: args.padding_mask,
        },
    };
    let problem = Update { experts, bias, data };
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::router::bias_update::run(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, keys) = cuda::layout(&rule, experts);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::run(device, &problem, (workspace, keys), args.report, call.stream)
        }
    }
}

pub fn router_bias_update_workspace(ctx: &moe_context_t, desc: &moe_router_bias_update_desc_t) -> Result<u64> {
    let (_rule, _experts) = Rule::check(desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::layout(&_rule, _experts).0.bytes()),
    }
}
