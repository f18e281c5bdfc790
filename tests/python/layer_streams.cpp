// A layer with shared experts, forward and backward, on a GPU context of the mock driver with a second stream: compiled and run by
// test_cuda_host.py. layer_streams.py does the same from Python.
#include <moe_layer.hpp>

#include <cstdlib>
#include <vector>

int main() {
  constexpr std::int64_t T = 8, D = 16, F = 8, E = 4, G = 8;
  const moe::Context ctx(0);
  moe::LayerConfig config;
  config.dtype = MOE_DTYPE_FP32;
  config.max_tokens = T, config.hidden_size = D, config.ffn_size = F, config.num_experts = E, config.top_k = 2;
  config.shared_ffn_size = G, config.shared_gate = true;
  moe::MoELayer layer(ctx, config);
  void *memory = std::aligned_alloc(256, layer.memory_size());

  // The mock driver's kernels do nothing: one piece of memory serves for all tensors.
  std::vector<float> numbers(E * 2 * F * D);
  const moe_tensor_t any = moe::tensor(numbers.data());
  const moe::LayerTensors tensors = {any, any, any, MOE_TENSOR_INIT, MOE_TENSOR_INIT, any, any, any};
  const auto stream = reinterpret_cast<moe_stream_t>(0x50);
  const moe::SideStream side = {reinterpret_cast<moe_stream_t>(0x60), reinterpret_cast<moe_event_t>(0xF0),
                                reinterpret_cast<moe_event_t>(0x70)};
  layer.forward(memory, tensors, any, any, T, stream, side);
  layer.backward(memory, tensors, any, any, any, tensors, T, stream, moe::overwrite(), side);
  std::free(memory);
}
