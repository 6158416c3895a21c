// Reads memory as fast as possible. Its bandwidth is the read ceiling, of which all others are shares.
#include "ptx.cuh"

// sums[thread] = sum of the 32-bit words that this thread reads, so that the compiler cannot remove a load.
//   source [count, 4] uint32, sums [gridDim.x * 512] uint32
// LAUNCH: any grid, block 512. Every thread has four 16-byte loads in flight.
// PRECOND: count is a multiple of 4 * 512 vectors of 16 bytes; no other work writes source.
__global__ void __launch_bounds__(512) read_ceiling(const unsigned* source, unsigned* sums, int count) {
    const uint4* vectors = reinterpret_cast<const uint4*>(source);
    unsigned sum = 0;
    for (int first = blockIdx.x * 2048; first < count; first += gridDim.x * 2048) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = load_stream(vectors + first + j * 512 + threadIdx.x);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += v[j].x + v[j].y + v[j].z + v[j].w;
    }
    sums[blockIdx.x * 512 + threadIdx.x] = sum;
}
