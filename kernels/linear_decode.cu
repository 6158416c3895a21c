// Products of a packed weight matrix with at most 16 columns of x: what a decode step spends its time on.
//
//   out[r, n] = sum_k x[r, k] W[n, k]          x [R, K], R <= 16, W packed, sums float32
//
// W is plain or quantised, which says what a step of K is (format.cuh, quantised.cuh): 16 k if plain. A launch makes
// the row tiles first_tile .. first_tile + tiles - 1 of the whole matrix.
//
// K is cut into WARPS parts: k step s belongs to part s % WARPS. A cluster of SPLIT blocks, WARPS warps each, takes
// groups of SPLIT * TILES row tiles, one after the other. A block has WARPS / SPLIT of the parts, so that it needs only
// that much of x, and one warp for each part and each of the group's SPLIT sets of TILES tiles. Weights come as a
// stream (stream.cuh); the first ones are on their way before grid_wait(): they are constant, x is what the kernel
// before writes. The sums of set i meet in the shared memory of block i and are added in the order of the parts. That
// order depends on WARPS and K and on nothing else, and a column of an mma does not influence another one: so a row of
// x gives the same bits alone and in every batch, whatever SPLIT, TILES, ROWS, DEPTH, BLOCKS, WAY and SOURCE.
//
// SOURCE of x (columns.cuh): DIRECT, beside the weights, or STAGED. With `squared`, x are rows of the residual stream
// after the first half of a norm (norm.cuh), and the sums are multiplied by its second half. WAY: what was said of
// streams, through REGISTERS or a RING; or all weights of a block at ONCE (at_once.cuh).
// LAUNCH: grid SPLIT times at most the number of groups, ceil(tiles / TILES / SPLIT), block 32 * WARPS, cluster SPLIT,
//         dependent; dynamic shared memory: sums, 2 * WARPS * 256 * PAIRS (sums.cuh); with RING also DEPTH * WARPS
//         times TILES * SLOT of the format (DIRECT: + COLS * 32 B); 64 bytes for scales; if STAGED also R * held
//         elements of T, held = K of a step * ceil(steps / WARPS) WARPS / SPLIT. ONCE: grid the number of groups, block
//         32 * (WARPS + 1), dependent; dynamic shared memory: sums, WARPS * 256 * PAIRS; 64 bytes for scales; if STAGED
//         also 8 * COLS * K elements of T.
// PRECOND: K is whole steps; x 16-byte aligned; 1 <= R <= ROWS; 2 * TILES * COLS <= WARPS; SPLIT divides WARPS and is 1
//         below sm_90; constants of a step (bias, norm, rope, seqs, positions, table) were complete before its first
//         kernel started: they are read before the wait. ONCE: W plain; K = 16 WARPS DEPTH <= 4096; TILES divides the
//         number of row tiles; SPLIT 1.
#include "at_once.cuh"
#include "epilogue.cuh"
#include "quantised.cuh"
#include "stream.cuh"
#include "sums.cuh"

// The weights that the step needs after these. A block that has used its last ones has its share of them brought to L2:
// memory would else rest while one kernel ends and the next one begins. Earlier they would delay what is needed now.
struct Following {
    const unsigned char* weight;
    int share;  // bytes of a block

    __device__ __forceinline__ void fetch() const {
        if (share && threadIdx.x == 0) prefetch_l2(weight + static_cast<size_t>(blockIdx.x) * share, share);
    }
};

template <class W, Source SOURCE, class S, class Epilogue, class F = Format<W>, class T = typename F::T>
__device__ __forceinline__ void product_of_stream(const typename F::Weight* weight, const T* x, const float* squared,
                                                  float eps, int rows, int k, int tiles, int first_tile,
                                                  Following following, const Epilogue& epilogue) {
    constexpr bool DIRECTLY = SOURCE == DIRECT;
    constexpr int WARPS = S::WARPS, SPLIT = S::SPLIT;
    using Stream = typename Choose<S::WAY == RING, InRing<F, DIRECTLY, S>, InRegisters<F, DIRECTLY, S>>::type;
    constexpr int PAIRS = Sums<S>::PAIRS, RED = WARPS * PAIRS * 32;
    constexpr int AHEAD = S::BLOCKS == 1 ? WARPS : 8;  // parts of a sum in registers
    static_assert(PAIRS <= WARPS, "a thread adds up one pair of sums");
    extern __shared__ float4 memory[];
    const int lane = threadIdx.x % 32, steps = k / F::K;
    const int first = blockIdx.x / SPLIT, groups = (tiles + S::TILES * SPLIT - 1) / (S::TILES * SPLIT);
    Work<F, S> work{{}, weight, tiles, steps, groups, int(gridDim.x) / SPLIT};
    float2* red = reinterpret_cast<float2*>(memory);
    float* stream_memory = reinterpret_cast<float*>(red + 2 * RED);
    float* scales = stream_memory + Stream::FLOATS;
    T* held = reinterpret_cast<T*>(scales + 16);
    grid_launch();

    Stream stream(stream_memory);
    stream.begin(work, first);
    const Share<S> mine(work.own.rank, rows, tiles, first_tile);
    typename Epilogue::Ahead ahead;
    if (mine.exists(first)) epilogue.begin(ahead, mine.tile(first), mine.g, mine.column);

    if constexpr (SPLIT > 1) cluster_sync();  // the others have begun: their shared memory can be written
    grid_wait();
    if (mine.exists(first)) epilogue.fetch(ahead, mine.tile(first), mine.g, mine.column);
    const RowScales<T, WARPS> finder(squared, rows, k);
    if constexpr (SOURCE == STAGED) hold<F>(work.own, x, rows, steps, held);
    work.template take_columns<DIRECTLY>(DIRECTLY ? x : held, rows, k);
    stream.begin_columns(work);
    if (mine.exists(first)) epilogue.follow(ahead, mine.tile(first), mine.g, mine.column);
    finder.find(k, eps, scales);
    float scale = F::FACTOR;

    for (int group = first, turn = 0; group < groups; group += work.stride, turn ^= 1) {
        typename F::template Acc<S> acc = {};
        stream.multiply_group(work, acc, group);
        if (F::PREFETCHES && group + work.stride >= groups) following.fetch();
        // Two buffers: who writes one has passed the barrier after which everybody had read it.
        float2* sums = SPLIT > 1 ? in_cluster(red + turn * RED, work.own.set) : red + turn * RED;
        acc.collect();
        Sums<S>::leave(sums + work.own.part * PAIRS * 32 + lane, acc.sum);
        if constexpr (SPLIT > 1)
            cluster_sync();
        else
            __syncthreads();
        if (squared && group == first) scale = F::FACTOR * scales[min(mine.column, rows - 1)];
        if (mine.exists(group)) {
            const float2 sum = mine.template add_up<WARPS, AHEAD>(red + turn * RED);
            epilogue.store(ahead, mine.tile(group), mine.g, mine.column, __fmul_rn(sum.x, scale),
                           __fmul_rn(sum.y, scale));
        }
        const int next = group + work.stride;
        if (mine.exists(next)) {
            epilogue.begin(ahead, mine.tile(next), mine.g, mine.column);
            epilogue.fetch(ahead, mine.tile(next), mine.g, mine.column);
            epilogue.follow(ahead, mine.tile(next), mine.g, mine.column);
        }
    }
}

template <class W, Source SOURCE, class S, class Epilogue, class F = Format<W>, class T = typename F::T>
__device__ __forceinline__ void product(const typename F::Weight* weight, const T* x, const float* squared, float eps,
                                        int rows, int k, int tiles, int first_tile, Following following,
                                        const Epilogue& epilogue) {
    if constexpr (S::WAY == ONCE)
        product_at_once<W, SOURCE, S>(weight, x, squared, eps, rows, tiles, first_tile, epilogue);
    else
        product_of_stream<W, SOURCE, S>(weight, x, squared, eps, rows, k, tiles, first_tile, following, epilogue);
}

// Of all kernels: W weights (format.cuh), S a Shape; weight as W has it; x [R, K] T; squared [R, squared_line(K)], null
// unless x is half normalised; eps of the norm.
template <class W>
using Weight = typename Format<W>::Weight;
template <class W>
using TypeOf = typename Format<W>::T;

// out = scale x W^T + bias + residual.   bias and residual may be null; out [R, N] Out
template <class W, class Out, Source SOURCE, class S, class T = TypeOf<W>>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    decode_store(const Weight<W>* weight, const T* x, const float* squared, float eps, int rows, int k, int tiles,
                 int first_tile, const unsigned char* following, int share, int n, int span, float scale,
                 const float* bias, const float* residual, Out* out) {
    product<W, SOURCE, S>(weight, x, squared, eps, rows, k, tiles, first_tile, {following, share},
                          Store<Out>{n, span, scale, bias, residual, out});
}

// out += scale x W^T, and the first half of the norm that comes next: see Add. x is no row of the residual stream, so
// there are no scales to find.   weight packed with span 1, N % 16 == 0
template <class W, Source SOURCE, class S, class T = TypeOf<W>>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    decode_add(const Weight<W>* weight, const T* x, const float*, float, int rows, int k, int tiles, int first_tile,
               const unsigned char* following, int share, int n, float scale, float* out, const float* norm, T* normed,
               float* out_squared) {
    product<W, SOURCE, S>(weight, x, nullptr, 0.f, rows, k, tiles, first_tile, {following, share},
                          Add<T>{n, scale, out, norm, normed, out_squared});
}

// out = silu(gate) * up.   weight [2 F, K] packed with span F / 8; out [R, F] T
template <class W, Source SOURCE, class S, class T = TypeOf<W>>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    decode_gate(const Weight<W>* weight, const T* x, const float* squared, float eps, int rows, int k, int tiles,
                int first_tile, const unsigned char* following, int share, int ffn, T* out) {
    product<W, SOURCE, S>(weight, x, squared, eps, rows, k, tiles, first_tile, {following, share}, Gate<T>{ffn, out});
}

// out = gelu(x W^T + bias).   weight [N, K] packed with span 1; out [R, N] T
template <class W, Source SOURCE, class S, class T = TypeOf<W>>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    decode_gelu(const Weight<W>* weight, const T* x, const float* squared, float eps, int rows, int k, int tiles,
                int first_tile, const unsigned char* following, int share, int n, const float* bias, int tanh, T* out) {
    product<W, SOURCE, S>(weight, x, squared, eps, rows, k, tiles, first_tile, {following, share},
                          Gelu<T>{n, bias, tanh, out});
}

// Queries, keys and values of x, rotated and stored: see Rotate.
template <class W, Source SOURCE, class S, class T = TypeOf<W>>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    decode_qkv(const Weight<W>* weight, const T* x, const float* squared, float eps, int rows, int k, int tiles,
               int first_tile, const unsigned char* following, int share, const float* bias, const float* rope,
               const int* seqs, const int* positions, const int* table, int pages, T* qkv, T* keys, T* values,
               int heads, int kv_heads, int head_dim) {
    Rotate<T> rotate{heads, kv_heads, head_dim, pages, bias, rope, seqs, positions, table, qkv, keys, values};
    product<W, SOURCE, S>(weight, x, squared, eps, rows, k, tiles, first_tile, {following, share}, rotate);
}
