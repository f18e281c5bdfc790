// moe::MoELayer on the CPU backend, in fp64: gate, routed experts, a shared expert with its sigmoid; forward and backward in one
// block of memory. Checked against plain double loops and central differences.
#include <moe_layer.hpp>

#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "reference.h"

namespace {

constexpr int G = 3;  // width of the shared expert

struct Parameters {
  layer routed;  // its logits follow from x and gate
  double gate[E * D], shared_w1[2 * G * D], shared_w2[D * G], shared_gate[D];
};

void reference(Parameters &p, double *y) {
  for (int t = 0; t < T; t++)
    for (int e = 0; e < E; e++) {
      double &logit = p.routed.logits[t * E + e] = 0.0;
      for (int c = 0; c < D; c++) logit += p.routed.x[t * D + c] * p.gate[e * D + c];
    }
  reference_forward(&p.routed, y);
  for (int t = 0; t < T; t++) {
    const double *x = p.routed.x + t * D;
    double score = 0.0, act[G];
    for (int c = 0; c < D; c++) score += x[c] * p.shared_gate[c];
    for (int g = 0; g < G; g++) {
      double gate = 0.0, up = 0.0;
      for (int c = 0; c < D; c++) gate += p.shared_w1[g * D + c] * x[c], up += p.shared_w1[(G + g) * D + c] * x[c];
      act[g] = silu(gate) * up;
    }
    for (int c = 0; c < D; c++)
      for (int g = 0; g < G; g++) y[t * D + c] += p.shared_w2[c * G + g] * act[g] / (1.0 + exp(-score));
  }
}

double loss(Parameters &p, const double *dy) {
  double y[T * D], sum = 0.0;
  reference(p, y);
  for (int i = 0; i < T * D; i++) sum += y[i] * dy[i];
  return sum;
}

int check(const char *what, const std::vector<double> &ours, Parameters &p, double *values, const double *dy) {
  int wrong = 0;
  const double step = 1e-5;
  for (std::size_t i = 0; i < ours.size(); i++) {
    const double kept = values[i];
    values[i] = kept + step;
    const double above = loss(p, dy);
    values[i] = kept - step;
    const double below = loss(p, dy);
    values[i] = kept;
    wrong += differs(what, static_cast<int>(i), ours[i], (above - below) / (2 * step), 1e-8);
  }
  return wrong;
}

template <std::size_t N> void fill(double (&values)[N], std::uint64_t seed) {
  for (std::size_t i = 0; i < N; i++) values[i] = noise(seed << 32, i);
}

} // namespace

int main() try {
  Parameters p;
  double dy[T * D], expected[T * D];
  fill(p.routed.x, 1), fill(p.gate, 2), fill(p.routed.w1, 3), fill(p.routed.w2, 4), fill(p.shared_w1, 5), fill(p.shared_w2, 6);
  fill(p.shared_gate, 7), fill(dy, 8);

  const moe::Context ctx(MOE_DEVICE_CPU);
  moe::LayerConfig config;
  config.dtype = MOE_DTYPE_FP64;
  config.max_tokens = T + 3, config.hidden_size = D, config.ffn_size = F, config.num_experts = E, config.top_k = K;
  config.shared_ffn_size = G, config.shared_gate = true;
  config.router.renormalize = MOE_ON;
  moe::MoELayer moe_layer(ctx, config);
  constexpr std::align_val_t alignment{256};
  void *memory = ::operator new(moe_layer.memory_size(), alignment);
  std::memset(memory, 0, moe_layer.memory_size());

  moe::LayerTensors w, grads;
  w.gate = moe::tensor(p.gate), w.w1 = moe::tensor(p.routed.w1), w.w2 = moe::tensor(p.routed.w2);
  w.shared_w1 = moe::tensor(p.shared_w1), w.shared_w2 = moe::tensor(p.shared_w2), w.shared_gate = moe::tensor(p.shared_gate);
  std::vector<double> y(T * D), dx(X), gate(E * D), w1(W1), w2(W2), shared_w1(2 * G * D), shared_w2(D * G), shared_gate(D);
  grads.gate = moe::tensor(gate.data()), grads.w1 = moe::tensor(w1.data()), grads.w2 = moe::tensor(w2.data());
  grads.shared_w1 = moe::tensor(shared_w1.data()), grads.shared_w2 = moe::tensor(shared_w2.data());
  grads.shared_gate = moe::tensor(shared_gate.data());

  // Twice: the memory serves one step after another, and the gradients of the second are added to the first's. On a GPU a
  // moe::SideStream as last argument of both lets the shared expert run beside the routed ones.
  for (int step = 0; step < 2; step++) {
    moe_layer.forward(memory, w, moe::tensor(p.routed.x), moe::tensor(y.data()), T);
    moe_layer.backward(memory, w, moe::tensor(p.routed.x), moe::tensor(dy), moe::tensor(dx.data()), grads, T, nullptr,
                       step ? moe::add() : moe::overwrite());
  }
  for (auto *sum : {&gate, &w1, &w2, &shared_w1, &shared_w2, &shared_gate})
    for (double &v : *sum) v /= 2;

  int wrong = 0;
  reference(p, expected);
  for (int i = 0; i < T * D; i++) wrong += differs("y", i, y[static_cast<std::size_t>(i)], expected[i], 1e-13);
  wrong += check("dx", dx, p, p.routed.x, dy) + check("dgate", gate, p, p.gate, dy);
  wrong += check("dw1", w1, p, p.routed.w1, dy) + check("dw2", w2, p, p.routed.w2, dy);
  wrong += check("dshared_w1", shared_w1, p, p.shared_w1, dy) + check("dshared_w2", shared_w2, p, p.shared_w2, dy);
  wrong += check("dshared_gate", shared_gate, p, p.shared_gate, dy);
  std::int64_t slots = 0;
  for (int e = 0; e < E; e++) slots += moe_layer.tokens_per_expert(memory)[e];
  if (slots != T * K) wrong++, std::printf("%lld slots, not %d\n", static_cast<long long>(slots), T * K);
  ::operator delete(memory, alignment);
  std::printf("%d tokens, %d experts, top-%d, one shared: %d numbers differ from the reference\n", T, E, K, wrong);
  return wrong != 0;
} catch (const moe::Error &error) {
  std::fprintf(stderr, "%s: %s\n", moe_status_string(error.status()), error.what());
  return 1;
}
