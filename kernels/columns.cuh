// Which part of x a block of a decode product needs, and how it gets there: straight from global memory, as a copy in
// shared memory, or as rows of the residual stream that are normalised on the way.
//
// What a block holds of x is [k tiles of its parts, R, 16]: the eight columns of a fragment are neighbours, in
// different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "norm.cuh"
#include "packed.cuh"

enum Source {
    DIRECT,  // x as it is in global memory
    STAGED,  // copied
    NORM,    // T(x * weight / FACTOR) of float32 rows; 1 / rms(x) is for the sums
    ROWS,    // T(x / rms(x) * weight) of short float32 rows
};

template <int SOURCE>
constexpr bool NORMALISES = SOURCE == NORM || SOURCE == ROWS;

// What x is an array of.
template <class T, int SOURCE>
using Input = typename Choose<NORMALISES<SOURCE>, float, T>::type;

// Halves end at 65504, which a residual stream may come near to before it is divided by its root mean square.
template <class T>
constexpr float FACTOR = 1.f;
template <>
constexpr float FACTOR<half> = 16.f;

// Which k tiles of a product belong to a block and to a warp: linear_decode.cu says how they are shared out.
template <int WARPS, int SPLIT>
struct Parts {
    static constexpr int PARTS = WARPS / SPLIT, THREADS = WARPS * 32;  // parts of a block
    static_assert(WARPS % SPLIT == 0, "a block has as many parts as the others");
    int rank;   // of the block in its cluster
    int set;    // tiles of a group that this warp multiplies; the block that adds them up
    int local;  // the warp's part, among those of the block
    int part;   // among all

    __device__ __forceinline__ Parts() {
        int warp = threadIdx.x / 32;
        rank = SPLIT > 1 ? cluster_rank() : 0;
        set = warp / PARTS;
        local = warp % PARTS;
        part = rank * PARTS + local;
    }

    // The k tile of the warp's part that comes `step` after its first; of any part of the block, what is held at `i`.
    __device__ __forceinline__ int tile(int step) const { return part + step * WARPS; }
    __device__ __forceinline__ int held_tile(int i) const { return i / PARTS * WARPS + rank * PARTS + i % PARTS; }

    static __device__ __forceinline__ int steps(int tiles_k) { return (tiles_k + WARPS - 1) / WARPS; }
    static __device__ __forceinline__ int held(int tiles_k) {
        return steps(tiles_k) * PARTS * 16;
    }  // elements of a row
};

// held = the block's part of x. Ends with a barrier. By loads and not by copies: who waits for those waits for the
// weights as well, which are on their way already.   x [R, K] T
template <class Own, class T>
__device__ __forceinline__ void hold(const Own& own, const T* x, int rows, int tiles_k, T* held) {
    constexpr int EACH = 16 / sizeof(T), CHUNKS = 16 / EACH,
                  AHEAD = 4;  // elements of a load, loads of a k tile, at once
    const int count = Own::held(tiles_k) / EACH, whole = Own::THREADS / count, left = Own::THREADS - whole * count;
    int row = static_cast<int>(threadIdx.x) / count, i = static_cast<int>(threadIdx.x) - row * count;
#pragma unroll 1
    while (row < rows) {
        uint4 v[AHEAD];
        T* to[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int at = i / CHUNKS, tile = own.held_tile(at), element = i % CHUNKS * EACH;
            to[j] = row < rows && tile < tiles_k ? held + (at * rows + row) * 16 + element : nullptr;
            if (to[j])
                v[j] = *reinterpret_cast<const uint4*>(x + (static_cast<size_t>(row) * tiles_k + tile) * 16 + element);
            row += whole, i += left;
            if (i >= count) row++, i -= count;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (to[j]) *reinterpret_cast<uint4*>(to[j]) = v[j];
    }
    __syncthreads();
}

// Puts the block's part of the norm's weight on its way; a group of copies. Only hold_rows needs it, whose blocks have
// all parts, but as a plain copy of K floats a step of a 135M model took 0.320 ms instead of 0.310.   weight [K]
template <class Own>
__device__ __forceinline__ void copy_norm(const Own& own, const float* weight, int tiles_k, float* held) {
    for (int i = threadIdx.x; i < Own::held(tiles_k) / 4; i += Own::THREADS) {
        const int tile = own.held_tile(i / 4);
        if (tile < tiles_k) cp_async16(held + i * 4, weight + tile * 16 + i % 4 * 4);
    }
    cp_async_commit();
}

// What hold_normed does for ROWS rows from `row` on, SPLIT apart; CHUNKS times four neighbours of each at once.
template <int ROWS, int CHUNKS, int WARPS, int SPLIT, class T>
__device__ __forceinline__ void normalise_rows(const Parts<WARPS, SPLIT>& own, const float* x, const int* index,
                                               const float* weight, int row, int rows, int tiles_k, T* held,
                                               float* part_squares) {
    using Own = Parts<WARPS, SPLIT>;
    const int lane = threadIdx.x % 32, steps = Own::steps(tiles_k);
    // Beyond the last row, and the last k tile, the last one once more: the same bits are stored again, or not at all.
    float sum[ROWS] = {};
#pragma unroll 1
    for (int first = 0; first < steps; first += 8 * CHUNKS) {
        float4 v[CHUNKS][ROWS], w[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int tile = min(own.tile(first + c * 8 + lane / 4), tiles_k - 1);
            const float4* from = reinterpret_cast<const float4*>(x) + tile * 4 + lane % 4;
            w[c] = reinterpret_cast<const float4*>(weight)[tile * 4 + lane % 4];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int at = min(row + r * SPLIT, rows - 1);
                v[c][r] = from[(index ? index[at] : at) * tiles_k * 4];
            }
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int step = first + c * 8 + lane / 4, at = step * Own::PARTS + own.local;
            if (own.tile(step) >= tiles_k) continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                sum[r] += squares(v[c][r]);
                store4(held + (at * rows + min(row + r * SPLIT, rows - 1)) * 16 + lane % 4 * 4,
                       scaled(v[c][r], 1.f / FACTOR<T>, w[c]));
            }
        }
    }
    // A butterfly in which a lane goes on with half of the rows at each step, until it has one: lane's bits say which.
    int mine = 0;
#pragma unroll
    for (int offset = 1, left = ROWS / 2; offset < 32; offset *= 2, left /= 2) {
        const bool upper = lane & offset;
        mine += upper * left;
#pragma unroll
        for (int r = 0; r < max(left, 1); r++) {
            const float give = left && !upper ? sum[r + left] : sum[r];
            const float keep = left && upper ? sum[r + left] : sum[r];
            sum[r] = keep + __shfl_xor_sync(0xffffffffu, give, offset);
        }
    }
    if (row + mine * SPLIT < rows) {
        float* to = part_squares + (row + mine * SPLIT) * WARPS + own.part;
        for (int i = lane / ROWS; i < SPLIT; i += 32 / ROWS) *(SPLIT > 1 ? in_cluster(to, i) : to) = sum[0];
    }
}

// held[r] = T(x[i] * weight / FACTOR) with i = index[r], or r without an index, and part_squares[r, p] = the sum of
// squares of x[i] in part p, for all blocks of the cluster once they have met. Ends with a barrier of the block.
//
// A warp takes its part of the rows of its set, SPLIT apart: four neighbours of a k tile a lane, of every eighth k tile
// of the part. A lane adds up in order, then the lanes as a butterfly: the same tree whatever SPLIT and R.
// AHEAD: how often four floats a lane has registers for.   x [*, K] float32, weight [K]
template <int AHEAD, int WARPS, int SPLIT, class T>
__device__ __forceinline__ void hold_normed(const Parts<WARPS, SPLIT>& own, const float* x, const int* index,
                                            const float* weight, int rows, int tiles_k, T* held, float* part_squares) {
    static_assert(AHEAD == 4 || AHEAD == 8, "rows at once, or four, or one");
    int row = own.set;
#pragma unroll 1
    for (; row + (AHEAD == 8 ? 4 : 1) * SPLIT < rows; row += AHEAD * SPLIT)
        normalise_rows<AHEAD, 1>(own, x, index, weight, row, rows, tiles_k, held, part_squares);
    if (AHEAD == 8 && row + SPLIT < rows) {
        normalise_rows<4, 2>(own, x, index, weight, row, rows, tiles_k, held, part_squares);
        row += 4 * SPLIT;
    }
    if (row < rows) normalise_rows<1, 2>(own, x, index, weight, row, rows, tiles_k, held, part_squares);
    __syncthreads();
}

// held[r] = T(x[i] / sqrt(mean(x[i]^2) + eps) * weight), with i as above: a warp a row, read in one go. Ends with a
// barrier.
//   x [*, K] float32, K <= 640; weight as copy_norm left it
template <int WARPS, class T>
__device__ __forceinline__ void hold_rows(const Parts<WARPS, 1>&, const float* x, const int* index, const float* weight,
                                          float eps, int rows, int tiles_k, T* held) {
    constexpr int QUADS = 5;  // of a row a lane
    const int quads = tiles_k * 4, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
        const float4* row = reinterpret_cast<const float4*>(x) + (index ? index[r] : r) * quads;
        float4 v[QUADS];
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < QUADS; j++)
            if (lane + j * 32 < quads) v[j] = row[lane + j * 32];
#pragma unroll
        for (int j = 0; j < QUADS; j++)
            if (lane + j * 32 < quads) sum += squares(v[j]);
        const float scale = rsqrtf(fmaf(warp_sum(sum), 1.f / (quads * 4), eps));
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            const int i = lane + j * 32;
            if (i < quads)
                store4(held + ((i / 4) * rows + r) * 16 + i % 4 * 4,
                       scaled(v[j], scale, reinterpret_cast<const float4*>(weight)[i]));
        }
    }
    __syncthreads();
}

// What a row's sums are to be multiplied by: FACTOR / rms(x).   part_squares [R, WARPS]
template <class T, int WARPS>
__device__ __forceinline__ float row_scale(const float* part_squares, int row, int k, float eps) {
    const float4* parts = reinterpret_cast<const float4*>(part_squares + row * WARPS);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS / 4; i++) sum += parts[i].x + parts[i].y + (parts[i].z + parts[i].w);
    return FACTOR<T> * rsqrtf(fmaf(sum, 1.f / k, eps));
}
