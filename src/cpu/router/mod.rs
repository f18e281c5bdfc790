//! Routers on the CPU.

pub mod bias_update;
pub mod capacity;
mod expert_choice;
mod logits;
mod loss;
mod score;
mod select;
pub mod sinkhorn;
mod topk;

use crate::error::Result;
use crate::ops::router::{expert_choice as choice, logits as gate, loss as losses, topk as router};
use crate::report::Report;

pub fn logits_fwd(problem: &gate::Forward, report: Report) -> Result<()> {
    if problem.gate.wide {
        logits::fwd::<f64>(problem, report)
    } else {
        logits::fwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn logits_bwd(problem: &gate::Backward, report: Report) -> Result<()> {
    if problem.gate.wide {
        logits::bwd::<f64>(problem, report)
    } else {
        logits::bwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn fwd(problem: &router::Forward, report: Report) -> Result<()> {
    if problem.router.losses.wide {
        topk::fwd::<f64>(problem, report)
    } else {
        topk::fwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn bwd(problem: &router::Backward, report: Report) -> Result<()> {
    if problem.router.losses.wide {
        topk::bwd::<f64>(problem, report)
    } else {
        topk::bwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn loss_fwd(problem: &losses::Forward, report: Report) -> Result<()> {
    if problem.losses.wide {
        loss::fwd::<f64>(problem, report)
    } else {
        loss::fwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn loss_bwd(problem: &losses::Backward, report: Report) -> Result<()> {
    if problem.losses.wide {
        loss::bwd::<f64>(problem, report)
    } else {
        loss::bwd::<f32>(problem, report)
    }
    Ok(())
}

pub fn expert_choice_fwd(problem: &choice::Forward, report: Report) -> Result<()> {
    if problem.desc.wide {
        expert_choice::fwd::<f64>(problem, &report)
    } else {
        expert_choice::fwd::<f32>(problem, &report)
    }
    Ok(())
}

pub fn expert_choice_bwd(problem: &choice::Backward, report: Report) -> Result<()> {
    if problem.desc.wide {
        expert_choice::bwd::<f64>(problem, &report)
    } else {
        expert_choice::bwd::<f32>(problem, &report)
    }
    Ok(())
}

/// Token ranges that depend on the tokens alone, so that sums of them are the same for any number of threads.
fn chunks(tokens: i64) -> impl rayon::iter::IndexedParallelIterator<Item = std::ops::Range<i64>> {
    use rayon::prelude::*;
    let size = (tokens / 64).max(64);
    (0..((tokens + size - 1) / size) as usize).into_par_iter().map(move |chunk| {
        let begin = chunk as i64 * size;
        begin..(begin + size).min(tokens)
    })
}
