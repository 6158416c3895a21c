// Every block has a part of k, and owns a part of the columns, whose partial sums the others write into its shared
// memory. Two buffers take turns, so that one barrier a turn is enough.
//
// out[t, n] = sum over k of x[t, k, n].   x [turns, blocks, COLUMNS], out [turns, COLUMNS], float32
// LAUNCH: grid blocks * groups, cluster blocks, block COLUMNS = 64, dependent; x and out: a group's after the other's
#include "ptx.cuh"

template <int blocks>
__global__ void __launch_bounds__(64) sum_of_cluster(const float* x, float* out, int turns) {
    constexpr int columns = 64, own = columns / blocks;
    __shared__ float parts[2][blocks][own];
    const int rank = cluster_rank(), group = blockIdx.x / blocks, column = threadIdx.x;
    x += group * turns * blocks * columns + rank * columns;
    out += group * turns * columns + rank * own;
    cluster_sync();
    grid_wait();
    for (int t = 0; t < turns; t++, x += blocks * columns, out += columns) {
        float* there = in_cluster(&parts[t % 2][rank][column % own], column / own);
        *there = x[column];
        cluster_sync();
        if (column >= own) continue;
        float sum = 0.0f;
        for (int b = 0; b < blocks; b++) sum += parts[t % 2][b][column];
        out[column] = sum;
    }
}
