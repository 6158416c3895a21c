// RMSNorm and LayerNorm of rows of the residual stream, and QK-norm: RMSNorm of every query and key head.
#include "norm.cuh"
#include "ptx.cuh"

constexpr int THREADS = 256;

// out[i, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c],  r = rows ? rows[i] : i
// x [*, width], weight [width], out [*, width]. QUADS: 16-byte loads.
//
// LAUNCH: grid (rows of out), block 256, dependent.
// PRECOND: QUADS needs a width that is a multiple of 4.
template <class T, bool QUADS>
__global__ void __launch_bounds__(THREADS)
    rms_norm(const float* x, const float* weight, const int* rows, T* out, int width, float eps) {
    for (int c = 32 * threadIdx.x; c < width; c += 32 * THREADS) prefetch_l2(weight + c);
    grid_wait();
    grid_launch();
    const float* from = x + size_t(rows ? rows[blockIdx.x] : blockIdx.x) * width;
    T* to = out + size_t(blockIdx.x) * width;
    const float4* quads = reinterpret_cast<const float4*>(from);
    float sum = 0.f;
    if constexpr (QUADS) {
#pragma unroll 4
        for (int i = threadIdx.x; i < width / 4; i += THREADS) sum += squares(quads[i]);
    } else {
        for (int c = threadIdx.x; c < width; c += THREADS) sum += from[c] * from[c];
    }
    const float scale = 1.f / sqrtf(block_sum<THREADS>(sum) / width + eps);
    if constexpr (QUADS) {
#pragma unroll 4
        for (int i = threadIdx.x; i < width / 4; i += THREADS)
            store4(to + 4 * i, scaled(quads[i], scale, reinterpret_cast<const float4*>(weight)[i]));
    } else {
        for (int c = threadIdx.x; c < width; c += THREADS) to[c] = from_float<T>(from[c] * scale * weight[c]);
    }
}

// y = (x[r, c] - mean_c(x[r, c])) / sqrt(variance_c(x[r, c]) + eps) * weight[c] + bias[c],  r = rows ? rows[i] : i
// x [*, width]; weight, bias [width]; out [*, width]: y as T; keep [*, width]: y in float32, or null.
//
// LAUNCH: grid (rows of out), block 256, dependent; 4 width bytes of dynamic shared memory.
// PRECOND: width a multiple of 4; keep may be x if rows is null.
template <class T>
__global__ void __launch_bounds__(THREADS) layer_norm(const float* x, const float* weight, const float* bias,
                                                      const int* rows, T* out, float* keep, int width, float eps) {
    extern __shared__ float4 own_quads[];  // every thread reads only what it wrote: no barrier is needed
    for (int c = 32 * threadIdx.x; c < width; c += 32 * THREADS) prefetch_l2(weight + c), prefetch_l2(bias + c);
    grid_wait();
    grid_launch();
    const float4* from = reinterpret_cast<const float4*>(x + size_t(rows ? rows[blockIdx.x] : blockIdx.x) * width);
    const float4* weights = reinterpret_cast<const float4*>(weight);
    const float4* biases = reinterpret_cast<const float4*>(bias);
    float sum = 0.f, squared = 0.f;
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = own_quads[i] = from[i];
        sum += v.x + v.y + (v.z + v.w);
    }
    const float mean = block_sum<THREADS>(sum) / width;
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = own_quads[i];
        squared += squares(make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean));
    }
    const float scale = 1.f / sqrtf(block_sum<THREADS>(squared) / width + eps);
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = own_quads[i], w = weights[i], b = biases[i];
        float4 y = make_float4(fmaf((v.x - mean) * scale, w.x, b.x), fmaf((v.y - mean) * scale, w.y, b.y),
                               fmaf((v.z - mean) * scale, w.z, b.z), fmaf((v.w - mean) * scale, w.w, b.w));
        store4(out + size_t(blockIdx.x) * width + 4 * i, y);
        if (keep) store4(keep + size_t(blockIdx.x) * width + 4 * i, y);
    }
}

// head <- head / sqrt(mean(head^2) + eps) * weight, for every query head (q_weight) and key head (k_weight) of a row.
// qkv [rows, (heads + 2 kv_heads) size], q_weight and k_weight [size].
//
// LAUNCH: grid (ceil(rows (heads + kv_heads) / 8)), block 256: one warp per head, dependent.
// PRECOND: size <= 256.
template <class T>
__global__ void __launch_bounds__(THREADS) head_norm(T* qkv, const float* q_weight, const float* k_weight, int rows,
                                                     int heads, int kv_heads, int size, float eps) {
    grid_wait();
    grid_launch();
    const int unit = (blockIdx.x * THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int row = unit / (heads + kv_heads), head = unit % (heads + kv_heads);
    if (row >= rows) return;
    T* at = qkv + (size_t(row) * (heads + 2 * kv_heads) + head) * size;
    const float* weight = head < heads ? q_weight : k_weight;
    float v[8], sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int c = lane + 32 * i;
        v[i] = c < size ? to_float(at[c]) : 0.f;
        sum += v[i] * v[i];
    }
    float scale = rsqrtf(warp_sum(sum) / size + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int c = lane + 32 * i;
        if (c < size) at[c] = from_float<T>(v[i] * scale * weight[c]);
    }
}
