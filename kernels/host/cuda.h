// What a CUDA compiler needs to read the .metal files as they are. The text stands in front of theirs, behind MLX's own
// includes: address spaces are found out by the compiler, a simdgroup is a warp, a threadgroup a block.
#define device
#define constant
#define threadgroup
#define thread
#undef __device__  // CUDA spells it with the word that is now nothing; its compilers know this spelling too
#define METAL_FUNC inline __attribute__((__device__, always_inline))
#define THREADGROUP_ARRAY(type, name, size) __shared__ type name[size]
#define UNROLL _Pragma("unroll")
#define UNROLL_ON_GPU UNROLL
#define HOST_VECTORS  // one address space for the compiler, so that one load_vector serves all pointers
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

#define threadgroup_position_in_grid blockIdx
#define simdgroup_index_in_threadgroup (threadIdx.x / 32)
#define thread_index_in_simdgroup (threadIdx.x % 32)

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

METAL_FUNC void threadgroup_barrier(mem_flags) { __syncthreads(); }
METAL_FUNC void simdgroup_barrier(mem_flags) { __syncwarp(); }

// Every lane ends with the same bits: at each step two lanes add the same two numbers.
METAL_FUNC float simd_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

METAL_FUNC float simd_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}

METAL_FUNC float simd_min(float x) { return -simd_max(-x); }
METAL_FUNC float simd_broadcast(float x, unsigned lane) { return __shfl_sync(~0u, x, lane); }
METAL_FUNC float simd_shuffle(float x, unsigned lane) { return __shfl_sync(~0u, x, lane); }
METAL_FUNC float simd_shuffle_xor(float x, unsigned mask) { return __shfl_xor_sync(~0u, x, mask); }
METAL_FUNC float simd_shuffle_down(float x, unsigned delta) { return __shfl_down_sync(~0u, x, delta); }

template <int WIDTH>
struct VectorOf;
template <>
struct VectorOf<1> {
  typedef float type;
};
METAL_FUNC float load_vector(const float* from, float) { return *from; }
METAL_FUNC void store_vector(float* to, float value) { *to = value; }
