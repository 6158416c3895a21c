// Attention of a decode step: a few rows, each over its own sequence, read at the speed of memory.
//
// out[r, h] = sum_t p[t] v[t], p = softmax over the tokens t in [low, high) of q[r, h] . k[t] / sqrt(D),
// high = visible[r], low = window ? max(0, high - window) : 0; query head h uses k/v head h / group.
//
// Work is cut along the tokens: a warp takes TOKENS neighbours, a block's 8 warps a tile, a split is `per` tiles and
// belongs to one block. `per` follows from the row's own range alone (one tile while at most SPLITS of them cover it,
// else the next power of two), every sum has a fixed order, and so a row's bits depend on nothing but its own sequence:
// not on the grid, not on the batch. All query heads of a k/v head ride in one mma, so k and v are read once.
#include "attend_decode.cuh"

// Shared memory while the warps' parts of a split are put together: pairs of dims, each with its index in Part::acc and
// whether its head is odd. Lines of 33: neighbouring pairs lie in neighbouring lines and are read at once.
template <int D, int NT>
struct Merge {
    static constexpr int LINES = 2 * NT * (D / 16), LINE = 33;
    static constexpr int PAIRS = WARPS * LINES * LINE;

    static __device__ __forceinline__ int line(int warp, int odd, int n, int i) {
        return (warp * LINES + (odd * NT + n) * (D / 16) + i) * LINE;
    }
};

// Writes out or partials for dims 2 p, 2 p + 1 of head h.
template <class T>
__device__ __forceinline__ void write_result(T* out, float lo, float hi, float sum) {
    float scale = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
    *reinterpret_cast<Pair<T>*>(out) = make_pair2<T>(lo * scale, hi * scale);
}

// The block's warps' parts of one split, added in the order of the warps. One split: straight into out. More: sums to
// `partial` [count, D], largest score and sum of weights to `stats` [count].
template <class T, int D, int NT>
__device__ __forceinline__ void merge_warps(Part<T, D, NT>& part, float2* shared, int count, bool only, T* out,
                                            float* partial, float2* stats) {
    using M = Merge<D, NT>;
    __shared__ float2 seen[WARPS][8 * NT];  // largest, sum
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float sum = warp_sum<4>(part.sum[n]);
        if (lane % 4 == 0) seen[warp][8 * n + lane / 4] = make_float2(part.largest[n], sum);
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++)
                shared[M::line(warp, odd, n, i) + lane] = make_float2(part.acc[n][i][odd], part.acc[n][i][odd + 2]);
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned u = threadIdx.x; u < count * (D / 2); u += THREADS) {
        const unsigned h = u / (D / 2), p = u % (D / 2);
        const uint2 place = place_of_pair<D>(p);
        const float2* from = shared + M::line(0, h & 1, h / 8, place.y) + place.x * 4 + h % 8 / 2;
        float top = seen[0][h].x;
#pragma unroll
        for (int w = 1; w < WARPS; w++) top = fmaxf(top, seen[w][h].x);
        float base = finite(top), sum = 0.f, lo = 0.f, hi = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float scale = exp2_approx(seen[w][h].x - base);
            const float2 a = from[w * M::LINES * M::LINE];
            sum += scale * seen[w][h].y, lo += scale * a.x, hi += scale * a.y;
        }
        if (only) {
            write_result<T>(out + h * D + 2 * p, lo, hi, sum);
        } else {
            *reinterpret_cast<float2*>(partial + h * D + 2 * p) = make_float2(lo, hi);
            if (p == 0) stats[h] = make_float2(top, sum);
        }
    }
}

// All splits of a row and k/v head, added in their order. partial [splits, *, D] with `stride` floats from one split to
// the next, stats [splits, HEADS].
template <class T, int D, int HEADS>
__device__ __forceinline__ void merge_splits(float2* shared, int count, int splits, const float* partial, int stride,
                                             const float2* stats, T* out) {
    for (int i = threadIdx.x; i < splits * HEADS; i += THREADS)
        if (i % HEADS < count) shared[i] = __ldcg(stats + i);
    __syncthreads();
#pragma unroll 1
    for (int u = threadIdx.x; u < count * (D / 2); u += THREADS) {
        int h = u / (D / 2), p = u % (D / 2);
        float top = shared[h].x;
        for (int s = 1; s < splits; s++) top = fmaxf(top, shared[s * HEADS + h].x);
        float base = finite(top), sum = 0.f, lo = 0.f, hi = 0.f;
#pragma unroll 8
        for (int s = 0; s < splits; s++) {
            float2 a = __ldcg(reinterpret_cast<const float2*>(partial + s * stride + h * D + 2 * p));
            float2 seen = shared[s * HEADS + h];
            float scale = exp2_approx(seen.x - base);
            sum += scale * seen.y, lo += scale * a.x, hi += scale * a.y;
        }
        write_result<T>(out + h * D + 2 * p, lo, hi, sum);
    }
}

// The block that comes last of `blocks`, in all its threads; it leaves the ticket at 0 for the next launch.
__device__ __forceinline__ bool comes_last(int* ticket, int blocks) {
    __shared__ bool last;
    __threadfence();  // this block's partials are written before its ticket
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1) == blocks - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// heads = kv_heads group. qkv [rows, (heads + 2 kv_heads) D], of which q is read. keys, values [P, kv_heads, PAGE, D].
// table [*, pages]. partial [rows, blocks x, slots, share, D] and stats [rows, blocks x, slots, 8 NT]: for rows of more
// than one split, slots >= the splits of any row, share = min(8 NT, group). tickets [rows, blocks x], all 0.
// scale = log2(e) / sqrt(D).
//
// LAUNCH: grid (kv_heads ceil(group / 8 NT), rows, any: these blocks share out a row's splits), block 256, dynamic
//   shared memory 8 Merge<D, NT>::PAIRS, dependent. Blocks without a split come last, and wait for the kernel before
//   like all: more blocks than fit at once would only have to be started and ended. BLOCKS: that a multiprocessor has
//   registers for; two also means one beside a block of the next kernel, which then starts early.
// PRECOND: rows <= 32; a row's tokens but those at the positions of this step's rows, and seqs, positions, visible and
//   table, were complete when this step's first kernel started: they are read before the wait.
template <class T, int D, int NT, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_decode(const T* qkv, const int* seqs, const int* positions, const int* visible, const int* table,
                  const T* keys, const T* values, T* out, float* partial, float2* stats, int* tickets, int rows,
                  int group, int kv_heads, int pages, int window, int slots, float scale) {
    using P = Part<T, D, NT>;
    constexpr int HEADS = 8 * NT;
    extern __shared__ float2 shared[];
    grid_launch();
    const int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int heads = kv_heads * group, share = min(HEADS, group), chunks = (group + HEADS - 1) / HEADS;
    const int kv = chunks == 1 ? blockIdx.x : blockIdx.x / chunks, chunk = blockIdx.x - kv * chunks;
    const int head = kv * group + chunk * HEADS, count = min(HEADS, group - chunk * HEADS);
    // All at once, as each of them takes long where a block starts late.
    const int seq = __ldcg(seqs + row), sees = __ldcg(visible + row);
    const int other = lane < rows ? __ldcg(seqs + lane) : -1, its_position = lane < rows ? __ldcg(positions + lane) : 0;
    const Cut cut = cut_row<P::TILE>(sees, window);
    if (blockIdx.z >= cut.splits) return grid_wait();

    P part;
    auto seek = [&](int tile) {  // to the warp's tokens of a tile
        part.start = tile * P::TILE + warp * P::TOKENS;
        const size_t page = part.start < cut.high ? __ldcg(table + size_t(seq) * pages + part.start / PAGE) : 0;
        const size_t first = ((page * kv_heads + kv) * PAGE + part.start % PAGE) * D;
        part.key = one_address(keys + first + lane / 4 * D + lane % 4 * 8);
        part.value = one_address(values + first + lane % 4 * 2 * D + lane / 4 * 8);
    };
    int split = blockIdx.z, tile = cut.first + split * cut.per;
    seek(tile);
    // Tokens from `fresh` on may be written by the kernel before this one.
    const int fresh = __reduce_min_sync(0xffffffffu, other == seq ? min(cut.high, its_position) : cut.high);
    const Span seen(cut.low, cut.high);
    auto load = [&](Span tokens) { part.load_keys(tokens, lane), part.load_values(tokens, lane); };
    if constexpr (P::AHEAD) part.clear_keys(), part.clear_values(), load(Span(cut.low, fresh));
    part.clear();
    const T* query = one_address(qkv + (size_t(row) * (heads + 2 * kv_heads) + head) * D);
    const size_t place = size_t(row) * gridDim.x + blockIdx.x;
    grid_wait();
    if constexpr (P::AHEAD) {
        if (part.start + P::TOKENS > fresh) load(Span(max(cut.low, fresh), cut.high));
        __syncwarp();  // keeps ptxas from asking for the query first, for which the loads above would wait
        part.load_query(query, count, lane);
    }
    // One tile; whether there is another one for this block, of the same split or of its next one.
    auto pass = [&](bool first) {
        float score[P::TOKENS / 8][4];
        Pair<T> p[NT][P::TOKENS / 8];
        part.scores(score, query, count, seen, scale, lane);
        const bool ends = ++tile == min(cut.first + (split + 1) * cut.per, cut.end);
        const int next = ends ? split + gridDim.z : split;
        const bool more = next < cut.splits;
        if (ends) tile = cut.first + next * cut.per;
        part.weigh(score, p, lane, first);
        if constexpr (P::AHEAD) {
            if (more) seek(tile), part.clear_keys(), part.load_keys(seen, lane);
        }
        part.accumulate(p, seen, lane);
        if (more) {
            if constexpr (P::AHEAD) {
                part.clear_values(), part.load_values(seen, lane);
                part.load_query(query, count, lane);
            } else {
                seek(tile);
            }
        }
        if (ends) {
            const size_t slot = place * slots + split;
            merge_warps<T, D, NT>(part, shared, count, cut.splits == 1, out + (size_t(row) * heads + head) * D,
                                  partial + slot * share * D, stats + slot * HEADS);
            if (!more) return false;
            part.clear();
            __syncthreads();  // the shared sums are read before the next ones are written
        }
        split = next;
        return true;
    };
    bool more = true;
    // Most rows are short: their only tile does without what later ones need, where registers allow for two copies.
    if constexpr (D <= 64 && BLOCKS == 1) more = pass(true);
    while (more) more = pass(false);
    if (cut.splits > 1 && comes_last(tickets + place, min(int(gridDim.z), cut.splits)))
        merge_splits<T, D, HEADS>(shared, count, cut.splits, partial + place * slots * share * D, share * D,
                                  stats + place * slots * HEADS, out + (size_t(row) * heads + head) * D);
}
