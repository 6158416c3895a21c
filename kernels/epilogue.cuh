// What happens to the sums of a matrix product on their way to memory: one struct a kind.
//
// The thread that holds the sums of rows g and g + 8 of a tile (packed.cuh) for one column takes three steps, so that
// what it needs from memory is there when the sums are: fetch() starts the loads whose addresses are known, follow()
// those whose addresses fetch() brought, store() does the rest. Fused multiply-adds are written out: left to the
// compiler, two instances of a kernel could round differently, and the bits of a column would depend on its batch.
#pragma once
#include "gelu.cuh"
#include "packed.cuh"

// All three steps at once, where nothing is gained by spreading them.
template <class Epilogue>
__device__ __forceinline__ void finish(const Epilogue& epilogue, int tile, int g, int column, float a, float b) {
    typename Epilogue::Ahead ahead;
    epilogue.fetch(ahead, tile, g, column);
    epilogue.follow(ahead, tile, g, column);
    epilogue.store(ahead, tile, g, column, a, b);
}

// out[column, row] = sum + bias[row] + residual[column, row].   out [R, N] T or float32; bias, residual may be null
template <class Out>
struct Store {
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

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, span, g) + half * 8 * span;
            if (row >= n) continue;
            float sum = half ? b : a;
            if (bias) sum += ahead.bias[half];
            if (residual) sum += ahead.residual[half];
            out[static_cast<size_t>(column) * n + row] = from_float<Out>(sum);
        }
    }
};

// out[column, row] = gelu(sum + bias[row]).   out [R, N] T
template <class T>
struct Gelu {
    int n;
    const float* bias;  // [N]
    int tanh;           // which of the two forms
    T* out;             // [R, N]

    struct Ahead {
        float bias[2];
    };

    __device__ __forceinline__ void fetch(Ahead& ahead, int tile, int g, int) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, 1, g) + half * 8;
            if (row < n) ahead.bias[half] = bias[row];
        }
    }

    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, 1, g) + half * 8;
            if (row < n)
                out[static_cast<size_t>(column) * n + row] = from_float<T>(gelu((half ? b : a) + ahead.bias[half], tanh));
        }
    }
};

// out[column, j] = silu(gate[j]) * up[j], gate and up rows paired by span = N / 16.   out [R, N / 2] T
template <class T>
struct Gate {
    int ffn;  // N / 2
    T* out;   // [R, F]

    struct Ahead {};

    __device__ __forceinline__ void fetch(Ahead&, int, int, int) const {}
    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead&, int tile, int g, int column, float gate, float up) const {
        float silu = gate / __fadd_rn(1.f, expf(-gate));
        out[static_cast<size_t>(column) * ffn + tile * 8 + g] = from_float<T>(silu * up);
    }
};

// Bias, then RoPE on query and key heads; queries to qkv, keys and values to their place in the paged cache.
// Element i of a head is paired with i + d / 2 by span = d / 16; value heads are paired likewise but not rotated.
template <class T>
struct Rotate {
    int heads, kv_heads, head_dim, pages;  // pages: columns of table
    const float* bias;                     // [(H + 2 G) d] or null
    const float* rope;                     // [positions, d]: d / 2 cosines, then d / 2 sines
    const int* seqs;                       // [R]
    const int* positions;                  // [R]
    const int* table;                      // [S + 1, pages]
    T* qkv;                                // [R, (H + 2 G) d]; only the first H d columns are written
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

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b) const {
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
        T* to;
        if (head < heads) {
            to = qkv + (static_cast<size_t>(column) * (heads + 2 * kv_heads) + head) * head_dim;
        } else {
            bool is_key = head < heads + kv_heads;
            int kv_head = head - heads - (is_key ? 0 : kv_heads);
            size_t line = (static_cast<size_t>(ahead.page) * kv_heads + kv_head) * PAGE + ahead.position % PAGE;
            to = (is_key ? k : v) + line * head_dim;
        }
        to[i] = from_float<T>(a);
        to[i + head_dim / 2] = from_float<T>(b);
    }
};
