// A whole Mixture-of-Experts layer for C++17: logits, router, experts, output; forward and backward.
//
//   moe::LayerConfig config;
//   config.max_tokens = 4096, config.hidden_size = 2048, config.ffn_size = 768, config.num_experts = 128, config.top_k = 8;
//   moe::MoELayer layer(ctx, config);
//   void *memory = ...;  // layer.memory_size() bytes on ctx's device, 256-byte aligned, zeroed once
//   layer.forward(memory, weights, moe::tensor(x), moe::tensor(y), num_tokens, stream);
//   layer.backward(memory, weights, moe::tensor(x), moe::tensor(dy), moe::tensor(dx), gradients, num_tokens, stream);
//
// With shared experts a moe::SideStream as last argument of both lets these run beside the routed ones.
//
// The memory holds what backward needs and all workspaces: one for each forward whose backward is still to come. Nothing is
// allocated and nothing synchronises, so that a step can be captured in a CUDA graph.
#ifndef MOE_LAYER_HPP
#define MOE_LAYER_HPP

#include <algorithm>

#include "moe.hpp"

namespace moe {

struct LayerConfig {
  /// Of x, y, and the weights. The logits and the router's weights are fp32, or fp64 where this is.
  moe_dtype_t dtype = MOE_DTYPE_BF16;
  std::int64_t max_tokens = 0, hidden_size = 0, ffn_size = 0, num_experts = 0, top_k = 1;
  /// Experts that every token goes to, as one of this width; 0: none.
  std::int64_t shared_ffn_size = 0;
  /// The shared experts' output is multiplied by sigmoid(x * shared_gate^T).
  bool shared_gate = false;
  /// Score function, normalisation, losses, ...; sizes and dtypes are filled in.
  moe_router_desc_t router = MOE_ROUTER_DESC_INIT;
  /// Activation, layouts, ...; sizes and dtypes are filled in.
  moe_expert_mlp_desc_t experts = MOE_EXPERT_MLP_DESC_INIT;
};

/// The weights, or their gradients; a gradient that is absent is not computed.
struct LayerTensors {
  /// [E, d].
  moe_tensor_t gate = MOE_TENSOR_INIT;
  /// [E, 2f, d] and [E, d, f], or as config.experts says.
  moe_tensor_t w1 = MOE_TENSOR_INIT, w2 = MOE_TENSOR_INIT;
  /// [E, 2f] and [E, d]; optional.
  moe_tensor_t b1 = MOE_TENSOR_INIT, b2 = MOE_TENSOR_INIT;
  /// [2g, d], [d, g] and [1, d], with g = shared_ffn_size.
  moe_tensor_t shared_w1 = MOE_TENSOR_INIT, shared_w2 = MOE_TENSOR_INIT, shared_gate = MOE_TENSOR_INIT;
};

namespace detail {

/// Places in the layer's memory.
class Arena {
public:
  std::uint64_t place(std::uint64_t bytes) {
    const std::uint64_t begin = size_;
    size_ += (bytes + alignment - 1) / alignment * alignment;
    return begin;
  }
  std::uint64_t size() const noexcept { return size_; }

private:
  static constexpr std::uint64_t alignment = 256;
  std::uint64_t size_ = 0;
};

inline std::uint64_t bytes_of(moe_dtype_t dtype) {
  return dtype == MOE_DTYPE_FP64 ? 8 : dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

/// Experts with their router. Shared experts are a set of one, which every token goes to: its rows are the tokens.
class ExpertSet {
public:
  struct Tensors {
    moe_tensor_t gate, w1, w2, b1, b2;
  };

  ExpertSet(const Context &ctx, const LayerConfig &config, std::int64_t experts, std::int64_t top_k, std::int64_t width,
            const moe_router_desc_t &router, bool weighted, std::int32_t layout, Arena &arena)
      : weighted_(weighted), router_(router), mlp_(config.experts) {
    mlp_.input_layout = mlp_.output_layout = layout;
    const moe_dtype_t wide = config.dtype == MOE_DTYPE_FP64 ? MOE_DTYPE_FP64 : MOE_DTYPE_FP32;
    const std::uint64_t tokens = static_cast<std::uint64_t>(config.max_tokens);
    logits_.dtype = config.dtype;
    logits_.logits_dtype = router_.logits_dtype = wide;
    logits_.hidden_size = mlp_.hidden_size = config.hidden_size;
    logits_.num_experts = router_.num_experts = dispatch_.num_experts = mlp_.num_experts = experts;
    router_.top_k = dispatch_.top_k = mlp_.top_k = top_k;
    mlp_.dtype = config.dtype;
    mlp_.ffn_size = width;
    const std::uint64_t slots = tokens * static_cast<std::uint64_t>(top_k);
    const std::uint64_t scores = tokens * static_cast<std::uint64_t>(experts) * bytes_of(wide);
    set_tokens(ctx, config.max_tokens);
    const bool gated = mlp_.activation <= MOE_ACTIVATION_CLAMPED_SWIGLU;
    const std::uint64_t columns = static_cast<std::uint64_t>(gated ? 2 * width : width);
    ids_at_ = arena.place(slots * 4);
    if (weighted_) {
      const std::uint64_t sequences = static_cast<std::uint64_t>(std::max<std::int64_t>(router_.num_sequences, 1));
      logits_at_ = arena.place(scores), dlogits_at_ = arena.place(scores);
      weights_at_ = arena.place(slots * bytes_of(wide)), dweights_at_ = arena.place(slots * bytes_of(wide));
      counts_at_ = arena.place(sequences * static_cast<std::uint64_t>(experts) * 8);
      losses_at_ = arena.place(2 * sizeof(float));
    }
    offsets_at_ = arena.place((static_cast<std::uint64_t>(experts) + 1) * 8);
    sizes_at_ = arena.place(static_cast<std::uint64_t>(experts) * 8);
    row_of_slot_at_ = arena.place(slots * 4);
    slot_of_row_at_ = arena.place(slots * 4), token_of_row_at_ = arena.place(slots * 4);
    h_at_ = arena.place(slots * columns * bytes_of(config.dtype));
  }

  /// The largest workspace of its operations.
  std::uint64_t workspace_size(const Context &ctx) const {
    std::uint64_t bytes = std::max({dispatch_plan_workspace_size(ctx, dispatch_), expert_mlp_fwd_workspace_size(ctx, mlp_),
                                    expert_mlp_bwd_workspace_size(ctx, mlp_)});
    if (!weighted_) return bytes;
    return std::max({bytes, router_fwd_workspace_size(ctx, router_), router_bwd_workspace_size(ctx, router_),
                     router_logits_fwd_workspace_size(ctx, logits_), router_logits_bwd_workspace_size(ctx, logits_)});
  }

  void set_tokens(const Context &ctx, std::int64_t tokens) {
    logits_.num_tokens = router_.num_tokens = dispatch_.num_tokens = mlp_.num_tokens = tokens;
    dispatch_.rows_max = 0;
    mlp_.rows_max = dispatch_.rows_max = dispatch_rows_max(ctx, dispatch_);
  }

  void forward(const Context &ctx, char *memory, const Tensors &w, moe_tensor_t x, moe_tensor_t y, void *workspace,
               std::uint64_t bytes, moe_stream_t stream) const {
    if (weighted_) {
      moe_router_logits_fwd_args_t score = MOE_ROUTER_LOGITS_FWD_ARGS_INIT;
      score.x = x, score.weight = w.gate, score.logits = wide(memory, logits_at_);
      router_logits_fwd(ctx, logits_, score, workspace, bytes, stream);
      moe_router_fwd_args_t route = MOE_ROUTER_FWD_ARGS_INIT;
      route.logits = score.logits, route.ids = ints(memory, ids_at_), route.weights = wide(memory, weights_at_);
      if (router_.aux_loss != MOE_AUX_LOSS_OFF) route.aux_counts = longs(memory, counts_at_), route.aux_loss = losses(memory);
      if (router_.z_loss) route.z_loss = losses(memory) + 1;
      router_fwd(ctx, router_, route, workspace, bytes, stream);
    }
    moe_dispatch_plan_args_t plan = MOE_DISPATCH_PLAN_ARGS_INIT;
    plan.ids = ints(memory, ids_at_);  // without a router zeros, as the caller left the memory
    plan.group_offsets = longs(memory, offsets_at_), plan.group_sizes = longs(memory, sizes_at_);
    plan.row_of_slot = ints(memory, row_of_slot_at_);
    plan.slot_of_row = ints(memory, slot_of_row_at_), plan.token_of_row = ints(memory, token_of_row_at_);
    dispatch_plan(ctx, dispatch_, plan, workspace, bytes, stream);
    moe_expert_mlp_fwd_args_t mlp = MOE_EXPERT_MLP_FWD_ARGS_INIT;
    maps(memory, mlp);
    mlp.x = x, mlp.w1 = w.w1, mlp.w2 = w.w2, mlp.b1 = w.b1, mlp.b2 = w.b2;
    mlp.y = y, mlp.h = untyped_tensor(memory + h_at_, mlp_.dtype);
    expert_mlp_fwd(ctx, mlp_, mlp, workspace, bytes, stream);
  }

  /// fc1's saved output becomes its gradient: a second backward needs a forward before it.
  void backward(const Context &ctx, char *memory, const Tensors &w, moe_tensor_t x, moe_tensor_t dy, moe_tensor_t dx,
                const Tensors &grads, moe_output_mode_t mode, void *workspace, std::uint64_t bytes, moe_stream_t stream) const {
    moe_expert_mlp_bwd_args_t mlp = MOE_EXPERT_MLP_BWD_ARGS_INIT;
    maps(memory, mlp);
    mlp.dy = dy, mlp.x = x, mlp.w1 = w.w1, mlp.w2 = w.w2, mlp.b1 = w.b1, mlp.b2 = w.b2;
    mlp.h = mlp.dh = untyped_tensor(memory + h_at_, mlp_.dtype);
    mlp.dx = dx, mlp.dw1 = grads.w1, mlp.dw2 = grads.w2, mlp.db1 = grads.b1, mlp.db2 = grads.b2;
    mlp.dw_mode = mlp.db_mode = mode;
    if (weighted_) (of_rows() ? mlp.drow_weights : mlp.dweights) = wide(memory, dweights_at_);
    expert_mlp_bwd(ctx, mlp_, mlp, workspace, bytes, stream);
    if (!weighted_) return;
    moe_router_bwd_args_t route = MOE_ROUTER_BWD_ARGS_INIT;
    route.logits = wide(memory, logits_at_), route.ids = ints(memory, ids_at_);
    route.dweights = wide(memory, dweights_at_), route.dlogits = wide(memory, dlogits_at_);
    if (router_.aux_loss != MOE_AUX_LOSS_OFF) route.aux_counts = longs(memory, counts_at_);
    router_bwd(ctx, router_, route, workspace, bytes, stream);
    moe_router_logits_bwd_args_t score = MOE_ROUTER_LOGITS_BWD_ARGS_INIT;
    score.dlogits = route.dlogits, score.x = x, score.weight = w.gate;
    score.dx = dx, score.dx_mode = add(), score.dweight = grads.gate, score.dweight_mode = mode;
    router_logits_bwd(ctx, logits_, score, workspace, bytes, stream);
  }

  /// sum[T, d] += rows, the output of a forward or backward of this set of one.
  void add_rows(const Context &ctx, char *memory, moe_tensor_t rows, moe_tensor_t sum, void *workspace, std::uint64_t bytes,
                moe_stream_t stream) const {
    moe_combine_fwd_args_t combine = MOE_COMBINE_FWD_ARGS_INIT;
    combine.rows = rows, combine.row_of_slot = ints(memory, row_of_slot_at_);
    combine.y = sum, combine.y_mode = add();
    combine_fwd(ctx, permute(), combine, workspace, bytes, stream);
  }
  std::uint64_t add_rows_workspace_size(const Context &ctx) const { return combine_fwd_workspace_size(ctx, permute()); }

  float *losses(char *memory) const { return reinterpret_cast<float *>(memory + losses_at_); }
  std::int64_t *group_sizes(char *memory) const { return longs(memory, sizes_at_); }

private:
  template <class Args> void maps(char *memory, Args &args) const {
    args.group_offsets = longs(memory, offsets_at_), args.group_sizes = longs(memory, sizes_at_);
    args.token_of_row = ints(memory, token_of_row_at_), args.slot_of_row = ints(memory, slot_of_row_at_);
    args.row_of_slot = ints(memory, row_of_slot_at_);
    if (weighted_) (of_rows() ? args.row_weights : args.weights) = wide(memory, weights_at_);
  }
  bool of_rows() const { return mlp_.input_layout == MOE_LAYOUT_ROWS; }
  moe_permute_desc_t permute() const {
    moe_permute_desc_t desc = MOE_PERMUTE_DESC_INIT;
    desc.dtype = mlp_.dtype, desc.num_tokens = mlp_.num_tokens, desc.hidden_size = mlp_.hidden_size;
    desc.top_k = mlp_.top_k, desc.rows_max = mlp_.rows_max, desc.num_groups = mlp_.num_experts;
    return desc;
  }
  moe_tensor_t wide(char *memory, std::uint64_t at) const { return untyped_tensor(memory + at, router_.logits_dtype); }
  static moe_tensor_t ints(char *memory, std::uint64_t at) { return untyped_tensor(memory + at, MOE_DTYPE_INT32); }
  static std::int64_t *longs(char *memory, std::uint64_t at) { return reinterpret_cast<std::int64_t *>(memory + at); }

  bool weighted_;
  moe_router_logits_desc_t logits_ = MOE_ROUTER_LOGITS_DESC_INIT;
  moe_router_desc_t router_;
  moe_dispatch_desc_t dispatch_ = MOE_DISPATCH_DESC_INIT;
  moe_expert_mlp_desc_t mlp_;
  std::uint64_t ids_at_ = 0, logits_at_ = 0, dlogits_at_ = 0, weights_at_ = 0, dweights_at_ = 0, counts_at_ = 0, losses_at_ = 0;
  std::uint64_t offsets_at_ = 0, sizes_at_ = 0, row_of_slot_at_ = 0, slot_of_row_at_ = 0, token_of_row_at_ = 0, h_at_ = 0;
};

} // namespace detail

/// A second stream for the shared experts, and two events of the caller's, which each call records anew. Without events the
/// shared experts follow the routed ones on the call's stream, as on the CPU.
struct SideStream {
  moe_stream_t stream = nullptr;
  moe_event_t fork = nullptr, join = nullptr;
};

/// y = experts(x) + shared experts(x). Immutable but for the number of tokens of the call: one thread at a time.
class MoELayer {
public:
  MoELayer(const Context &ctx, const LayerConfig &config)
      : ctx_(ctx), has_shared_(config.shared_ffn_size > 0),
        routed_(ctx, config, config.num_experts, config.top_k, config.ffn_size, config.router, true, MOE_LAYOUT_TOKENS, arena_),
        shared_(ctx, config, 1, 1, std::max<std::int64_t>(config.shared_ffn_size, 1), sigmoid(), config.shared_gate,
                MOE_LAYOUT_ROWS, has_shared_ ? arena_ : unused_),
        dtype_(config.dtype) {
    workspace_size_ = routed_.workspace_size(ctx);
    if (has_shared_) {
      // Both sets may run at the same time: each has a workspace and an output of its own.
      shared_workspace_size_ = shared_.workspace_size(ctx);
      shared_workspace_at_ = arena_.place(shared_workspace_size_);
      const std::uint64_t numbers = static_cast<std::uint64_t>(config.max_tokens) * static_cast<std::uint64_t>(config.hidden_size);
      rows_at_ = arena_.place(numbers * detail::bytes_of(dtype_));
      workspace_size_ = std::max(workspace_size_, shared_.add_rows_workspace_size(ctx));
    }
    workspace_at_ = arena_.place(workspace_size_);
  }

  /// Bytes of memory that a step needs.
  std::uint64_t memory_size() const noexcept { return arena_.size(); }

  /// y[T, d] of x[T, d], T = num_tokens <= max_tokens.
  void forward(void *memory, const LayerTensors &w, moe_tensor_t x, moe_tensor_t y, std::int64_t num_tokens,
               moe_stream_t stream = nullptr, const SideStream &side = {}) {
    char *at = begin(memory, num_tokens);
    const moe_stream_t beside = fork(stream, side);
    if (has_shared_)
      shared_.forward(ctx_, at, of_shared(w), x, rows(at), at + shared_workspace_at_, shared_workspace_size_, beside);
    routed_.forward(ctx_, at, of_routed(w), x, y, at + workspace_at_, workspace_size_, stream);
    join(at, y, stream, side);
  }

  /// dx[T, d] and the gradients, written or, with moe::add(), added to what they hold. Losses count with gradient 1.
  void backward(void *memory, const LayerTensors &w, moe_tensor_t x, moe_tensor_t dy, moe_tensor_t dx,
                const LayerTensors &gradients, std::int64_t num_tokens, moe_stream_t stream = nullptr,
                moe_output_mode_t mode = overwrite(), const SideStream &side = {}) {
    char *at = begin(memory, num_tokens);
    const moe_stream_t beside = fork(stream, side);
    if (has_shared_)
      shared_.backward(ctx_, at, of_shared(w), x, dy, rows(at), of_shared(gradients), mode, at + shared_workspace_at_,
                       shared_workspace_size_, beside);
    routed_.backward(ctx_, at, of_routed(w), x, dy, dx, of_routed(gradients), mode, at + workspace_at_, workspace_size_, stream);
    join(at, dx, stream, side);
  }

  /// After forward, on the device: the aux loss and the z-loss, and int64[E], the tokens of each expert.
  const float *aux_loss(void *memory) const { return routed_.losses(static_cast<char *>(memory)); }
  const float *z_loss(void *memory) const { return aux_loss(memory) + 1; }
  const std::int64_t *tokens_per_expert(void *memory) const { return routed_.group_sizes(static_cast<char *>(memory)); }

private:
  char *begin(void *memory, std::int64_t num_tokens) {
    routed_.set_tokens(ctx_, num_tokens);
    shared_.set_tokens(ctx_, num_tokens);
    return static_cast<char *>(memory);
  }
  /// The stream of the shared experts, which begins where `stream` is.
  moe_stream_t fork(moe_stream_t stream, const SideStream &side) const {
    if (!has_shared_ || side.fork == nullptr) return stream;
    stream_wait(ctx_, side.stream, stream, side.fork);
    return side.stream;
  }
  /// Adds what the shared experts have given, when they have.
  void join(char *memory, moe_tensor_t sum, moe_stream_t stream, const SideStream &side) const {
    if (!has_shared_) return;
    if (side.fork != nullptr) stream_wait(ctx_, stream, side.stream, side.join);
    shared_.add_rows(ctx_, memory, rows(memory), sum, memory + workspace_at_, workspace_size_, stream);
  }
  moe_tensor_t rows(char *memory) const { return untyped_tensor(memory + rows_at_, dtype_); }
  static detail::ExpertSet::Tensors of_routed(const LayerTensors &t) { return {t.gate, t.w1, t.w2, t.b1, t.b2}; }
  static detail::ExpertSet::Tensors of_shared(const LayerTensors &t) {
    return {t.shared_gate, t.shared_w1, t.shared_w2, MOE_TENSOR_INIT, MOE_TENSOR_INIT};
  }
  /// The gate of shared experts: the score of the one expert there is.
  static moe_router_desc_t sigmoid() {
    moe_router_desc_t router = MOE_ROUTER_DESC_INIT;
    router.score_function = MOE_SCORE_SIGMOID;
    return router;
  }

  const Context &ctx_;
  detail::Arena arena_, unused_;
  bool has_shared_;
  detail::ExpertSet routed_, shared_;
  moe_dtype_t dtype_;
  std::uint64_t workspace_size_ = 0, workspace_at_ = 0, shared_workspace_size_ = 0, shared_workspace_at_ = 0, rows_at_ = 0;
};

} // namespace moe

#endif // MOE_LAYER_HPP
