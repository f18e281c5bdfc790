//! Size-first structs: an older caller's is padded with zeros, a newer one's unknown tail must be zero.

use super::{
    activation::*, context::*, dispatch::*, expert_mlp::*, grouped_gemm::*, parallel::*, quantize::*, router::*,
};
use crate::error::{Error, Result};

/// No struct is smaller or larger: such a struct_size was never written.
const SMALLEST: usize = 8;
const LARGEST: usize = 1 << 16;

/// A `#[repr(C)]` struct of the header.
///
/// # Safety
/// It begins with `struct_size: u32`, and all zeros is a valid value of it.
pub unsafe trait SizedStruct: Copy + std::fmt::Debug {
    const NAME: &'static str;
}

macro_rules! sized_structs {
    ($($name:ident)*) => { $(
        // SAFETY: declared in `abi` with struct_size first and plain C fields alone.
        unsafe impl SizedStruct for $name {
            const NAME: &'static str = stringify!($name);
        }
    )* };
}

sized_structs! {
    moe_context_info_t
    moe_router_logits_desc_t moe_router_logits_fwd_args_t moe_router_logits_bwd_args_t
    moe_router_desc_t moe_router_fwd_args_t moe_router_bwd_args_t
    moe_router_loss_desc_t moe_router_loss_fwd_args_t moe_router_loss_bwd_args_t
    moe_sinkhorn_desc_t moe_sinkhorn_args_t moe_sinkhorn_step_args_t
    moe_expert_choice_desc_t moe_expert_choice_fwd_args_t moe_expert_choice_bwd_args_t
    moe_router_bias_update_desc_t moe_router_bias_update_args_t
    moe_capacity_desc_t moe_capacity_fwd_args_t moe_capacity_bwd_args_t
    moe_dispatch_desc_t moe_dispatch_plan_args_t moe_permute_desc_t
    moe_dispatch_fwd_args_t moe_dispatch_bwd_args_t moe_combine_fwd_args_t moe_combine_bwd_args_t
    moe_sort_chunks_desc_t moe_sort_chunks_args_t
    moe_grouped_gemm_desc_t moe_grouped_gemm_fwd_args_t moe_grouped_gemm_bwd_args_t
    moe_activation_desc_t moe_activation_fwd_args_t moe_activation_bwd_args_t
    moe_expert_mlp_desc_t moe_expert_mlp_fwd_args_t moe_expert_mlp_bwd_args_t moe_expert_mlp_wgrad_args_t
    moe_quantize_desc_t moe_quantize_args_t moe_dequantize_args_t
    moe_comm_callbacks_t moe_ep_desc_t
    moe_ep_dispatch_fwd_args_t moe_ep_dispatch_bwd_args_t moe_ep_combine_fwd_args_t moe_ep_combine_bwd_args_t
    moe_tp_reduce_desc_t moe_tp_reduce_args_t
}

/// Copies a caller's struct. `argument` is its name in the function's signature.
///
/// # Safety
/// `pointer` is NULL or points to `struct_size` readable bytes (at least four).
pub unsafe fn read<T: SizedStruct>(pointer: *const T, argument: &str) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::argument(argument, "NULL", format!("a pointer to {}", T::NAME)));
    }
    if !pointer.is_aligned() {
        return Err(Error::argument(argument, format!("{pointer:?}"), format!("aligned to {} bytes", align_of::<T>())));
    }
    let known = size_of::<T>();
    // SAFETY: the caller vouches for the first four bytes, then for struct_size of them.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if !(SMALLEST..=LARGEST).contains(&size) {
        let limit = format!("{known}, as the INIT macro of {} sets it", T::NAME);
        return Err(Error::argument(format!("{argument}.struct_size"), size, limit));
    }
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) };
    if let Some(place) = bytes[known.min(size)..].iter().position(|&b| b != 0) {
        let limit = format!("0: this libmoe knows {known} bytes of {}", T::NAME);
        return Err(Error::argument(format!("{argument} at byte {}", known + place), "not 0", limit));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: both sides have at least min(size, known) bytes, and T is plain data that may hold zeros.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast::<u8>(), size.min(known));
        Ok(value.assume_init())
    }
}
