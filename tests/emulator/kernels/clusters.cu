// What kernels do in clusters of blocks.
#include <cooperative_groups.h>

#include "ptx.cuh"

// Every block has a part of k, and owns a part of the columns, whose partial sums the others write into its shared
// memory. Two buffers take turns, so that one barrier a turn is enough.
//
// out[t, n] = sum over k of x[t, k, n].   x [turns, blocks, COLUMNS], out [turns, COLUMNS], float32
// LAUNCH: grid blocks * groups, cluster blocks, block COLUMNS = 64, dependent; the groups lie one after the other in x and out
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

// Every block hands its x on to the next of its cluster, takes what the next cluster got so, and hands that on again.
// No block has come by a variable's declaration when the first writes it in another one's memory.
//
// out[c, r] = x[c + 1, r - 2], c modulo the clusters, r modulo 4.   x, between, out [clusters, 4, 32], float32
// LAUNCH: grid 4 * clusters, all of it on the machine at once, cluster 4, block 32
extern "C" __global__ void hand_on(const float* x, float* between, float* out) {
    const unsigned i = 32 * blockIdx.x + threadIdx.x, next = (cluster_rank() + 1) % 4;
    cluster_sync();
    __shared__ float first[32];
    in_cluster(first, next)[threadIdx.x] = x[i];
    cluster_sync();
    between[i] = first[threadIdx.x];
    cooperative_groups::this_grid().sync();
    __shared__ float second[32];
    in_cluster(second, next)[threadIdx.x] = between[(i + 4 * 32) % (gridDim.x * 32)];
    cluster_sync();
    out[i] = second[threadIdx.x];
}
