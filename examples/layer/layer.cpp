// A Mixture-of-Experts layer from C++, forward and backward on the CPU backend, in fp64: route, plan, permute, grouped GEMMs and
// activation one by one, combine; then the same experts as one fused call. Both are checked against plain double loops.
#include <moe.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "reference.h"

namespace {

// A workspace of the size that an operation asks for.
class Workspace {
public:
  explicit Workspace(std::uint64_t bytes) : bytes_(bytes), data_(bytes ? ::operator new(bytes, alignment) : nullptr) {}
  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;
  ~Workspace() { ::operator delete(data_, alignment); }
  void *data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }

private:
  static constexpr std::align_val_t alignment{256};
  std::uint64_t bytes_;
  void *data_;
};

struct Gradients {
  std::vector<double> dx, dlogits, dw1, dw2;
};

struct Layer {
  const moe::Context &ctx;
  const layer &p;
  std::vector<std::int64_t> ids = std::vector<std::int64_t>(T * K);
  std::vector<double> weights = std::vector<double>(T * K);
  moe_router_desc_t router = MOE_ROUTER_DESC_INIT;
  std::int64_t rows = 0;
  std::vector<std::int64_t> group_offsets = std::vector<std::int64_t>(E + 1);
  std::vector<std::int64_t> row_of_slot = std::vector<std::int64_t>(T * K), slot_of_row, token_of_row;

  Layer(const moe::Context &context, const layer &parameters) : ctx(context), p(parameters) {
    route();
    plan();
  }

  void route() {
    router.logits_dtype = MOE_DTYPE_FP64;
    router.num_tokens = T;
    router.num_experts = E;
    router.top_k = K;
    router.renormalize = MOE_ON;
    moe_router_fwd_args_t args = MOE_ROUTER_FWD_ARGS_INIT;
    args.logits = moe::tensor(p.logits);
    args.ids = moe::tensor(ids.data());
    args.weights = moe::tensor(weights.data());
    const Workspace workspace(moe::router_fwd_workspace_size(ctx, router));
    moe::router_fwd(ctx, router, args, workspace.data(), workspace.bytes());
  }

  void plan() {
    moe_dispatch_desc_t desc = MOE_DISPATCH_DESC_INIT;
    desc.num_tokens = T;
    desc.num_experts = E;
    desc.top_k = K;
    rows = moe::dispatch_rows_max(ctx, desc);
    slot_of_row.resize(static_cast<std::size_t>(rows));
    token_of_row.resize(static_cast<std::size_t>(rows));
    moe_dispatch_plan_args_t args = MOE_DISPATCH_PLAN_ARGS_INIT;
    args.ids = moe::tensor(ids.data());
    args.group_offsets = group_offsets.data();
    args.row_of_slot = moe::tensor(row_of_slot.data());
    args.slot_of_row = moe::tensor(slot_of_row.data());
    args.token_of_row = moe::tensor(token_of_row.data());
    const Workspace workspace(moe::dispatch_plan_workspace_size(ctx, desc));
    moe::dispatch_plan(ctx, desc, args, workspace.data(), workspace.bytes());
  }

  // y[T, D], step by step.
  std::vector<double> forward_in_steps() const {
    const auto count = static_cast<std::size_t>(rows);
    std::vector<double> permuted(count * D), h(count * 2 * F), act(count * F), out(count * D), y(T * D);

    moe_permute_desc_t permute = MOE_PERMUTE_DESC_INIT;
    permute.dtype = MOE_DTYPE_FP64;
    permute.num_tokens = T;
    permute.hidden_size = D;
    permute.top_k = K;
    permute.rows_max = rows;
    permute.num_groups = E;
    moe_dispatch_fwd_args_t dispatch = MOE_DISPATCH_FWD_ARGS_INIT;
    dispatch.x = moe::tensor(p.x);
    dispatch.rows = moe::tensor(permuted.data());
    dispatch.token_of_row = moe::tensor(token_of_row.data());
    dispatch.group_offsets = group_offsets.data();
    const Workspace for_dispatch(moe::dispatch_fwd_workspace_size(ctx, permute));
    moe::dispatch_fwd(ctx, permute, dispatch, for_dispatch.data(), for_dispatch.bytes());

    gemm(permuted, p.w1, h, 2 * F, D);

    moe_activation_desc_t activation = MOE_ACTIVATION_DESC_INIT;
    activation.dtype = MOE_DTYPE_FP64;
    activation.rows_max = rows;
    activation.ffn_size = F;
    moe_activation_fwd_args_t activate = MOE_ACTIVATION_FWD_ARGS_INIT;
    activate.h = moe::tensor(h.data());
    activate.y = moe::tensor(act.data());
    const Workspace for_activation(moe::activation_fwd_workspace_size(ctx, activation));
    moe::activation_fwd(ctx, activation, activate, for_activation.data(), for_activation.bytes());

    gemm(act, p.w2, out, D, F);

    moe_combine_fwd_args_t combine = MOE_COMBINE_FWD_ARGS_INIT;
    combine.rows = moe::tensor(out.data());
    combine.row_of_slot = moe::tensor(row_of_slot.data());
    combine.y = moe::tensor(y.data());
    combine.weights = moe::tensor(weights.data());
    const Workspace for_combine(moe::combine_fwd_workspace_size(ctx, permute));
    moe::combine_fwd(ctx, permute, combine, for_combine.data(), for_combine.bytes());
    return y;
  }

  // c[rows, n] = a[rows, k] * b[E, n, k]^T, expert by expert.
  void gemm(const std::vector<double> &a, const double *b, std::vector<double> &c, int n, int k) const {
    moe_grouped_gemm_desc_t desc = MOE_GROUPED_GEMM_DESC_INIT;
    desc.dtype = MOE_DTYPE_FP64;
    desc.rows_max = rows;
    desc.n = n;
    desc.k = k;
    desc.num_groups = E;
    moe_grouped_gemm_fwd_args_t args = MOE_GROUPED_GEMM_FWD_ARGS_INIT;
    args.a = moe::tensor(a.data());
    args.b = moe::tensor(b);
    args.c = moe::tensor(c.data());
    args.group_offsets = group_offsets.data();
    const Workspace workspace(moe::grouped_gemm_fwd_workspace_size(ctx, desc));
    moe::grouped_gemm_fwd(ctx, desc, args, workspace.data(), workspace.bytes());
  }

  // Forward and backward of the experts as one operation each, and of the router.
  Gradients fused(std::vector<double> &y, const double *dy) const {
    moe_expert_mlp_desc_t desc = MOE_EXPERT_MLP_DESC_INIT;
    desc.dtype = MOE_DTYPE_FP64;
    desc.num_tokens = T;
    desc.rows_max = rows;
    desc.top_k = K;
    desc.num_experts = E;
    desc.hidden_size = D;
    desc.ffn_size = F;

    std::vector<double> h(static_cast<std::size_t>(rows) * 2 * F), dh(h.size()), dweights(T * K);
    moe_expert_mlp_fwd_args_t forward = MOE_EXPERT_MLP_FWD_ARGS_INIT;
    forward.x = moe::tensor(p.x);
    forward.w1 = moe::tensor(p.w1);
    forward.w2 = moe::tensor(p.w2);
    forward.y = moe::tensor(y.data());
    forward.group_offsets = group_offsets.data();
    forward.token_of_row = moe::tensor(token_of_row.data());
    forward.slot_of_row = moe::tensor(slot_of_row.data());
    forward.row_of_slot = moe::tensor(row_of_slot.data());
    forward.weights = moe::tensor(weights.data());
    forward.h = moe::tensor(h.data());
    const Workspace for_forward(moe::expert_mlp_fwd_workspace_size(ctx, desc));
    moe::expert_mlp_fwd(ctx, desc, forward, for_forward.data(), for_forward.bytes());

    // The weights' gradients are added to what they hold, as over micro-batches.
    Gradients g{std::vector<double>(X), std::vector<double>(LOGITS), std::vector<double>(W1, 1.0), std::vector<double>(W2, 1.0)};
    moe_expert_mlp_bwd_args_t backward = MOE_EXPERT_MLP_BWD_ARGS_INIT;
    backward.dy = moe::tensor(dy);
    backward.x = forward.x;
    backward.w1 = forward.w1;
    backward.w2 = forward.w2;
    backward.h = forward.h;
    backward.group_offsets = forward.group_offsets;
    backward.token_of_row = forward.token_of_row;
    backward.slot_of_row = forward.slot_of_row;
    backward.row_of_slot = forward.row_of_slot;
    backward.weights = forward.weights;
    backward.dx = moe::tensor(g.dx.data());
    backward.dw1 = moe::tensor(g.dw1.data());
    backward.dw2 = moe::tensor(g.dw2.data());
    backward.dw_mode = moe::add();
    backward.dweights = moe::tensor(dweights.data());
    backward.dh = moe::tensor(dh.data());
    const Workspace for_backward(moe::expert_mlp_bwd_workspace_size(ctx, desc));
    moe::expert_mlp_bwd(ctx, desc, backward, for_backward.data(), for_backward.bytes());
    for (double &v : g.dw1) v -= 1.0;
    for (double &v : g.dw2) v -= 1.0;

    moe_router_bwd_args_t unroute = MOE_ROUTER_BWD_ARGS_INIT;
    unroute.logits = moe::tensor(p.logits);
    unroute.ids = moe::tensor(ids.data());
    unroute.dweights = moe::tensor(dweights.data());
    unroute.dlogits = moe::tensor(g.dlogits.data());
    const Workspace for_router(moe::router_bwd_workspace_size(ctx, router));
    moe::router_bwd(ctx, router, unroute, for_router.data(), for_router.bytes());
    return g;
  }
};

int check_gradient(const char *what, const std::vector<double> &ours, layer &p, double *parameters, const double *dy) {
  int wrong = 0;
  for (std::size_t i = 0; i < ours.size(); i++)
    wrong += differs(what, static_cast<int>(i), ours[i], reference_gradient(&p, &parameters[i], dy), 1e-8);
  return wrong;
}

void fill(double *begin, int count, std::uint64_t seed) {
  for (int i = 0; i < count; i++) begin[i] = noise(seed << 32, static_cast<std::uint64_t>(i));
}

} // namespace

int main() try {
  const moe::Context ctx(MOE_DEVICE_CPU);
  layer p;
  double dy[T * D], reference[T * D];
  fill(p.x, X, 1);
  fill(p.logits, LOGITS, 2);
  fill(p.w1, W1, 3);
  fill(p.w2, W2, 4);
  fill(dy, T * D, 5);

  const Layer moe_layer(ctx, p);
  std::vector<double> y(T * D);
  const std::vector<double> steps = moe_layer.forward_in_steps();
  const Gradients g = moe_layer.fused(y, dy);

  int wrong = 0;
  reference_forward(&p, reference);
  for (int i = 0; i < T * D; i++) {
    wrong += differs("y in steps", i, steps[static_cast<std::size_t>(i)], reference[i], 1e-13);
    wrong += differs("y", i, y[static_cast<std::size_t>(i)], reference[i], 1e-13);
  }
  wrong += check_gradient("dx", g.dx, p, p.x, dy);
  wrong += check_gradient("dw1", g.dw1, p, p.w1, dy);
  wrong += check_gradient("dw2", g.dw2, p, p.w2, dy);
  wrong += check_gradient("dlogits", g.dlogits, p, p.logits, dy);
  std::printf("%d tokens, %d experts, top-%d: %d numbers differ from the reference\n", T, E, K, wrong);
  return wrong != 0;
} catch (const moe::Error &error) {
  std::fprintf(stderr, "%s: %s\n", moe_status_string(error.status()), error.what());
  return 1;
}
