// Mean pooling: the embedding of a text is the mean of its rows.
#include "ptx.cuh"

constexpr int WARPS = 8;

// out[i, c] = mean of x[first[i] + j, c] over 0 <= j < count[i]; 0 where count[i] is 0.
// x [*, width], first, count [texts], out [texts, width]
//
// A lane sums one column over every eighth row; the 8 warps' sums are added in warp order. So the bits depend on the
// text's rows only, not on their place in x or on other texts.
//
// LAUNCH: grid (ceil(width / 32), texts), block 256, dependent.
__global__ void __launch_bounds__(32 * WARPS)
    pool(const float* x, const int* first, const int* count, float* out, int width) {
    __shared__ float part[WARPS][32];
    grid_launch();
    grid_wait();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = 32 * blockIdx.x + lane;
    const int rows = count[blockIdx.y];
    const float* from = x + size_t(first[blockIdx.y]) * width + column;
    float sum = 0.f;
    if (column < width) {
#pragma unroll 4
        for (int row = warp; row < rows; row += WARPS) sum += from[size_t(row) * width];
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    for (int i = 1; i < WARPS; i++) sum += part[i][lane];
    out[size_t(blockIdx.y) * width + column] = sum / max(rows, 1);
}
