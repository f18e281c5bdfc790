// CUDA's language on the host: a fiber for each thread, one after the other. build.py compiles kernels behind this header.
//
// What it shows: indices, layouts, protocols of barriers (a wait that never ends is reported). What it does not: races and
// missing fences, since each instruction is complete before the next begins.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include <vector_functions.h>
#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __align__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __shared__
#define __align__(n)
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
// Blocks that have such variables run one at a time.
#define __shared__ static
#define __CUDA_ARCH_FEAT_SM90_ALL

using std::abs, std::ceil, std::exp, std::floor, std::fma, std::isfinite, std::isnan, std::log, std::log1p, std::sqrt;

namespace emulator {

// What a fiber waits for: nothing; its warp; its block; its cluster; a condition that it tests again; a named barrier.
enum State { READY, AT_WARP, AT_BLOCK, AT_CLUSTER, POLLING, AT_NAMED, DONE };

struct Block;

struct Fiber {
  ucontext_t context;
  Block *block;
  unsigned thread;
  State state;
  int line;
  // What it offers to its warp, or the barrier that it waits at.
  uint64_t offer;
};

struct Block {
  std::vector<Fiber> fibers;
  uint3 index;
  std::vector<char> shared;
  // Bytes of it that the launch asked for.
  unsigned dynamic;
  // Rounds that each warp sleeps yet.
  std::vector<int> asleep;

  char *base() { return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(shared.data()) + 1023) / 1024 * 1024); }
};

extern Fiber *current;
extern dim3 grid, block;
// The blocks that run at one time: one, or a cluster's two.
extern std::vector<Block> *running;
// Grows with everything that lets a fiber go on.
extern uint64_t progress;

void wait(State state, int line);

inline void wait_named(int barrier, int threads) {
  current->offer = uint64_t(barrier) << 16 | threads;
  wait(AT_NAMED, 0);
}

// ---- Shared memory: addresses are the block's rank in its cluster above an offset; static variables have their own.

extern std::vector<const void *> statics;

inline unsigned rank() { return current->block - running->data(); }

inline char *at(uint32_t address) {
  if (address >> 31) return (char *)statics[address >> 12 & 0x7ffff] + (address & 4095);
  Block &block = (*running)[address >> 24];
  if ((address & 0xffffff) >= block.dynamic) fprintf(stderr, "behind the end of shared memory\n"), abort();
  return block.base() + (address & 0xffffff);
}

inline uint32_t address(const void *pointer) {
  const char *const p = static_cast<const char *>(pointer), *const base = current->block->base();
  if (p >= base && p < base + current->block->shared.size()) return rank() << 24 | uint32_t(p - base);
  for (size_t i = 0; i < statics.size(); ++i)
    if (statics[i] == pointer) return 1u << 31 | uint32_t(i << 12);
  statics.push_back(pointer);
  return 1u << 31 | uint32_t((statics.size() - 1) << 12);
}

// ---- A warp's threads, whose offers all can see between two meetings.

template <class T> uint64_t to_bits(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T> T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Read> inline auto meet(int line, uint64_t offer, Read read) {
  current->offer = offer;
  wait(AT_WARP, line);
  const auto result = read(&current->block->fibers[current->thread / 32 * 32]);
  wait(AT_WARP, line);
  return result;
}

template <class T, class Source> inline T shuffle(int line, T value, Source source) {
  return from_bits<T>(meet(line, to_bits(value), [&](Fiber *warp) { return warp[source(int(current->thread % 32)) & 31].offer; }));
}

inline unsigned ballot(int line, bool predicate) {
  return meet(line, predicate, [](Fiber *warp) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(warp[i].state != DONE && warp[i].offer) << i;
    return bits;
  });
}

template <class T> inline unsigned match(int line, T value) {
  return meet(line, to_bits(value), [&](Fiber *warp) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(warp[i].state != DONE && warp[i].offer == to_bits(value)) << i;
    return bits;
  });
}

template <class T, class Join> inline T reduce(int line, T value, Join join) {
  return meet(line, to_bits(value), [&](Fiber *warp) {
    T result = from_bits<T>(warp[0].offer);
    for (int i = 1; i < 32; ++i) result = join(result, from_bits<T>(warp[i].offer));
    return result;
  });
}

inline bool any_of_block(int line, bool predicate) {
  current->offer = predicate;
  wait(AT_BLOCK, line);
  bool any = false;
  for (const Fiber &f : current->block->fibers) any |= f.offer != 0;
  wait(AT_BLOCK, line);
  return any;
}

}  // namespace emulator

// A cooperative grid runs as one cluster.
namespace cooperative_groups {
struct grid_group {
  struct arrival_token {};
  void sync() const { emulator::wait(emulator::AT_CLUSTER, __LINE__); }
  arrival_token barrier_arrive() const { return {}; }
  void barrier_wait(arrival_token &&) const { sync(); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

#define threadIdx (uint3{emulator::current->thread, 0, 0})
#define blockIdx (emulator::current->block->index)
#define blockDim (emulator::block)
#define gridDim (emulator::grid)
#define __syncthreads() emulator::wait(emulator::AT_BLOCK, __LINE__)
#define __syncthreads_or(predicate) emulator::any_of_block(__LINE__, predicate)
#define __syncwarp(...) emulator::wait(emulator::AT_WARP, __LINE__)
#define __shfl_sync(mask, value, lane) emulator::shuffle(__LINE__, value, [&](int) { return int(lane); })
#define __shfl_xor_sync(mask, value, bits) emulator::shuffle(__LINE__, value, [&](int mine) { return mine ^ (bits); })
#define __shfl_up_sync(mask, value, distance) \
  emulator::shuffle(__LINE__, value, [&](int mine) { return mine >= (distance) ? mine - (distance) : mine; })
#define __ballot_sync(mask, predicate) emulator::ballot(__LINE__, predicate)
#define __any_sync(mask, predicate) (emulator::ballot(__LINE__, predicate) != 0)
#define __match_any_sync(mask, value) emulator::match(__LINE__, value)
#define __reduce_add_sync(mask, value) emulator::reduce(__LINE__, value, [](auto a, auto b) { return a + b; })
#define __reduce_max_sync(mask, value) emulator::reduce(__LINE__, value, [](auto a, auto b) { return a > b ? a : b; })
#define __reduce_min_sync(mask, value) emulator::reduce(__LINE__, value, [](auto a, auto b) { return a < b ? a : b; })

template <class T> inline T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return a > b ? a : b;
}
template <class T> inline T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return a < b ? a : b;
}
template <class T, class U> inline T atomicAdd(T *place, U value) {
  const T old = *place;
  *place = old + value;
  return old;
}
template <class T, class U> inline T atomicMax(T *place, U value) {
  const T old = *place;
  *place = max(old, T(value));
  return old;
}
template <class T, class U> inline T atomicCAS(T *place, U expected, U value) {
  const T old = *place;
  if (old == expected) *place = value;
  return old;
}
template <class T, class U> inline T atomicExch(T *place, U value) {
  const T old = *place;
  *place = value;
  return old;
}
template <class T> inline T __ldcg(const T *place) { return *place; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __float_as_uint(float value) { return emulator::from_bits<unsigned>(emulator::to_bits(value)); }
inline float __uint_as_float(unsigned bits) { return emulator::from_bits<float>(bits); }
inline uint64_t __float2ull_rn(float value) { return value; }
inline float __ull2float_rn(uint64_t value) { return value; }
inline int __ffs(unsigned value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  const auto one = [](__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
  };
  return {one(a.x, b.x, c.x), one(a.y, b.y, c.y)};
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selectors >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
