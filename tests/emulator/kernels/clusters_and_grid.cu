// Every block hands its x on to the next of its cluster, takes what the next cluster got so, and hands that on again.
// No block has come by a variable's declaration when the first writes it in another one's memory.
//
// out[c, r] = x[c + 1, r - 2], c modulo the clusters, r modulo 4.   x, between, out [clusters, 4, 32], float32
// LAUNCH: grid 4 * clusters, all of it on the machine at once, cluster 4, block 32
#include <cooperative_groups.h>

#include "ptx.cuh"

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
