// What happens to the sums of a matrix product on their way to memory: one struct a kind.
//
// The thread that holds the sums of rows g and g + 8 of a tile (packed.cuh) for one column takes three steps, so that
// what it needs from memory is there when the sums are: fetch() starts the loads whose addresses are known, follow()
// those whose addresses fetch() brought, store() does the rest, if the column is one of x (`real`); a rehearsal (relay.cuh) is not `live`. Fused multiply-adds are
// written out: left to the compiler, two instances of a kernel could round differently, and the bits of a column would
// depend on its batch. What the next kernel of a decode step reads is handed on (relay.cuh).
#pragma once
#include "packed.cuh"
#include "relay.cuh"

// All three steps at once, where nothing is gained by spreading them.
template <class Epilogue>
__device__ __forceinline__ void finish(const Epilogue& epilogue, int tile, int g, int column, float a, float b) {
    typename Epilogue::Ahead ahead;
    epilogue.fetch(ahead, tile, g, column);
    epilogue.follow(ahead, tile, g, column);
    epilogue.store(ahead, tile, g, column, a, b, true, true);
}

// out[column, row] = sum + bias[row] + residual[column, row].   out [R, N] T or float32; bias, residual may be null.
// out is not in the relay: it may be written once the kernels before have ended.
template <class Out>
struct Store {
    static constexpr bool PLAIN = true;  // writes outside of the relay
    int n, span;
    const float* bias;      // [N]
    const float* residual;  // [R, N], may be out
    Out* out;               // [R, N]

    struct Ahead {
        float bias[2], residual[2];
    };

    __device__ __forceinline__ void fetch(Ahead& ahead, int tile, int g, int column) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, span, g) + half * 8 * span;
            if (row >= n) continue;  // a row of padding
            if (bias) ahead.bias[half] = bias[row];
            if (residual) ahead.residual[half] = residual[static_cast<size_t>(column) * n + row];
        }
    }

    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b,
                                          bool real, bool live) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, span, g) + half * 8 * span;
            if (row >= n || !real || !live) continue;
            float sum = half ? b : a;
            if (bias) sum += ahead.bias[half];
            if (residual) sum += ahead.residual[half];
            out[static_cast<size_t>(column) * n + row] = from_float<Out>(sum);
        }
    }
};

// The residual stream and what the norm that reads it next needs, all of it handed on: with y = sum + residual,
//   x[column, row] = y,  h[column, row] = T(y * norm[row] * SHRINK),  squares[column, tile] = sum of the tile's y^2
// Lanes of a warp hold all g of their columns, and call store together.   N a multiple of 16, span 1
template <class T>
struct Add {
    static constexpr bool PLAIN = false;
    int n, rows;
    const float* residual;  // [R, N], handed on
    const float* norm;      // [N]
    float* x;               // [R, N]
    T* h;                   // [N / 16, R, 16]
    float* squares;         // [R, N / 16]

    struct Ahead {
        float residual[2], norm[2];
    };

    __device__ __forceinline__ void fetch(Ahead& ahead, int tile, int g, int column) const {
        int row = tile * 16 + g;
        const unsigned* from = reinterpret_cast<const unsigned*>(residual) + static_cast<size_t>(column) * n + row;
        unsigned v[2] = {load_relaxed(from), load_relaxed(from + 8)};
        ahead.norm[0] = norm[row];
        ahead.norm[1] = norm[row + 8];
        settle<float>(v, from, 8, 2);
        ahead.residual[0] = __uint_as_float(v[0]);
        ahead.residual[1] = __uint_as_float(v[1]);
    }

    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b,
                                          bool real, bool live) const {
        a += ahead.residual[0];
        b += ahead.residual[1];
        if (real) {
            T* to = h + (static_cast<size_t>(tile) * rows + column) * 16 + g;
            hand_on(to, from_float<T>(a * ahead.norm[0] * SHRINK<T>), live);
            hand_on(to + 8, from_float<T>(b * ahead.norm[1] * SHRINK<T>), live);
        }
        float sum = fmaf(a, a, b * b);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (real) {
            if (g == 0) hand_on(squares + static_cast<size_t>(column) * (n / 16) + tile, sum, live);
            float* to = x + static_cast<size_t>(column) * n + tile * 16 + g;
            hand_on(to, a, live);
            hand_on(to + 8, b, live);
        }
    }
};

// out[column, j] = silu(gate[j]) * up[j], gate and up rows paired by span = N / 16.   out [R, N / 2] T
template <class T>
struct Gate {
    static constexpr bool PLAIN = false;
    Layout layout;  // of out
    T* out;         // [R, F]

    struct Ahead {};

    __device__ __forceinline__ void fetch(Ahead&, int, int, int) const {}
    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead&, int tile, int g, int column, float gate, float up,
                                          bool real, bool live) const {
        float silu = gate / __fadd_rn(1.f, expf(-gate));
        if (real) hand_on(out + layout.at(column, tile * 8 + g), from_float<T>(silu * up), live);
    }
};

// Bias, then RoPE on query and key heads; all to qkv, keys and values also to their place in the paged cache.
// Element i of a head is paired with i + d / 2 by span = d / 16; value heads are paired likewise but not rotated.
template <class T>
struct Rotate {
    static constexpr bool PLAIN = false;
    int heads, kv_heads, head_dim, pages;  // pages: columns of table
    const float* bias;                     // [(H + 2 G) d] or null
    const float* rope;                     // [positions, d]: d / 2 cosines, then d / 2 sines
    const int* seqs;                       // [R]
    const int* positions;                  // [R]
    const int* table;                      // [S + 1, pages]
    T* qkv;                                // [R, (H + 2 G) d]
    T* k;                                  // [P, G, PAGE, d]
    T* v;                                  // [P, G, PAGE, d]

    struct Ahead {
        int seq, position, page;
        float bias[2], cosine, sine;
    };

    __device__ __forceinline__ void fetch(Ahead& ahead, int tile, int g, int column) const {
        ahead.position = positions[column];
        ahead.seq = seqs[column];
        if (bias) {
            int row = first_row(tile, head_dim / 16, g);
            ahead.bias[0] = bias[row];
            ahead.bias[1] = bias[row + head_dim / 2];
        }
    }

    __device__ __forceinline__ void follow(Ahead& ahead, int tile, int g, int column) const {
        int span = head_dim / 16, head = tile / span, i = tile % span * 8 + g;
        if (head < heads + kv_heads) {
            const float* angle = rope + static_cast<size_t>(ahead.position) * head_dim + i;
            ahead.cosine = angle[0];
            ahead.sine = angle[head_dim / 2];
        }
        if (head >= heads) ahead.page = table[static_cast<size_t>(ahead.seq) * pages + ahead.position / PAGE];
    }

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b,
                                          bool real, bool live) const {
        if (!real) return;
        int span = head_dim / 16, head = tile / span, i = tile % span * 8 + g;
        if (bias) {
            a += ahead.bias[0];
            b += ahead.bias[1];
        }
        if (head < heads + kv_heads) {
            float x = a;
            a = fmaf(x, ahead.cosine, -(b * ahead.sine));
            b = fmaf(b, ahead.cosine, x * ahead.sine);
        }
        const T low = from_float<T>(a), high = from_float<T>(b);
        T* to = qkv + (static_cast<size_t>(column) * (heads + 2 * kv_heads) + head) * head_dim + i;
        hand_on(to, low, live);
        hand_on(to + head_dim / 2, high, live);
        if (head < heads || !live) return;
        bool is_key = head < heads + kv_heads;
        int kv_head = head - heads - (is_key ? 0 : kv_heads);
        size_t line = (static_cast<size_t>(ahead.page) * kv_heads + kv_head) * PAGE + ahead.position % PAGE;
        to = (is_key ? k : v) + line * head_dim + i;
        to[0] = low;
        to[head_dim / 2] = high;
    }
};
