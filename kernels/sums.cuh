// How the sums of a decode product's warps become one sum: each warp leaves its part in shared memory, `red`, and a
// thread adds up the parts for the two rows of one tile and column that an epilogue wants together.
#pragma once
#include "columns.cuh"

// What a warp leaves: a pair of sums a lane, rows g and g + 8, for each of two columns of each tile; of one row of x,
// which all columns repeat, for the first of them.   S: a Shape (columns.cuh)
template <class S>
struct Sums {
    static constexpr int TILES = S::TILES, COLS = S::COLS, HALVES = S::HALVES;
    static constexpr int PAIRS = TILES * COLS * HALVES;  // of a lane

    // to: the lane's pairs, 32 apart
    static __device__ __forceinline__ void leave(float2* to, const float (&acc)[TILES][COLS][4]) {
#pragma unroll
        for (int r = 0; r < TILES; r++)
#pragma unroll
            for (int c = 0; c < COLS; c++)
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    to[((r * COLS + c) * HALVES + half) * 32] = make_float2(acc[r][c][half], acc[r][c][half + 2]);
    }
};

// The pair that a thread adds up: rows g and g + 8 of one tile of its block's set, one column.
template <class S>
struct Share {
    static constexpr int SPLIT = S::SPLIT, TILES = S::TILES, COLS = S::COLS, HALVES = S::HALVES;
    int rank, rows, tiles, first_tile;  // of the block; of x; of the launch, the first of them in the matrix
    int g, part, column;

    __device__ __forceinline__ Share(int rank, int rows, int tiles, int first_tile)
        : rank(rank), rows(rows), tiles(tiles), first_tile(first_tile) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        g = lane / 4, part = warp / HALVES / COLS;
        column = warp / HALVES % COLS * 8 + lane % 4 * 2 + warp % HALVES;
    }

    __device__ __forceinline__ int tile(int group) const { return first_tile + at(group); }
    __device__ __forceinline__ bool exists(int group) const {
        return part < TILES && column < rows && at(group) < tiles;
    }
    __device__ __forceinline__ int at(int group) const { return (group * SPLIT + rank) * TILES + part; }

    // The sums of WARPS parts, in their order, AHEAD at a time on their way.   red [WARPS, PAIRS, 32]
    template <int WARPS, int AHEAD>
    static __device__ __forceinline__ float2 add_up(const float2* red) {
        const float2* own = red + threadIdx.x;
        float2 sum = make_float2(0.f, 0.f);
#pragma unroll AHEAD
        for (int p = 0; p < WARPS; p++) {
            const float2 v = own[p * Sums<S>::PAIRS * 32];
            sum.x += v.x, sum.y += v.y;
        }
        return sum;
    }
};
