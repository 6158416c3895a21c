// Random weights generated on the device, for measurements of a model of any shape without a checkpoint.
#include "types.cuh"

// out[i] = factor * (sum of the four bytes of hash(i + start) - 510): nearly normal, standard deviation 147.8 * factor.
// hash is the finaliser of MurmurHash3. engine/tools/bench/synthetic.py computes the same bits on the CPU.
//   out [count] T
// LAUNCH: any grid, block 256.
template <class T>
__global__ void __launch_bounds__(256) fill_random(T* out, u64 count, unsigned start, float factor) {
    u64 step = static_cast<u64>(gridDim.x) * 256;
    for (u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x; i < count; i += step) {
        unsigned h = static_cast<unsigned>(i) + start;
        h = (h ^ h >> 16) * 0x85ebca6bu;
        h = (h ^ h >> 13) * 0xc2b2ae35u;
        h ^= h >> 16;
        int sum = (h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24);
        out[i] = from_float<T>(factor * static_cast<float>(sum - 510));
    }
}
