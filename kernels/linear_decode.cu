// Products of a packed weight matrix with at most 16 columns of x: what a decode step spends its time on.
//
//   out[r, n] = scale[r] sum_k x[r, k] W[n, k]          x [R, K], R <= 8 COLS <= 16, W packed (packed.cuh), sums float32
//
// A block takes groups of TILES row tiles, one after the other. Its WARPS warps share out the k tiles of a group: warp
// w takes w, w + WARPS, ..., DEPTH of them in flight, the first of the next group included, so that the stream of
// weights never stops. The warps' sums meet in shared memory and are added in the order of the warps. That order
// depends on WARPS and K and on nothing else, and a column of an mma does not influence another one: so a row of x
// gives the same bits alone and in every batch, whatever TILES, COLS, DEPTH, BLOCKS and the source of x.
//
// The first weights are on their way before x is there: they are constant, x is what the kernel before writes. In a
// decode step x is taken as it comes (relay.cuh). A norm before the product is the factor scale[r], made of the squares
// that the writer of x has added up.
//
// LAUNCH: grid at most the number of groups, ceil(tiles / TILES), block 32 * WARPS, dependent;
//         dynamic shared memory: reduction, 2 * WARPS * TILES * COLS * 512 bytes; if STAGED also R * K elements of T.
// PRECOND: K % 16 == 0; x 16-byte aligned; 1 <= R <= 8 * COLS; 2 * TILES * COLS <= WARPS.
#include "columns.cuh"
#include "epilogue.cuh"

// When x may be read.
constexpr int COMES = 0, ENDED = 1, STARTS = 2;  // as it comes; once the kernel before has ended; that, and nobody earlier

// The part of a kernel's arguments that says what is multiplied.
template <class T>
struct Columns {
    const T* x;            // [R, K] in `layout`
    Layout layout;
    const float* squares;  // [R, K / 16] of the rows before the norm, or null: no norm
    float eps;
    int rows, k, when;
};

template <class T, int SOURCE, int WARPS, int TILES, int COLS, int DEPTH, bool REHEARSES, class Epilogue>
__device__ __forceinline__ void product(const T* weight, const Columns<T>& in, int tiles, const Epilogue& epilogue) {
    constexpr int SUMS = TILES * COLS * 4, RED = WARPS * SUMS * 32;
    static_assert(SUMS * 16 <= WARPS * 32, "a thread adds up one pair of sums");
    extern __shared__ float4 memory[];
    __shared__ float scales[8 * COLS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rows = in.rows;
    const int tiles_k = in.k / 16, groups = (tiles + TILES - 1) / TILES;
    const int steps = ((tiles_k + WARPS - 1) / WARPS + DEPTH - 1) / DEPTH * DEPTH;
    float* red = reinterpret_cast<float*>(memory);
    T* staged = reinterpret_cast<T*>(red + 2 * RED);
    if (in.when != STARTS) grid_launch();

    FragmentA<T> a[TILES][DEPTH];
    FragmentB<T> b[COLS][DEPTH];
    const T* mine = weight + lane * 8;
    auto load_weights = [&](int u, int group, int kt) {
#pragma unroll
        for (int r = 0; r < TILES; r++) {
            int tile = group * TILES + r;
            if (TILES == 1 || tile < tiles)
                a[r][u] = load_a(mine + static_cast<size_t>(unsigned(tile) * unsigned(tiles_k) + unsigned(kt)) * 256);
        }
    };
#pragma unroll
    for (int u = 0; u < DEPTH; u++)
        if (warp + u * WARPS < tiles_k) load_weights(u, blockIdx.x, warp + u * WARPS);
#pragma unroll
    for (int u = 0; u < DEPTH; u++)
#pragma unroll
        for (int r = 0; r < TILES; r++) pin_a<T>(a[r][u]);
    if (in.when != COMES) grid_wait();
    if (in.when == STARTS) grid_launch();

    // The sums that this thread adds up over the warps: rows g and g + 8 of tile `part` of a group, one column.
    const int g = lane / 4, half = warp % 2, part = warp / 2 / COLS, column = warp / 2 % COLS * 8 + lane % 4 * 2 + half;
    auto summed = [&](int group) { return part < TILES && group < groups && group * TILES + part < tiles; };
    typename Epilogue::Ahead ahead;
    auto fetch = [&](int group) {
        if (summed(group) && column < rows) {
            epilogue.fetch(ahead, group * TILES + part, g, column);
            epilogue.follow(ahead, group * TILES + part, g, column);
        }
    };

    const T* own[COLS];  // a lane's four k of tile 0; those of the next tile are `run` elements further
    const int run = SOURCE == DIRECT ? in.layout.run : 16 * rows;
#pragma unroll
    for (int c = 0; c < COLS; c++) {
        int r = min(c * 8 + lane / 4, rows - 1);
        own[c] = (SOURCE == DIRECT ? in.x + static_cast<size_t>(r) * in.layout.row : staged + r * 16) + lane % 4 * 4;
    }
    auto load_columns = [&](int u, int kt) {
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            const T* p = own[c] + kt * run;
            b[c][u] = SOURCE == DIRECT ? load_column(p) : load_b(p);
        }
    };
#pragma unroll 1
    for (int live = !(REHEARSES && in.when == COMES && rehearses(in.x)); live < 2; live++) {
        const int end = live ? groups : blockIdx.x + 1;
        if (live) fetch(blockIdx.x);
        if constexpr (SOURCE == STAGED) stage<T, WARPS * 32>(in.x, rows * in.k, staged, live);
        row_scales<T, WARPS>(in.squares, in.eps, rows, in.k, scales, live);
        if constexpr (SOURCE == STAGED) __syncthreads();
#pragma unroll
        for (int u = 0; u < DEPTH; u++)
            if (warp + u * WARPS < tiles_k) load_columns(u, warp + u * WARPS);

        for (int group = blockIdx.x, turn = 0; group < end; group += gridDim.x, turn ^= 1) {
            float acc[TILES][COLS][4] = {};
            for (int step = 0; step < steps; step += DEPTH) {
                bool last = step + DEPTH >= steps;
                int next = last ? group + gridDim.x : group, next_step = last ? 0 : step + DEPTH;
                // A rehearsal leaves the weights where they are.
                bool more = live ? next < groups : false;
#pragma unroll
                for (int u = 0; u < DEPTH; u++) {
                    int kt = warp + (step + u) * WARPS;
                    if (kt < tiles_k) {
#pragma unroll
                        for (int c = 0; c < COLS; c++) {
                            if constexpr (SOURCE == DIRECT)
                                b[c][u] = settle_column(b[c][u], own[c] + kt * run, live);
#pragma unroll
                            for (int r = 0; r < TILES; r++) multiply<T>(acc[r][c], a[r][u], b[c][u]);
                        }
                    }
                    kt = warp + (next_step + u) * WARPS;
                    if (more && kt < tiles_k) {
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
            if (summed(group)) {
                const float* from = sums + (warp / 2 * 4 + half) * 32 + lane;
                float low = 0.f, high = 0.f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    low += from[w * SUMS * 32];
                    high += from[w * SUMS * 32 + 64];
                }
                if (Epilogue::PLAIN && live && in.when == COMES) grid_wait();
                const float scale = scales[min(column, rows - 1)];
                epilogue.store(ahead, group * TILES + part, g, column, low * scale, high * scale, column < rows, live);
            }
            if (live) fetch(group + gridDim.x);
        }
    }
    if (in.when == COMES) grid_wait();
}

#define DECODE_SHAPE int WARPS, int TILES, int COLS, int DEPTH, int BLOCKS, bool REHEARSES
#define COLUMNS \
    const T *x, int row, int run, const float *squares, float eps, int rows, int k, int when
#define PRODUCT(tiles, ...)                                                                         \
    product<T, SOURCE, WARPS, TILES, COLS, DEPTH, REHEARSES>(                                       \
        weight, Columns<T>{x, {row, run}, squares, eps, rows, k, when}, tiles, __VA_ARGS__)

// out = x W^T + bias + residual.   out, residual [R, N] row by row, complete
template <class T, class Out, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_store(const T* weight, COLUMNS, int n, int span, const float* bias, const float* residual, Out* out) {
    PRODUCT((n + 15) / 16, Store<Out>{n, span, bias, residual, out});
}

// out = x W^T + residual, on the residual stream: see Add.   N = 16 * tiles
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_add(const T* weight, COLUMNS, int n, const float* residual, const float* norm, float* out, T* h,
               float* out_squares) {
    PRODUCT(n / 16, Add<T>{n, rows, residual, norm, out, h, out_squares});
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8, out [R, F] T in {out_row, out_run}
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_gate(const T* weight, COLUMNS, int ffn, int out_row, int out_run, T* out) {
    PRODUCT(ffn / 8, Gate<T>{{out_row, out_run}, out});
}

// Queries, keys and values of x, rotated and stored: see Rotate.
template <class T, int SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_qkv(const T* weight, COLUMNS, const float* bias, const float* rope, const int* seqs, const int* positions,
               const int* table, int pages, T* qkv, T* keys, T* values, int heads, int kv_heads, int head_dim) {
    PRODUCT((heads + 2 * kv_heads) * head_dim / 16,
            Rotate<T>{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values});
}
