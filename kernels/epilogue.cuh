// Epilogues: what is done to the sums of a GEMM before they are stored, one struct each.
//
// A thread holds the sums of rows g and g + 8 of a tile (packed.cuh) for one column. Its loads are issued before the
// sums are complete:
//     begin()   loads what was complete before the step began; may be called before grid_wait()
//     fetch()   loads what the previous kernel has written
//     follow()  loads from addresses that begin() has loaded
//     store()   computes and stores
// Fused multiply-adds are written out: left to the compiler, two instances of a kernel could round differently, and the
// bits of a column would depend on its batch.
#pragma once
#include "activation.cuh"
#include "norm.cuh"
#include "packed.cuh"

// out[column, row] = scale sum + bias[row] + residual[column, row].   out [R, N] T or float32, bias and residual or null
template <class Out>
struct Store {
    int n, span;
    float scale;            // 1 leaves the bits as they are
    const float* bias;      // [N]
    const float* residual;  // [R, N], may be out
    Out* out;               // [R, N]

    struct Ahead {
        int row;
        float bias[2], residual[2];
    };

    __device__ __forceinline__ void begin(Ahead& ahead, int tile, int g, int) const {
        ahead.row = first_row(tile, span, g);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = ahead.row + half * 8 * span;
            if (bias && row < n) ahead.bias[half] = bias[row];  // a padding row has none
        }
    }

    __device__ __forceinline__ void fetch(Ahead& ahead, int, int, int column) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = ahead.row + half * 8 * span;
            if (residual && row < n) ahead.residual[half] = residual[static_cast<size_t>(column) * n + row];
        }
    }

    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead& ahead, int, int, int column, float a, float b) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = ahead.row + half * 8 * span;
            if (row >= n) continue;
            float sum = fmaf(half ? b : a, scale, bias ? ahead.bias[half] : -0.f);
            if (residual) sum += ahead.residual[half];
            out[static_cast<size_t>(column) * n + row] = from_float<Out>(sum);
        }
    }
};

// x[column, row] += scale sum, and the first half of the next RMSNorm, whose scale is deferred (norm.cuh).
template <class T>
struct Add {
    int n;              // a multiple of 16
    float scale;        // 1 leaves the bits as they are
    float* x;           // [R, N]
    const float* norm;  // [N]
    T* normed;          // [R, N]
    float* squared;     // [R, squared_line(N)]

    struct Ahead {
        float x[2], norm[2];
    };

    __device__ __forceinline__ void begin(Ahead& ahead, int tile, int g, int) const {
#pragma unroll
        for (int half = 0; half < 2; half++) ahead.norm[half] = norm[first_row(tile, 1, g) + half * 8];
    }

    __device__ __forceinline__ void fetch(Ahead& ahead, int tile, int g, int column) const {
        const float* from = x + static_cast<size_t>(column) * n + first_row(tile, 1, g);
#pragma unroll
        for (int half = 0; half < 2; half++) ahead.x[half] = from[half * 8];
    }

    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead& ahead, int tile, int g, int column, float a, float b) const {
        const size_t at = static_cast<size_t>(column) * n + first_row(tile, 1, g);
        a = fmaf(a, scale, ahead.x[0]), b = fmaf(b, scale, ahead.x[1]);
        x[at] = a, x[at + 8] = b;
        normed[at] = from_float<T>(a * (1.f / FACTOR<T>) * ahead.norm[0]);
        normed[at + 8] = from_float<T>(b * (1.f / FACTOR<T>) * ahead.norm[1]);
        float sum = fmaf(b, b, a * a);
        const unsigned lanes = 0x11111111u << threadIdx.x % 4;  // those of the same column
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(lanes, sum, offset);
        if (g == 0) squared[column * squared_line(n) + tile] = sum;
    }
};

// out[column, row] = gelu(sum + bias[row]).   out [R, N] T
template <class T>
struct Gelu {
    int n;
    const float* bias;  // [N]
    int tanh;           // GELU by tanh instead of erf
    T* out;             // [R, N]

    struct Ahead {
        float bias[2];
    };

    __device__ __forceinline__ void begin(Ahead& ahead, int tile, int g, int) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row(tile, 1, g) + half * 8;
            if (row < n) ahead.bias[half] = bias[row];
        }
    }

    __device__ __forceinline__ void fetch(Ahead&, int, int, int) const {}
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

    __device__ __forceinline__ void begin(Ahead&, int, int, int) const {}
    __device__ __forceinline__ void fetch(Ahead&, int, int, int) const {}
    __device__ __forceinline__ void follow(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void store(const Ahead&, int tile, int g, int column, float gate, float up) const {
        out[static_cast<size_t>(column) * ffn + tile * 8 + g] = from_float<T>(silu(gate) * up);
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
        int head, i;  // head of the tile, element of the head
        int seq, position, page;
        float bias[2], cosine, sine;
    };

    __device__ __forceinline__ void begin(Ahead& ahead, int tile, int g, int column) const {
        int span = head_dim / 16;
        ahead.head = tile / span, ahead.i = tile % span * 8 + g;
        ahead.position = positions[column];
        ahead.seq = seqs[column];
        if (bias) {
            int row = ahead.head * head_dim + ahead.i;
            ahead.bias[0] = bias[row];
            ahead.bias[1] = bias[row + head_dim / 2];
        }
    }

    __device__ __forceinline__ void fetch(Ahead&, int, int, int) const {}

    __device__ __forceinline__ void follow(Ahead& ahead, int, int, int) const {
        if (ahead.head < heads + kv_heads) {
            const float* angle = rope + static_cast<size_t>(ahead.position) * head_dim + ahead.i;
            ahead.cosine = angle[0];
            ahead.sine = angle[head_dim / 2];
        }
        if (ahead.head >= heads) ahead.page = table[static_cast<size_t>(ahead.seq) * pages + ahead.position / PAGE];
    }

    __device__ __forceinline__ void store(const Ahead& ahead, int, int, int column, float a, float b) const {
        const int head = ahead.head;
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
        to += ahead.i;
        to[0] = from_float<T>(a);
        to[head_dim / 2] = from_float<T>(b);
    }
};
