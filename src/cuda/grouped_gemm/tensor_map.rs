//! Tensor maps: how Hopper's copy engine finds the boxes of a matrix.

use std::ptr::{null, null_mut};

use cudarc::driver::sys::*;

use crate::abi::types::moe_device_report_t;
use crate::cuda::launch::{Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::tensor::Grouped;

/// As the driver encodes it; kernels take it by value or read it from memory, at a multiple of 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap {
    pub words: [u64; 16],
}

/// What boxes are copied from: by one map, or by a map for each group.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BoxSource {
    pub map: TensorMap,
    /// In place of `map` where matrices are given by pointers.
    pub maps: *const TensorMap,
    /// Those pointers, and elements from where one points to where its matrix begins.
    pub pointers: *const *mut u8,
    pub offset: i64,
}

impl BoxSource {
    /// Nothing is copied by boxes.
    pub const ABSENT: BoxSource =
        BoxSource { map: TensorMap { words: [0; 16] }, maps: null(), pointers: null(), offset: 0 };
}

/// The maps of matrices that are given by pointers (kernels/hopper_maps.cu).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BoxMapsParams {
    /// Of another matrix of that shape.
    pub model: TensorMap,
    pub groups: i64,
    /// Absent matrices are NULL, and get no map.
    pub pointers: *const *mut u8,
    pub offset: i64,
    pub maps: *mut TensorMap,
    pub report: *mut moe_device_report_t,
}

/// Maps that a block of that kernel makes, each by a warp.
const MAPS_A_BLOCK: u32 = 4;

/// Row-major matrices [groups, rows, columns] of 16-bit elements, copied by boxes of [box_rows, 64].
#[derive(Clone, Copy)]
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

/// Bytes that strides are multiples of, and the addresses in maps.
const ALIGNMENT: i64 = 16;

impl Boxes {
    /// Whether there can be a map: alignment, and the sizes that fit its fields.
    pub fn fits(&self) -> bool {
        let aligned = |elements: i64| elements * 2 % ALIGNMENT == 0;
        aligned(self.pitch)
            && self.data.addr() as i64 % ALIGNMENT == 0
            && self.pitch >= self.columns
            && (self.groups == 1 || aligned(self.group_stride) && self.group_stride > 0)
            && [self.groups, self.rows, self.columns].iter().all(|&size| (1..(1 << 31) - 8).contains(&size))
            && self.pitch.max(self.group_stride) < 1 << 38
    }

    /// Where `data` lies.
    pub fn source(&self, launcher: &Launcher) -> Result<BoxSource> {
        Ok(BoxSource { map: self.map(launcher)?, ..BoxSource::ABSENT })
    }

    /// Where a weight lies: stacked, or by pointers, whose maps are made in `room`.
    pub fn source_of(&self, launcher: &Launcher, weight: &Grouped, room: *mut TensorMap) -> Result<BoxSource> {
        if weight.pointers.is_null() {
            return self.source(launcher);
        }
        let (pointers, offset) = (weight.pointers, weight.offset);
        let params = BoxMapsParams {
            model: Boxes { data: room.cast(), groups: 1, ..*self }.map(launcher)?,
            groups: self.groups,
            pointers,
            offset,
            maps: room,
            report: launcher.report,
        };
        let grid = [(self.groups as u32).div_ceil(MAPS_A_BLOCK), 1, 1];
        let launch = Launch { kernel: "hopper_box_maps", grid, block: 32 * MAPS_A_BLOCK, ..Default::default() };
        launcher.launch(&launch, &params)?;
        Ok(BoxSource { maps: room, pointers, offset, ..BoxSource::ABSENT })
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
