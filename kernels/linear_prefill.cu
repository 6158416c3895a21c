// Products of a packed weight matrix with many columns of x: prompts. Tensor cores do the work, so the tiles are large.
//
//   out[r, n] = sum_k x[r, k] W[n, k]          x [R, K] T, W packed (packed.cuh), sums float32
//
// A block of two by two warps makes 2 * TILES row tiles times 16 * COLS tokens; a warp TILES row tiles times 8 * COLS
// tokens. Weights and x come through shared memory by cp.async, STAGES steps of 128 bytes of k deep: the weights as
// they are packed, the rows of x with their k tiles permuted so that the eight tokens of a fragment fall into different
// banks. A sum is taken in the order of k by one warp: it depends on neither R nor any of the template's sizes.
//
// LAUNCH: grid (ceil(R / (16 * COLS)), ceil(tiles / (2 * TILES))), block 128, dependent; dynamic shared memory
//         STAGES * (4096 * TILES + 2048 * COLS) bytes.
// PRECOND: K % 16 == 0; x 16-byte aligned.
#include "epilogue.cuh"

constexpr int THREADS = 128;

template <class T, int TILES, int COLS, int STAGES>
struct Tiling {
    static constexpr int ROW_TILES = 2 * TILES, TOKENS = 16 * COLS;
    static constexpr int EACH = 16 / sizeof(T);            // elements of a copy
    static constexpr int STEP = 128 / sizeof(T);           // k of a stage
    static constexpr int STEP_TILES = STEP / 16;           // k tiles of a stage: 4, or 2 for float
    static constexpr int WEIGHTS = ROW_TILES * STEP * 16;  // elements of a stage
    static constexpr int STAGE = WEIGHTS + TOKENS * STEP;

    // A thread's copies of a stage: to the same places in each, from places that move on by STEP. Beyond the matrices
    // nothing is read, and the stage gets zeros. K tile c of token t lies at slot c ^ t.
    struct Copies {
        static constexpr int PER_TOKEN = 8;                // copies, of 16 bytes; of a row tile, one a thread
        static constexpr int APART = THREADS / PER_TOKEN;  // tokens
        static_assert(STEP * 16 == THREADS * EACH && APART % STEP_TILES == 0);
        const T *weight, *x;             // where the first copy comes from
        size_t weight_stride, x_stride;  // elements from there to the next one
        int weights, tokens;             // copies that are within the matrices
        int weight_k, x_k;               // the copies' k, in the stage
        int weight_to, x_to;             // where the first one goes, in the stage

        __device__ __forceinline__ Copies(const T* w, const T* columns, int first_tile, int tiles, int first_token,
                                          int rows, int k) {
            const int token = threadIdx.x / PER_TOKEN, from_k = threadIdx.x % PER_TOKEN * EACH;
            weight = w + size_t(first_tile) * k * 16 + threadIdx.x * EACH;
            x = columns + size_t(first_token + token) * k + from_k;
            weight_stride = size_t(k) * 16, x_stride = size_t(APART) * k;
            weights = tiles - first_tile, tokens = (rows - first_token - token + APART - 1) / APART;
            weight_k = threadIdx.x * EACH / 256 * 16, x_k = from_k;
            weight_to = threadIdx.x * EACH;
            x_to = WEIGHTS + token * STEP + ((from_k / 16) ^ (token % STEP_TILES)) * 16 + from_k % 16;
        }

        // Both move on to the next stage. left: of k, from this one on.
        __device__ __forceinline__ void copy_weights(T* stage, int left) {
            copy<ROW_TILES, STEP * 16>(stage + weight_to, weight, weight_stride, weights, left, weight_k);
            weight += STEP * 16;
        }

        __device__ __forceinline__ void copy_x(T* stage, int left) {
            copy<TOKENS / APART, APART * STEP>(stage + x_to, x, x_stride, tokens, left, x_k);
            x += STEP;
        }

        template <int N, int ELEMENTS>
        static __device__ __forceinline__ void copy(T* to, const T* from, size_t stride, int count, int left, int k) {
#pragma unroll
            for (int i = 0; i < N; i++, from += stride)
                cp_async16(to + i * ELEMENTS, from, i < count && k < left ? 16 : 0);
        }
    };

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

// A warp's sums go through its part of shared memory, so that neighbouring lanes store neighbours, and a few
// instructions again and again do what would be thousands in a row. sums: [COLS * 8, LINE] pairs of rows g and g + 8.
template <int TILES, int COLS, class Epilogue>
struct Finish {
    static constexpr int PAIRS = TILES * 8, LINE = PAIRS + 2;  // of a column; two more for the banks
    static constexpr int AT_ONCE = 32 / PAIRS, AHEAD = 4;      // columns; those for which a lane asks together
    static_assert(32 % PAIRS == 0 && COLS * 8 % (AT_ONCE * AHEAD) == 0);

    static __device__ __forceinline__ void run(const Epilogue& epilogue, const float (&acc)[TILES][COLS][4],
                                               float2* sums, int first_tile, int tiles, int first_column, int rows) {
        const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
        for (int r = 0; r < TILES; r++)
#pragma unroll
            for (int c = 0; c < COLS; c++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    sums[(c * 8 + q * 2 + i) * LINE + r * 8 + lane / 4] = make_float2(acc[r][c][i], acc[r][c][i + 2]);
        __syncwarp();
        const int tile = first_tile + lane % PAIRS / 8, g = lane % 8;
        if (tile >= tiles) return;
        sums += lane / PAIRS * LINE + lane % PAIRS;
        first_column += lane / PAIRS;
        const int count = min(COLS * 8, rows - first_column);
#pragma unroll 1
        for (int c = 0; c < count; c += AT_ONCE * AHEAD) {
            typename Epilogue::Ahead ahead[AHEAD];
            int column[AHEAD];  // beyond the last one the last one, so that nothing but a store has a condition
#pragma unroll
            for (int i = 0; i < AHEAD; i++) column[i] = first_column + min(c + i * AT_ONCE, count - 1);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) epilogue.begin(ahead[i], tile, g, column[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) epilogue.fetch(ahead[i], tile, g, column[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) epilogue.follow(ahead[i], tile, g, column[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float2 sum = sums[(c + i * AT_ONCE) * LINE];
                if (c + i * AT_ONCE < count) epilogue.store(ahead[i], tile, g, column[i], sum.x, sum.y);
            }
        }
    }
};

template <class T, int TILES, int COLS, int STAGES, class Epilogue>
__device__ __forceinline__ void product(const T* weight, const T* x, int rows, int k, int tiles,
                                        const Epilogue& epilogue) {
    using Tile = Tiling<T, TILES, COLS, STAGES>;
    constexpr int STEP = Tile::STEP;
    extern __shared__ float4 memory[];
    T* stages = reinterpret_cast<T*>(memory);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int row_warp = warp % 2, col_warp = warp / 2;
    const int first_tile = blockIdx.y * Tile::ROW_TILES, first_token = blockIdx.x * Tile::TOKENS;
    typename Tile::Copies copies(weight, x, first_tile, tiles, first_token, rows, k);

#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) copies.copy_weights(stages + s * Tile::STAGE, k - s * STEP);
    grid_wait();  // weights are constant, x is not
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        copies.copy_x(stages + s * Tile::STAGE, k - s * STEP);
        cp_async_commit();
    }

    float acc[TILES][COLS][4] = {};
    int full = 0, empty = (STAGES - 1) * Tile::STAGE;  // the stages that are multiplied, and filled, next
#pragma unroll 1
    for (int left = k; left > 0; left -= STEP) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has arrived for all, and nobody reads the one that is filled next
        const int ahead = left - (STAGES - 1) * STEP;
        if (ahead > 0) copies.copy_weights(stages + empty, ahead), copies.copy_x(stages + empty, ahead);
        cp_async_commit();  // an empty group keeps the count
        if (left <= STEP) grid_launch();
        const T* stage = stages + full;
        empty = full;
        full = full + Tile::STAGE < STAGES * Tile::STAGE ? full + Tile::STAGE : 0;
        const T* weights = stage + row_warp * TILES * STEP * 16 + lane * 8;
        const T* tokens = stage + Tile::WEIGHTS + (col_warp * COLS * 8 + g) * STEP + q * 4;
        if constexpr (sizeof(T) == 4) {
            // Tensor cores cut their sums off where a float32 addition rounds; short sums keep that below the last
            // bits.
            float part[TILES][COLS][4] = {};
            Tile::multiply_stage(part, weights, tokens);
#pragma unroll
            for (int r = 0; r < TILES; r++)
#pragma unroll
                for (int c = 0; c < COLS; c++)
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[r][c][i] += part[r][c][i];
        } else {
            Tile::multiply_stage(acc, weights, tokens);
        }
    }
    using End = Finish<TILES, COLS, Epilogue>;
    static_assert(4 * COLS * 8 * End::LINE * 8 <= STAGES * Tile::STAGE * sizeof(T));
    __syncthreads();  // nobody reads a stage any more
    End::run(epilogue, acc, reinterpret_cast<float2*>(memory) + warp * COLS * 8 * End::LINE,
             first_tile + row_warp * TILES, tiles, first_token + col_warp * COLS * 8, rows);
}

#define PREFILL_SHAPE int TILES, int COLS, int STAGES

// out = scale x W^T + bias + residual.   x [R, K] T, out [R, N] Out
template <class T, class Out, PREFILL_SHAPE>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_store(const T* weight, const T* x, int rows, int k, int n, int span, float scale,
                  const float* bias, const float* residual, Out* out) {
    Store<Out> store{n, span, scale, bias, residual, out};
    product<T, TILES, COLS, STAGES>(weight, x, rows, k, (n + 15) / 16, store);
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8, x [R, K] T, out [R, F] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_gate(const T* weight, const T* x, int rows, int k, int ffn, T* out) {
    product<T, TILES, COLS, STAGES>(weight, x, rows, k, ffn / 8, Gate<T>{ffn, out});
}

// out = gelu(x W^T + bias).   weight [N, K] packed with span 1, x [R, K] T, out [R, N] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_gelu(const T* weight, const T* x, int rows, int k, int n, const float* bias, int tanh, T* out) {
    product<T, TILES, COLS, STAGES>(weight, x, rows, k, (n + 15) / 16, Gelu<T>{n, bias, tanh, out});
}

// Queries, keys and values of the rows of x, rotated and stored: see Rotate.   x [R, K] T
template <class T, PREFILL_SHAPE>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_qkv(const T* weight, const T* x, int rows, int k, const float* bias, const float* rope, const int* seqs,
                const int* positions, const int* table, int pages, T* qkv, T* keys, T* values, int heads, int kv_heads,
                int head_dim) {
    Rotate<T> rotate{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values};
    product<T, TILES, COLS, STAGES>(weight, x, rows, k, (heads + 2 * kv_heads) * head_dim / 16, rotate);
}
