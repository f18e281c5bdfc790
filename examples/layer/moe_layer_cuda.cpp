// moe::MoELayer on a GPU, in fp32, beside the same layer on the CPU backend: two steps, forward and backward, number by number. The
// shared experts run on a second stream.
//
//   moe_layer_cuda [number of the GPU]
#include <moe_layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "gpu.hpp"

namespace {

using Values = std::vector<float>;

constexpr std::size_t TOKENS = 301, HIDDEN = 64, FFN = 48, EXPERTS = 8, SHARED = 32;
// What ctest takes for skipped.
constexpr int NO_GPU = 77;

moe::LayerConfig config() {
  moe::LayerConfig c;
  c.dtype = MOE_DTYPE_FP32;
  c.max_tokens = TOKENS, c.hidden_size = HIDDEN, c.ffn_size = FFN, c.num_experts = EXPERTS, c.top_k = 2;
  c.shared_ffn_size = SHARED, c.shared_gate = true;
  c.router.renormalize = MOE_ON;
  return c;
}

Values random_values(std::size_t count, std::uint64_t seed, float scale) {
  Values values(count);
  for (float &v : values) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = scale * (static_cast<float>(seed >> 40) / 8388608.0f - 1.0f);
  }
  return values;
}

/// A matrix or a set of them, [x, y] or [x, y, z], as the layer wants it.
struct Array {
  const char *name;
  Values values;
};

/// x, dy, then the weights.
std::vector<Array> inputs() {
  return {{"x", random_values(TOKENS * HIDDEN, 1, 1)},
          {"dy", random_values(TOKENS * HIDDEN, 2, 1)},
          {"gate", random_values(EXPERTS * HIDDEN, 3, 1)},
          {"w1", random_values(EXPERTS * 2 * FFN * HIDDEN, 4, 0.2f)},
          {"w2", random_values(EXPERTS * HIDDEN * FFN, 5, 0.2f)},
          {"shared_w1", random_values(2 * SHARED * HIDDEN, 6, 0.2f)},
          {"shared_w2", random_values(HIDDEN * SHARED, 7, 0.2f)},
          {"shared_gate", random_values(HIDDEN, 8, 0.2f)}};
}

moe::LayerTensors tensors(const std::vector<float *> &from) {
  moe::LayerTensors t;
  t.gate = moe::tensor(from[2]), t.w1 = moe::tensor(from[3]), t.w2 = moe::tensor(from[4]);
  t.shared_w1 = moe::tensor(from[5]), t.shared_w2 = moe::tensor(from[6]), t.shared_gate = moe::tensor(from[7]);
  return t;
}

/// Two steps, the gradients of which are added: `out` has y, dx, then the gradients of the weights.
void steps(moe::MoELayer &layer, void *memory, const std::vector<float *> &in, const std::vector<float *> &out,
           moe_stream_t stream = nullptr, const moe::SideStream &side = {}) {
  const moe::LayerTensors weights = tensors(in), gradients = tensors(out);
  for (int step = 0; step < 2; step++) {
    layer.forward(memory, weights, moe::tensor(in[0]), moe::tensor(out[0]), TOKENS, stream, side);
    layer.backward(memory, weights, moe::tensor(in[0]), moe::tensor(in[1]), moe::tensor(out[1]), gradients, TOKENS, stream,
                   step ? moe::add() : moe::overwrite(), side);
  }
}

std::vector<Values> on_the_cpu(std::vector<Array> arrays) {
  const moe::Context ctx(MOE_DEVICE_CPU);
  moe::MoELayer layer(ctx, config());
  constexpr std::align_val_t alignment{256};
  void *memory = ::operator new(layer.memory_size(), alignment);
  std::vector<Values> results;
  std::vector<float *> in, out;
  for (const Array &array : arrays) results.emplace_back(array.values.size());
  for (Array &array : arrays) in.push_back(array.values.data());
  for (Values &values : results) out.push_back(values.data());
  std::fill_n(static_cast<char *>(memory), layer.memory_size(), char(0));
  steps(layer, memory, in, out);
  ::operator delete(memory, alignment);
  return results;
}

std::vector<Values> on_the_gpu(const Gpu &gpu, int number, const std::vector<Array> &arrays) {
  const moe::Context ctx(number);
  moe::MoELayer layer(ctx, config());
  std::vector<Values> results;
  std::vector<float *> in, out;
  for (const Array &array : arrays) in.push_back(gpu.upload(array.values));
  for (const Array &array : arrays) out.push_back(reinterpret_cast<float *>(gpu.allocate(array.values.size() * sizeof(float))));
  const moe::SideStream side = {static_cast<moe_stream_t>(gpu.side()), static_cast<moe_event_t>(gpu.fork()),
                                static_cast<moe_event_t>(gpu.join())};
  steps(layer, gpu.allocate(layer.memory_size()), in, out, static_cast<moe_stream_t>(gpu.stream()), side);
  for (std::size_t i = 0; i < out.size(); i++) results.push_back(gpu.download(out[i], arrays[i].values.size()));
  return results;
}

/// The largest difference over the largest number.
float difference(const Values &a, const Values &b) {
  float most = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); i++) {
    const float apart = std::fabs(a[i] - b[i]);
    most = apart > most || apart != apart ? apart : most;
    size = std::fmax(size, std::fabs(b[i]));
  }
  return most / size;
}

} // namespace

int main(int count, char **arguments) try {
  const int number = count > 1 ? std::atoi(arguments[1]) : 0;
  const std::vector<Array> arrays = inputs();
  const std::vector<Values> expected = on_the_cpu(arrays);
  std::unique_ptr<Gpu> gpu;
  try {
    gpu = std::make_unique<Gpu>(number);
  } catch (const std::runtime_error &error) {
    std::fprintf(stderr, "no GPU: %s\n", error.what());
    return NO_GPU;
  }
  const std::vector<Values> results = on_the_gpu(*gpu, number, arrays);
  int wrong = 0;
  for (std::size_t i = 0; i < arrays.size(); i++) {
    const float apart = difference(results[i], expected[i]);
    const bool close = apart < 2e-5f;
    std::printf("%-12s %.1e%s\n", i == 0 ? "y" : i == 1 ? "dx" : arrays[i].name, static_cast<double>(apart), close ? "" : "  too far");
    wrong += !close;
  }
  return wrong != 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
