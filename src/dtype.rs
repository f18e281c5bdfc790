//! Element types: the one table of their numbers, names and sizes.

use std::fmt::Display;

use crate::abi::types::*;
use crate::error::{Error, Result};

macro_rules! dtypes {
    ($($variant:ident = $abi:ident, $name:literal, $size:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Dtype { $($variant = $abi),* }

        impl Dtype {
            pub const ALL: &[Dtype] = &[$(Dtype::$variant),*];

            pub fn from_abi(value: moe_dtype_t) -> Option<Self> {
                match value { $($abi => Some(Dtype::$variant),)* _ => None }
            }
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),* }
            }
            /// Bytes an element.
            pub fn size(self) -> i64 {
                match self { $(Dtype::$variant => $size),* }
            }
        }
    };
}

dtypes! {
    Fp32 = MOE_DTYPE_FP32, "FP32", 4;
    Fp16 = MOE_DTYPE_FP16, "FP16", 2;
    Bf16 = MOE_DTYPE_BF16, "BF16", 2;
    Fp64 = MOE_DTYPE_FP64, "FP64", 8;
    Fp8E4m3 = MOE_DTYPE_FP8_E4M3, "FP8_E4M3", 1;
    Fp8E5m2 = MOE_DTYPE_FP8_E5M2, "FP8_E5M2", 1;
    Int32 = MOE_DTYPE_INT32, "INT32", 4;
    Int64 = MOE_DTYPE_INT64, "INT64", 8;
    Uint8 = MOE_DTYPE_UINT8, "UINT8", 1;
    Uint32 = MOE_DTYPE_UINT32, "UINT32", 4;
    E8m0 = MOE_DTYPE_E8M0, "E8M0", 1;
}

/// Activations, weights, logits. FP64 is the CPU backend's alone.
pub const FLOATS: &[Dtype] = &[Dtype::Fp32, Dtype::Fp16, Dtype::Bf16, Dtype::Fp64];
/// Ids and maps.
pub const INDICES: &[Dtype] = &[Dtype::Int32, Dtype::Int64];

impl Dtype {
    /// The dtype `value` of `argument`, if it is among `allowed`.
    pub fn check(argument: impl Display, value: moe_dtype_t, allowed: &[Dtype]) -> Result<Dtype> {
        let dtype = Dtype::from_abi(value);
        dtype.filter(|d| allowed.contains(d)).ok_or_else(|| {
            let names: Vec<_> = allowed.iter().map(|d| d.name()).collect();
            let value = dtype.map_or_else(|| value.to_string(), |d| d.name().into());
            Error::argument(argument, value, format!("one of MOE_DTYPE_{}", names.join(", ")))
        })
    }
}
