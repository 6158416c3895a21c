// One warp's part of decode attention: how a row's tokens are cut, and query heads against 16 or 32 tokens at once.
// attend_decode.cu says what it is for and puts the parts together.
#pragma once
#include "attend.cuh"
#include "reduce.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int SPLITS = 64;  // most parts that a row is cut into

// Which tokens a row sees and how they are cut.
struct Cut {
    int low, high;   // tokens [low, high)
    int first, end;  // tiles [first, end)
    int per;         // tiles in a split
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

// Tokens [low, high).
struct Span {
    int low;
    unsigned count;

    __device__ __forceinline__ Span(int low, int high) : low(low), count(max(high - low, 0)) {}
    __device__ __forceinline__ bool has(int token) const { return static_cast<unsigned>(token - low) < count; }
};

// One warp's part of a split: 8 NT query heads against its tokens of each tile. Lane l has g = l / 4, q = l % 4.
template <class T, int D, int NT>
struct Part {
    static constexpr bool AHEAD = sizeof(T) * D * NT <= 256;          // registers suffice to load a tile ahead
    static constexpr int TOKENS = AHEAD && sizeof(T) == 2 ? 32 : 16;  // of a warp in a tile
    static constexpr int TILE = WARPS * TOKENS;
    static constexpr int HELD = AHEAD ? TOKENS / 16 : 1;  // 16-token blocks of values in registers

    using Load = typename Choose<AHEAD, PastL1, Plainly>::type;

    Pair<T> q[AHEAD ? NT : 1][D / 8];          // of heads g + 8 n
    Pair<T> k[AHEAD ? TOKENS / 8 : 1][D / 8];  // of tokens 8 j + g
    Pair<T> v[HELD][4][D / 16];                // of tokens 16 i + 2 q + {0, 1, 8, 9}
    float acc[NT][D / 16][4];    // of a pair of dims: (lo, head 2 q) (lo, head 2 q + 1) (hi, 2 q) (hi, 2 q + 1)
    float largest[NT], sum[NT];  // of heads g + 8 n; sum only over this lane's tokens
    const T *key, *value;        // the lane's part of the warp's first token
    int start;                   // the warp's first token

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            largest[n] = nothing(), sum[n] = 0.f;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[n][i][e] = 0.f;
        }
    }

    // Zeros for tokens that nobody loads. They matter: a weight of 0 does not make up for a NaN nobody wrote.
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

    // The keys of those of the warp's tokens that are among `tokens`.
    __device__ __forceinline__ void load_keys(Span tokens, int lane) {
        const int first = start + lane / 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
            if (tokens.has(first + 8 * j)) load_quarter<D>(key + 8 * j * D, lane % 4, Load(), k[j]);
    }

    // Their values: of four tokens that belong together, and of all of them.
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

    // The `count` heads at `query`; beyond them anything will do.
    __device__ __forceinline__ void load_query(const T* query, int count, int lane) {
#pragma unroll
        for (int n = 0; n < NT; n++)
            load_quarter<D>(query + min(8 * n + lane / 4, count - 1) * D + lane % 4 * 8, lane % 4, Load(), q[n]);
    }

    // score[j]: heads g and g + 8 of the `count` at `query` with tokens 8 j + 2 q and the next, in units of log2; then
    // k is free.
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
                if constexpr (!AHEAD) load_part<D>(at, i, lane % 4, Plainly(), part[n]);
#pragma unroll
                for (int e = 0; e < 4 && 4 * i + e < D / 8; e++)
                    if constexpr (AHEAD) part[n][e] = q[n][4 * i + e];
            }
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                Pair<T> token[4];
                if constexpr (!AHEAD)  // nobody's token will do as well
                    load_part<D>(key + 8 * j * D, i, lane % 4, Plainly(), token);
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
                score[j][e] = tokens.has(t) ? score[j][e] * scale : nothing();
            }
    }

    // Scores become weights; what was summed before is scaled to the new largest score, unless there is nothing yet.
    __device__ __forceinline__ void weigh(float (&score)[TOKENS / 8][4], Pair<T> (&p)[NT][TOKENS / 8], int lane,
                                          bool first) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float top = first ? nothing() : largest[n];
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

    // acc += weights times values; then v is free.
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
