// What a warp of a decode product loads and multiplies at a time: a step of K. Format<W> says how weights of the kind W
// lie in memory and are multiplied; here W is a storage type, and they lie as packed.cuh has it. quantised.cuh has the
// formats of codes and scales. A format is
//
//   T, Weight      what x is stored as; what a kernel's pointer to weights points to
//   K, CHUNK       k of a step; k of a row of x that lie together in shared memory (columns.cuh)
//   A              a lane's part of a step of one row tile
//   Columns        a lane's part of a step of eight columns of x, or where it is; DIRECTLY: not prepared there
//   Copy           the same as it lies in shared memory, put there by copy_columns
//   KEPT           Columns of all steps in flight stay in registers
//   PREFETCHES     blocks prefetch the next kernel's weights to L2 (Following)
//   FACTOR         what sums are multiplied by in the end
//   Place          where a lane finds the steps of a row tile; advance() goes to a later step, WARPS or more ahead
//   load, copy, read   A of a place; on its way to shared memory, where it takes SLOT bytes a warp; from there
//   prepare        16 bytes of x as the products want them, for who puts them into shared memory
//   Acc            sums of the row tiles and columns of a Shape; collect() makes `sum` of what is added up apart
//   multiply       acc += A times columns
//   four           four numbers of a row, one by one
#pragma once
#include "packed.cuh"

template <class W>
struct Format {
    using T = W;
    using Weight = W;
    using A = FragmentA<T>;
    using Copy = FragmentB<T>;
    template <bool DIRECTLY>
    using Columns = FragmentB<T>;
    static constexpr int K = 16, CHUNK = 16, SLOT = 32 * sizeof(A);
    static constexpr bool KEPT = true, PREFETCHES = false;
    static constexpr float FACTOR = 1.f;

    struct Place {
        const T* p;

        // steps: of the matrix
        static __device__ __forceinline__ Place of(const T* weight, int tile, int step, int steps) {
            return {weight + (static_cast<size_t>(tile) * steps + step) * 256 + threadIdx.x % 32 * 8};
        }
        // The same, for loads at fixed distances.
        __device__ __forceinline__ Place fixed() const { return {one_address(p)}; }
        __device__ __forceinline__ Place advance(int by) const { return {p + by * 256}; }
        // The same step of a later row tile.
        __device__ __forceinline__ Place row_tile(int by, int steps) const { return {p + by * steps * 256}; }
    };

    static __device__ __forceinline__ A load(const Place& from) { return load_a(from.p); }

    static __device__ __forceinline__ void copy(char* slot, const Place& from) {
        copy_a(reinterpret_cast<A*>(slot) + threadIdx.x % 32, from.p);
    }

    static __device__ __forceinline__ A read(const char* slot) {
        return reinterpret_cast<const A*>(slot)[threadIdx.x % 32];
    }

    // p: the lane's part of the step's first chunk; chunk: elements from there to the next one's
    template <bool DIRECTLY>
    static __device__ __forceinline__ FragmentB<T> columns(const T* p, int) {
        return load_b(p);
    }
    static __device__ __forceinline__ FragmentB<T> columns(const Copy* copy) { return *copy; }
    static __device__ __forceinline__ void copy_columns(Copy* to, const T* p, int) { copy_b(to, p); }
    static __device__ __forceinline__ uint4 prepare(uint4 v) { return v; }

    template <class S>
    struct Acc {
        float sum[S::TILES][S::COLS][4];

        __device__ __forceinline__ void collect() {}
    };

    template <class S>
    static __device__ __forceinline__ void multiply(Acc<S>& acc, const A (&a)[S::TILES],
                                                    const FragmentB<T> (&b)[S::COLS]) {
#pragma unroll
        for (int c = 0; c < S::COLS; c++)
#pragma unroll
            for (int r = 0; r < S::TILES; r++) ::multiply<T>(acc.sum[r][c], a[r], b[c]);
    }

    // At k, a multiple of 4, of row g (half 0) of a tile or its partner (half 1).
    static __device__ __forceinline__ float4 four(const T* weight, int tile, int g, int half, int at, int k) {
        const T* p =
            weight + (static_cast<size_t>(tile) * k + at / 16 * 16) * 16 + (g * 4 + at % 16 / 4) * 8 + half * 2;
        return make_float4(to_float(p[0]), to_float(p[1]), to_float(p[4]), to_float(p[5]));
    }
};
