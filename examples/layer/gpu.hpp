// A GPU's memory, two streams and two events by CUDA's driver, which is loaded when it is asked for: nothing of CUDA is needed to build this.
#ifndef GPU_HPP
#define GPU_HPP

#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

/// The primary context of a GPU, current on this thread, as PyTorch and CUDA's runtime have it.
class Gpu {
public:
  explicit Gpu(int number) {
    library_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library_) throw std::runtime_error("there is no libcuda.so.1: install NVIDIA's driver");
    void *context = nullptr;
    int device = 0;
    call("cuInit", 0u);
    call("cuDeviceGet", &device, number);
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxSetCurrent", context);
    call("cuStreamCreate", &stream_, 1u);
    call("cuStreamCreate", &side_, 1u);
    call("cuEventCreate", &fork_, 2u);
    call("cuEventCreate", &join_, 2u);
  }
  Gpu(const Gpu &) = delete;
  Gpu &operator=(const Gpu &) = delete;

  void *stream() const { return stream_; }
  /// For work beside that of stream(), and what orders the two.
  void *side() const { return side_; }
  void *fork() const { return fork_; }
  void *join() const { return join_; }

  /// Zeros, for as long as the process runs.
  char *allocate(std::size_t bytes) const {
    unsigned long long memory = 0;
    call("cuMemAlloc_v2", &memory, bytes);
    call("cuMemsetD8_v2", memory, static_cast<unsigned char>(0), bytes);
    call("cuCtxSynchronize");
    return reinterpret_cast<char *>(memory);
  }

  template <class T> T *upload(const std::vector<T> &values) const {
    char *memory = allocate(values.size() * sizeof(T));
    call("cuMemcpyHtoD_v2", reinterpret_cast<unsigned long long>(memory), static_cast<const void *>(values.data()),
         values.size() * sizeof(T));
    return reinterpret_cast<T *>(memory);
  }

  /// Once all that the stream was given is done.
  template <class T> std::vector<T> download(const T *from, std::size_t count) const {
    std::vector<T> values(count);
    call("cuStreamSynchronize", stream_);
    call("cuMemcpyDtoH_v2", static_cast<void *>(values.data()), reinterpret_cast<unsigned long long>(from), count * sizeof(T));
    return values;
  }

private:
  template <class... Arguments> void call(const char *name, Arguments... arguments) const {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
    if (!function) throw std::runtime_error(std::string("libcuda.so.1 lacks ") + name);
    const int code = function(arguments...);
    if (code) throw std::runtime_error(std::string(name) + " failed with " + std::to_string(code));
  }

  void *library_ = nullptr;
  void *stream_ = nullptr, *side_ = nullptr, *fork_ = nullptr, *join_ = nullptr;
};

#endif
