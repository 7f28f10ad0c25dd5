// CUDA's language on a CPU, as much of it as the kernels use: enough to test their arithmetic and their
// indices without a card. Blocks run one after the other and threads in turns, so races do not show.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <vector>

#define STAND_IN
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
using std::max;
using std::min;

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

// Where threads wait for each other: those of a block, or those of a warp.
struct Gate { int waiting = 0, alive = 0; long passed = 0; };

// A stack of its own. It runs one thread after the other until one has to wait; then another fiber goes
// on with the next. Kernels whose threads never wait need one fiber.
struct Fiber { ucontext_t start; jmp_buf at; std::vector<char> stack; bool entered = false, waits = false; };

static jmp_buf scheduler;
static ucontext_t first_scheduler;
static Fiber* running;
static std::function<void()> body;
static unsigned threads, next;
static Gate block, warps[32];
static float of_lane[32][32], of_warp[32];

static void to_scheduler() {
  if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
}

static void leave(Gate& gate) {
  gate.alive--;
  if (gate.alive > 0 && gate.waiting >= gate.alive) { gate.waiting = 0; gate.passed++; }
}

// Runs threads for as long as the program lives.
static void serve() {
  for (;;) {
    while (next < threads) {
      unsigned me = next++;
      threadIdx = {me, 0, 0};
      body();
      leave(warps[threadIdx.x / 32]);
      leave(block);
    }
    running->waits = false;
    to_scheduler();
  }
}

static void resume(Fiber* fiber) {
  running = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->entered) _longjmp(fiber->at, 1);
  fiber->entered = true;
  swapcontext(&first_scheduler, &fiber->start);
}

// Waits until all that are alive have come, then calls `last` once.
template <class Last> static void pass(Gate& gate, Last last) {
  long passed = gate.passed;
  if (++gate.waiting >= gate.alive) {
    last();
    gate.waiting = 0;
    gate.passed++;
    return;
  }
  unsigned me = threadIdx.x;
  Fiber* own = running;
  while (gate.passed == passed) {
    own->waits = true;
    to_scheduler();
    threadIdx.x = me;
  }
  own->waits = false;
}

static Fiber* new_fiber() {
  Fiber* fiber = new Fiber;
  fiber->stack.resize(256 << 10);
  getcontext(&fiber->start);
  fiber->start.uc_stack = {fiber->stack.data(), 0, fiber->stack.size()};
  makecontext(&fiber->start, serve, 0);
  return fiber;
}

static void run_block() {
  static std::vector<Fiber*> idle, waiting;
  next = 0;
  block = {0, (int)threads, 0};
  for (unsigned w = 0; w * 32 < threads; w++) warps[w] = {0, (int)min(32u, threads - w * 32), 0};
  while (next < threads) {
    if (idle.empty()) idle.push_back(new_fiber());
    Fiber* fiber = idle.back();
    resume(fiber);
    if (fiber->waits) { idle.pop_back(); waiting.push_back(fiber); }
  }
  while (!waiting.empty()) {
    size_t left = 0;
    for (Fiber* fiber : waiting) {
      resume(fiber);
      if (fiber->waits) waiting[left++] = fiber;
      else idle.push_back(fiber);
    }
    waiting.resize(left);
  }
}

static void launch(unsigned x, unsigned y, unsigned of_block, std::function<void()> thread) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> guard(one_at_a_time);
  gridDim = {x, y, 1};
  blockDim = {of_block, 1, 1};
  threads = of_block;
  body = thread;
  for (unsigned j = 0; j < y; j++)
    for (unsigned i = 0; i < x; i++) {
      blockIdx = {i, j, 0};
      run_block();
    }
}

template <class Join> static float of_all(float v, Join join) {
  unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = min(32u, threads - warp * 32);
  of_lane[warp][lane] = v;
  pass(warps[warp], [=] {
    float all = of_lane[warp][0];
    for (unsigned l = 1; l < count; l++) all = join(all, of_lane[warp][l]);
    of_warp[warp] = all;
  });
  return of_warp[warp];
}

// A kernel with its arguments, from where the driver is told that they lie.
using Kernel = std::function<std::function<void()>(void**)>;
template <class... A, size_t... I> static Kernel kernel_of(void (*kernel)(A...), std::index_sequence<I...>) {
  return [=](void** at) -> std::function<void()> {
    std::tuple<A...> arguments(*(A*)at[I]...);
    return [=] { std::apply(kernel, arguments); };
  };
}
template <class... A> static Kernel kernel_of(void (*kernel)(A...)) { return kernel_of(kernel, std::index_sequence_for<A...>()); }

}  // namespace emulate

static void __syncthreads() { emulate::pass(emulate::block, [] {}); }
static float warp_sum(float v) { return emulate::of_all(v, [](float a, float b) { return a + b; }); }
static float warp_max(float v) { return emulate::of_all(v, [](float a, float b) { return fmaxf(a, b); }); }
// Threads take turns.
template <class T> static T atomicAdd(T* to, T v) { T before = *to; *to += v; return before; }
