// How a warp of a decode product multiplies the k steps of its part by x, while weights of later steps, and of the next
// group, are on their way: DEPTH steps in slots that are filled again as soon as they have been used.
//
// InRegisters begins at once and multiplies without a trip through shared memory. But the compiler lets all of its
// loads share one scoreboard, so that who waits for the first of them waits for the last: a long stream comes in
// bursts. InRing goes through shared memory by asynchronous copies, which are waited for one by one, and DEPTH costs no
// registers. Every lane copies what it will read itself, so that nobody waits for anybody else. Which is faster for a
// matrix is measured: ops/shapes.py.
//
// Both take Work, which says where k steps are, and multiply in the same order: a warp's steps one after the other.
// DIRECTLY: x is in global memory, so that the ring has to bring it as well. F: format.cuh; S: a Shape (columns.cuh).
#pragma once
#include "columns.cuh"

// What a warp multiplies.
template <class F, class S>
struct Work {
    using T = typename F::T;
    const Parts<S::WARPS, S::SPLIT> own;
    const typename F::Weight* weight;
    int tiles, steps, groups, stride;  // steps: of K; stride: groups from one of this cluster to its next
    const T* column[S::COLS];          // a lane's four k of the first chunk of the part's first step, once x is there
    int column_step, chunk_step;       // elements to the next step of the part, and to the next chunk of a step

    // Where a lane finds x: in global memory, rows of k elements, or in what the block holds of it (columns.cuh).
    template <bool DIRECTLY>
    __device__ __forceinline__ void take_columns(const T* x, int rows, int k) {
        constexpr int OWN = F::CHUNK / 4;
        const int lane = threadIdx.x % 32;
        column_step = DIRECTLY ? S::WARPS * F::K : own.PARTS * rows * F::K;
        chunk_step = DIRECTLY ? F::CHUNK : rows * F::CHUNK;
#pragma unroll
        for (int c = 0; c < S::COLS; c++) {
            const int r = min(c * 8 + lane / 4, rows - 1);
            const T* at = DIRECTLY ? x + static_cast<size_t>(r) * k + own.part * F::K
                                   : x + (own.local * (F::K / F::CHUNK) * rows + r) * F::CHUNK;
            column[c] = at + lane % 4 * OWN;
        }
    }

    __device__ __forceinline__ bool has(int i) const { return own.step(i) < steps; }
    __device__ __forceinline__ int count() const { return (steps - own.part + S::WARPS - 1) / S::WARPS; }
    __device__ __forceinline__ int row_tile(int group, int r) const {
        return (group * S::SPLIT + own.set) * S::TILES + r;
    }
    __device__ __forceinline__ bool exists(int row_tile) const { return S::TILES * S::SPLIT == 1 || row_tile < tiles; }
    __device__ __forceinline__ typename F::Place weights(int row_tile, int i) const {
        return F::Place::of(weight, row_tile, own.step(i), steps);
    }
    __device__ __forceinline__ const T* columns(int c, int i) const { return column[c] + i * column_step; }
};

template <class F, bool DIRECTLY, class S>
struct InRegisters {
    using W = Work<F, S>;
    using T = typename F::T;
    static constexpr int TILES = S::TILES, COLS = S::COLS, DEPTH = S::DEPTH, FLOATS = 0;  // of shared memory
    typename F::A a[DEPTH][TILES];
    typename F::template Columns<DIRECTLY> b[F::KEPT ? DEPTH : 1][COLS];

    __device__ __forceinline__ InRegisters(float*) {}

    // Where the k steps of a group are, from `step` on.
    struct From {
        typename F::Place tile[TILES];
        bool exists[TILES];

        __device__ __forceinline__ From(const W& work, int group, int step) {
#pragma unroll
            for (int r = 0; r < TILES; r++) {
                exists[r] = work.exists(work.row_tile(group, r));
                tile[r] = work.weights(work.row_tile(group, r), step).fixed();
            }
        }
    };

    __device__ __forceinline__ void load_weights(const From& from, int slot) {
#pragma unroll
        for (int r = 0; r < TILES; r++)
            if (from.exists[r]) a[slot][r] = F::load(from.tile[r].advance(slot * S::WARPS));
    }

    __device__ __forceinline__ void load_columns(const W& work, int slot, int step) {
#pragma unroll
        for (int c = 0; c < COLS; c++)
            b[slot][c] = F::template columns<DIRECTLY>(work.columns(c, step), work.chunk_step);
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
        if constexpr (F::KEPT)
#pragma unroll
            for (int slot = 0; slot < DEPTH; slot++)
                if (work.has(slot)) load_columns(work, slot, slot);
    }

    __device__ __forceinline__ void multiply_slot(const W& work, typename F::template Acc<S>& acc, int slot, int step) {
        if constexpr (!F::KEPT) load_columns(work, 0, step);
        F::template multiply<S>(acc, a[slot], b[F::KEPT ? slot : 0]);
    }

    // acc += the group's weights times x. Short streams end in their first round, so that has no loads to skip.
    __device__ __forceinline__ void multiply_group(const W& work, typename F::template Acc<S>& acc, int group) {
        const int steps = (work.own.most(work.steps) + DEPTH - 1) / DEPTH * DEPTH;
        for (int step = 0; step < steps; step += DEPTH) {
            bool last = step + DEPTH >= steps;
            int next = last ? group + work.stride : group, next_step = last ? 0 : step + DEPTH;
            if (next < work.groups) {
                const From from(work, next, next_step);
#pragma unroll
                for (int slot = 0; slot < DEPTH; slot++) {
                    if (work.has(step + slot)) multiply_slot(work, acc, slot, step + slot);
                    if (work.has(next_step + slot)) {
                        load_weights(from, slot);
                        if constexpr (F::KEPT) load_columns(work, slot, next_step + slot);
                    }
                }
            } else {
#pragma unroll
                for (int slot = 0; slot < DEPTH; slot++)
                    if (work.has(step + slot)) multiply_slot(work, acc, slot, step + slot);
            }
        }
    }
};

template <class F, bool DIRECTLY, class S>
struct InRing {
    using W = Work<F, S>;
    using B = typename F::Copy;
    static constexpr int WARPS = S::WARPS, TILES = S::TILES, COLS = S::COLS, DEPTH = S::DEPTH, THREADS = WARPS * 32;
    static constexpr int BYTES = DEPTH * TILES * WARPS * F::SLOT;  // of weights; behind them x
    static constexpr int FLOATS = (BYTES + DIRECTLY * DEPTH * COLS * THREADS * sizeof(B)) / 4;
    char* a;                 // [DEPTH, TILES, WARPS, SLOT], this warp's
    B* b;                    // [DEPTH, COLS, THREADS], this lane's
    int slot, group, step;   // slot: to be used next; group, step: the k step to be copied next
    typename F::Place from;  // where that is, of the group's first row tile

    __device__ __forceinline__ InRing(float* memory) {
        a = reinterpret_cast<char*>(memory) + threadIdx.x / 32 * F::SLOT;
        b = reinterpret_cast<B*>(reinterpret_cast<char*>(memory) + BYTES) + threadIdx.x;
    }

    __device__ __forceinline__ char* weights(int slot, int r) const { return a + (slot * TILES + r) * WARPS * F::SLOT; }

    __device__ __forceinline__ void copy_columns(const W& work, int slot, int step) {
#pragma unroll
        for (int c = 0; c < COLS; c++)
            F::copy_columns(b + (slot * COLS + c) * THREADS, work.columns(c, step), work.chunk_step);
    }

    // To the first k step of a group, unless there is none.
    __device__ __forceinline__ void turn_to(const W& work, int first) {
        group = work.count() > 0 && first < work.groups ? first : work.groups;
        step = 0, from = work.weights(work.row_tile(first, 0), 0);
    }

    // The next k step to a slot that was used. Always one set of copies, empty if there is nothing left.
    __device__ __forceinline__ void fill(const W& work, int slot, bool columns) {
        if (group < work.groups) {
#pragma unroll
            for (int r = 0; r < TILES; r++)
                if (work.exists(work.row_tile(group, r))) F::copy(weights(slot, r), from.row_tile(r, work.steps));
            if (columns) copy_columns(work, slot, step);
            from = from.advance(WARPS);
            if (++step == work.count()) turn_to(work, group + work.stride);
        }
        cp_async_commit();
    }

    // A block that starts late has nothing else to do: where the first group has DEPTH k steps, straight away.
    __device__ __forceinline__ void begin(const W& work, int first) {
        slot = 0;
        turn_to(work, first);
        if (group == work.groups || work.count() < DEPTH) {
#pragma unroll 1
            for (int i = 0; i < DEPTH; i++) fill(work, i, false);
            return;
        }
        typename F::Place tile[TILES];
#pragma unroll
        for (int r = 0; r < TILES; r++) tile[r] = from.row_tile(r, work.steps).fixed();
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
#pragma unroll
            for (int r = 0; r < TILES; r++)
                if (work.exists(work.row_tile(group, r))) F::copy(weights(i, r), tile[r].advance(i * WARPS));
            cp_async_commit();
        }
        step = DEPTH, from = from.advance(DEPTH * WARPS);
        if (step == work.count()) turn_to(work, group + work.stride);
    }

    // Sets of copies of their own, behind those of the weights: so the last DEPTH sets end with what is used next.
    __device__ __forceinline__ void begin_columns(const W& work) {
        if constexpr (DIRECTLY) {
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

    __device__ __forceinline__ void multiply_group(const W& work, typename F::template Acc<S>& acc, int) {
#pragma unroll 1
        for (int i = 0; i < work.count(); i++) {
            cp_async_wait<DEPTH - 1>();
            typename F::template Columns<DIRECTLY> x[COLS];
#pragma unroll
            for (int c = 0; c < COLS; c++)
                if constexpr (DIRECTLY)
                    x[c] = F::columns(b + (slot * COLS + c) * THREADS);
                else
                    x[c] = F::template columns<false>(work.columns(c, i), work.chunk_step);
            typename F::A w[TILES];
#pragma unroll
            for (int r = 0; r < TILES; r++) w[r] = F::read(weights(slot, r));
            F::template multiply<S>(acc, w, x);
            fill(work, slot, DIRECTLY);
            slot = slot + 1 < DEPTH ? slot + 1 : 0;
        }
    }
};
