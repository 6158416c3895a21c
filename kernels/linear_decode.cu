// Products of a packed weight matrix with at most 16 columns of x: what a decode step spends its time on.
//
//   out[r, n] = sum_k x[r, k] W[n, k]          x [R, K], R <= 8 COLS <= 16, W packed (packed.cuh), sums float32
//
// K is cut into WARPS parts: k tile kt belongs to part kt % WARPS. A cluster of SPLIT blocks, WARPS warps each, takes
// groups of SPLIT * TILES row tiles, one after the other. A block has WARPS / SPLIT of the parts, so that it needs only
// that much of x, and one warp for each part and each of the group's SPLIT sets of TILES tiles. Weights come as a
// stream (stream.cuh); the first ones are on their way before grid_wait(): they are constant, x is what the kernel
// before writes. The sums of set i meet in the shared memory of block i and are added in the order of the parts. That
// order depends on WARPS and K and on nothing else, and a column of an mma does not influence another one: so a row of
// x gives the same bits alone and in every batch, whatever SPLIT, TILES, COLS, DEPTH, BLOCKS, WAY and SOURCE.
//
// SOURCE of x (columns.cuh): DIRECT, beside the weights, or STAGED. With `squared`, x are rows of the residual stream
// after the first half of a norm (norm.cuh), and the sums are multiplied by its second half. WAY: what was said of
// streams, through REGISTERS or a RING; or all weights of a block at ONCE (at_once.cuh).
// LAUNCH: grid SPLIT times at most the number of groups, ceil(tiles / TILES / SPLIT), block 32 * WARPS, cluster SPLIT,
//         dependent; dynamic shared memory: sums, 2 * WARPS * TILES * COLS * 512 bytes; with RING also DEPTH * WARPS *
//         32 times 8 TILES (DIRECT: + 4 COLS) elements of T; 64 bytes for scales; if STAGED also R * held(K) elements
//         of T, held(K) = 16 ceil(K / 16 / WARPS) WARPS / SPLIT.
//         ONCE: grid the number of groups, block 32 * (WARPS + 1), dependent; dynamic shared memory: sums, WARPS *
//         TILES * COLS * 512 bytes; 64 bytes for scales; if STAGED also 8 * COLS * K elements of T.
// PRECOND: K % 16 == 0; x 16-byte aligned; 1 <= R <= 8 * COLS; 2 * TILES * COLS <= WARPS; SPLIT divides WARPS and is 1
//         below sm_90; constants of a step (bias, norm, rope, seqs, positions, table) were complete before its first
//         kernel started: they are read before the wait. ONCE: K = 16 WARPS DEPTH <= 4096; TILES divides the number of
//         row tiles; SPLIT 1.
#include "at_once.cuh"
#include "epilogue.cuh"
#include "stream.cuh"
#include "sums.cuh"

template <class T, Source SOURCE, int WARPS, int SPLIT, int TILES, int COLS, int DEPTH, int BLOCKS, Way WAY,
          class Epilogue>
__device__ __forceinline__ void product_of_stream(const T* weight, const T* x, const float* squared, float eps,
                                                  int rows, int k, int tiles, const Epilogue& epilogue) {
    constexpr bool DIRECTLY = SOURCE == DIRECT;
    using Stream = typename Choose<WAY == RING, InRing<T, DIRECTLY, WARPS, SPLIT, TILES, COLS, DEPTH>,
                                   InRegisters<T, DIRECTLY, WARPS, SPLIT, TILES, COLS, DEPTH>>::type;
    constexpr int PAIRS = Sums<TILES, COLS>::PAIRS, RED = WARPS * PAIRS * 32;
    constexpr int AHEAD = BLOCKS == 1 ? WARPS : 8;  // parts of a sum in registers
    static_assert(PAIRS <= WARPS, "a thread adds up one pair of sums");
    extern __shared__ float4 memory[];
    const int lane = threadIdx.x % 32, tiles_k = k / 16;
    const int first = blockIdx.x / SPLIT, groups = (tiles + TILES * SPLIT - 1) / (TILES * SPLIT);
    Work<T, WARPS, SPLIT, TILES, COLS> work{{}, weight, tiles, tiles_k, groups, int(gridDim.x) / SPLIT};
    float2* red = reinterpret_cast<float2*>(memory);
    float* stream_memory = reinterpret_cast<float*>(red + 2 * RED);
    float* scales = stream_memory + Stream::FLOATS;
    T* held = reinterpret_cast<T*>(scales + 16);
    grid_launch();

    Stream stream(stream_memory);
    stream.begin(work, first);
    const Share<SPLIT, TILES, COLS> mine(work.own.rank, rows, tiles);
    typename Epilogue::Ahead ahead;
    if (mine.exists(first)) epilogue.begin(ahead, mine.tile(first), mine.g, mine.column);

    if constexpr (SPLIT > 1) cluster_sync();  // the others have begun: their shared memory can be written
    grid_wait();
    if (mine.exists(first)) epilogue.fetch(ahead, mine.tile(first), mine.g, mine.column);
    if constexpr (SOURCE == STAGED) hold(work.own, x, rows, tiles_k, held);
    work.template take_columns<DIRECTLY>(DIRECTLY ? x : held, rows, k);
    stream.begin_columns(work);
    if (mine.exists(first)) epilogue.follow(ahead, mine.tile(first), mine.g, mine.column);
    find_scales<T, WARPS>(squared, rows, k, eps, scales);
    float scale = 1.f;

    for (int group = first, turn = 0; group < groups; group += work.stride, turn ^= 1) {
        float acc[TILES][COLS][4] = {};
        stream.multiply_group(work, acc, group);
        // Two buffers: who writes one has passed the barrier after which everybody had read it.
        float2* sums = SPLIT > 1 ? in_cluster(red + turn * RED, work.own.set) : red + turn * RED;
        Sums<TILES, COLS>::leave(sums + work.own.part * PAIRS * 32 + lane, acc);
        if constexpr (SPLIT > 1)
            cluster_sync();
        else
            __syncthreads();
        if (squared && group == first) scale = scales[min(mine.column, rows - 1)];
        if (mine.exists(group)) {
            const float2 sum = mine.template add_up<WARPS, AHEAD>(red + turn * RED);
            epilogue.store(ahead, mine.tile(group), mine.g, mine.column, __fmul_rn(sum.x, scale),
                           __fmul_rn(sum.y, scale));
        }
        const int following = group + work.stride;
        if (mine.exists(following)) {
            epilogue.begin(ahead, mine.tile(following), mine.g, mine.column);
            epilogue.fetch(ahead, mine.tile(following), mine.g, mine.column);
            epilogue.follow(ahead, mine.tile(following), mine.g, mine.column);
        }
    }
}

template <class T, Source SOURCE, int WARPS, int SPLIT, int TILES, int COLS, int DEPTH, int BLOCKS, Way WAY,
          class Epilogue>
__device__ __forceinline__ void product(const T* weight, const T* x, const float* squared, float eps, int rows, int k,
                                        int tiles, const Epilogue& epilogue) {
    if constexpr (WAY == ONCE)
        product_at_once<T, SOURCE, WARPS, TILES, COLS, DEPTH>(weight, x, squared, eps, rows, tiles, epilogue);
    else
        product_of_stream<T, SOURCE, WARPS, SPLIT, TILES, COLS, DEPTH, BLOCKS, WAY>(weight, x, squared, eps, rows, k,
                                                                                    tiles, epilogue);
}

#define DECODE_SHAPE int WARPS, int SPLIT, int TILES, int COLS, int DEPTH, int BLOCKS, Way WAY
#define PRODUCT product<T, SOURCE, WARPS, SPLIT, TILES, COLS, DEPTH, BLOCKS, WAY>

// Of all kernels: x [R, K] T; squared [R, squared_line(K)], null unless x is half normalised; eps of the norm.

// out = scale x W^T + bias + residual.   bias and residual may be null; out [R, N] Out
template <class T, class Out, Source SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32 + (WAY == ONCE) * 32, BLOCKS)
    decode_store(const T* weight, const T* x, const float* squared, float eps, int rows, int k, int n, int span,
                 float scale, const float* bias, const float* residual, Out* out) {
    PRODUCT(weight, x, squared, eps, rows, k, (n + 15) / 16, Store<Out>{n, span, scale, bias, residual, out});
}

// out += scale x W^T, and the first half of the norm that comes next: see Add. x is no row of the residual stream, so
// there are no scales to find.   weight packed with span 1, N % 16 == 0
template <class T, Source SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32 + (WAY == ONCE) * 32, BLOCKS)
    decode_add(const T* weight, const T* x, const float*, float, int rows, int k, int n, float scale, float* out,
               const float* norm, T* normed, float* out_squared) {
    PRODUCT(weight, x, nullptr, 0.f, rows, k, n / 16, Add<T>{n, scale, out, norm, normed, out_squared});
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8; out [R, F] T
template <class T, Source SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32 + (WAY == ONCE) * 32, BLOCKS)
    decode_gate(const T* weight, const T* x, const float* squared, float eps, int rows, int k, int ffn, T* out) {
    PRODUCT(weight, x, squared, eps, rows, k, ffn / 8, Gate<T>{ffn, out});
}

// out = gelu(x W^T + bias).   weight [N, K] packed with span 1; out [R, N] T
template <class T, Source SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32 + (WAY == ONCE) * 32, BLOCKS)
    decode_gelu(const T* weight, const T* x, const float* squared, float eps, int rows, int k, int n, const float* bias,
                int tanh, T* out) {
    PRODUCT(weight, x, squared, eps, rows, k, (n + 15) / 16, Gelu<T>{n, bias, tanh, out});
}

// Queries, keys and values of x, rotated and stored: see Rotate.
template <class T, Source SOURCE, DECODE_SHAPE>
__global__ void __launch_bounds__(WARPS * 32 + (WAY == ONCE) * 32, BLOCKS)
    decode_qkv(const T* weight, const T* x, const float* squared, float eps, int rows, int k, const float* bias,
               const float* rope, const int* seqs, const int* positions, const int* table, int pages, T* qkv, T* keys,
               T* values, int heads, int kv_heads, int head_dim) {
    Rotate<T> rotate{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values};
    PRODUCT(weight, x, squared, eps, rows, k, (heads + 2 * kv_heads) * head_dim / 16, rotate);
}
