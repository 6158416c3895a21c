// How the sums of a decode product's warps become one sum: each warp leaves its part in shared memory, `red`, and a
// thread adds up the parts for the two rows of one tile and column that an epilogue wants together.
#pragma once
#include "packed.cuh"

// What a warp leaves: a pair of sums a lane, rows g and g + 8, for each of two columns of each tile.
template <int TILES, int COLS>
struct Sums {
    static constexpr int PAIRS = TILES * COLS * 2;  // of a lane

    // to: the lane's pairs, 32 apart
    static __device__ __forceinline__ void leave(float2* to, const float (&acc)[TILES][COLS][4]) {
#pragma unroll
        for (int r = 0; r < TILES; r++)
#pragma unroll
            for (int c = 0; c < COLS; c++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    to[((r * COLS + c) * 2 + half) * 32] = make_float2(acc[r][c][half], acc[r][c][half + 2]);
    }
};

// The pair that a thread adds up: rows g and g + 8 of one tile of its block's set, one column.
template <int SPLIT, int TILES, int COLS>
struct Share {
    int rank, rows, tiles;  // of the block; of x; of the matrix
    int g, part, column;

    __device__ __forceinline__ Share(int rank, int rows, int tiles) : rank(rank), rows(rows), tiles(tiles) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        g = lane / 4, part = warp / 2 / COLS, column = warp / 2 % COLS * 8 + lane % 4 * 2 + warp % 2;
    }

    __device__ __forceinline__ int tile(int group) const { return (group * SPLIT + rank) * TILES + part; }
    __device__ __forceinline__ bool exists(int group) const {
        return part < TILES && column < rows && tile(group) < tiles;
    }

    // The sums of WARPS parts, in their order, AHEAD at a time on their way.   red [WARPS, PAIRS, 32]
    template <int WARPS, int AHEAD>
    static __device__ __forceinline__ float2 add_up(const float2* red) {
        const float2* own = red + threadIdx.x;
        float2 sum = make_float2(0.f, 0.f);
#pragma unroll AHEAD
        for (int p = 0; p < WARPS; p++) {
            const float2 v = own[p * Sums<TILES, COLS>::PAIRS * 32];
            sum.x += v.x, sum.y += v.y;
        }
        return sum;
    }
};
