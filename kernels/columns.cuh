// Which part of x a block of a decode product needs, and how it gets there: straight from global memory, or as a copy
// in shared memory. And what its sums are to be multiplied by where x is half normalised (norm.cuh).
//
// What a block holds of x is [k tiles of its parts, R, 16]: the eight columns of a fragment are neighbours, in
// different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "norm.cuh"
#include "packed.cuh"

enum Source {
    DIRECT,  // x as it is in global memory
    STAGED,  // copied
};

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

// scales[r] = FACTOR / rms of row r, a warp a row; nothing without `squared`.   squared [R, squared_line(k)]
template <class T, int WARPS>
__device__ __forceinline__ void find_scales(const float* squared, int rows, int k, float eps, float* scales) {
    if (!squared) return;
    const int lane = threadIdx.x % 32, quads = squared_line(k) / 4;
#pragma unroll 1
    for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
        const float4* line = reinterpret_cast<const float4*>(squared) + r * quads;
        float sum = 0.f;
#pragma unroll 1
        for (int i = lane; i < quads; i += 64) {  // two loads at once: all there are up to K = 4096
            const float4 v = line[i], w = i + 32 < quads ? line[i + 32] : make_float4(0.f, 0.f, 0.f, 0.f);
            sum += v.x + v.y + (v.z + v.w) + (w.x + w.y + (w.z + w.w));
        }
        sum = warp_sum(sum);
        if (lane == 0) scales[r] = FACTOR<T> * rsqrtf(__fdividef(sum, k) + eps);
    }
}
