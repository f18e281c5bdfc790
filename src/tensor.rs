//! Validated tensors: what an operation's checks make of the caller's `moe_tensor_t`. CUDA kernels take them as they
//! are (`kernels/params/types.h`); what is optional there is a `Matrix` or `Grouped` with NULLs: `ABSENT`.

use crate::abi::types::*;
use crate::check::{address, elements, range};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A row-major matrix [rows, columns]; a vector is one row or, with one column, contiguous rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub dtype: Dtype,
    pub data: *mut u8,
    /// Elements from one row to the next.
    pub pitch: i64,
}

// SAFETY: an address and its type; what is done with it is each backend's own proof.
unsafe impl Send for Matrix {}
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Where row `row` begins.
    pub fn row<E>(&self, row: i64) -> *mut E {
        self.data.cast::<E>().wrapping_offset((row * self.pitch) as isize)
    }

    /// The same rows from a column on.
    pub fn columns_from(&self, column: i64) -> Self {
        Matrix { data: self.data.wrapping_offset((column * self.dtype.size()) as isize), ..*self }
    }
}

/// One matrix a group: stacked, or by a device array of pointers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Grouped {
    pub dtype: Dtype,
    /// NULL where `pointers` is given.
    pub data: *mut u8,
    pub pitch: i64,
    pub group_stride: i64,
    pub pointers: *const *mut u8,
    /// Elements from where data or a pointer points to where a group's matrix begins.
    pub offset: i64,
}

// SAFETY: as for Matrix.
unsafe impl Send for Grouped {}
unsafe impl Sync for Grouped {}

impl Matrix {
    /// An optional matrix that is not there, for kernels.
    pub const ABSENT: Matrix = Matrix { dtype: Dtype::Fp32, data: std::ptr::null_mut(), pitch: 0 };
}

impl Grouped {
    /// Optional matrices that are not there, for kernels.
    pub const ABSENT: Grouped = Grouped {
        dtype: Dtype::Fp32,
        data: std::ptr::null_mut(),
        pitch: 0,
        group_stride: 0,
        offset: 0,
        pointers: std::ptr::null(),
    };
}

pub fn is_absent(tensor: &moe_tensor_t) -> bool {
    tensor.data.is_null() && tensor.pointers.is_null()
}

/// A required [rows, columns] tensor; its data may be NULL when it has no elements.
pub fn matrix(argument: &str, tensor: &moe_tensor_t, allowed: &[Dtype], rows: i64, columns: i64) -> Result<Matrix> {
    if is_absent(tensor) && rows > 0 && columns > 0 {
        return Err(Error::argument(format!("{argument}.data"), "NULL", "required here"));
    }
    let grouped = checked(argument, tensor, allowed, 1, rows, columns)?;
    if !grouped.pointers.is_null() {
        return Err(Error::argument(format!("{argument}.pointers"), "not NULL", "NULL: this tensor has no groups"));
    }
    Ok(Matrix { dtype: grouped.dtype, data: grouped.data, pitch: grouped.pitch })
}

pub fn optional_matrix(
    argument: &str,
    tensor: &moe_tensor_t,
    allowed: &[Dtype],
    rows: i64,
    columns: i64,
) -> Result<Option<Matrix>> {
    if is_absent(tensor) { Ok(None) } else { matrix(argument, tensor, allowed, rows, columns).map(Some) }
}

/// A required contiguous vector. [T, K] given with row_pitch K is one of T*K elements.
pub fn vector(argument: &str, tensor: &moe_tensor_t, allowed: &[Dtype], length: i64, row: i64) -> Result<Matrix> {
    let pitch = tensor.row_pitch;
    if pitch != 0 && pitch != row {
        return Err(Error::argument(format!("{argument}.row_pitch"), pitch, format!("0 or {row}: contiguous")));
    }
    let packed = moe_tensor_t { row_pitch: 0, ..*tensor };
    matrix(argument, &packed, allowed, length, 1)
}

pub fn optional_vector(
    argument: &str,
    tensor: &moe_tensor_t,
    allowed: &[Dtype],
    length: i64,
    row: i64,
) -> Result<Option<Matrix>> {
    if is_absent(tensor) { Ok(None) } else { vector(argument, tensor, allowed, length, row).map(Some) }
}

/// A required [groups, rows, columns] tensor, stacked or by pointers.
pub fn grouped(
    argument: &str,
    tensor: &moe_tensor_t,
    allowed: &[Dtype],
    groups: i64,
    rows: i64,
    columns: i64,
) -> Result<Grouped> {
    if is_absent(tensor) {
        return Err(Error::argument(format!("{argument}.data"), "NULL", "data or pointers, required here"));
    }
    checked(argument, tensor, allowed, groups, rows, columns)
}

pub fn optional_grouped(
    argument: &str,
    tensor: &moe_tensor_t,
    allowed: &[Dtype],
    groups: i64,
    rows: i64,
    columns: i64,
) -> Result<Option<Grouped>> {
    if is_absent(tensor) { Ok(None) } else { grouped(argument, tensor, allowed, groups, rows, columns).map(Some) }
}

fn checked(
    argument: &str,
    tensor: &moe_tensor_t,
    allowed: &[Dtype],
    groups: i64,
    rows: i64,
    columns: i64,
) -> Result<Grouped> {
    let size = size_of::<moe_tensor_t>();
    if tensor.struct_size as usize != size {
        return Err(Error::argument(
            format_args!("{argument}.struct_size"),
            tensor.struct_size,
            format!("{size}, as MOE_TENSOR_INIT sets it"),
        ));
    }
    if tensor.reserved != [0; 4] {
        return Err(Error::argument(format_args!("{argument}.reserved"), "not 0", "0"));
    }
    let dtype = Dtype::check(format_args!("{argument}.dtype"), tensor.dtype, allowed)?;
    if tensor.scale_kind != MOE_SCALE_NONE && !matches!(dtype, Dtype::Fp8E4m3 | Dtype::Fp8E5m2) {
        return Err(Error::argument(
            format_args!("{argument}.scale_kind"),
            tensor.scale_kind,
            "MOE_SCALE_NONE: only FP8 has scales",
        ));
    }
    if !tensor.data.is_null() && !tensor.pointers.is_null() {
        return Err(Error::argument(format_args!("{argument}.pointers"), "not NULL", "NULL where data is given"));
    }
    address(format_args!("{argument}.data"), tensor.data.cast(), dtype.size() as usize)?;
    address(format_args!("{argument}.pointers"), tensor.pointers.cast(), 8)?;
    let pitch = match tensor.row_pitch {
        0 => columns,
        given => range(format_args!("{argument}.row_pitch"), given, if rows > 1 { columns } else { 0 }..=i64::MAX)?,
    };
    let extent = elements(argument, &[rows, pitch])?;
    let group_stride = match tensor.group_stride {
        0 => extent,
        given => {
            let least = if groups > 1 { extent - (pitch - columns) } else { 0 };
            range(format_args!("{argument}.group_stride"), given, least..=i64::MAX)?
        }
    };
    elements(argument, &[groups, group_stride, dtype.size()])?;
    Ok(Grouped { dtype, data: tensor.data.cast(), pitch, group_stride, pointers: tensor.pointers.cast(), offset: 0 })
}
