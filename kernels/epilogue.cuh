// What happens to the sums of a matrix product on their way to memory: one struct a kind.
//
// The thread that holds the sums of rows g and g + 8 of a tile (packed.cuh) for one column calls operator() once. Fused
// multiply-adds are written out: left to the compiler, two instances of a kernel could round differently, and the bits
// of a column would depend on the batch it is in.
#pragma once
#include "packed.cuh"

// out[column, row] = sum + bias[row] + residual[column, row].   out [R, N] T or float32; bias, residual may be null
template <class Out>
struct Store {
    int n, span;
    const float* bias;      // [N]
    const float* residual;  // [R, N], may be out
    Out* out;               // [R, N]

    __device__ __forceinline__ void one(int row, int column, float sum) const {
        if (row >= n) return;  // a row of padding
        size_t at = static_cast<size_t>(column) * n + row;
        if (bias) sum += bias[row];
        if (residual) sum += residual[at];
        out[at] = from_float<Out>(sum);
    }

    __device__ __forceinline__ void operator()(int tile, int g, int column, float a, float b) const {
        int row = first_row(tile, span, g);
        one(row, column, a);
        one(row + 8 * span, column, b);
    }
};

// out[column, j] = silu(gate[j]) * up[j], gate and up rows paired by span = N / 16.   out [R, N / 2] T
template <class T>
struct Gate {
    int ffn;  // N / 2
    T* out;   // [R, F]

    __device__ __forceinline__ void operator()(int tile, int g, int column, float gate, float up) const {
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

    __device__ __forceinline__ void operator()(int tile, int g, int column, float a, float b) const {
        constexpr int PAGE = 64;  // PAGE of ops/base.py
        int half = head_dim / 2, span = head_dim / 16, head = tile / span, i = (tile - head * span) * 8 + g;
        if (bias) {
            a += bias[head * head_dim + i];
            b += bias[head * head_dim + i + half];
        }
        int position = positions[column];
        if (head < heads + kv_heads) {
            const float* angle = rope + static_cast<size_t>(position) * head_dim + i;
            float cosine = angle[0], sine = angle[half], x = a;
            a = fmaf(x, cosine, -(b * sine));
            b = fmaf(b, cosine, x * sine);
        }
        T* to;
        if (head < heads) {
            to = qkv + (static_cast<size_t>(column) * (heads + 2 * kv_heads) + head) * head_dim;
        } else {
            bool is_key = head < heads + kv_heads;
            int kv_head = head - heads - (is_key ? 0 : kv_heads);
            int page = table[static_cast<size_t>(seqs[column]) * pages + position / PAGE];
            to = (is_key ? k : v) +
                 ((static_cast<size_t>(page) * kv_heads + kv_head) * PAGE + position % PAGE) * head_dim;
        }
        to[i] = from_float<T>(a);
        to[i + half] = from_float<T>(b);
    }
};
