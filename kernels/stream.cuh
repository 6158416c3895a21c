// How a warp of a decode product multiplies the k tiles of its part by x, while weights of later k tiles, and of the
// next group, are on their way: DEPTH k tiles in slots that are filled again as soon as they have been used.
//
// InRegisters begins at once and multiplies without a trip through shared memory. But the compiler lets all of its
// loads share one scoreboard, so that who waits for the first of them waits for the last: a long stream comes in
// bursts. InRing goes through shared memory by asynchronous copies, which are waited for one by one, and DEPTH costs no
// registers. Every lane copies what it will read itself, so that nobody waits for anybody else. Which is faster for a
// matrix is measured: ops/shapes.py.
//
// Both take Work, which says where k tiles are, and multiply in the same order: a warp's k tiles one after the other.
// X: x is DIRECT, in global memory, so that the ring has to bring it as well; registers hold it in any case.
#pragma once
#include "columns.cuh"

enum Way {
    REGISTERS,
    RING,
    ONCE,  // no stream: at_once.cuh
};

// What a warp multiplies.
template <class T, int WARPS, int SPLIT, int TILES, int COLS>
struct Work {
    static constexpr int K_TILE = 256;  // elements of weights: 16 rows, 16 k
    const Parts<WARPS, SPLIT> own;
    const T* weight;
    int tiles, tiles_k, groups, stride;  // stride: groups from one of this cluster to its next
    const T* column[COLS];               // a lane's four k of the part's first tile, once x is there
    int column_step;                     // elements to the next

    // Where a lane finds x: in global memory, rows of k elements, or in what the block holds of it (columns.cuh).
    template <bool DIRECTLY>
    __device__ __forceinline__ void take_columns(const T* x, int rows, int k) {
        const int lane = threadIdx.x % 32;
        column_step = DIRECTLY ? WARPS * 16 : own.PARTS * rows * 16;
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            const int r = min(c * 8 + lane / 4, rows - 1);
            const T* at = DIRECTLY ? x + static_cast<size_t>(r) * k + own.part * 16 : x + (own.local * rows + r) * 16;
            column[c] = at + lane % 4 * 4;
        }
    }

    __device__ __forceinline__ bool has(int step) const { return own.tile(step) < tiles_k; }
    __device__ __forceinline__ int count() const { return (tiles_k - own.part + WARPS - 1) / WARPS; }
    __device__ __forceinline__ int row_tile(int group, int r) const { return (group * SPLIT + own.set) * TILES + r; }
    __device__ __forceinline__ bool exists(int row_tile) const { return TILES * SPLIT == 1 || row_tile < tiles; }
    __device__ __forceinline__ const T* weights(int row_tile, int step) const {
        return weight + (static_cast<size_t>(row_tile) * tiles_k + own.tile(step)) * K_TILE + threadIdx.x % 32 * 8;
    }
    __device__ __forceinline__ const T* columns(int c, int step) const { return column[c] + step * column_step; }
};

template <class T, bool X, int WARPS, int SPLIT, int TILES, int COLS, int DEPTH>
struct InRegisters {
    using W = Work<T, WARPS, SPLIT, TILES, COLS>;
    static constexpr int FLOATS = 0;  // of shared memory
    FragmentA<T> a[TILES][DEPTH];
    FragmentB<T> b[COLS][DEPTH];

    __device__ __forceinline__ InRegisters(float*) {}

    // Where the k tiles of a group are, from `step` on.
    struct From {
        const T* tile[TILES];
        bool exists[TILES];

        __device__ __forceinline__ From(const W& work, int group, int step) {
#pragma unroll
            for (int r = 0; r < TILES; r++) {
                exists[r] = work.exists(work.row_tile(group, r));
                tile[r] = one_address(work.weights(work.row_tile(group, r), step));
            }
        }
    };

    __device__ __forceinline__ void load_weights(const From& from, int slot) {
#pragma unroll
        for (int r = 0; r < TILES; r++)
            if (from.exists[r]) a[r][slot] = load_a(from.tile[r] + slot * WARPS * W::K_TILE);
    }

    __device__ __forceinline__ void load_columns(const W& work, int slot, int step) {
#pragma unroll
        for (int c = 0; c < COLS; c++) b[c][slot] = load_b(work.columns(c, step));
    }

    // The first weights.
    __device__ __forceinline__ void begin(const W& work, int group) {
        const From from(work, group, 0);
#pragma unroll
        for (int slot = 0; slot < DEPTH; slot++)
            if (work.has(slot)) load_weights(from, slot);
    }

    // What belongs to them, once x is there.
    __device__ __forceinline__ void begin_columns(const W& work) {
#pragma unroll
        for (int slot = 0; slot < DEPTH; slot++)
            if (work.has(slot)) load_columns(work, slot, slot);
    }

    __device__ __forceinline__ void multiply_slot(float (&acc)[TILES][COLS][4], int slot) const {
#pragma unroll
        for (int c = 0; c < COLS; c++)
#pragma unroll
            for (int r = 0; r < TILES; r++) multiply<T>(acc[r][c], a[r][slot], b[c][slot]);
    }

    // acc += the group's weights times x. Short streams end in their first round, so that has no loads to skip.
    __device__ __forceinline__ void multiply_group(const W& work, float (&acc)[TILES][COLS][4], int group) {
        const int steps = (Parts<WARPS, SPLIT>::steps(work.tiles_k) + DEPTH - 1) / DEPTH * DEPTH;
        for (int step = 0; step < steps; step += DEPTH) {
            bool last = step + DEPTH >= steps;
            int next = last ? group + work.stride : group, next_step = last ? 0 : step + DEPTH;
            if (next < work.groups) {
                const From from(work, next, next_step);
#pragma unroll
                for (int slot = 0; slot < DEPTH; slot++) {
                    if (work.has(step + slot)) multiply_slot(acc, slot);
                    if (work.has(next_step + slot)) {
                        load_weights(from, slot);
                        load_columns(work, slot, next_step + slot);
                    }
                }
            } else {
#pragma unroll
                for (int slot = 0; slot < DEPTH; slot++)
                    if (work.has(step + slot)) multiply_slot(acc, slot);
            }
        }
    }
};

template <class T, bool X, int WARPS, int SPLIT, int TILES, int COLS, int DEPTH>
struct InRing {
    using W = Work<T, WARPS, SPLIT, TILES, COLS>;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int FLOATS = DEPTH * THREADS * (TILES * 8 + X * COLS * 4) * sizeof(T) / 4;
    FragmentA<T>* a;        // [DEPTH, TILES, THREADS], this lane's
    FragmentB<T>* b;        // [DEPTH, COLS, THREADS], this lane's
    int slot, group, step;  // slot: to be used next; group, step: the k tile to be copied next
    const T* from;          // where that is, of the group's first row tile

    __device__ __forceinline__ InRing(float* memory) {
        a = reinterpret_cast<FragmentA<T>*>(memory) + threadIdx.x;
        b = reinterpret_cast<FragmentB<T>*>(memory + DEPTH * TILES * THREADS * 2 * sizeof(T)) + threadIdx.x;
    }

    __device__ __forceinline__ void copy_columns(const W& work, int slot, int step) {
#pragma unroll
        for (int c = 0; c < COLS; c++) copy_b(b + (slot * COLS + c) * THREADS, work.columns(c, step));
    }

    // To the first k tile of a group, unless there is none.
    __device__ __forceinline__ void turn_to(const W& work, int first) {
        group = work.count() > 0 && first < work.groups ? first : work.groups;
        step = 0, from = work.weights(work.row_tile(first, 0), 0);
    }

    // The next k tile to a slot that was used. Always one set of copies, empty if there is nothing left.
    __device__ __forceinline__ void fill(const W& work, int slot, bool columns) {
        if (group < work.groups) {
#pragma unroll
            for (int r = 0; r < TILES; r++)
                if (work.exists(work.row_tile(group, r)))
                    copy_a(a + (slot * TILES + r) * THREADS, from + r * work.tiles_k * W::K_TILE);
            if (columns) copy_columns(work, slot, step);
            from += WARPS * W::K_TILE;
            if (++step == work.count()) turn_to(work, group + work.stride);
        }
        cp_async_commit();
    }

    // A block that starts late has nothing else to do: where the first group has DEPTH k tiles, straight away.
    __device__ __forceinline__ void begin(const W& work, int first) {
        slot = 0;
        turn_to(work, first);
        if (group == work.groups || work.count() < DEPTH) {
#pragma unroll 1
            for (int i = 0; i < DEPTH; i++) fill(work, i, false);
            return;
        }
        const T* tile[TILES];
#pragma unroll
        for (int r = 0; r < TILES; r++) tile[r] = one_address(from + r * work.tiles_k * W::K_TILE);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
#pragma unroll
            for (int r = 0; r < TILES; r++)
                if (work.exists(work.row_tile(group, r)))
                    copy_a(a + (i * TILES + r) * THREADS, tile[r] + i * WARPS * W::K_TILE);
            cp_async_commit();
        }
        step = DEPTH, from += DEPTH * WARPS * W::K_TILE;
        if (step == work.count()) turn_to(work, group + work.stride);
    }

    // Sets of copies of their own, behind those of the weights: so the last DEPTH sets end with what is used next.
    __device__ __forceinline__ void begin_columns(const W& work) {
        if constexpr (X) {
            if (work.count() >= DEPTH) {
#pragma unroll
                for (int i = 0; i < DEPTH; i++) copy_columns(work, i, i), cp_async_commit();
                return;
            }
#pragma unroll 1
            for (int i = 0, step = 0; i < DEPTH; i++, step = step + 1 < work.count() ? step + 1 : 0) {
                if (work.count() > 0) copy_columns(work, i, step);
                cp_async_commit();
            }
        }
    }

    __device__ __forceinline__ void multiply_group(const W& work, float (&acc)[TILES][COLS][4], int) {
#pragma unroll 1
        for (int i = 0; i < work.count(); i++) {
            cp_async_wait<DEPTH - 1>();
            FragmentB<T> x[COLS];
#pragma unroll
            for (int c = 0; c < COLS; c++) x[c] = X ? b[(slot * COLS + c) * THREADS] : load_b(work.columns(c, i));
#pragma unroll
            for (int r = 0; r < TILES; r++) {
                const FragmentA<T> w = a[(slot * TILES + r) * THREADS];
#pragma unroll
                for (int c = 0; c < COLS; c++) multiply<T>(acc[r][c], w, x[c]);
            }
            fill(work, slot, X);
            slot = slot + 1 < DEPTH ? slot + 1 : 0;
        }
    }
};
