// Which part of x a block of a decode product needs, and how it gets there: straight from global memory, or as a copy
// in shared memory. And what its sums are to be multiplied by where x is half normalised (norm.cuh).
//
// What a block holds of x is [chunks of its parts, R, CHUNK], 16 or 32 k a chunk (format.cuh): the eight columns of a
// fragment are neighbours, in different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "format.cuh"
#include "norm.cuh"

enum Source {
    DIRECT,  // x as it is in global memory
    STAGED,  // copied
};

// How a decode product is cut, and for how many rows: 1, up to 8 or up to 16. linear_decode.cu says what is meant.
enum Way {
    REGISTERS,
    RING,
    ONCE,  // no stream: at_once.cuh
};

template <int WARPS_, int SPLIT_, int TILES_, int ROWS_, int DEPTH_, int BLOCKS_, Way WAY_>
struct Shape {
    static constexpr int WARPS = WARPS_, SPLIT = SPLIT_, TILES = TILES_, ROWS = ROWS_, DEPTH = DEPTH_, BLOCKS = BLOCKS_;
    static constexpr Way WAY = WAY_;
    static constexpr int COLS = (ROWS + 7) / 8;                   // columns of eight rows of x
    static constexpr int THREADS = 32 * (WARPS + (WAY == ONCE));  // of a block
    static constexpr int HALVES = ROWS == 1 ? 1 : 2;              // sums of a lane that there are rows for
};

// Which k steps of a product belong to a block and to a warp: linear_decode.cu says how they are shared out.
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

    // The k step that comes `i` after the first of the warp's part; of any part of the block, what is held at `i`.
    __device__ __forceinline__ int step(int i) const { return part + i * WARPS; }
    __device__ __forceinline__ int held_step(int i) const { return i / PARTS * WARPS + rank * PARTS + i % PARTS; }

    // The most that a part has of `steps`; those that a block holds.
    static __device__ __forceinline__ int most(int steps) { return (steps + WARPS - 1) / WARPS; }
    static __device__ __forceinline__ int held(int steps) { return most(steps) * PARTS; }
};

// held = the block's part of x, prepared. Ends with a barrier. By loads and not by copies: who waits for those waits
// for the weights as well, which are on their way already.   x [R, K] T
template <class F, class Own, class T>
__device__ __forceinline__ void hold(const Own& own, const T* x, int rows, int steps, T* held) {
    constexpr int EACH = 16 / sizeof(T), CHUNKS = F::K / F::CHUNK;  // elements of a load; chunks of a step
    constexpr int LOADS = F::CHUNK / EACH, AHEAD = 4;               // of a chunk; loads at once
    const int count = Own::held(steps) * CHUNKS * LOADS, whole = Own::THREADS / count;
    const int left = Own::THREADS - whole * count;
    int row = static_cast<int>(threadIdx.x) / count, i = static_cast<int>(threadIdx.x) - row * count;
#pragma unroll 1
    while (row < rows) {
        uint4 v[AHEAD];
        T* to[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int at = i / LOADS, step = own.held_step(at / CHUNKS), element = i % LOADS * EACH;
            to[j] = row < rows && step < steps ? held + (at * rows + row) * F::CHUNK + element : nullptr;
            if (to[j])
                v[j] = *reinterpret_cast<const uint4*>(x + (static_cast<size_t>(row) * steps + step) * F::K +
                                                       at % CHUNKS * F::CHUNK + element);
            row += whole, i += left;
            if (i >= count) row++, i -= count;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (to[j]) *reinterpret_cast<uint4*>(to[j]) = F::prepare(v[j]);
    }
    __syncthreads();
}

// What finds scales[r] = FACTOR / rms of row r, a warp a row; nothing without `squared`. Begun before a block copies
// its x, so that the two trips to L2 are one.   squared [R, squared_line(k)]
template <class T, int WARPS>
struct RowScales {
    const float4* squared;
    int rows, quads, row;
    float4 first[2];  // of the warp's first row: all there are up to K = 4096

    __device__ __forceinline__ RowScales(const float* squared, int rows, int k)
        : squared(reinterpret_cast<const float4*>(squared)), rows(rows), quads(squared_line(k) / 4) {
        row = threadIdx.x / 32;
        if (squared && row < rows) load(first, row, threadIdx.x % 32);
    }

    __device__ __forceinline__ void load(float4 (&v)[2], int r, int i) const {
        const float4 *line = squared + r * quads, zero = make_float4(0.f, 0.f, 0.f, 0.f);
        v[0] = i < quads ? line[i] : zero;
        v[1] = i + 32 < quads ? line[i + 32] : zero;
    }

    static __device__ __forceinline__ float sum(const float4 (&v)[2]) {
        return v[0].x + v[0].y + (v[0].z + v[0].w) + (v[1].x + v[1].y + (v[1].z + v[1].w));
    }

    __device__ __forceinline__ void find(int k, float eps, float* scales) const {
        if (!squared) return;
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int r = row; r < rows; r += WARPS) {
            float total = r == row ? sum(first) : 0.f;
#pragma unroll 1
            for (int i = r == row ? lane + 64 : lane; i < quads; i += 64) {
                float4 v[2];
                load(v, r, i);
                total += sum(v);
            }
            total = warp_sum(total);
            if (lane == 0) scales[r] = FACTOR<T> * rsqrtf(__fdividef(total, k) + eps);
        }
    }
};
