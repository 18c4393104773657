// A GPU's threads as they are: 32 lanes to a simdgroup, several simdgroups to a threadgroup, each thread a fiber that runs
// until it waits for others. What waits, and every load and store, goes through simulator.cpp: the compiler announces the
// latter by -fsanitize=thread, whose functions are defined there in place of the sanitizer's own.
#pragma once
#include "common.h"

extern "C" {
void* paged_threadgroup_array(const char* name, int64_t itemsize, int64_t count);
float paged_simd(int32_t operation, float x, const char* file, int32_t line);
void paged_barrier(int32_t operation, uint32_t flags, const char* file, int32_t line);
}

// The first thread of a threadgroup that comes here makes the array, the others find it by its name.
#define THREADGROUP_ARRAY(type, name, size) \
  auto& name = *static_cast<type(*)[size]>(paged_threadgroup_array(#name, sizeof(type), size))

namespace msl {

// A default argument is evaluated where the function is called: that is how it knows the kernel's line.
#define CALLED_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline float simd_sum(float x, CALLED_AT) { return paged_simd(0, x, file, line); }
inline float simd_max(float x, CALLED_AT) { return paged_simd(1, x, file, line); }
inline void simdgroup_barrier(mem_flags flags, CALLED_AT) { paged_barrier(2, uint32_t(flags), file, line); }
inline void threadgroup_barrier(mem_flags flags, CALLED_AT) { paged_barrier(3, uint32_t(flags), file, line); }
#undef CALLED_AT

}  // namespace msl

#define PAGED_ENTRY(kernel_function)                                                                                 \
  extern "C" void paged_thread(void* const* buffers, uint32_t x, uint32_t y, uint32_t z, uint32_t simdgroup, uint32_t lane) { \
    kernel_function(buffers, {x, y, z}, simdgroup, lane);                                                            \
  }
