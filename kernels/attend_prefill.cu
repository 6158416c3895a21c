// Prefill attention: many rows in tiles of 64, on tensor cores, over the paged KV cache.
//
// out[r, h] = sum_t p[t] v[t], p = softmax over the tokens t in [low, high) of q[r, h] . k[t] / sqrt(D),
// high = visible[r], low = window ? max(0, high - window) : 0; query head h uses k/v head h / (heads / kv_heads).
//
//   block   one tile of 64 rows and one query head; warp w rows 16 w .. 16 w + 15
//   step    KEYS tokens: their keys and values come to shared memory by cp.async, while the step before is computed
//
//           stage 0   | copy step 0 | compute step 0 | copy step 2    | compute step 2 | ...      STAGES = 2
//           stage 1                 | copy step 1    | compute step 1 | copy step 3    | ...
//
// Steps start at multiples of KEYS for every row, and a step in which a row attends to no token changes none of its
// bits. So a row's bits depend on its own visible range, not on how a prompt was chunked or on the rest of the batch.
#include "attend.cuh"
#include "reduce.cuh"

constexpr int ROWS = 64, THREADS = 128;

// Shared memory of one step. Lines are padded so that a warp's loads have no bank conflicts.
template <class T, int D>
struct Tile {
    static constexpr int BYTES = D * sizeof(T);
    static constexpr int KEYS = BYTES > 512 ? 16 : BYTES > 256 ? 32 : 64;
    static constexpr int KEY_LINE = (BYTES + (128 + (sizeof(T) == 2 ? 64 : 16) - BYTES % 128) % 128) / sizeof(T);
    static constexpr int VALUE_LINE = (BYTES + 16) / sizeof(T);
    static constexpr int SIZE = KEYS * (KEY_LINE + VALUE_LINE);             // elements
    static constexpr int STAGES = 2 * SIZE * sizeof(T) <= 96 * 1024 ? 2 : 1;  // 1 if two do not fit on every GPU
};

// Start the copies of keys and values of tokens [start, start + KEYS), and commit them as a group. Tokens outside
// [low, high) become zeros, because 0 times a NaN in stale memory would be NaN.
template <class T, int D>
__device__ __forceinline__ void fetch(T* shared, const T* keys, const T* values, const int* table, int kv, int kv_heads,
                                      int start, int low, int high) {
    using S = Tile<T, D>;
    constexpr int CHUNK = 16 / sizeof(T), CHUNKS = D / CHUNK;
    size_t base = ((size_t(table[start / PAGE]) * kv_heads + kv) * PAGE + start % PAGE) * D;
#pragma unroll
    for (int i = threadIdx.x; i < S::KEYS * CHUNKS; i += THREADS) {
        int t = i / CHUNKS, c = i % CHUNKS * CHUNK;
        int bytes = start + t >= low && start + t < high ? 16 : 0;
        cp_async16(shared + t * S::KEY_LINE + c, keys + base + t * D + c, bytes);
        cp_async16(shared + S::KEYS * S::KEY_LINE + t * S::VALUE_LINE + c, values + base + t * D + c, bytes);
    }
    cp_async_commit();
}

// Values of tokens 16 i .. 16 i + 15 and dims 16 d .. 16 d + 15 as two B fragments of 8 dims: b[0] b[1], b[2] b[3].
template <class T, int D>
__device__ __forceinline__ void load_values(const T* values, int i, int d, int lane, Pair<T> (&b)[4]) {
    constexpr int LINE = Tile<T, D>::VALUE_LINE;
    if constexpr (sizeof(T) == 2) {
        uint4 v = ldmatrix_x4_trans(values + (16 * i + lane % 16) * LINE + 16 * d + lane / 16 * 8);
        b[0] = {v.x}, b[1] = {v.y}, b[2] = {v.z}, b[3] = {v.w};
    } else {
        const T* v = values + (16 * i + 2 * (lane % 4)) * LINE + 16 * d + lane / 4;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const T* at = v + e % 2 * 8 * LINE + e / 2 * 8;
            b[e] = make_pair2<T>(at[0], at[LINE]);
        }
    }
}

// A warp's 16 rows against one step. Lane l has g = l / 4, q = l % 4, and rows g and g + 8.
template <class T, int D>
struct Rows {
    static constexpr int KEYS = Tile<T, D>::KEYS;
    static constexpr bool HELD = sizeof(T) == 2 && D <= 128;  // queries stay in registers

    float acc[D / 8][4];       // dims 8 d + 2 q, 8 d + 2 q + 1 of row g, then of row g + 8
    float largest[2], sum[2];  // of rows g and g + 8; sum covers this lane's tokens only
    int low[2], high[2];       // the rows attend to tokens [low, high)

    // score[j]: tokens 8 j + 2 q, 8 j + 2 q + 1 of row g, then of row g + 8, in units of log2. queries: row g from
    // 8 q on; row g + 8 is `stride` elements further. held: the queries in registers, if HELD.
    __device__ __forceinline__ void scores(float (&score)[KEYS / 8][4], const T* queries, size_t stride,
                                           const Pair<T> (&held)[2][HELD ? D / 8 : 1], const T* keys, int start,
                                           float scale, int lane) {
        const T* own = keys + lane / 4 * Tile<T, D>::KEY_LINE + lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) score[j][e] = 0.f;
#pragma unroll
        for (int i = 0; i < (D + 31) / 32; i++) {
            Pair<T> query[2][4];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if constexpr (!HELD) load_part<D>(queries + r * stride, i, lane % 4, DefaultLoad(), query[r]);
#pragma unroll
                for (int e = 0; HELD && e < 4 && 4 * i + e < D / 8; e++) query[r][e] = held[r][HELD ? 4 * i + e : 0];
            }
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                Pair<T> k[4];
                load_part<D>(own + 8 * j * Tile<T, D>::KEY_LINE, i, lane % 4, DefaultLoad(), k);
#pragma unroll
                for (int e = 0; e < 4 && 4 * i + e < D / 8; e += 2)
                    mma_pairs<T>(score[j], query[0][e], query[1][e], query[0][e + 1], query[1][e + 1], k[e], k[e + 1]);
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = start + 8 * j + 2 * (lane % 4) + e % 2;
                score[j][e] = t >= low[e / 2] && t < high[e / 2] ? score[j][e] * scale : minus_infinity();
            }
    }

    // Online softmax: scores become weights p in T, relative to the largest score so far; earlier sums are rescaled to
    // it. `sum` adds the rounded weights, which are the ones that p v uses.
    __device__ __forceinline__ void weigh(float (&score)[KEYS / 8][4], Pair<T> (&p)[KEYS / 8][2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = largest[r];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) top = fmaxf(top, fmaxf(score[j][2 * r], score[j][2 * r + 1]));
            top = warp_max<4>(top);
            float base = finite(top), scale = exp2_approx(largest[r] - base);
            largest[r] = top, sum[r] *= scale;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                p[j][r] = make_pair2<T>(exp2_approx(score[j][2 * r] - base), exp2_approx(score[j][2 * r + 1] - base));
                float2 rounded = unpack(p[j][r]);
                sum[r] += rounded.x + rounded.y;
            }
#pragma unroll
            for (int d = 0; d < D / 8; d++) acc[d][2 * r] *= scale, acc[d][2 * r + 1] *= scale;
        }
    }

    // acc += p v
    __device__ __forceinline__ void accumulate(const Pair<T> (&p)[KEYS / 8][2], const T* values, int lane) {
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                Pair<T> v[4];
                load_values<T, D>(values, i, d, lane, v);
#pragma unroll
                for (int half = 0; half < 2; half++)
                    mma_pairs<T>(acc[2 * d + half], p[2 * i][0], p[2 * i][1], p[2 * i + 1][0], p[2 * i + 1][1],
                                 v[2 * half], v[2 * half + 1]);
            }
    }
};

// qkv [rows, (heads + 2 kv_heads) D]; only q is read. keys, values [P, kv_heads, PAGE, D]. table [*, pages]: block
// table. out [rows, heads D]. padding: index of the padding sequence. scale = log2(e) / sqrt(D).
//
// PACKED (encoders): a tile may hold rows of several sequences and makes one pass over the keys of each; padding rows
// become zeros. Else a tile has one sequence, that of its first row; rows of any other sequence become zeros.
//
// LAUNCH: grid (rows / 64, heads), block 128, dynamic shared memory Tile::STAGES Tile::SIZE sizeof(T), dependent.
// PRECOND: rows is a multiple of 64. PACKED: the rows of a sequence are adjacent within a tile.
template <class T, int D, bool PACKED>
__global__ void __launch_bounds__(THREADS, 1)
    attend_prefill(const T* qkv, const int* seqs, const int* visible, const int* table, const T* keys, const T* values,
                   T* out, int heads, int kv_heads, int pages, int window, int padding, float scale) {
    using S = Tile<T, D>;
    extern __shared__ uint4 memory[];
    T* shared = reinterpret_cast<T*>(memory);
    grid_wait();
    grid_launch();
    const int lane = threadIdx.x % 32, head = blockIdx.y, kv = head / (heads / kv_heads);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;  // the last tiles take longest: they start first
    const int row = first + threadIdx.x / 32 * 16 + lane / 4;

#pragma unroll 1
    for (int run = 0, next = ROWS; run < ROWS; run = PACKED ? next : ROWS) {
        const int seq = seqs[first + run];
        int low = 0x7fffffff, high = 0;  // union of the ranges of the sequence's rows
        if (PACKED) next = ROWS;         // first row of the next sequence
#pragma unroll
        for (int r = lane; r < ROWS; r += 32)
            if (seqs[first + r] == seq) {
                int v = visible[first + r];
                high = max(high, v), low = min(low, window > 0 ? max(0, v - window) : 0);
            } else if (PACKED && r > run) {
                next = min(next, r);
            }
        low = __reduce_min_sync(0xffffffffu, low), high = __reduce_max_sync(0xffffffffu, high);
        if (PACKED) {
            next = __reduce_min_sync(0xffffffffu, next);
            if (seq == padding) low = high = 0;
            __syncthreads();  // the previous sequence's keys have been read
        }

        Rows<T, D> rows;
        const size_t line = size_t(heads + 2 * kv_heads) * D;
        const T* queries = qkv + row * line + head * D + lane % 4 * 8;
        Pair<T> held[2][Rows<T, D>::HELD ? D / 8 : 1];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            rows.high[r] = seqs[row + 8 * r] == seq ? visible[row + 8 * r] : 0;
            rows.low[r] = window > 0 ? max(0, rows.high[r] - window) : 0;
            rows.largest[r] = minus_infinity(), rows.sum[r] = 0.f;
            if constexpr (Rows<T, D>::HELD) load_quarter<D>(queries + 8 * r * line, lane % 4, DefaultLoad(), held[r]);
        }
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int e = 0; e < 4; e++) rows.acc[d][e] = 0.f;

        const int* own = table + size_t(seq) * pages;
        int start = low / S::KEYS * S::KEYS, stage = 0;
        if (S::STAGES == 2 && start < high) fetch<T, D>(shared, keys, values, own, kv, kv_heads, start, low, high);
        for (; start < high; start += S::KEYS) {
            if (S::STAGES == 1) {
                __syncthreads();  // the previous step has been read
                fetch<T, D>(shared, keys, values, own, kv, kv_heads, start, low, high);
            }
            cp_async_wait<0>();
            __syncthreads();  // this step is visible to all threads, and the previous one has been read
            const T* here = shared + stage * S::SIZE;
            stage = (stage + 1) % S::STAGES;
            if (S::STAGES == 2 && start + S::KEYS < high)
                fetch<T, D>(shared + stage * S::SIZE, keys, values, own, kv, kv_heads, start + S::KEYS, low, high);
            float score[S::KEYS / 8][4];
            Pair<T> p[S::KEYS / 8][2];
            rows.scores(score, queries, 8 * line, held, here, start, scale, lane);
            rows.weigh(score, p);
            rows.accumulate(p, here + S::KEYS * S::KEY_LINE, lane);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = warp_sum<4>(rows.sum[r]), inverse = sum > 0.f ? 1.f / sum : 0.f;
            if (PACKED && rows.high[r] == 0) continue;  // a row of another sequence, which has its own pass
            Pair<T>* to = reinterpret_cast<Pair<T>*>(out + (size_t(row + 8 * r) * heads + head) * D + 2 * (lane % 4));
#pragma unroll
            for (int d = 0; d < D / 8; d++)
                to[4 * d] = make_pair2<T>(rows.acc[d][2 * r] * inverse, rows.acc[d][2 * r + 1] * inverse);
        }
    }
}
