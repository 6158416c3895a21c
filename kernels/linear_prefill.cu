// Products of a packed weight matrix with many columns of x: prompts. Tensor cores do the work, so the tiles are large.
//
//   out[r, n] = sum_k x[r, k] W[n, k]          x [R, K] T, W packed (packed.cuh), sums float32
//
// A block makes ROW_WARPS * TILES row tiles times COL_WARPS * COLS * 8 tokens; a warp TILES row tiles times COLS * 8
// tokens. Weights and x come through shared memory by cp.async, STAGES steps of 128 bytes of k deep: the weights as
// they are packed, the rows of x with their k tiles permuted so that the eight tokens of a fragment fall into different
// banks. A sum is taken in the order of k by one warp: it depends on neither R nor any of the template's sizes.
//
// LAUNCH: grid (ceil(R / (COL_WARPS * COLS * 8)), ceil(tiles / (ROW_WARPS * TILES))), block 32 * ROW_WARPS * COL_WARPS,
//         dependent; dynamic shared memory STAGES * (ROW_WARPS * TILES * 2048 + COL_WARPS * COLS * 1024) bytes.
// PRECOND: K % 16 == 0; x 16-byte aligned.
#include "epilogue.cuh"

template <class T, int ROW_WARPS, int COL_WARPS, int TILES, int COLS, int STAGES>
struct Tiling {
    static constexpr int THREADS = ROW_WARPS * COL_WARPS * 32, ROW_TILES = ROW_WARPS * TILES,
                         TOKENS = COL_WARPS * COLS * 8;
    static constexpr int EACH = 16 / sizeof(T);            // elements of a copy
    static constexpr int STEP = 128 / sizeof(T);           // k of a stage
    static constexpr int STEP_TILES = STEP / 16;           // k tiles of a stage: 4, or 2 for float
    static constexpr int WEIGHTS = ROW_TILES * STEP * 16;  // elements of a stage
    static constexpr int STAGE = WEIGHTS + TOKENS * STEP;

    // Weights of row tiles from first_tile, k tiles from first_kt; zeros beyond the matrix.
    static __device__ __forceinline__ void copy_weights(T* stage, const T* weight, int first_tile, int tiles,
                                                        int first_kt, int tiles_k) {
#pragma unroll
        for (int i = threadIdx.x; i < WEIGHTS / EACH; i += THREADS) {
            int at = i * EACH, tile = first_tile + at / (STEP * 16), kt = first_kt + at % (STEP * 16) / 256;
            bool there = tile < tiles && kt < tiles_k;
            const T* from = weight + (static_cast<size_t>(tile) * tiles_k + kt) * 256 + at % 256;
            cp_async16(stage + at, there ? from : weight, there ? 16 : 0);
        }
    }

    // Rows of x from first_row, k from first_k; zeros beyond the matrix. K tile c of token t lies at slot c ^ t.
    static __device__ __forceinline__ void copy_x(T* stage, const T* x, int first_token, int rows, int first_k, int k) {
#pragma unroll
        for (int i = threadIdx.x; i < TOKENS * STEP / EACH; i += THREADS) {
            int at = i * EACH, token = at / STEP, from_k = at % STEP, slot = (from_k / 16) ^ (token % STEP_TILES);
            bool there = first_token + token < rows && first_k + from_k < k;
            const T* from = x + static_cast<size_t>(first_token + token) * k + first_k + from_k;
            cp_async16(stage + WEIGHTS + token * STEP + slot * 16 + from_k % 16, there ? from : x, there ? 16 : 0);
        }
    }

    // acc += the products of one stage. weights, tokens: the lane's part of the warp's first row tile, and token.
    static __device__ __forceinline__ void multiply_stage(float (&acc)[TILES][COLS][4], const T* weights,
                                                          const T* tokens) {
        int g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int kt = 0; kt < STEP_TILES; kt++) {
            FragmentA<T> a[TILES];
#pragma unroll
            for (int r = 0; r < TILES; r++) a[r] = read_a(weights + (r * STEP_TILES + kt) * 256);
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                FragmentB<T> b = load_b(tokens + c * 8 * STEP + (kt ^ (g % STEP_TILES)) * 16);
#pragma unroll
                for (int r = 0; r < TILES; r++) multiply<T>(acc[r][c], a[r], b);
            }
        }
    }
};

template <class T, int ROW_WARPS, int COL_WARPS, int TILES, int COLS, int STAGES, class Epilogue>
__device__ __forceinline__ void product(const T* weight, const T* x, int rows, int k, int tiles,
                                        const Epilogue& epilogue) {
    using Tile = Tiling<T, ROW_WARPS, COL_WARPS, TILES, COLS, STAGES>;
    constexpr int STEP = Tile::STEP, STEP_TILES = Tile::STEP_TILES;
    extern __shared__ float4 memory[];
    T* stages = reinterpret_cast<T*>(memory);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int row_warp = warp % ROW_WARPS, col_warp = warp / ROW_WARPS;
    const int first_tile = blockIdx.y * Tile::ROW_TILES, first_token = blockIdx.x * Tile::TOKENS;
    const int tiles_k = k / 16, steps = (k + STEP - 1) / STEP;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        Tile::copy_weights(stages + s * Tile::STAGE, weight, first_tile, tiles, s * STEP_TILES, tiles_k);
    grid_wait();  // weights are constant, x is not
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        Tile::copy_x(stages + s * Tile::STAGE, x, first_token, rows, s * STEP, k);
        cp_async_commit();
    }

    float acc[TILES][COLS][4] = {};
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has arrived for all, and nobody reads the one that is filled next
        int ahead = step + STAGES - 1;
        if (ahead < steps) {
            T* stage = stages + ahead % STAGES * Tile::STAGE;
            Tile::copy_weights(stage, weight, first_tile, tiles, ahead * STEP_TILES, tiles_k);
            Tile::copy_x(stage, x, first_token, rows, ahead * STEP, k);
        }
        cp_async_commit();  // an empty group keeps the count
        if (step == steps - 1) grid_launch();
        const T* stage = stages + step % STAGES * Tile::STAGE;
        const T* weights = stage + row_warp * TILES * STEP * 16 + lane * 8;
        const T* tokens = stage + Tile::WEIGHTS + (col_warp * COLS * 8 + g) * STEP + q * 4;
        if constexpr (sizeof(T) == 4) {
            // Tensor cores cut their sums off where a float32 addition rounds; short sums keep that below the last
            // bits.
            float part[TILES][COLS][4] = {};
            Tile::multiply_stage(part, weights, tokens);
#pragma unroll
            for (int i = 0; i < TILES * COLS * 4; i++) (&acc[0][0][0])[i] += (&part[0][0][0])[i];
        } else {
            Tile::multiply_stage(acc, weights, tokens);
        }
    }
#pragma unroll
    for (int r = 0; r < TILES; r++) {
        int tile = first_tile + row_warp * TILES + r;
        if (tile >= tiles) break;
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            int column = first_token + (col_warp * COLS + c) * 8 + q * 2;
            if (column < rows) finish(epilogue, tile, g, column, acc[r][c][0], acc[r][c][2]);
            if (column + 1 < rows) finish(epilogue, tile, g, column + 1, acc[r][c][1], acc[r][c][3]);
        }
    }
}

#define PREFILL_SHAPE int ROW_WARPS, int COL_WARPS, int TILES, int COLS, int STAGES

// out = x W^T + bias + residual.   x [R, K] T, out [R, N] Out
template <class T, class Out, PREFILL_SHAPE>
__global__ void __launch_bounds__(ROW_WARPS * COL_WARPS * 32, 1)
    prefill_store(const T* weight, const T* x, int rows, int k, int n, int span, const float* bias,
                  const float* residual, Out* out) {
    Store<Out> store{n, span, bias, residual, out};
    product<T, ROW_WARPS, COL_WARPS, TILES, COLS, STAGES>(weight, x, rows, k, (n + 15) / 16, store);
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8, x [R, K] T, out [R, F] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(ROW_WARPS * COL_WARPS * 32, 1)
    prefill_gate(const T* weight, const T* x, int rows, int k, int ffn, T* out) {
    product<T, ROW_WARPS, COL_WARPS, TILES, COLS, STAGES>(weight, x, rows, k, ffn / 8, Gate<T>{ffn, out});
}

// out = gelu(x W^T + bias).   weight [N, K] packed with span 1, x [R, K] T, out [R, N] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(ROW_WARPS * COL_WARPS * 32, 1)
    prefill_gelu(const T* weight, const T* x, int rows, int k, int n, const float* bias, int tanh, T* out) {
    product<T, ROW_WARPS, COL_WARPS, TILES, COLS, STAGES>(weight, x, rows, k, (n + 15) / 16, Gelu<T>{n, bias, tanh, out});
}

// Queries, keys and values of the rows of x, rotated and stored: see Rotate.   x [R, K] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(ROW_WARPS * COL_WARPS * 32, 1)
    prefill_qkv(const T* weight, const T* x, int rows, int k, const float* bias, const float* rope, const int* seqs,
                const int* positions, const int* table, int pages, T* qkv, T* keys, T* values, int heads, int kv_heads,
                int head_dim) {
    Rotate<T> rotate{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values};
    product<T, ROW_WARPS, COL_WARPS, TILES, COLS, STAGES>(weight, x, rows, k, (heads + 2 * kv_heads) * head_dim / 16,
                                                          rotate);
}
