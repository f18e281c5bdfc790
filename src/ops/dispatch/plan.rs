//! moe_dispatch_plan: ids or a mask to group sizes, offsets and maps.

use crate::abi::dispatch::*;
use crate::check::{self, Count};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, INDICES};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, is_absent, matrix, optional_vector, vector};
use crate::workspace::Workspace;

/// What the description alone says: all that the workspace depends on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// T, a bound.
    pub tokens: i64,
    /// E.
    pub experts: i64,
    /// K, the most slots of a token; there are at most T*K slots.
    pub top_k: i64,
    pub expert_begin: i64,
    /// E_local.
    pub groups: i64,
    /// A power of two.
    pub alignment: i64,
    /// Slots of a group beyond these are dropped; 0: none are.
    pub rows_per_group: i64,
    /// R: rows that there is room for.
    pub rows: i64,
}

impl Sizes {
    fn new(desc: &moe_dispatch_desc_t) -> Result<Self> {
        check::switch("desc.strict_ids", desc.strict_ids)?;
        let tokens = check::rows("desc.num_tokens", desc.num_tokens)?;
        let experts = check::range("desc.num_experts", desc.num_experts, 1..=check::MAX_EXPERTS)?;
        let top_k = match check::range("desc.top_k", desc.top_k, 0..=check::MAX_WIDTH)? {
            0 => experts,
            given => given,
        };
        let expert_begin = check::range("desc.expert_begin", desc.expert_begin, 0..=experts - 1)?;
        let groups = match check::range("desc.num_local_experts", desc.num_local_experts, 0..=experts - expert_begin)? {
            0 => experts - expert_begin,
            given => given,
        };
        let alignment = check::range("desc.alignment", desc.alignment, 0..=256)?.max(1);
        if !(alignment as u64).is_power_of_two() {
            return Err(Error::argument("desc.alignment", alignment, "a power of two"));
        }
        let rows_per_group = check::rows("desc.rows_per_group", desc.rows_per_group)?;
        check::elements("desc.num_tokens x desc.top_k", &[tokens, top_k])?;
        let mut sizes = Sizes { tokens, experts, top_k, expert_begin, groups, alignment, rows_per_group, rows: 0 };
        sizes.rows = match check::rows("desc.rows_max", desc.rows_max)? {
            0 => sizes.rows_bound()?,
            given => given,
        };
        Ok(sizes)
    }

    /// The rows of a group of `count` slots, padding included.
    pub fn padded(&self, count: i64) -> i64 {
        let rows = if self.rows_per_group > 0 { self.rows_per_group } else { count };
        (rows + self.alignment - 1) & -self.alignment
    }

    /// Rows that groups may use: their starts are multiples of the alignment even where R is not.
    pub fn room(&self) -> i64 {
        self.rows & -self.alignment
    }

    /// S, a bound.
    pub fn slots(&self) -> i64 {
        self.tokens * self.top_k
    }

    /// Rows with which nothing is dropped for want of room.
    fn rows_bound(&self) -> Result<i64> {
        let slots = self.slots();
        if self.rows_per_group > 0 {
            let sizes = [self.groups, self.padded(0)];
            return check::elements("desc.num_local_experts x desc.rows_per_group", &sizes);
        }
        Ok((slots + self.groups.min(slots) * (self.alignment - 1)) & -self.alignment)
    }
}

/// Who chose which experts.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// [T, K] integers.
    Ids(Matrix),
    /// [T, E] bytes.
    ByteMask(Matrix),
    /// [T, ceil(E/32)] words.
    BitMask(Matrix),
}

/// A checked call.
pub struct Plan {
    pub sizes: Sizes,
    pub choice: Choice,
    pub strict_ids: bool,
    /// int32[E]; NULL: the range that begins with `expert_begin`.
    pub expert_map: *const i32,
    pub group_offsets: *mut i64,
    /// NULL: not wanted.
    pub group_sizes: *mut i64,
    pub slot_offsets: Option<Matrix>,
    pub row_of_slot: Matrix,
    pub slot_of_row: Option<Matrix>,
    pub token_of_row: Option<Matrix>,
    pub tokens: Count,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Send for Plan {}
unsafe impl Sync for Plan {}

fn problem(desc: &moe_dispatch_desc_t, args: &moe_dispatch_plan_args_t) -> Result<Plan> {
    let sizes = Sizes::new(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let choice = choice(&sizes, desc.top_k, args)?;
    let expert_map = check::aligned("args.expert_map", args.expert_map)?;
    if !expert_map.is_null() && sizes.expert_begin != 0 {
        return Err(Error::argument("desc.expert_begin", sizes.expert_begin, "0: expert_map replaces it"));
    }
    let offsets = optional_vector("args.slot_offsets", &args.slot_offsets, INDICES, sizes.tokens + 1, 1)?;
    if offsets.is_none() && !matches!(choice, Choice::Ids(_)) {
        return Err(Error::argument("args.slot_offsets.data", "NULL", "required with a mask"));
    }
    let plan = Plan {
        sizes,
        choice,
        strict_ids: desc.strict_ids != 0,
        expert_map,
        group_offsets: check::present("args.group_offsets", args.group_offsets)?.cast_mut(),
        group_sizes: check::aligned("args.group_sizes", args.group_sizes)?.cast_mut(),
        slot_offsets: offsets,
        row_of_slot: vector("args.row_of_slot", &args.row_of_slot, INDICES, sizes.slots(), sizes.top_k)?,
        slot_of_row: optional_vector("args.slot_of_row", &args.slot_of_row, INDICES, sizes.rows, 1)?,
        token_of_row: optional_vector("args.token_of_row", &args.token_of_row, INDICES, sizes.rows, 1)?,
        tokens: check::count("args.num_tokens", &args.num_tokens, sizes.tokens)?,
    };
    check_map_dtypes(&plan)?;
    Ok(plan)
}

fn choice(sizes: &Sizes, top_k: i64, args: &moe_dispatch_plan_args_t) -> Result<Choice> {
    let given = [&args.ids, &args.byte_mask, &args.bit_mask].map(|tensor| !is_absent(tensor));
    let [tokens, experts] = [sizes.tokens, sizes.experts];
    match given {
        [false, true, false] => {
            matrix("args.byte_mask", &args.byte_mask, &[Dtype::Uint8], tokens, experts).map(Choice::ByteMask)
        }
        [false, false, true] => {
            let words = (experts + 31) / 32;
            matrix("args.bit_mask", &args.bit_mask, &[Dtype::Uint32], tokens, words).map(Choice::BitMask)
        }
        [true, false, false] => {
            check::range("desc.top_k", top_k, 1..=check::MAX_WIDTH)?;
            matrix("args.ids", &args.ids, INDICES, tokens, sizes.top_k).map(Choice::Ids)
        }
        [false, false, false] if tokens == 0 => {
            Ok(Choice::Ids(Matrix { dtype: Dtype::Int32, data: std::ptr::null_mut(), pitch: 0 }))
        }
        _ => {
            let number = given.iter().filter(|&&g| g).count();
            Err(Error::argument("the number of args.ids, args.byte_mask, args.bit_mask", number, "exactly one"))
        }
    }
}

/// All maps have one dtype, wide enough for what they hold.
fn check_map_dtypes(plan: &Plan) -> Result<()> {
    let dtype = plan.row_of_slot.dtype;
    let others = [
        ("args.slot_offsets", plan.slot_offsets),
        ("args.slot_of_row", plan.slot_of_row),
        ("args.token_of_row", plan.token_of_row),
    ];
    for (argument, map) in others {
        if let Some(map) = map.filter(|map| map.dtype != dtype) {
            let limit = format!("{}, as args.row_of_slot", dtype.name());
            return Err(Error::argument(format!("{argument}.dtype"), map.dtype.name(), limit));
        }
    }
    let largest = plan.sizes.slots().max(plan.sizes.rows);
    if dtype == Dtype::Int32 && largest > i32::MAX.into() {
        let limit = format!("INT64 for {largest} slots or rows");
        return Err(Error::argument("args.row_of_slot.dtype", dtype.name(), limit));
    }
    Ok(())
}

pub fn dispatch_plan(
    ctx: &moe_context_t,
    desc: &moe_dispatch_desc_t,
    args: &moe_dispatch_plan_args_t,
    call: Call,
) -> Result<()> {
    let plan = problem(desc, args)?;
    match &ctx.backend {
        Backend::Cpu => {
            let (layout, parts) = cpu::dispatch::plan_layout(&plan.sizes);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            ctx.with_report(args.report, |report| cpu::dispatch::plan(&plan, &parts, workspace, report))
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, shape) = cuda::dispatch::plan_layout(device, &plan.sizes);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::dispatch::plan(device, &plan, &shape, workspace, args.report, call.stream)
        }
    }
}

pub fn dispatch_plan_workspace(ctx: &moe_context_t, desc: &moe_dispatch_desc_t) -> Result<u64> {
    let sizes = Sizes::new(desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(cpu::dispatch::plan_layout(&sizes).0.bytes()),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => Ok(cuda::dispatch::plan_layout(device, &sizes).0.bytes()),
    }
}

pub fn dispatch_rows_max(_: &moe_context_t, desc: &moe_dispatch_desc_t) -> Result<i64> {
    Sizes::new(desc)?.rows_bound()
}
