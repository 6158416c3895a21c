// The instructions of ptx.cuh, one a kernel, each lane with operands of its own: what gpu_fragments.py compares with
// the CPU.
#include "ptx.cuh"

// A [n, 32] uint4, B [n, 32] uint2, D [n, 32] float4 in and out.   LAUNCH: grid n, block 32
#define PRODUCT(NAME)                                                                  \
    extern "C" __global__ void run_##NAME(const uint4* a, const uint2* b, float4* d) { \
        int i = blockIdx.x * 32 + threadIdx.x;                                         \
        float4 v = d[i];                                                               \
        float sum[4] = {v.x, v.y, v.z, v.w};                                           \
        NAME(sum, a[i], b[i]);                                                         \
        d[i] = make_float4(sum[0], sum[1], sum[2], sum[3]);                            \
    }
PRODUCT(mma_bf16_m16n8k16)
PRODUCT(mma_f16_m16n8k16)
PRODUCT(mma_tf32_m16n8k8)

// tiles [n, 4, 8, 8] 16-bit values, out [n, 32] uint4.   LAUNCH: grid n, block 32
extern "C" __global__ void run_ldmatrix(const uint4* tiles, uint4* out) {
    __shared__ uint4 rows[32];
    int lane = threadIdx.x;
    rows[lane] = tiles[blockIdx.x * 32 + lane];
    __syncthreads();
    out[blockIdx.x * 32 + lane] = ldmatrix_x4_trans(rows + lane);
}

// from [n, 32] uint4, sizes [n, 32] 0 to 16, out [n, 32] uint4: what cp.async left.   LAUNCH: grid n, block 32
extern "C" __global__ void run_cp_async(const uint4* from, const int* sizes, uint4* out) {
    __shared__ uint4 rows[32];
    int i = blockIdx.x * 32 + threadIdx.x;
    cp_async16(rows + threadIdx.x, from + i, sizes[i]);
    cp_async_commit();
    cp_async_wait<0>();
    out[i] = rows[threadIdx.x];
}

// x [n] -> out [n], as bits.   LAUNCH: grid n / 256, block 256
extern "C" __global__ void run_to_tf32(const float* x, unsigned* out) {
    int i = blockIdx.x * 256 + threadIdx.x;
    out[i] = to_tf32(x[i]);
}

extern "C" __global__ void run_exp2(const float* x, float* out) {
    int i = blockIdx.x * 256 + threadIdx.x;
    out[i] = exp2_approx(x[i]);
}

// out [n] = the 3xTF32 product of one lane's operands: a [n, 32, 8], b [n, 32, 4], d [n, 32] float4.   LAUNCH: grid n,
// block 32
extern "C" __global__ void run_mma_float(const float* a, const float* b, float4* d) {
    int i = blockIdx.x * 32 + threadIdx.x;
    float x[8], y[4], sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int j = 0; j < 8; j++) x[j] = a[8 * i + j];
    for (int j = 0; j < 4; j++) y[j] = b[4 * i + j];
    mma<float>(sum, x, y);
    d[i] = make_float4(sum[0], sum[1], sum[2], sum[3]);
}
