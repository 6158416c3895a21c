// A decode product whose weights are all on their way before x is there, each k tile in registers of its own: a block
// has one group of TILES row tiles, and each of the WARPS parts of K has DEPTH k tiles. Nothing is streamed and nothing
// repeats: some hundred instructions in a row lead from x to the result, where the product of linear_decode.cu, which
// takes any size, executes more and jumps over many. A multiprocessor meets the code of each kernel anew, so that they
// cost more than they seem to. Parts and order of the sums are the same as there, and so are the bits.
//
// A block has one warp more than parts: it finds the scales of a norm (norm.cuh) while the others multiply.
#pragma once
#include "columns.cuh"
#include "sums.cuh"

// A lane's columns of x for the k tiles of its warp's part.
template <class T, Source SOURCE, int WARPS, int COLS, int DEPTH>
struct ColumnsAtOnce {
    static constexpr int K = 16 * WARPS * DEPTH, R = 8 * COLS, THREADS = WARPS * 32;
    static constexpr int EACH = 16 / sizeof(T), CHUNKS = K / EACH;  // elements of a load, loads of a row
    static constexpr int LOADS = SOURCE == STAGED ? (R * CHUNKS + THREADS - 1) / THREADS : 1;
    static constexpr int STEP = (SOURCE == STAGED ? R : 1) * WARPS * 16;  // elements from a part's k tile to its next

    const T* column[COLS];  // of the part's first k tile
    const uint4* chunk;     // STAGED: the first of all that this thread copies
    int chunks;             // that x has
    T* held;                // [k tiles, R, 16], as in columns.cuh
    uint4 v[LOADS];

    __device__ __forceinline__ ColumnsAtOnce(const T* x, int rows, T* held) : chunks(rows * CHUNKS), held(held) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        chunk = one_address(reinterpret_cast<const uint4*>(x) + threadIdx.x);
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            const int r = min(c * 8 + lane / 4, rows - 1);  // columns do not influence one another
            column[c] = SOURCE == STAGED ? held + (warp * R + r) * 16 : one_address(x + r * K + warp * 16);
            column[c] += lane % 4 * 4;
        }
    }

    __device__ __forceinline__ bool has(int i) const { return int(threadIdx.x) + i * THREADS < chunks; }

    // The thread's part of the copy: on its way, and in its place.
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (has(i)) v[i] = chunk[i * THREADS];
    }

    __device__ __forceinline__ void put() const {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int at = threadIdx.x + i * THREADS, k = at % CHUNKS * EACH;
            if (has(i)) *reinterpret_cast<uint4*>(held + (k / 16 * R + at / CHUNKS) * 16 + k % 16) = v[i];
        }
    }

    __device__ __forceinline__ void take(FragmentB<T> (&b)[COLS][DEPTH]) const {
#pragma unroll
        for (int i = 0; i < DEPTH; i++)
#pragma unroll
            for (int c = 0; c < COLS; c++) b[c][i] = load_b(column[c] + i * STEP);
    }
};

// s[0] = the sum of N numbers in the order of warp_sum: each adds up what is OFFSET apart.
template <int OFFSET, int N>
__device__ __forceinline__ void fold(float (&s)[N]) {
#pragma unroll
    for (int i = 0; i < OFFSET && i + OFFSET < N; i++) s[i] += s[i + OFFSET];
    if constexpr (OFFSET > 1) fold<OFFSET / 2>(s);
}

// What RowScales does, by one warp, a lane a row, with the same bits.
template <class T, int K>
__device__ __forceinline__ void find_scales_at_once(const float* squared, int rows, float eps, float* scales) {
    constexpr int QUADS = (K / 16 + 3) / 4;
    static_assert(QUADS <= 64, "RowScales adds up in another order beyond");
    const int lane = threadIdx.x % 32;
    if (lane >= rows) return;
    const float4* line = reinterpret_cast<const float4*>(squared) + lane * QUADS;
    float s[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const float4 v = line[i];
        s[i] = v.x + v.y + (v.z + v.w);
    }
    fold<32>(s);
    scales[lane] = FACTOR<T> * rsqrtf(__fdividef(s[0], K) + eps);
}

constexpr int COPIED = 1, SUMMED = 2;  // barriers: x is in shared memory; the sums are, and the scales

template <class T, Source SOURCE, class S, class Epilogue>
__device__ __forceinline__ void product_at_once(const T* weight, const T* x, const float* squared, float eps, int rows,
                                                int tiles, int first_tile, const Epilogue& epilogue) {
    constexpr int WARPS = S::WARPS, TILES = S::TILES, COLS = S::COLS, DEPTH = S::DEPTH, THREADS = WARPS * 32;
    constexpr int TILES_K = WARPS * DEPTH, PAIRS = Sums<S>::PAIRS;
    static_assert(PAIRS <= WARPS, "a thread adds up one pair of sums");
    extern __shared__ float4 memory[];
    float2* red = reinterpret_cast<float2*>(memory);
    float* scales = reinterpret_cast<float*>(red + WARPS * PAIRS * 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    grid_launch();
    if (warp == WARPS) {
        grid_wait();
        if (squared) find_scales_at_once<T, 16 * TILES_K>(squared, rows, eps, scales);
        barrier_arrive(SUMMED, THREADS + 32);
        return;
    }

    FragmentA<T> a[TILES][DEPTH];
    FragmentB<T> b[COLS][DEPTH];
    const T* from = one_address(weight + (static_cast<size_t>(blockIdx.x) * TILES * TILES_K + warp) * 256 + lane * 8);
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
#pragma unroll
        for (int r = 0; r < TILES; r++) a[r][i] = load_a(from + (r * TILES_K + i * WARPS) * 256);
    const Share<S> mine(0, rows, tiles, first_tile);
    const int tile = mine.tile(blockIdx.x);
    const bool adds = mine.exists(blockIdx.x);
    typename Epilogue::Ahead ahead;
    if (adds) epilogue.begin(ahead, tile, mine.g, mine.column), epilogue.follow(ahead, tile, mine.g, mine.column);
    ColumnsAtOnce<T, SOURCE, WARPS, COLS, DEPTH> columns(x, rows, reinterpret_cast<T*>(scales + 16));

    grid_wait();
    if constexpr (SOURCE == STAGED) columns.fetch();
    if constexpr (SOURCE == DIRECT) columns.take(b);
    if (adds) epilogue.fetch(ahead, tile, mine.g, mine.column);
    if constexpr (SOURCE == STAGED) {
        columns.put();
        barrier_wait(COPIED, THREADS);
        columns.take(b);
    }
    float acc[TILES][COLS][4] = {};
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
#pragma unroll
        for (int c = 0; c < COLS; c++)
#pragma unroll
            for (int r = 0; r < TILES; r++) multiply<T>(acc[r][c], a[r][i], b[c][i]);
    Sums<S>::leave(red + warp * PAIRS * 32 + lane, acc);
    barrier_wait(SUMMED, THREADS + 32);
    if (!adds) return;
    const float2 sum = mine.template add_up<WARPS, WARPS>(red);
    const float scale = squared ? scales[mine.column] : 1.f;
    epilogue.store(ahead, tile, mine.g, mine.column, __fmul_rn(sum.x, scale), __fmul_rn(sum.y, scale));
}
