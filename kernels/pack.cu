// Packing weights once at load, and reading rows back out of a packed table.
#include "norm.cuh"
#include "packed.cuh"

// Rows first .. first + count of a matrix [N, K] into their places of its packed form; rows from N on become zeros.
//   source [N - first at most, K] T, row-major: the row block that starts at row `first`
//   packed [tiles, K / 16, 32, 8] T, see packed.cuh for span
// LAUNCH: grid ceil(ceil(count / 8) * K / 16 * 32 / 256), block 256. A thread moves four k of one row.
// PRECOND: K % 16 == 0; rows is a multiple of 16 * span, the padded N; present = rows of source, at most count.
template <class T>
__global__ void __launch_bounds__(256)
    pack(const T* source, T* packed, int first, int count, int present, int k, int span) {
    int tiles_k = k / 16, q = threadIdx.x % 4, g = threadIdx.x / 4 % 8;
    long long warp = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    int i = static_cast<int>(warp / tiles_k) * 8 + g, kt = static_cast<int>(warp % tiles_k);
    if (i >= count) return;
    T v[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j] = i < present ? source[static_cast<size_t>(i) * k + kt * 16 + q * 4 + j] : from_float<T>(0.f);
    // The inverse of first_row: within a group of 16 * span rows the second half are partners of the first.
    int row = first + i, group = row / (16 * span), rest = row % (16 * span);
    int half = rest / (8 * span), tile = group * span + rest % (8 * span) / 8, lane = rest % 8 * 4 + q;
    T* out = packed + ((static_cast<size_t>(tile) * tiles_k + kt) * 32 + lane) * 8 + half * 2;
    out[0] = v[0], out[1] = v[1];
    out[4] = v[2], out[5] = v[3];
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 times(float4 a, float b) {  // rounded: no part of an fma, with any scale
    return make_float4(__fmul_rn(a.x, b), __fmul_rn(a.y, b), __fmul_rn(a.z, b), __fmul_rn(a.w, b));
}

// out[r] = scale table[ids[r]] + places[at[r]] of a table packed with span 1; without the second where places is null.
// With norm also the first half of the norm that out goes through next (norm.cuh).
//   ids, at [R], table [V, K] packed, places [T, K] float32, out [R, K] float32; norm [K] or null, normed [R, K] T,
//   squared [R, squared_line(K)]
// LAUNCH: grid (R, any), block 128, dependent. PRECOND: 0 <= ids[r] < V, 0 <= at[r] < T, K % 16 == 0.
template <class T>
__global__ void __launch_bounds__(128)
    embed_packed(const int* ids, const T* table, const int* at, const float* places, float* out, int k,
                 float scale, const float* norm, T* normed, float* squared) {
    grid_wait();    // ids may be what the step before has sampled
    grid_launch();  // not earlier: the step's kernels may count on its positions being there when they start
    int row = blockIdx.x, id = ids[row], tiles_k = k / 16;
    const T* tile = table + static_cast<size_t>(id / 16) * tiles_k * 256 + id % 8 * 32 + id % 16 / 8 * 2;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < k / 4; i += gridDim.y * blockDim.x) {
        const T* p = tile + (i / 4) * 256 + i % 4 * 8;
        float4 v = times(make_float4(to_float(p[0]), to_float(p[1]), to_float(p[4]), to_float(p[5])), scale);
        if (places) v = plus(v, reinterpret_cast<const float4*>(places + static_cast<size_t>(at[row]) * k)[i]);
        reinterpret_cast<float4*>(out + static_cast<size_t>(row) * k)[i] = v;
        if (norm) {
            float4 weight = reinterpret_cast<const float4*>(norm)[i];
            store4(normed + static_cast<size_t>(row) * k + i * 4, scaled(v, 1.f / FACTOR<T>, weight));
            float sum = squares(v);
            const unsigned lanes = 0xfu << threadIdx.x % 32 / 4 * 4;  // those of the same sixteen
            sum += __shfl_xor_sync(lanes, sum, 1);
            sum += __shfl_xor_sync(lanes, sum, 2);
            if (i % 4 == 0) squared[row * squared_line(k) + i / 4] = sum;
        }
    }
}

// out as above from a plain table [V, K], for products by cuBLAS. LAUNCH and PRECOND as above.
template <class T>
__global__ void __launch_bounds__(128)
    embed_plain(const int* ids, const T* table, const int* at, const float* places, float* out, int k,
                float scale) {
    grid_wait();
    grid_launch();
    const T* row = table + static_cast<size_t>(ids[blockIdx.x]) * k;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < k / 8; i += gridDim.y * blockDim.x) {
        float v[8];
        load8(row + i * 8, v);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = __fmul_rn(v[e], scale);
        if (places) {
            float place[8];
            load8(places + static_cast<size_t>(at[blockIdx.x]) * k + i * 8, place);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] += place[e];
        }
        store8(out + static_cast<size_t>(blockIdx.x) * k + i * 8, v);
    }
}
