// moe.hpp: statuses as exceptions, ownership, helpers.
#include <moe.hpp>

#include <cstdio>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

int failures = 0;

void expect(bool truth, const char *what) {
  if (truth) return;
  std::printf("not so: %s\n", what);
  failures++;
}

// Whether `call` throws an E with `status` whose message has `words`.
template <class E, class Call> void expect_throw(moe_status_t status, const char *words, Call call) {
  try {
    call();
    std::printf("nothing was thrown; expected \"%s\"\n", words);
  } catch (const E &error) {
    if (error.status() == status && std::strstr(error.what(), words)) return;
    std::printf("status %d, \"%s\"; expected \"%s\"\n", error.status(), error.what(), words);
  }
  failures++;
}

struct Bfloat16 {
  std::uint16_t bits;
};

} // namespace

template <> struct moe::dtype_of<Bfloat16> : std::integral_constant<moe_dtype_t, MOE_DTYPE_BF16> {};

static_assert(std::is_base_of_v<moe::Error, moe::InvalidArgument> && std::is_base_of_v<std::runtime_error, moe::Error>);
static_assert(!std::is_copy_constructible_v<moe::Context> && std::is_nothrow_move_constructible_v<moe::Context>);
static_assert(!std::is_copy_constructible_v<moe::Comm> && std::is_nothrow_move_assignable_v<moe::Comm>);
static_assert(moe::dtype_v<const float> == MOE_DTYPE_FP32 && moe::dtype_v<Bfloat16> == MOE_DTYPE_BF16);

int main() {
  moe::Context first(MOE_DEVICE_CPU);
  moe::Context ctx(std::move(first));
  expect(first.get() == nullptr && ctx.get() != nullptr, "a moved context is empty");
  ctx = moe::Context(MOE_DEVICE_CPU);
  expect(ctx.info().device == MOE_DEVICE_CPU && ctx.info().multiprocessors >= 1, "the CPU's info");
  expect(moe_version() == 10000 * MOE_VERSION_MAJOR + 100 * MOE_VERSION_MINOR + MOE_VERSION_PATCH, "header and library");

  expect_throw<moe::InvalidArgument>(MOE_STATUS_INVALID_ARGUMENT, "moe_context_create: device is -2", [] { moe::Context(-2); });
  const moe_router_desc_t desc = MOE_ROUTER_DESC_INIT;
  expect_throw<moe::InvalidArgument>(MOE_STATUS_INVALID_ARGUMENT, "ctx is NULL",
                                     [&] { moe::router_fwd_workspace_size(first, desc); });
  expect_throw<moe::InvalidArgument>(MOE_STATUS_INVALID_ARGUMENT, "nccl_comm is NULL",
                                     [&] { moe::Comm comm(ctx, static_cast<void *>(nullptr)); });

  const moe_device_report_t report = {MOE_FAULT_COUNT, 0, 7, 9};
  expect(moe::device_report_message(report) == "count 9 is outside 0 to its bound 7; it was clamped", "a report in words");

  const std::int64_t rows = 3;
  const std::vector<Bfloat16> data(6);
  const moe_tensor_t tensor = moe::tensor(data.data(), 2);
  expect(tensor.struct_size == sizeof tensor && tensor.dtype == MOE_DTYPE_BF16 && tensor.data == data.data() &&
             tensor.row_pitch == 2 && tensor.group_stride == 0,
         "a tensor is what was said");
  expect(moe::count(&rows).dtype == MOE_DTYPE_INT64 && moe::count(&rows).device == &rows, "a count on the device");
  const std::int32_t flag = 1;
  expect(moe::add_if(&flag).mode == MOE_OUTPUT_FROM_DEVICE && moe::add_if(&flag).add == &flag, "a mode from the device");
  void *const experts[] = {nullptr, nullptr};
  expect(moe::tensor_of_pointers(experts, MOE_DTYPE_FP16).pointers == experts, "a tensor by pointers");
  return failures != 0;
}
