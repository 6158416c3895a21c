// Mistakes of clusters, in the same way as planted.cu: NAME<true> makes it, NAME<false> is the same kernel without it.
//
// out[i] = x of the neighbour in the cluster.   LAUNCH: grid 2, block 64, cluster 2; x, out [128]
#include "ptx.cuh"

__device__ inline unsigned global_index() {
    return 64 * blockIdx.x + threadIdx.x;
}

template <bool wrong>
__global__ void __launch_bounds__(64) neighbour_not_started(const float* x, float* out) {
    __shared__ float part[64];
    if (!wrong) cluster_sync();
    in_cluster(part, cluster_rank() ^ 1)[threadIdx.x] = x[global_index()];
    cluster_sync();
    out[global_index()] = part[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) neighbour_has_ended(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[global_index()];
    cluster_sync();
    out[global_index()] = in_cluster(part, cluster_rank() ^ 1)[threadIdx.x];
    if (!wrong) cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) neighbour_still_writes(const float* x, float* out) {
    __shared__ float part[64];
    cluster_sync();
    in_cluster(part, cluster_rank() ^ 1)[threadIdx.x] = x[global_index()];
    if (!wrong) cluster_sync();
    out[global_index()] = part[threadIdx.x];
    if (wrong) cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) neighbour_still_reads(const float* x, float* out) {
    __shared__ float part[64];
    float sum = 0.0f;
    for (int i = 0; i < 3; i++) {
        part[threadIdx.x] = x[global_index()] * float(i);
        cluster_sync();
        sum += in_cluster(part, cluster_rank() ^ 1)[threadIdx.x];
        if (!wrong || i == 2) cluster_sync();
    }
    out[global_index()] = sum;
}

template <bool wrong>
__global__ void __launch_bounds__(64) behind_the_neighbour(const float* x, float* out) {
    extern __shared__ float rows[];
    cluster_sync();
    in_cluster(rows, cluster_rank() ^ 1)[threadIdx.x + wrong] = x[global_index()];
    cluster_sync();
    out[global_index()] = rows[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) neighbour_missing(const float* x, float* out) {
    out[global_index()] = x[global_index() ^ 64];
    if (!wrong || cluster_rank() == 1) cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) threads_have_ended(const float* x, float* out) {
    out[global_index()] = x[global_index() ^ 64];
    if (wrong && threadIdx.x >= 32) return;
    cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) two_kinds_of_barrier(const float* x, float* out) {
    out[global_index()] = x[global_index() ^ 64];
    if (wrong && threadIdx.x >= 32)
        __syncthreads();
    else
        cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) outside_the_cluster(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[global_index()];
    cluster_sync();
    out[global_index()] = in_cluster(part, wrong ? cluster_rank() + 1 : cluster_rank() ^ 1)[threadIdx.x];
    cluster_sync();
}

template <bool wrong>
__global__ void __launch_bounds__(64) not_of_the_cluster(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[global_index()];
    cluster_sync();
    out[global_index()] = in_cluster(wrong ? x : part, cluster_rank() ^ 1)[threadIdx.x];
    cluster_sync();
}

// The same after `first`, for which one block waits before a barrier of the cluster and the other behind it.
template <bool wrong>
__global__ void __launch_bounds__(64) cluster_writes_early(const float* x, float* out) {
    __shared__ float part[64];
    cluster_sync();
    if (cluster_rank() == 0) grid_wait();
    if (wrong && cluster_rank() == 1) out[global_index()] = 1.0f;
    cluster_sync();
    if (cluster_rank() == 1) grid_wait();
    in_cluster(part, cluster_rank() ^ 1)[threadIdx.x] = x[global_index()];
    cluster_sync();
    out[global_index()] = part[threadIdx.x];
}

// The neighbour's, read through its shared memory before grid_wait.
template <bool wrong>
__global__ void __launch_bounds__(64) cluster_reads_early(const float* x, float* out) {
    __shared__ float part[64];
    if (!wrong) grid_wait();
    part[threadIdx.x] = x[global_index()];
    cluster_sync();
    float v = in_cluster(part, cluster_rank() ^ 1)[threadIdx.x];
    if (wrong) grid_wait();
    out[global_index()] = v;
    cluster_sync();
}
