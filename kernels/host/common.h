// What a C++ compiler needs to read the .metal files as they are: Metal's types, address spaces and functions.
// The kernels' text goes into namespace msl, where these names hide the C library's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef device  // a strict build gives each address space its own meaning before it comes here
#define device
#define constant
#define threadgroup
#define HOST_VECTORS  // one address space, so that one load_vector serves all pointers
#endif
#define thread
#define kernel
#define METAL_FUNC inline
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define UNROLL_ON_GPU

namespace msl {

typedef uint32_t uint;
struct uint3 {
  uint x, y, z;
};
enum class mem_flags : uint32_t { mem_none, mem_device, mem_threadgroup };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint32_t(a) | uint32_t(b)); }

#if defined(__clang__) && defined(__FLT16_MAX__)
typedef _Float16 half;
#else
// g++ 12 converts _Float16 one number at a time, and g++ 11 has none. These integer steps are vectorised. To float:
// shift sign, exponent and fraction into place and correct the exponent's bias by a product, which normalises subnormals
// too; what was infinity or NaN comes out at 2^16 or above, and is given back its exponent.
struct half {
  uint16_t bits;
  half() = default;
  explicit half(float value);
  operator float() const {
    const int32_t placed = int32_t(uint32_t(int32_t(int16_t(bits))) << 13) & int32_t(0x8fffe000);
    float value;
    std::memcpy(&value, &placed, 4);
    value *= 0x1p112f;
    uint32_t result;
    std::memcpy(&result, &value, 4);
    result |= (result & 0x7fffffff) >= 0x47800000 ? 0x7f800000 : 0;
    std::memcpy(&value, &result, 4);
    return value;
  }
};
// To the nearest, ties to even. Below 2^-14 halves lie 2^-24 apart, as do floats from 0.5 on: adding 0.5 rounds.
inline half::half(float value) {
  uint32_t x, small;
  std::memcpy(&x, &value, 4);
  const uint32_t sign = x >> 16 & 0x8000;
  x &= 0x7fffffff;
  const float shifted = __builtin_fabsf(value) + 0.5f;
  std::memcpy(&small, &shifted, 4);
  const uint32_t normal = (x - 0x38000000 + 0xfff + (x >> 13 & 1)) >> 13;
  const uint32_t magnitude = x < 0x38800000 ? small - 0x3f000000 : x < 0x47800000 ? normal : 0x7c00;
  bits = uint16_t(sign | (x > 0x7f800000 ? 0x7e00 : magnitude));
}
#endif

#if defined(__clang__) && defined(PAGED_NATIVE_BFLOAT)
typedef __bf16 bfloat;
#else
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  explicit bfloat(float value) {  // to the nearest, ties to even
    uint32_t x;
    std::memcpy(&x, &value, 4);
    const uint32_t rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;
    bits = uint16_t(value != value ? 0x7fc0 : rounded);
  }
  operator float() const {
    const uint32_t x = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &x, 4);
    return value;
  }
};
#endif
typedef half float16_t;
typedef bfloat bfloat16_t;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline float min(float a, float b) { return b < a ? b : a; }
inline float max(float a, float b) { return a < b ? b : a; }
inline int abs(int a) { return a < 0 ? -a : a; }
inline float abs(float a) { return __builtin_fabsf(a); }

// e^x to about one unit in the last place, written so that a loop of it becomes vector code, which a call of the C
// library's would not: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by its Taylor polynomial, 2^n in two factors so that the
// smallest results are subnormal rather than 0. The fmas also keep the compiler from regrouping the reduction.
inline float exp(float x) {
  x = x < -105.0f ? -105.0f : x > 89.0f ? 89.0f : x;  // beyond are 0 and infinity; NaN passes both tests
  const float n = __builtin_rintf(x * 1.44269504f);
  float r = __builtin_fmaf(n, -0.693145752f, x);
  r = __builtin_fmaf(n, -1.42860677e-6f, r);
  float p = 1.0f / 5040;
  p = __builtin_fmaf(p, r, 1.0f / 720);
  p = __builtin_fmaf(p, r, 1.0f / 120);
  p = __builtin_fmaf(p, r, 1.0f / 24);
  p = __builtin_fmaf(p, r, 1.0f / 6);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  const int whole = int(n), half_of_it = whole >> 1;
  const uint32_t bits[2] = {uint32_t(half_of_it + 127) << 23, uint32_t(whole - half_of_it + 127) << 23};
  float a, b;
  std::memcpy(&a, &bits[0], 4);
  std::memcpy(&b, &bits[1], 4);
  return p * a * b;
}

#ifdef HOST_VECTORS
// A thread's WIDTH numbers as the CPU's vector. Loads and stores need no more alignment than a float: they are copies,
// because an `aligned` on the type would be lost where a template deduces it, and arrays on the stack lie anywhere.
template <int WIDTH>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * WIDTH)));
};
template <>
struct VectorOf<1> {
  typedef float type;
};
template <typename Vector>
inline Vector load_vector(const float* from, Vector) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename Vector>
inline void store_vector(float* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}
#endif

}  // namespace msl
