// So much of CUDA as the kernels use, for clang's CUDA mode where no CUDA toolkit is installed: enough to compile for a
// device, and to be refused when a device calls what only a host has.
#pragma once
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))

struct dim3 {
  unsigned x, y, z;
};
extern const __device__ __attribute__((weak)) dim3 threadIdx, blockIdx;
__device__ void __syncthreads();
__device__ void __syncwarp();
__device__ float __shfl_sync(unsigned, float, int);
__device__ float __shfl_xor_sync(unsigned, float, int);
__device__ float __shfl_down_sync(unsigned, float, int);
__device__ float __int_as_float(int);
__device__ float exp(float);
__device__ float max(float, float);
__device__ int max(int, int);
__device__ int min(int, int);
typedef int int32_t;

struct __half {
  unsigned short bits;
  __device__ __half(float);
  __device__ operator float() const;
};
struct __nv_bfloat16 {
  unsigned short bits;
  __device__ __nv_bfloat16(float);
  __device__ operator float() const;
};
