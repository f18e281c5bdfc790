// Runs a launch: its blocks one by one, or the two of each cluster together; a block's fibers by turns.
#include <dlfcn.h>

#include "emulator.h"

namespace emulator {

Fiber *current;
dim3 grid, block;
std::vector<Block> *running;
uint64_t progress;
std::vector<const void *> statics;

static ucontext_t home;
static std::function<void()> body;
constexpr size_t STACK = 96 << 10;

void wait(State state, int line) {
  Fiber *const fiber = current;
  fiber->state = state, fiber->line = line;
  swapcontext(&fiber->context, &home);
}

static void enter() {
  body();
  ++progress;
  wait(DONE, 0);
}

// Lets those go on that wait for `state` if all do that are counted and not done.
static void release(Fiber *first, Fiber *end, State state) {
  size_t alive = 0, waiting = 0;
  for (Fiber *f = first; f < end; ++f) alive += f->state != DONE, waiting += f->state == state;
  if (waiting == 0 || waiting != alive) return;
  ++progress;
  for (Fiber *f = first; f < end; ++f)
    if (f->state == state) f->state = READY;
}

static void release_named(Block &b) {
  for (Fiber &f : b.fibers) {
    if (f.state != AT_NAMED) continue;
    const uint64_t barrier = f.offer;
    size_t waiting = 0;
    for (Fiber &other : b.fibers) waiting += other.state == AT_NAMED && other.offer == barrier;
    if (waiting != (barrier & 0xffff)) continue;
    ++progress;
    for (Fiber &other : b.fibers)
      if (other.state == AT_NAMED && other.offer == barrier) other.state = READY;
  }
}

// Rounds that warps sleep through, at random: no order of warps may matter. EMULATOR_SEED repeats one, 0 lets none sleep.
static uint64_t random_state = getenv("EMULATOR_SEED") ? strtoull(getenv("EMULATOR_SEED"), nullptr, 10) : 1;

static bool sleeps(Block &b, unsigned warp) {
  if (random_state == 0) return false;
  b.asleep.resize(b.fibers.size() / 32 + 1);
  if (b.asleep[warp] > 0) return --b.asleep[warp], true;
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  if (random_state >> 58 == 0) b.asleep[warp] = random_state >> 40 & 0xff;
  return false;
}

// A round: each fiber that can goes on until it waits.
static void step(Block &b) {
  bool asleep = false;
  for (Fiber &f : b.fibers) {
    if (f.thread % 32 == 0) asleep = sleeps(b, f.thread / 32);
    if (asleep || (f.state != READY && f.state != POLLING)) continue;
    current = &f;
    swapcontext(&home, &f.context);
  }
  Fiber *const first = b.fibers.data(), *const end = first + b.fibers.size();
  for (Fiber *warp = first; warp < end; warp += 32) release(warp, std::min(warp + 32, end), AT_WARP);
  release(first, end, AT_BLOCK);
  release_named(b);
}

static void fail(const char *name) {
  fprintf(stderr, "%s waits for ever:", name);
  for (Block &b : *running)
    for (Fiber &f : b.fibers)
      if (f.state != DONE && f.thread % 32 == 0) fprintf(stderr, " [block %u thread %u state %d line %d]", b.index.x, f.thread, f.state, f.line);
  fprintf(stderr, "\n");
  abort();
}

static void run(std::vector<Block> &blocks, const char *name) {
  running = &blocks;
  uint64_t seen = progress;
  for (int idle = 0; idle < 3000; ++idle) {
    bool done = true;
    for (Block &b : blocks) step(b);
    size_t alive = 0, waiting = 0;
    for (Block &b : blocks)
      for (Fiber &f : b.fibers) alive += f.state != DONE, waiting += f.state == AT_CLUSTER;
    if (alive == 0) return;
    if (waiting == alive) {
      ++progress;
      for (Block &b : blocks)
        for (Fiber &f : b.fibers)
          if (f.state == AT_CLUSTER) f.state = READY;
    }
    if (progress != seen) seen = progress, idle = 0;
  }
  fail(name);
}

// A kernel's parameter by value; with tensor maps it is aligned as they are.
template <size_t WORDS, size_t ALIGNMENT> struct alignas(ALIGNMENT) Words { uint64_t at[WORDS]; };

template <size_t WORDS, size_t ALIGNMENT> static void call(void *kernel, const void *parameter, size_t bytes) {
  if constexpr (WORDS == 0) {
    abort();
  } else if (bytes == 8 * WORDS) {
    Words<WORDS, ALIGNMENT> words;
    memcpy(&words, parameter, bytes);
    reinterpret_cast<void (*)(Words<WORDS, ALIGNMENT>)>(kernel)(words);
  } else {
    call<WORDS - ALIGNMENT / 8, ALIGNMENT>(kernel, parameter, bytes);
  }
}

}  // namespace emulator

extern "C" int emulate(const char *name, const unsigned *grid, const unsigned *threads, unsigned shared, unsigned cluster,
                       const void *parameter, size_t bytes) {
  using namespace emulator;
  void *const kernel = dlsym(RTLD_DEFAULT, name);
  if (kernel == nullptr) {
    fprintf(stderr, "%s is not emulated\n", name);
    abort();
  }
  emulator::grid = dim3(grid[0], grid[1], grid[2]);
  emulator::block = dim3(threads[0]);
  const bool has_maps = strncmp(name, "hopper_", 7) == 0;
  body = [=] { has_maps ? call<256, 64>(kernel, parameter, bytes) : call<256, 8>(kernel, parameter, bytes); };
  static std::vector<char *> stacks;
  while (stacks.size() < cluster * threads[0]) stacks.push_back(static_cast<char *>(malloc(STACK)));
  const unsigned count = grid[0] * grid[1] * grid[2];
  for (unsigned number = 0; number < count; number += cluster) {
    std::vector<Block> blocks(cluster);
    for (unsigned i = 0; i < cluster; ++i) {
      Block &b = blocks[i];
      const unsigned n = number + i;
      b.index = {n % grid[0], n / grid[0] % grid[1], n / grid[0] / grid[1]};
      b.shared.assign(shared + 2048, char(0xa5));
      b.dynamic = shared;
      b.fibers.resize(threads[0]);
      for (unsigned t = 0; t < threads[0]; ++t) {
        Fiber &f = b.fibers[t];
        f.block = &b, f.thread = t, f.state = READY;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks[i * threads[0] + t];
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
      }
    }
    run(blocks, name);
  }
  return 0;
}
