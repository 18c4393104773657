// One lane to a simdgroup and one simdgroup to a threadgroup: a threadgroup is a plain function call, and its lane's
// loops are the compiler's to vectorise.
#pragma once
#include "common.h"

#define THREADGROUP_ARRAY(type, name, size) alignas(64) type name[size]

// A core has one thread to run, and pages lie scattered, so no prefetcher guesses the next one: while decode_keys
// multiplies a key, ask for the one a tile later. (Its names; X_SPLIT has no vector that lies in line.)
#define FETCH_AHEAD(key)                                                                                   \
  if (LAYOUT != X_SPLIT) {                                                                                 \
    const int ahead = min(key, end - 1), slot = ahead % problem.block_size;                                \
    const int page = block_tables[long(seq) * problem.max_blocks + ahead / problem.block_size];            \
    const char* next_k = (const char*)(k_pool + pool.k_vector(page, kv_head, slot));                       \
    const char* next_v = (const char*)(v_pool + pool.v_vector(page, kv_head, slot));                       \
    for (unsigned line = 0; line < HEAD_DIM * sizeof(T); line += 64) {                                     \
      __builtin_prefetch(next_k + line);                                                                   \
      __builtin_prefetch(next_v + line);                                                                   \
    }                                                                                                      \
  }

namespace msl {

inline float simd_sum(float x) { return x; }
inline float simd_max(float x) { return x; }
inline float simd_min(float x) { return x; }
inline float simd_broadcast(float x, uint) { return x; }
inline float simd_shuffle(float x, uint) { return x; }
inline float simd_shuffle_xor(float x, uint) { return x; }
inline float simd_shuffle_down(float x, uint) { return x; }
inline void simdgroup_barrier(mem_flags) {}
inline void threadgroup_barrier(mem_flags) {}

}  // namespace msl

// `buffers` are the kernel's inputs and outputs in their order, `grid` counts threadgroups along x, y and z, and
// parallel_for (see workers.cpp) shares them out to the cores.
typedef void ParallelFor(void (*task)(void*, int64_t), void* context, int64_t tasks, int32_t threads);

struct NativeLaunch {
  void* const* buffers;
  const int32_t* grid;
};

#define PAGED_ENTRY(kernel_function)                                                                             \
  static void run_threadgroup(void* context, int64_t i) {                                                        \
    const NativeLaunch& launch = *static_cast<const NativeLaunch*>(context);                                     \
    const int64_t columns = launch.grid[0], rows = launch.grid[1];                                               \
    kernel_function(launch.buffers, {uint32_t(i % columns), uint32_t(i / columns % rows), uint32_t(i / columns / rows)}, 0, 0); \
  }                                                                                                              \
  extern "C" void paged_launch(void* const* buffers, const int32_t* grid, ParallelFor* parallel_for, int32_t threads) { \
    NativeLaunch launch{buffers, grid};                                                                          \
    parallel_for(run_threadgroup, &launch, int64_t(grid[0]) * grid[1] * grid[2], threads);                       \
  }
