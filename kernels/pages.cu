// Pages of the KV cache to host memory and back, for sequences that are preempted and go on later: bytes as they are.
#include "types.cuh"

constexpr int THREADS = 256;

// SAVE: host[places[i], j] = pool[j, pages[i]], else the reverse, for all i and j.
// pool [2 L, P, quads]: keys and values of the layers in turn; host [N, 2 L, quads], memory of the host; uint4 of 16
// bytes, `quads` of them a page. pages, places [n].
//
// host is mapped, so there is no copy beside this kernel: a page's quads go over the bus in whole lines, neighbours by
// neighbouring threads.
//
// Kernels of a decode step read the cache before they wait for the one before them. So this one is not a dependent
// launch, and lets none start early.
//
// LAUNCH: grid (any, 2 L, n), block 256.  PRECOND: no place twice, nor, without SAVE, a page.
template <bool SAVE>
__global__ void __launch_bounds__(THREADS)
    copy_pages(uint4* pool, uint4* host, const int* pages, const int* places, int total, int quads) {
    const int j = blockIdx.y, i = blockIdx.z;
    uint4* in_pool = pool + (size_t(j) * total + pages[i]) * quads;
    uint4* in_host = host + (size_t(places[i]) * gridDim.y + j) * quads;
    const uint4* from = SAVE ? in_pool : in_host;
    uint4* to = SAVE ? in_host : in_pool;
    for (int e = blockIdx.x * THREADS + threadIdx.x; e < quads; e += gridDim.x * THREADS) to[e] = from[e];
}
