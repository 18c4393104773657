// Metal's rules, as far as clang can be told to hold C++14 to them: `device`, `constant` and `threadgroup` are address
// spaces, `thread` is the default, and a pointer into one is none into another; half and bfloat are numbers of their own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define THREADGROUP_ARRAY(type, name, size) static threadgroup type name[size]
#define PAGED_NATIVE_BFLOAT
#include "common.h"
#undef UNROLL  // the text has its own
#undef UNROLL_ON_GPU

namespace msl {

float simd_sum(float);
float simd_max(float);
float simd_min(float);
float simd_broadcast(float, uint);
float simd_shuffle(float, uint);
float simd_shuffle_xor(float, uint);
float simd_shuffle_down(float, uint);
void simdgroup_barrier(mem_flags);
void threadgroup_barrier(mem_flags);

}  // namespace msl
