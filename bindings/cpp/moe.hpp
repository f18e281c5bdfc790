// libmoe for C++17: contexts and communicators that destroy themselves, errors as exceptions.
// Header-only, owns no tensors.
//
// Every function of moe.h that returns a status is here without its moe_ prefix, in namespace moe:
//
//   moe::Context ctx(MOE_DEVICE_CPU);
//   moe_router_desc_t desc = MOE_ROUTER_DESC_INIT;
//   moe_router_fwd_args_t args = MOE_ROUTER_FWD_ARGS_INIT;
//   args.logits = moe::tensor(logits.data());
//   std::uint64_t bytes = moe::router_fwd_workspace_size(ctx, desc);
//   moe::router_fwd(ctx, desc, args, workspace, bytes, stream);
//
// What the descriptions and arguments mean stands in moe.h, what holds for all functions in docs/conventions.md.
#ifndef MOE_HPP
#define MOE_HPP

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "moe.h"

namespace moe {

// ---------------------------------------------------------------- errors

/// A call that did not succeed; what() is moe_last_error_message().
class Error : public std::runtime_error {
public:
  Error(moe_status_t status, const std::string &message) : std::runtime_error(message), status_(status) {}
  moe_status_t status() const noexcept { return status_; }

private:
  moe_status_t status_;
};

/// An argument is wrong: nothing was enqueued, no output was touched.
struct InvalidArgument : Error { using Error::Error; };
/// A valid request that this build, backend or version does not serve.
struct Unsupported : Error { using Error::Error; };
/// No CUDA driver, or no device that libmoe can use.
struct DeviceUnavailable : Error { using Error::Error; };
/// A call of the CUDA driver failed; outputs are undefined.
struct DriverError : Error { using Error::Error; };
/// NCCL is missing, or one of its calls failed.
struct NcclError : Error { using Error::Error; };
/// MOE_CHECK=1 found what a kernel reported.
struct DeviceFault : Error { using Error::Error; };

/// Throws what `status` stands for.
inline void check(moe_status_t status) {
  if (status == MOE_STATUS_SUCCESS) return;
  const std::string message = moe_last_error_message();
  switch (status) {
    case MOE_STATUS_INVALID_ARGUMENT: throw InvalidArgument(status, message);
    case MOE_STATUS_UNSUPPORTED: throw Unsupported(status, message);
    case MOE_STATUS_NO_DRIVER:
    case MOE_STATUS_UNSUPPORTED_DEVICE: throw DeviceUnavailable(status, message);
    case MOE_STATUS_DRIVER_ERROR: throw DriverError(status, message);
    case MOE_STATUS_NO_NCCL:
    case MOE_STATUS_NCCL_ERROR: throw NcclError(status, message);
    case MOE_STATUS_DEVICE_FAULT: throw DeviceFault(status, message);
    default: throw Error(status, message);
  }
}

// ---------------------------------------------------------------- tensors

/// The MOE_DTYPE_* of an element type. Specialise it for 16-bit floats of your own:
/// template <> struct moe::dtype_of<__nv_bfloat16> : std::integral_constant<moe_dtype_t, MOE_DTYPE_BF16> {};
template <class T> struct dtype_of;
template <> struct dtype_of<float> : std::integral_constant<moe_dtype_t, MOE_DTYPE_FP32> {};
template <> struct dtype_of<double> : std::integral_constant<moe_dtype_t, MOE_DTYPE_FP64> {};
template <> struct dtype_of<std::int32_t> : std::integral_constant<moe_dtype_t, MOE_DTYPE_INT32> {};
template <> struct dtype_of<std::int64_t> : std::integral_constant<moe_dtype_t, MOE_DTYPE_INT64> {};
template <> struct dtype_of<std::uint8_t> : std::integral_constant<moe_dtype_t, MOE_DTYPE_UINT8> {};
template <> struct dtype_of<std::uint32_t> : std::integral_constant<moe_dtype_t, MOE_DTYPE_UINT32> {};

template <class T> inline constexpr moe_dtype_t dtype_v = dtype_of<std::remove_cv_t<T>>::value;

/// A view of memory whose element type the compiler does not know; see tensor().
inline moe_tensor_t untyped_tensor(const void *data, moe_dtype_t dtype, std::int64_t row_pitch = 0,
                                   std::int64_t group_stride = 0) {
  moe_tensor_t view = MOE_TENSOR_INIT;
  view.dtype = dtype;
  view.data = const_cast<void *>(data);
  view.row_pitch = row_pitch;
  view.group_stride = group_stride;
  return view;
}

/// A view of memory. Pitch and stride count elements; 0 means contiguous. Inputs are only read,
/// though the field is not const.
template <class T> moe_tensor_t tensor(T *data, std::int64_t row_pitch = 0, std::int64_t group_stride = 0) {
  return untyped_tensor(data, dtype_v<T>, row_pitch, group_stride);
}

/// One matrix a group, by a device array of device pointers; NULL entries are skipped.
inline moe_tensor_t tensor_of_pointers(void *const *pointers, moe_dtype_t dtype, std::int64_t row_pitch = 0) {
  moe_tensor_t view = MOE_TENSOR_INIT;
  view.dtype = dtype;
  view.pointers = pointers;
  view.row_pitch = row_pitch;
  return view;
}

/// A count on the device.
template <class T> moe_count_t count(const T *device) {
  static_assert(dtype_v<T> == MOE_DTYPE_INT32 || dtype_v<T> == MOE_DTYPE_INT64, "a count is an int32 or an int64");
  moe_count_t value = MOE_COUNT_INIT;
  value.device = device;
  value.dtype = dtype_v<T>;
  return value;
}

inline moe_output_mode_t overwrite() { return MOE_OUTPUT_MODE_INIT; }

inline moe_output_mode_t add() {
  moe_output_mode_t mode = MOE_OUTPUT_MODE_INIT;
  mode.mode = MOE_OUTPUT_ADD;
  return mode;
}

/// ADD where *add is not 0 when the work runs.
inline moe_output_mode_t add_if(const std::int32_t *add) {
  moe_output_mode_t mode = MOE_OUTPUT_MODE_INIT;
  mode.mode = MOE_OUTPUT_FROM_DEVICE;
  mode.add = add;
  return mode;
}

// ---------------------------------------------------------------- contexts, communicators

namespace detail {

/// Sole owner of an object of the library.
template <class T, moe_status_t (*destroy)(T *)> class Handle {
public:
  Handle(Handle &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Handle &operator=(Handle &&other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Handle() { destroy(object_); }

  T *get() const noexcept { return object_; }

protected:
  Handle() = default;
  T *object_ = nullptr;
};

} // namespace detail

/// A device, opened. Any number of threads may share one.
class Context : public detail::Handle<moe_context_t, moe_context_destroy> {
public:
  /// `device` is a GPU's ordinal, or MOE_DEVICE_CPU.
  explicit Context(std::int32_t device) { check(moe_context_create(device, &object_)); }

  moe_context_info_t info() const {
    moe_context_info_t info = MOE_CONTEXT_INFO_INIT;
    check(moe_context_info(object_, &info));
    return info;
  }
};

/// A group of ranks; it does not own what it wraps.
class Comm : public detail::Handle<moe_comm_t, moe_comm_destroy> {
public:
  /// Wraps an ncclComm_t.
  Comm(const Context &ctx, void *nccl_comm) { check(moe_comm_from_nccl(ctx.get(), nccl_comm, &object_)); }
  Comm(const Context &ctx, const moe_comm_callbacks_t &callbacks) {
    check(moe_comm_from_callbacks(ctx.get(), &callbacks, &object_));
  }

  void register_buffer(void *buffer, std::uint64_t bytes) { check(moe_comm_register(object_, buffer, bytes)); }
};

/// What is enqueued on `stream` from now on waits for what `other` holds now; `event` is recorded for that.
inline void stream_wait(const Context &ctx, moe_stream_t stream, moe_stream_t other, moe_event_t event) {
  check(moe_stream_wait(ctx.get(), stream, other, event));
}

inline std::string device_report_message(const moe_device_report_t &report) {
  char text[256];
  check(moe_device_report_message(&report, text, sizeof text));
  return text;
}

// ---------------------------------------------------------------- operations

// void name(ctx, desc, args, workspace, workspace_size, stream) and std::uint64_t name_workspace_size(ctx, desc)
#define MOE_HPP_OPERATION(name, desc_t, args_t)                                                                       \
  inline void name(const Context &ctx, const desc_t &desc, const args_t &args, void *workspace = nullptr,             \
                   std::uint64_t workspace_size = 0, moe_stream_t stream = nullptr) {                                 \
    check(moe_##name(ctx.get(), &desc, &args, workspace, workspace_size, stream));                                    \
  }                                                                                                                   \
  MOE_HPP_QUERY(name##_workspace_size, desc_t, std::uint64_t)

// The same, between the ranks of a communicator.
#define MOE_HPP_COLLECTIVE(name, desc_t, args_t)                                                                      \
  inline void name(const Context &ctx, const Comm &comm, const desc_t &desc, const args_t &args,                      \
                   void *workspace = nullptr, std::uint64_t workspace_size = 0, moe_stream_t stream = nullptr) {      \
    check(moe_##name(ctx.get(), comm.get(), &desc, &args, workspace, workspace_size, stream));                        \
  }                                                                                                                   \
  MOE_HPP_QUERY(name##_workspace_size, desc_t, std::uint64_t)

// answer_t name(ctx, desc)
#define MOE_HPP_QUERY(name, desc_t, answer_t)                                                                         \
  inline answer_t name(const Context &ctx, const desc_t &desc) {                                                      \
    answer_t answer = 0;                                                                                              \
    check(moe_##name(ctx.get(), &desc, &answer));                                                                     \
    return answer;                                                                                                    \
  }

MOE_HPP_OPERATION(router_logits_fwd, moe_router_logits_desc_t, moe_router_logits_fwd_args_t)
MOE_HPP_OPERATION(router_logits_bwd, moe_router_logits_desc_t, moe_router_logits_bwd_args_t)
MOE_HPP_OPERATION(router_fwd, moe_router_desc_t, moe_router_fwd_args_t)
MOE_HPP_OPERATION(router_bwd, moe_router_desc_t, moe_router_bwd_args_t)
MOE_HPP_OPERATION(router_loss_fwd, moe_router_loss_desc_t, moe_router_loss_fwd_args_t)
MOE_HPP_OPERATION(router_loss_bwd, moe_router_loss_desc_t, moe_router_loss_bwd_args_t)
MOE_HPP_OPERATION(sinkhorn, moe_sinkhorn_desc_t, moe_sinkhorn_args_t)
MOE_HPP_OPERATION(sinkhorn_step, moe_sinkhorn_desc_t, moe_sinkhorn_step_args_t)
MOE_HPP_OPERATION(expert_choice_fwd, moe_expert_choice_desc_t, moe_expert_choice_fwd_args_t)
MOE_HPP_OPERATION(expert_choice_bwd, moe_expert_choice_desc_t, moe_expert_choice_bwd_args_t)
MOE_HPP_OPERATION(router_bias_update, moe_router_bias_update_desc_t, moe_router_bias_update_args_t)
MOE_HPP_OPERATION(capacity_fwd, moe_capacity_desc_t, moe_capacity_fwd_args_t)
MOE_HPP_OPERATION(capacity_bwd, moe_capacity_desc_t, moe_capacity_bwd_args_t)
MOE_HPP_QUERY(capacity_value, moe_capacity_desc_t, std::int64_t)

MOE_HPP_OPERATION(dispatch_plan, moe_dispatch_desc_t, moe_dispatch_plan_args_t)
MOE_HPP_QUERY(dispatch_rows_max, moe_dispatch_desc_t, std::int64_t)
MOE_HPP_OPERATION(dispatch_fwd, moe_permute_desc_t, moe_dispatch_fwd_args_t)
MOE_HPP_OPERATION(dispatch_bwd, moe_permute_desc_t, moe_dispatch_bwd_args_t)
MOE_HPP_OPERATION(combine_fwd, moe_permute_desc_t, moe_combine_fwd_args_t)
MOE_HPP_OPERATION(combine_bwd, moe_permute_desc_t, moe_combine_bwd_args_t)
MOE_HPP_OPERATION(sort_chunks, moe_sort_chunks_desc_t, moe_sort_chunks_args_t)

MOE_HPP_OPERATION(grouped_gemm_fwd, moe_grouped_gemm_desc_t, moe_grouped_gemm_fwd_args_t)
MOE_HPP_OPERATION(grouped_gemm_bwd, moe_grouped_gemm_desc_t, moe_grouped_gemm_bwd_args_t)
MOE_HPP_OPERATION(activation_fwd, moe_activation_desc_t, moe_activation_fwd_args_t)
MOE_HPP_OPERATION(activation_bwd, moe_activation_desc_t, moe_activation_bwd_args_t)
MOE_HPP_OPERATION(expert_mlp_fwd, moe_expert_mlp_desc_t, moe_expert_mlp_fwd_args_t)
MOE_HPP_OPERATION(expert_mlp_bwd, moe_expert_mlp_desc_t, moe_expert_mlp_bwd_args_t)
MOE_HPP_OPERATION(expert_mlp_wgrad, moe_expert_mlp_desc_t, moe_expert_mlp_wgrad_args_t)

MOE_HPP_OPERATION(quantize, moe_quantize_desc_t, moe_quantize_args_t)
MOE_HPP_OPERATION(dequantize, moe_quantize_desc_t, moe_dequantize_args_t)

MOE_HPP_QUERY(ep_handle_size, moe_ep_desc_t, std::uint64_t)
MOE_HPP_COLLECTIVE(ep_dispatch_fwd, moe_ep_desc_t, moe_ep_dispatch_fwd_args_t)
MOE_HPP_COLLECTIVE(ep_dispatch_bwd, moe_ep_desc_t, moe_ep_dispatch_bwd_args_t)
MOE_HPP_COLLECTIVE(ep_combine_fwd, moe_ep_desc_t, moe_ep_combine_fwd_args_t)
MOE_HPP_COLLECTIVE(ep_combine_bwd, moe_ep_desc_t, moe_ep_combine_bwd_args_t)
MOE_HPP_COLLECTIVE(tp_reduce, moe_tp_reduce_desc_t, moe_tp_reduce_args_t)

#undef MOE_HPP_OPERATION
#undef MOE_HPP_COLLECTIVE
#undef MOE_HPP_QUERY

} // namespace moe

#endif // MOE_HPP
