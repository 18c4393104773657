// A GPU's threads as they are: 32 lanes to a simdgroup, several simdgroups to a threadgroup, each thread a fiber that runs
// until it waits for others. What waits, and every load and store, goes through simulator.cpp: the compiler announces the
// latter by -fsanitize=thread, whose functions are defined there in place of the sanitizer's own.
#pragma once
#include "common.h"

extern "C" {
void* paged_threadgroup_array(const char* name, int64_t itemsize, int64_t count);
float paged_simd(const char* operation, float x, int32_t other, const char* file, int32_t line);
void paged_barrier(const char* operation, uint32_t flags, const char* file, int32_t line);
}

// The first thread of a threadgroup that comes here makes the array, the others find it by its name.
#define THREADGROUP_ARRAY(type, name, size) \
  auto& name = *static_cast<type(*)[size]>(paged_threadgroup_array(#name, sizeof(type), size))

namespace msl {

// A default argument is evaluated where the function is called: that is how it knows the kernel's line.
#define CALLED_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMD(operation, other) paged_simd(#operation, x, other, file, line)
inline float simd_sum(float x, CALLED_AT) { return SIMD(simd_sum, 0); }
inline float simd_max(float x, CALLED_AT) { return SIMD(simd_max, 0); }
inline float simd_min(float x, CALLED_AT) { return SIMD(simd_min, 0); }
inline float simd_broadcast(float x, uint lane, CALLED_AT) { return SIMD(simd_broadcast, lane); }
inline float simd_shuffle(float x, uint lane, CALLED_AT) { return SIMD(simd_shuffle, lane); }
inline float simd_shuffle_xor(float x, uint mask, CALLED_AT) { return SIMD(simd_shuffle_xor, mask); }
inline float simd_shuffle_down(float x, uint delta, CALLED_AT) { return SIMD(simd_shuffle_down, delta); }
inline void simdgroup_barrier(mem_flags flags, CALLED_AT) {
  paged_barrier("simdgroup_barrier", uint32_t(flags), file, line);
}
inline void threadgroup_barrier(mem_flags flags, CALLED_AT) {
  paged_barrier("threadgroup_barrier", uint32_t(flags), file, line);
}
#undef SIMD
#undef CALLED_AT

}  // namespace msl

#define PAGED_ENTRY(kernel_function)                                                                                 \
  extern "C" void paged_thread(void* const* buffers, uint32_t x, uint32_t y, uint32_t z, uint32_t simdgroup, uint32_t lane) { \
    kernel_function(buffers, {x, y, z}, simdgroup, lane);                                                            \
  }
