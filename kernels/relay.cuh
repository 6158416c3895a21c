// How the kernels of a decode step hand values on before they end.
//
// A kernel that waits for the one before it to end (grid_wait) and then reads what that one wrote loses more time to the
// end than to the work. So each value that goes from kernel to kernel has a place of its own in the step's relay
// (ops/relay.py). embed fills the relay with ABSENT; a place is written once in a step; who needs it looks until it is
// there. Nothing hangs on being early: after LOOKS looks a reader waits for the kernels before to end, and takes what
// it finds then. The rules:
//
// - The kernel behind embed waits for it before it lets another one start, so nobody sees what the step before left.
// - Every kernel waits before it ends, so that a kernel that waits first (sample, advance) finds all of them ended.
// - ABSENT is no value: all bits set are a NaN, and arithmetic makes another one (0x7fff...).
#pragma once
#include "ptx.cuh"
#include "types.cuh"

constexpr unsigned ABSENT = 0xffffffffu;

// Whether a part of size T of the word was not written yet.
template <class T>
__device__ __forceinline__ bool absent(unsigned word) {
    if constexpr (sizeof(T) == 4) return word == ABSENT;
    return word >= 0xffff0000u || (word & 0xffffu) == 0xffffu;
}
template <class T>
__device__ __forceinline__ bool absent(uint2 v) {
    return absent<T>(v.x) || absent<T>(v.y);
}
template <class T>
__device__ __forceinline__ bool absent(uint4 v) {
    return absent<T>(v.x) || absent<T>(v.y) || absent<T>(v.z) || absent<T>(v.w);
}

// v[j] as they were found at p + j * step by load_relaxed, j < count, or as they are once all are there (at once if they
// are not `wanted`). The loads of a look are on their way together.
template <class T, int N, class V>
__device__ __forceinline__ void settle(V (&v)[N], const V* p, int step, int count, bool wanted = true) {
    bool missing = false;
#pragma unroll
    for (int j = 0; j < N; j++) missing |= j < count && absent<T>(v[j]);
#pragma unroll 1
    for (int looks = 0; wanted && missing && looks <= LOOKS; looks++) {
        if (looks == LOOKS) grid_wait();
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < count && absent<T>(v[j])) v[j] = load_relaxed(p + j * step);
        missing = false;
#pragma unroll
        for (int j = 0; j < N; j++) missing |= j < count && absent<T>(v[j]);
    }
}

template <class T, class V>
__device__ __forceinline__ V settle(V v, const V* p, bool wanted = true) {
    V one[1] = {v};
    settle<T>(one, p, 0, 1, wanted);
    return one[0];
}

// Whether a kernel that will read x has the time for a rehearsal: x is not there yet. Instructions that an SM has not
// run for a while come from far away, and they are half the time between the arrival of x and the result. So the kernel
// runs once through all it will do, with whatever x holds, and hands on ABSENT. For all threads of the block.
template <class T>
__device__ __forceinline__ bool rehearses(const T* x) {
    return __syncthreads_or(threadIdx.x == 0 && absent<T>(load_relaxed(reinterpret_cast<const unsigned*>(x))));
}

// Hands v on at p; in a rehearsal, which comes before, p stays ABSENT.
__device__ __forceinline__ void hand_on(float* p, float v, bool live) {
    store_relaxed(reinterpret_cast<unsigned*>(p), live ? __float_as_uint(v) : ABSENT);
}
__device__ __forceinline__ void hand_on(half* p, half v, bool live) {
    store_relaxed(reinterpret_cast<unsigned short*>(p), live ? __half_as_ushort(v) : static_cast<unsigned short>(ABSENT));
}
__device__ __forceinline__ void hand_on(bf16* p, bf16 v, bool live) {
    store_relaxed(reinterpret_cast<unsigned short*>(p),
                  live ? __bfloat16_as_ushort(v) : static_cast<unsigned short>(ABSENT));
}

// How [R, N] lies in memory, in runs of 16 of a row: element (r, n) at r * row + n / 16 * run + n % 16. Row by row it is
// {N, 16}; in the relay {16, 16 R}, so that 16 elements of all rows, a step of a product, are neighbours.
struct Layout {
    int row, run;

    __device__ __forceinline__ size_t at(int r, int n) const {
        return static_cast<size_t>(r) * row + static_cast<size_t>(n / 16) * run + n % 16;
    }
};

// What a norm leaves for later when x goes on as T(x * weight * SHRINK): a row's product times 1 / (SHRINK rms(x)) is the
// product of its norm. Halves end at 65504, which a residual stream may reach.
template <class T>
constexpr float SHRINK = 1.f;
template <>
constexpr float SHRINK<half> = 0.0625f;
