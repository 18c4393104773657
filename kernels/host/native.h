// One lane to a simdgroup and one simdgroup to a threadgroup: a threadgroup is a plain function call, and its lane's
// loops are the compiler's to vectorise.
#pragma once
#include "common.h"

#define THREADGROUP_ARRAY(type, name, size) alignas(64) type name[size]

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
