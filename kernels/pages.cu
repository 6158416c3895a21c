// Swapping: copies pages of the KV cache to host memory and back, for sequences that are preempted and resumed.
#include "types.cuh"

constexpr int THREADS = 256;

// SAVE: host[places[i], j] = pool[j, pages[i]], else the reverse, for all i and j.
// pool [2 L, P, quads]: keys and values of each layer; host [N, 2 L, quads], in pinned host memory; elements are uint4,
// `quads` of them per page. pages, places [n].
//
// host is mapped into the device's address space, so the kernel itself moves the bytes over the bus, coalesced.
//
// Kernels of a decode step read the KV cache before grid_wait(). So this kernel is not a dependent launch, and it does
// not call grid_launch().
//
// LAUNCH: grid (any, 2 L, n), block 256.  PRECOND: places are distinct; without SAVE, pages are distinct too.
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
