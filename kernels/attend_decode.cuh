// One warp's part of decode attention: how a row's tokens are split, and query heads against 16 or 32 tokens per tile.
// attend_decode.cu has the overview and the kernel; attend.cuh shows which lane loads what.
#pragma once
#include "attend.cuh"
#include "reduce.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int SPLITS = 64;  // maximum number of splits of a row

// The tokens that a row attends to, and how they are split.
struct Cut {
    int low, high;   // tokens [low, high)
    int first, end;  // tiles [first, end)
    int per;         // tiles per split
    int splits;
};

template <int TILE>
__device__ __forceinline__ Cut cut_row(int visible, int window) {
    Cut c;
    c.high = visible;
    c.low = window > 0 ? max(0, visible - window) : 0;
    c.first = c.low / TILE;
    c.end = max(c.first + 1, (c.high + TILE - 1) / TILE);
    c.per = 1;
    while ((c.end - c.first + c.per - 1) / c.per > SPLITS) c.per *= 2;
    c.splits = (c.end - c.first + c.per - 1) / c.per;
    return c;
}

// The tokens [low, high).
struct Span {
    int low;
    unsigned count;

    __device__ __forceinline__ Span(int low, int high) : low(low), count(max(high - low, 0)) {}
    __device__ __forceinline__ bool has(int token) const { return static_cast<unsigned>(token - low) < count; }
};

// One warp's part of a split: 8 NT query heads against its tokens of each tile. Lane l has g = l / 4, q = l % 4.
//
//   AHEAD         q, k, v of a tile stay in registers: the next tile's keys are loaded while p v runs, its values after
//   else          q, k, v are loaded where they are used, through L1: large heads would need too many registers
template <class T, int D, int NT>
struct Part {
    static constexpr bool AHEAD = sizeof(T) * D * NT <= 256;          // registers suffice to prefetch a tile
    static constexpr int TOKENS = AHEAD && sizeof(T) == 2 ? 32 : 16;  // of a warp per tile
    static constexpr int TILE = WARPS * TOKENS;
    static constexpr int HELD = AHEAD ? TOKENS / 16 : 1;  // blocks of 16 tokens whose values are in registers

    using Load = typename Choose<AHEAD, BypassL1, DefaultLoad>::type;

    Pair<T> q[AHEAD ? NT : 1][D / 8];          // heads g + 8 n
    Pair<T> k[AHEAD ? TOKENS / 8 : 1][D / 8];  // tokens 8 j + g
    Pair<T> v[HELD][4][D / 16];                // tokens 16 i + 2 q + {0, 1, 8, 9}
    float acc[NT][D / 16][4];    // dims (lo, hi) of a pair: (lo, head 2 q) (lo, head 2 q + 1) (hi, 2 q) (hi, 2 q + 1)
    float largest[NT], sum[NT];  // heads g + 8 n; sum covers this lane's tokens only
    const T *key, *value;        // this lane's first element of the warp's first token
    int start;                   // the warp's first token

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            largest[n] = minus_infinity(), sum[n] = 0.f;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[n][i][e] = 0.f;
        }
    }

    // Zeros for tokens that are not loaded: 0 times a NaN in stale registers would be NaN.
    __device__ __forceinline__ void clear_keys() {
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
            for (int i = 0; i < D / 8; i++) k[j][i] = {};
    }

    __device__ __forceinline__ void clear_values() {
#pragma unroll
        for (int i = 0; i < HELD; i++) clear_value(v[i]);
    }

    __device__ __forceinline__ void clear_value(Pair<T> (&v)[4][D / 16]) {
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int p = 0; p < D / 16; p++) v[e][p] = {};
    }

    // Load the keys of the warp's tokens that are in `tokens`.
    __device__ __forceinline__ void load_keys(Span tokens, int lane) {
        const int first = start + lane / 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
            if (tokens.has(first + 8 * j)) load_quarter<D>(key + 8 * j * D, lane % 4, Load(), k[j]);
    }

    // Load values in the same way: of the lane's four tokens of 16-token block i, and of all blocks.
    __device__ __forceinline__ void load_value(Pair<T> (&v)[4][D / 16], int i, Span tokens, int lane) {
        const int first = start + lane % 4 * 2;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int t = 16 * i + (e & 1) + 8 * (e >> 1);
            if (tokens.has(first + t)) load_eighth<D>(value + t * D, lane / 4, Load(), v[e]);
        }
    }

    __device__ __forceinline__ void load_values(Span tokens, int lane) {
#pragma unroll
        for (int i = 0; i < HELD; i++) load_value(v[i], i, tokens, lane);
    }

    // Load the `count` heads at `query`. Heads beyond `count` repeat the last one; their results are not stored.
    __device__ __forceinline__ void load_query(const T* query, int count, int lane) {
#pragma unroll
        for (int n = 0; n < NT; n++)
            load_quarter<D>(query + min(8 * n + lane / 4, count - 1) * D + lane % 4 * 8, lane % 4, Load(), q[n]);
    }

    // score[j]: heads g and g + 8 against tokens 8 j + 2 q and 8 j + 2 q + 1, in units of log2. k is free afterwards.
    __device__ __forceinline__ void scores(float (&score)[TOKENS / 8][4], const T* query, int count, Span tokens,
                                           float scale, int lane) {
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) score[j][e] = 0.f;
#pragma unroll
        for (int i = 0; i < (D + 31) / 32; i++) {
            Pair<T> part[NT][4], none = {};
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const T* at = query + min(8 * n + lane / 4, count - 1) * D + lane % 4 * 8;
                if constexpr (!AHEAD) load_part<D>(at, i, lane % 4, DefaultLoad(), part[n]);
#pragma unroll
                for (int e = 0; e < 4 && 4 * i + e < D / 8; e++)
                    if constexpr (AHEAD) part[n][e] = q[n][4 * i + e];
            }
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                Pair<T> token[4];
                if constexpr (!AHEAD)  // a token outside `tokens` is loaded too, and masked below
                    load_part<D>(key + 8 * j * D, i, lane % 4, DefaultLoad(), token);
#pragma unroll
                for (int e = 0; e < 4 && 4 * i + e < D / 8; e += 2) {
                    if constexpr (AHEAD) token[e] = k[j][4 * i + e], token[e + 1] = k[j][4 * i + e + 1];
                    mma_pairs<T>(score[j], part[0][e], NT == 2 ? part[NT - 1][e] : none, part[0][e + 1],
                                 NT == 2 ? part[NT - 1][e + 1] : none, token[e], token[e + 1]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = start + 8 * j + 2 * (lane % 4) + (e & 1);
                score[j][e] = tokens.has(t) ? score[j][e] * scale : minus_infinity();
            }
    }

    // Online softmax: scores become weights p in T, relative to the largest score so far; earlier sums are rescaled to
    // it. first: there are no earlier sums.
    __device__ __forceinline__ void weigh(float (&score)[TOKENS / 8][4], Pair<T> (&p)[NT][TOKENS / 8], int lane,
                                          bool first) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float top = first ? minus_infinity() : largest[n];
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) top = fmaxf(top, fmaxf(score[j][2 * n], score[j][2 * n + 1]));
            top = warp_max<4>(top);
            const float base = finite(top), scale = first ? 0.f : exp2_approx(largest[n] - base);
            largest[n] = top, sum[n] = first ? 0.f : sum[n] * scale;
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                p[n][j] = make_pair2<T>(exp2_approx(score[j][2 * n] - base), exp2_approx(score[j][2 * n + 1] - base));
                float2 rounded = unpack(p[n][j]);
                sum[n] += rounded.x + rounded.y;
            }
            if (first) continue;
            float even = __shfl_sync(0xffffffffu, scale, lane % 4 * 8);
            float odd = __shfl_sync(0xffffffffu, scale, lane % 4 * 8 + 4);
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                acc[n][i][0] *= even, acc[n][i][1] *= odd, acc[n][i][2] *= even, acc[n][i][3] *= odd;
        }
    }

    // acc += p v. v is free afterwards.
    __device__ __forceinline__ void accumulate(Pair<T> (&p)[NT][TOKENS / 8], Span tokens, int lane) {
#pragma unroll
        for (int i = 0; i < TOKENS / 16; i++) {
            Pair<T>(&own)[4][D / 16] = v[AHEAD ? i : 0];
            if constexpr (!AHEAD) clear_value(own), load_value(own, i, tokens, lane);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                transpose(own[0][d], own[1][d]);
                transpose(own[2][d], own[3][d]);
#pragma unroll
                for (int n = 0; n < NT; n++)
                    mma_pairs<T>(acc[n][d], own[0][d], own[1][d], own[2][d], own[3][d], p[n][2 * i], p[n][2 * i + 1]);
            }
        }
    }
};
