// The emulator's own arithmetic and collectives, laid open for test_arithmetic.py.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// x [n] bits -> out [n].   LAUNCH: grid n / 256, block 256
extern "C" __global__ void half_to_float(const __half* x, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __half2float(x[i]);
}

extern "C" __global__ void bf16_to_float(const __nv_bfloat16* x, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __bfloat162float(x[i]);
}

extern "C" __global__ void float_to_half(const float* x, __half* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2half_rn(x[i]);
}

extern "C" __global__ void float_to_bf16(const float* x, __nv_bfloat16* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2bfloat16_rn(x[i]);
}

extern "C" __global__ void float_to_int(const float* x, int* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2int_rz(x[i]);
}

extern "C" __global__ void float_to_u64(const float* x, unsigned long long* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2ull_rz(x[i]);
}

extern "C" __global__ void multiply_high(const unsigned* x, unsigned* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __umulhi(x[i], 0xD2511F53u);
}

// out [16, 64]: row by row what every thread got.   LAUNCH: grid 1, block 64
extern "C" __global__ void collectives(const int* x, int* out) {
    int i = threadIdx.x, v = x[i], row = 0;
    auto put = [&](int value) { out[64 * row++ + i] = value; };
    put(__shfl_sync(~0u, v, 5));
    put(__shfl_sync(~0u, v, i + 1, 8));
    put(__shfl_xor_sync(~0u, v, 3));
    put(__shfl_down_sync(~0u, v, 4));
    put(__shfl_down_sync(~0u, v, 3, 16));
    put(__shfl_up_sync(~0u, v, 4));
    put(__shfl_up_sync(~0u, v, 1, 4));
    put(static_cast<int>(__ballot_sync(~0u, v & 1)));
    put(__any_sync(~0u, v == 40));
    put(__all_sync(~0u, v != 40));
    put(__reduce_add_sync(~0u, v));
    put(__reduce_max_sync(~0u, v));
    put(__syncthreads_count(v & 1));
    put(__syncthreads_or(v == 40));
    put(__syncthreads_and(v != 40));
    if (i % 32 >= 20) v = __shfl_xor_sync(0xfff00000u, v, 1);  // twelve lanes among themselves
    put(v);
}
