// Mistakes in the use of memory: NAME<true> makes one, NAME<false> is the same kernel without it; see planted.cu.
//
// x [n] -> out [n] unless said otherwise.   LAUNCH: grid 1, block n = 64; shared 256 bytes
#include "types.cuh"

template <bool wrong>
__global__ void __launch_bounds__(64) read_behind(const float* x, float* out) {
    out[threadIdx.x] = x[threadIdx.x + (wrong && threadIdx.x == 63)];
}

template <bool wrong>
__global__ void __launch_bounds__(64) read_in_front(const float* x, float* out) {
    out[threadIdx.x] = x[int(threadIdx.x) - 2048 * wrong];
}

template <bool wrong>
__global__ void __launch_bounds__(64) write_behind(const float* x, float* out) {
    out[threadIdx.x + (wrong && threadIdx.x == 63)] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) write_in_front(const float* x, float* out) {
    out[int(threadIdx.x) - wrong] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64)
    write_behind_odd(const float*, short* odd) {  // odd [5]: what follows is not 16-byte aligned
    if (threadIdx.x < 5 + wrong) odd[threadIdx.x] = 1;
}

template <bool wrong>
__global__ void __launch_bounds__(64) null_pointer(const float* x, float* out) {
    out[threadIdx.x] = wrong ? *static_cast<const float*>(nullptr) : x[0];
}

template <bool wrong>
__global__ void __launch_bounds__(64) misaligned(const float* x, float* out) {
    float2 v = *reinterpret_cast<const float2*>(x + wrong);
    out[threadIdx.x] = v.x;
}

template <bool wrong>
__global__ void __launch_bounds__(64) fixed_array(const float* x, float* out) {
    float own[4] = {1, 2, 3, 4};
    out[threadIdx.x] = own[(threadIdx.x + int(x[0] * 0)) % (4 + wrong)];
}

template <bool wrong>
__global__ void __launch_bounds__(64) static_shared(const float* x, float* out) {
    __shared__ float part[64];
    float* p = part;
    p[threadIdx.x + wrong] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) dynamic_shared(const float* x, float* out) {
    extern __shared__ float rows[];
    rows[threadIdx.x + wrong] = x[threadIdx.x];
    out[threadIdx.x] = rows[threadIdx.x + wrong];
}

template <bool wrong>
__global__ void __launch_bounds__(64) dynamic_shared_front(const float* x, float* out) {
    extern __shared__ float rows[];
    rows[int(threadIdx.x) - wrong] = x[threadIdx.x];
    out[threadIdx.x] = rows[int(threadIdx.x) - wrong];
}

template <bool wrong>
__global__ void __launch_bounds__(64) division(const int* n, float* out) {
    out[threadIdx.x] = float(7 / (n[0] - wrong));
}  // n [1] = 1
