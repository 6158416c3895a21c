// Packing weights once at load, and reading them back: rows of a table, or a whole matrix as plain numbers.
#include "norm.cuh"
#include "quantised.cuh"

// Where a row of a packed matrix is: the inverse of first_row. Of a group of 16 * span rows the second half are
// partners of the first.
struct RowPlace {
    int tile, g, half;

    __device__ __forceinline__ RowPlace(int row, int span) {
        const int group = row / (16 * span), rest = row % (16 * span);
        half = rest / (8 * span), tile = group * span + rest % (8 * span) / 8, g = rest % 8;
    }
};

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
    const RowPlace at(first + i, span);
    T* out = packed + ((static_cast<size_t>(at.tile) * tiles_k + kt) * 32 + at.g * 4 + q) * 8 + at.half * 2;
    out[0] = v[0], out[1] = v[1];
    out[4] = v[2], out[5] = v[3];
}

// BYTES of a row, of which `from` has a number `at`, to its half of the bytes of two rows; zeros unless they are there.
template <int BYTES>
__device__ __forceinline__ void put_scales(unsigned char* to, int half, const unsigned char* from, size_t at,
                                           bool there) {
    for (int i = 0; i < BYTES; i++) to[half * BYTES + i] = there ? from[at * BYTES + i] : 0;
}

// Rows first .. first + count of codes and scales into their places of the packed form of W (quantised.cuh); rows from
// N on become zeros.
//   codes [present, K]; inner [present, steps, LANE / 2] and outer [present, steps / SHARING, OUTER / 2] of the format:
//   bytes of the scales of each step of a row, and of what those of a run are under; packed [tiles, steps / SHARING,
//   RUN]
// LAUNCH: grid ceil(count * K / 16 / 256), block 256. A thread moves 16 codes of one row: a lane's of 64 k.
// PRECOND: K % Format<W>::K == 0; first + count is at most the padded N; present, at most count, rows are given.
template <class W>
__global__ void __launch_bounds__(256)
    pack_codes(const unsigned char* codes, const unsigned char* inner, const unsigned char* outer,
               unsigned char* packed, int first, int count, int present, int k, int span) {
    using F = Format<W>;
    const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int i = static_cast<int>(thread / (k / 16)), run = static_cast<int>(thread % (k / 16)) / 4, q = thread % 4;
    if (i >= count) return;
    const RowPlace at(first + i, span);
    const int steps = k / F::K, step = run * 64 / F::K, kt = run * 4 % (F::K / 16);
    unsigned char* unit = F::step_of(packed, at.tile, step, steps);
    unsigned char code[4][4] = {};
    if (i < present)
        for (int j = 0; j < 16; j++)
            code[j / 4][j % 4] = codes[static_cast<size_t>(i) * k + run * 64 + F::k_of(j / 4, q, j % 4)];
    F::put(unit, at.g, q, at.half, kt, code);
    if (kt > 0 || q > 0) return;
    put_scales<F::LANE / 2>(unit + F::CODE_BYTES + at.g * F::LANE, at.half, inner,
                            static_cast<size_t>(i) * steps + step, i < present);
    if (step % F::SHARING) return;
    put_scales<F::OUTER / 2>(unit + F::SHARING * F::STEP + at.g * F::OUTER, at.half, outer,
                             static_cast<size_t>(i) * (steps / F::SHARING) + step / F::SHARING, i < present);
}

// The numbers of a matrix of codes and scales, rounded to T, as plain weights are packed: for products of many rows.
//   weight as Format<W> has it, [tiles] of them; plain [tiles, K / 16, 32, 8] T (packed.cuh)
// LAUNCH: grid ceil(tiles * K / 16 * 32 / 256), block 256. A thread makes a lane's eight of a k tile.
template <class W, class T = typename Format<W>::T>
__global__ void __launch_bounds__(256) unpack(const typename Format<W>::Weight* weight, T* plain, int tiles, int k) {
    const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int lane = thread % 32, kt = thread / 32 % (k / 16), tile = static_cast<int>(thread / 32 / (k / 16));
    if (tile >= tiles) return;
    float v[8];
    for (int half = 0; half < 2; half++) {
        const float4 four = Format<W>::four(weight, tile, lane / 4, half, kt * 16 + lane % 4 * 4, k);
        v[half * 2] = four.x, v[half * 2 + 1] = four.y, v[4 + half * 2] = four.z, v[5 + half * 2] = four.w;
    }
    store8(plain + thread * 8, v);
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 times(float4 a, float b) {  // rounded: no part of an fma, with any scale
    return make_float4(__fmul_rn(a.x, b), __fmul_rn(a.y, b), __fmul_rn(a.z, b), __fmul_rn(a.w, b));
}

// out[r] = scale table[ids[r]] + places[at[r]] of a table packed as W with span 1; without the second where places is
// null. With norm also the first half of the norm that out goes through next (norm.cuh).
//   ids, at [R], table [V, K] packed, places [T, K] float32, out [R, K] float32; norm [K] or null, normed [R, K] T,
//   squared [R, squared_line(K)]
// LAUNCH: grid (R, any), block 128, dependent. PRECOND: 0 <= ids[r] < V, 0 <= at[r] < T, K % Format<W>::K == 0.
template <class W, class T = typename Format<W>::T>
__global__ void __launch_bounds__(128)
    embed_packed(const int* ids, const typename Format<W>::Weight* table, const int* at, const float* places,
                 float* out, int k, float scale, const float* norm, T* normed, float* squared) {
    grid_wait();    // ids may be what the step before has sampled
    grid_launch();  // not earlier: the step's kernels may count on its positions being there when they start
    int row = blockIdx.x, id = ids[row];
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < k / 4; i += gridDim.y * blockDim.x) {
        float4 v = times(Format<W>::four(table, id / 16, id % 8, id % 16 / 8, i * 4, k), scale);
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
    embed_plain(const int* ids, const T* table, const int* at, const float* places, float* out, int k, float scale) {
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
