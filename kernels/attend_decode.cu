// Decode attention: one row per sequence over its KV cache, split along the tokens (as in flash-decoding).
//
// out[r, h] = sum_t p[t] v[t], p = softmax over the tokens t in [low, high) of q[r, h] . k[t] / sqrt(D),
// high = visible[r], low = window ? max(0, high - window) : 0; query head h uses k/v head h / group.
//
//   tokens of a row    low ...                                              ... high
//   tiles              |  tile 0  |  tile 1  |  tile 2  |  tile 3  |  tile 4  |     of 8 warps x TOKENS tokens
//   splits (per = 2)   |       split 0       |       split 1       | split 2  |     a split belongs to one block
//
//   block of a split   warp 0..7: scores -> online softmax -> p v, tile by tile
//                      merge_warps in shared memory, in warp order  -> out if there is one split, else `partial`
//   last block         merge_splits, in split order                 -> out
//
// `per`, the tiles of a split, depends on the row's own range only: 1 while SPLITS tiles cover it, else the next power
// of two. Every sum has a fixed order. So a row's bits depend on its own sequence only, not on grid or batch. All query
// heads of a k/v head are rows of one mma, so k and v are read once (GQA).
#include "attend_decode.cuh"

// Layout of shared memory in merge_warps. Element: the accumulators of one dim pair; line: the 32 lanes' elements for
// one index in Part::acc and one parity of the head. LINE = 33, so that the reads of adjacent pairs do not conflict.
template <int D, int NT>
struct Merge {
    static constexpr int LINES = 2 * NT * (D / 16), LINE = 33;
    static constexpr int PAIRS = WARPS * LINES * LINE;

    static __device__ __forceinline__ int line(int warp, int odd, int n, int i) {
        return (warp * LINES + (odd * NT + n) * (D / 16) + i) * LINE;
    }
};

// Store (lo, hi) / sum, two adjacent dims of a head, as T.
template <class T>
__device__ __forceinline__ void write_result(T* out, float lo, float hi, float sum) {
    float scale = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
    *reinterpret_cast<Pair<T>*>(out) = make_pair2<T>(lo * scale, hi * scale);
}

// Merge the warps' results of one split, in warp order. only: the row has one split, so normalise and store to out.
// Else store unnormalised sums to `partial` [count, D], and (largest score, sum of weights) to `stats` [count].
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

// Merge all splits of a row and k/v head, in split order, and store to out. partial [splits, *, D] with `stride` floats
// between splits; stats [splits, HEADS].
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

// True in all threads of the block that is the last of `blocks` to call this. It resets the ticket to 0.
__device__ __forceinline__ bool comes_last(int* ticket, int blocks) {
    __shared__ bool last;
    __threadfence();  // this block's partials are visible before its ticket
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1) == blocks - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// heads = kv_heads group. qkv [rows, (heads + 2 kv_heads) D]; only q is read. keys, values [P, kv_heads, PAGE, D].
// table [*, pages]: block table. out [rows, heads D]. Only for rows of more than one split: partial [rows, gridDim.x,
// slots, share, D] and stats [rows, gridDim.x, slots, 8 NT], slots >= the splits of any row, share = min(8 NT, group);
// tickets [rows, gridDim.x], all 0 before and after. scale = log2(e) / sqrt(D).
//
// LAUNCH: grid (kv_heads ceil(group / 8 NT), rows, z), block 256, dynamic shared memory 8 Merge<D, NT>::PAIRS,
//   dependent. z: any number; the z blocks of a row take its splits in turn. Blocks without a split only wait: choose z
//   so that all blocks fit on the GPU in one wave. BLOCKS: blocks per SM that registers must allow. 2 lets a block of
//   the next GEMM start beside a block of this kernel.
// PRECOND: rows <= 32. Complete when the step began, because read before grid_wait(): seqs, positions, visible, table,
//   and the keys and values of all tokens but those at the positions of this step's rows.
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
    // Issued back to back: one memory latency instead of four.
    const int seq = __ldcg(seqs + row), sees = __ldcg(visible + row);
    const int other = lane < rows ? __ldcg(seqs + lane) : -1, its_position = lane < rows ? __ldcg(positions + lane) : 0;
    const Cut cut = cut_row<P::TILE>(sees, window);
    if (blockIdx.z >= cut.splits) return grid_wait();

    P part;
    auto seek = [&](int tile) {  // set the addresses of the warp's tokens of a tile
        part.start = tile * P::TILE + warp * P::TOKENS;
        const size_t page = part.start < cut.high ? __ldcg(table + size_t(seq) * pages + part.start / PAGE) : 0;
        const size_t first = ((page * kv_heads + kv) * PAGE + part.start % PAGE) * D;
        part.key = one_address(keys + first + lane / 4 * D + lane % 4 * 8);
        part.value = one_address(values + first + lane % 4 * 2 * D + lane / 4 * 8);
    };
    int split = blockIdx.z, tile = cut.first + split * cut.per;
    seek(tile);
    // Tokens from `fresh` on may be written by the preceding kernel: they are loaded after grid_wait().
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
        __syncwarp();  // keeps ptxas from issuing the query's loads first, which would delay the loads above
        part.load_query(query, count, lane);
    }
    // Process one tile. Returns whether this block has another one, in the same split or in its next split.
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
            __syncthreads();  // the shared sums are read before the next split writes its own
        }
        split = next;
        return true;
    };
    bool more = true;
    // Most rows are short. A copy of the code for the first tile leaves out the rescaling that later tiles need.
    if constexpr (D <= 64 && BLOCKS == 1) more = pass(true);
    while (more) more = pass(false);
    if (cut.splits > 1 && comes_last(tickets + place, min(int(gridDim.z), cut.splits)))
        merge_splits<T, D, HEADS>(shared, count, cut.splits, partial + place * slots * share * D, share * D,
                                  stats + place * slots * HEADS, out + (size_t(row) * heads + head) * D);
}
