// Products of a packed weight matrix with at most 16 columns of x: what a decode step spends its time on.
//
//   out[r, n] = sum_k x[r, k] W[n, k]          x [R, K], R <= 8 COLS <= 16, W packed (packed.cuh), sums float32
//
// A block takes groups of TILES row tiles, one after the other. Its WARPS warps share out the k tiles of a group: warp
// w takes w, w + WARPS, ..., DEPTH of them in flight, the first of the next group included, so that the stream of
// weights never stops. The warps' sums meet in shared memory and are added in the order of the warps. That order
// depends on WARPS and K and on nothing else, and a column of an mma does not influence another one: so a row of x
// gives the same bits alone and in every batch, whatever TILES, COLS, DEPTH, BLOCKS and the source of x.
//
// The first weights are on their way before grid_wait(): they are constant, x is what the kernel before writes.
//
// SOURCE of x (columns.cuh): DIRECT, STAGED, or NORM, which normalises rows of the residual stream on the way in.
// LAUNCH: grid at most the number of groups, ceil(tiles / TILES), block 32 * WARPS, dependent;
//         dynamic shared memory: reduction, 2 * WARPS * TILES * COLS * 512 bytes; unless DIRECT also R * row_stride(K)
//         elements of T; with NORM also 5 K bytes.
// PRECOND: K % 16 == 0; x 16-byte aligned; 1 <= R <= 8 * COLS; 2 * TILES * COLS <= WARPS; with NORM K <= 256 * WARPS
// if R = 1, else K <= 640 and WARPS <= 12.
#include "columns.cuh"
#include "epilogue.cuh"

template <class T, int SOURCE, int WARPS, int TILES, int COLS, int DEPTH, class Epilogue>
__device__ __forceinline__ void product(const T* weight, const typename Input<T, SOURCE>::type* x, const float* norm,
                                        float eps, const int* index, int rows, int k, int tiles,
                                        const Epilogue& epilogue) {
    constexpr int SUMS = TILES * COLS * 4, RED = WARPS * SUMS * 32;
    static_assert(SUMS * 16 <= WARPS * 32, "a thread adds up one pair of sums");
    extern __shared__ float4 memory[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_k = k / 16, groups = (tiles + TILES - 1) / TILES;
    const int steps = ((tiles_k + WARPS - 1) / WARPS + DEPTH - 1) / DEPTH * DEPTH;
    float* red = reinterpret_cast<float*>(memory);
    grid_launch();

    FragmentA<T> a[TILES][DEPTH];
    FragmentB<T> b[COLS][DEPTH];
    auto load_weights = [&](int u, int group, int kt) {
#pragma unroll
        for (int r = 0; r < TILES; r++) {
            int tile = group * TILES + r;
            if (TILES == 1 || tile < tiles)
                a[r][u] = load_a(weight + ((static_cast<size_t>(tile) * tiles_k + kt) * 32 + lane) * 8);
        }
    };
#pragma unroll
    for (int u = 0; u < DEPTH; u++)
        if (warp + u * WARPS < tiles_k) load_weights(u, blockIdx.x, warp + u * WARPS);
#pragma unroll
    for (int u = 0; u < DEPTH; u++)
#pragma unroll
        for (int r = 0; r < TILES; r++) pin_a<T>(a[r][u]);
    float* quad_squares = red + 2 * RED;
    if constexpr (SOURCE == NORM) stage_norm<WARPS * 32>(norm, k, quad_squares + k / 4);
    grid_wait();

    // The sums that this thread adds up over the warps: rows g and g + 8 of tile `part` of a group, one column.
    const int g = lane / 4, half = warp % 2, part = warp / 2 / COLS, out_column = warp / 2 % COLS * 8 + lane % 4 * 2 + half;
    auto mine = [&](int group) { return part < TILES && out_column < rows && group * TILES + part < tiles; };
    typename Epilogue::Ahead ahead;
    if (mine(blockIdx.x)) epilogue.fetch(ahead, blockIdx.x * TILES + part, g, out_column);

    const T* column[COLS];  // a lane's four k of tile 0; those of the next tile are 16 elements further
    T* staged = reinterpret_cast<T*>(quad_squares + (SOURCE == NORM ? norm_floats(k) : 0));
    if constexpr (SOURCE == NORM)
        normalise<T, WARPS>(x, index, quad_squares + k / 4, eps, rows, k, staged, quad_squares);
    if constexpr (SOURCE == STAGED) stage<T, WARPS * 32>(x, rows, k, staged);
#pragma unroll
    for (int c = 0; c < COLS; c++) {
        int r = min(c * 8 + lane / 4, rows - 1);
        if constexpr (SOURCE == DIRECT)
            column[c] = x + static_cast<size_t>(r) * k + lane % 4 * 4;
        else
            column[c] = staged + r * row_stride(k) + lane % 4 * 4;
    }
    auto load_columns = [&](int u, int kt) {
#pragma unroll
        for (int c = 0; c < COLS; c++) b[c][u] = load_b(column[c] + kt * 16);
    };
#pragma unroll
    for (int u = 0; u < DEPTH; u++)
        if (warp + u * WARPS < tiles_k) load_columns(u, warp + u * WARPS);
    if (mine(blockIdx.x)) epilogue.follow(ahead, blockIdx.x * TILES + part, g, out_column);

    for (int group = blockIdx.x, turn = 0; group < groups; group += gridDim.x, turn ^= 1) {
        float acc[TILES][COLS][4] = {};
        for (int step = 0; step < steps; step += DEPTH) {
            bool last = step + DEPTH >= steps;
            int next = last ? group + gridDim.x : group, next_step = last ? 0 : step + DEPTH;
#pragma unroll
            for (int u = 0; u < DEPTH; u++) {
                if (warp + (step + u) * WARPS < tiles_k) {
#pragma unroll
                    for (int c = 0; c < COLS; c++)
#pragma unroll
                        for (int r = 0; r < TILES; r++) multiply<T>(acc[r][c], a[r][u], b[c][u]);
                }
                int kt = warp + (next_step + u) * WARPS;
                if (next < groups && kt < tiles_k) {
                    load_weights(u, next, kt);
                    load_columns(u, kt);
                }
            }
        }
        // Two buffers: who writes one has passed the barrier after which everybody had read it.
        float* sums = red + turn * RED;
#pragma unroll
        for (int r = 0; r < TILES; r++)
#pragma unroll
            for (int c = 0; c < COLS; c++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[(warp * SUMS + (r * COLS + c) * 4 + i) * 32 + lane] = acc[r][c][i];
        __syncthreads();
        if (mine(group)) {
            const float* own = sums + (warp / 2 * 4 + half) * 32 + lane;
            float low = 0.f, high = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                low += own[w * SUMS * 32];
                high += own[w * SUMS * 32 + 64];
            }
            epilogue.store(ahead, group * TILES + part, g, out_column, low, high);
        }
        int following = group + gridDim.x;
        if (mine(following)) {
            epilogue.fetch(ahead, following * TILES + part, g, out_column);
            epilogue.follow(ahead, following * TILES + part, g, out_column);
        }
    }
}

#define DECODE_SHAPE int WARPS, int TILES, int COLS, int DEPTH, int BLOCKS

// out = x W^T + bias + residual.   x [R, K] T, or with NORM rows `index` of x [*, K] float32; out [R, N] Out
template <class T, class Out, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_store(const T* weight, const typename Input<T, SOURCE>::type* x, const float* norm, float eps,
                 const int* index, int rows, int k, int n, int span, const float* bias, const float* residual,
                 Out* out) {
    Store<Out> store{n, span, bias, residual, out};
    product<T, SOURCE, WARPS, TILES, COLS, DEPTH>(weight, x, norm, eps, index, rows, k, (n + 15) / 16, store);
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8, x [R, K] T, or with NORM float32; out [R, F] T
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_gate(const T* weight, const typename Input<T, SOURCE>::type* x, const float* norm, float eps, int rows, int k,
                int ffn, T* out) {
    product<T, SOURCE, WARPS, TILES, COLS, DEPTH>(weight, x, norm, eps, nullptr, rows, k, ffn / 8, Gate<T>{ffn, out});
}

// out = gelu(x W^T + bias).   weight [N, K] packed with span 1, x [R, K] T; norm and eps are not used; out [R, N] T
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_gelu(const T* weight, const typename Input<T, SOURCE>::type* x, const float* norm, float eps, int rows, int k,
                int n, const float* bias, int tanh, T* out) {
    product<T, SOURCE, WARPS, TILES, COLS, DEPTH>(weight, x, norm, eps, nullptr, rows, k, (n + 15) / 16,
                                                  Gelu<T>{n, bias, tanh, out});
}

// Queries, keys and values of x, rotated and stored: see Rotate.   x [R, K] T, or with NORM float32
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_qkv(const T* weight, const typename Input<T, SOURCE>::type* x, const float* norm, float eps, int rows, int k,
               const float* bias, const float* rope, const int* seqs, const int* positions, const int* table, int pages, T* qkv, T* keys,
               T* values, int heads, int kv_heads, int head_dim) {
    Rotate<T> rotate{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values};
    product<T, SOURCE, WARPS, TILES, COLS, DEPTH>(weight, x, norm, eps, nullptr, rows, k,
                                                  (heads + 2 * kv_heads) * head_dim / 16, rotate);
}
