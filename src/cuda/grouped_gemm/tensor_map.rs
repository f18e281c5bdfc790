//! Tensor maps: how Hopper's copy engine finds the boxes of a matrix.

use std::ptr::null_mut;

use cudarc::driver::sys::*;

use crate::cuda::launch::Launcher;
use crate::dtype::Dtype;
use crate::error::Result;

/// As the driver encodes it; kernels take it by value or read it from memory, at a multiple of 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap {
    pub words: [u64; 16],
}

/// Row-major matrices [groups, rows, columns] of 16-bit elements, copied by boxes of [box_rows, 64].
pub struct Boxes {
    pub dtype: Dtype,
    pub data: *mut u8,
    /// Groups, rows, columns; a map of one group has a dimension for it only where `grouped`.
    pub groups: i64,
    pub rows: i64,
    pub columns: i64,
    /// Elements from row to row, and from group to group.
    pub pitch: i64,
    pub group_stride: i64,
    pub box_rows: u32,
    pub grouped: bool,
}

/// Bytes that addresses and strides are multiples of.
const ALIGNMENT: i64 = 16;

impl Boxes {
    /// Whether there can be a map: alignment, and the sizes that fit its fields.
    pub fn fits(&self) -> bool {
        let aligned = |elements: i64| elements * 2 % ALIGNMENT == 0;
        self.data.addr() as i64 % ALIGNMENT == 0
            && aligned(self.pitch)
            && (self.groups == 1 || aligned(self.group_stride) && self.group_stride > 0)
            && [self.groups, self.rows, self.columns].iter().all(|&size| (1..1 << 31).contains(&size))
            && self.pitch > 0
            && self.pitch.max(self.group_stride) < 1 << 38
    }

    pub fn map(&self, launcher: &Launcher) -> Result<TensorMap> {
        let dtype = match self.dtype {
            Dtype::Fp16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let sizes = [self.columns as u64, self.rows as u64, self.groups as u64];
        // The stride of a single group is not used, but has to be valid.
        let stride = if self.groups == 1 { self.pitch } else { self.group_stride };
        let pitches = [self.pitch as u64 * 2, stride as u64 * 2];
        let (boxes, strides) = ([64, self.box_rows, 1], [1, 1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have as many entries as the rank asks for; the data is not touched.
        unsafe {
            launcher.device.driver.encode_tensor_map(
                &mut map,
                dtype,
                if self.grouped { 3 } else { 2 },
                if self.data.is_null() { null_mut() } else { self.data.cast() },
                sizes.as_ptr(),
                pitches.as_ptr(),
                boxes.as_ptr(),
                strides.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )?;
        }
        Ok(TensorMap { words: map.opaque })
    }
}
