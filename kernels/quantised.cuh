// Weights as integer codes and scales that groups of a row share, multiplied as they are stored:
//
//   w[n, k] = s[n, g] (code[n, k] - zero) + m[n, g]        g = k / GROUP
//
// Nothing is rounded: codes are exact in bf16, the sum over a group is taken in float32, and there it meets its scale.
//
//   sum_k w x = sum_g s[g] (sum_k code x - zero sum_k x) + m[g] sum_k x          over the k of a group
//
// The sum of x is a product with a constant matrix, once for all row tiles of a warp.
//
// Integers as bf16. Of a subnormal bf16 the lowest seven bits are an integer times 2^-133; exponent 1 counts on in the
// same steps, so that the lowest eight bits of a half-word are that integer whatever they are. So two codes of four
// bits lie in one byte and are cut out by an AND each, the second one as 16 times itself. x makes up for it: it is
// multiplied by UP, or where it meets such a code by UP / 16, both powers of two (prepare). |x| < 2^64 stays finite,
// and what is lost of an x below 2^-62 is below any rounding.
//
// In memory: [tiles] of [steps of Format::K]: PLANES of [32 lanes][16 bytes] of codes, then [8 g][LANE bytes] of the
// scales of rows g and g + 8; and behind each SHARING steps [8 g][OUTER bytes] of what their scales are under. Of
// each run of 32 k a lane has the eight from 8 q on of rows g and g + 8: four are the fragment of one k tile, four of
// the next, so that it reads 16 bytes of x at once. Where groups are 16 k, each is a k tile (CHUNK 16). Rows share
// tiles as packed.cuh says.
#pragma once
#include "format.cuh"

constexpr unsigned UP = 0x5f805f80, EXPONENT = 0x00800080, MINUS = 0x80008000;  // 2^64 twice
constexpr int SPAN = 256;        // k whose scales share what they are under
constexpr float DOWN = 0x1p69f;  // 2^64 2^-133 DOWN = 1

// A word of 16 bytes; i is a constant once loops are unrolled.
__device__ __forceinline__ unsigned word(uint4 v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// -- codes ------------------------------------------------------------------------------------------------------------
// fragment: of a unit's k tile kt, from a lane's planes. put: a lane's codes of one row, g (half 0) or g + 8 (half 1),
// of the four k tiles from kt on, into its 16 bytes of plane 0 of a unit and of the others, 512 bytes apart; get: one
// of them. SECOND: what codes at k 2 and 3 of a lane's four in a k tile are multiplied by.

// Four bits, 0 to 15. A plane is 64 k: word j of a lane is k tile j; its bits 0 to 7 are the codes of row g at k 0 and
// 2, bits 8 to 15 those of row g + 8; bits 16 to 31 the same at k 1 and 3.
struct Nibbles {
    static constexpr int SECOND = 16;
    static __device__ constexpr int planes(int k) { return k / 64; }

    static __device__ __forceinline__ uint4 fragment(const uint4* planes, int kt) {
        const unsigned w = word(planes[kt / 4], kt % 4), v = w >> 8;
        return make_uint4(w & 0x000f000f, v & 0x000f000f, w & 0x00f000f0, v & 0x00f000f0);
    }
    static __device__ __forceinline__ void put(unsigned char* unit, int kt, int half,
                                               const unsigned char (&code)[4][4]) {
        for (int i = 0; i < 4; i++) {
            unsigned char* to = unit + kt / 4 * 512 + i * 4 + half;
            to[0] = code[i][0] & 15 | code[i][2] << 4, to[2] = code[i][1] & 15 | code[i][3] << 4;
        }
    }
    static __device__ __forceinline__ int get(const unsigned char* unit, int kt, int half, int i) {
        return unit[kt / 4 * 512 + kt % 4 * 4 + half + i % 2 * 2] >> i / 2 * 4 & 15;
    }
};

// Eight bits, 0 to 255. A plane is 32 k: words 0 and 1 of a lane are rows g and g + 8 of the first k tile, 2 and 3 of
// the second; their bytes are the codes at k 0, 2, 1 and 3.
struct Bytes {
    static constexpr int SECOND = 1;
    static __device__ constexpr int planes(int k) { return k / 32; }

    static __device__ __forceinline__ uint4 fragment(const uint4* planes, int kt) {
        const unsigned a = word(planes[kt / 2], kt % 2 * 2), b = word(planes[kt / 2], kt % 2 * 2 + 1);
        return make_uint4(a & 0x00ff00ff, b & 0x00ff00ff, a >> 8 & 0x00ff00ff, b >> 8 & 0x00ff00ff);
    }
    static __device__ __forceinline__ void put(unsigned char* unit, int kt, int half,
                                               const unsigned char (&code)[4][4]) {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) unit[place(kt + i, half, j)] = code[i][j];
    }
    static __device__ __forceinline__ int get(const unsigned char* unit, int kt, int half, int i) {
        return unit[place(kt, half, i)];
    }
    static __device__ __forceinline__ int place(int kt, int half, int i) {
        return kt / 2 * 512 + kt % 2 * 8 + half * 4 + i / 2 + i % 2 * 2;
    }
};

// Five or six bits: Nibbles, and after the planes of 256 / MORE k one more with the MORE bits above them. There a word
// of a lane is LOW k tiles; bytes 0 and 2 are row g, 1 and 3 row g + 8; a byte has of each k tile the codes at k 0 and,
// two bits higher, at k 2, or (bytes 2 and 3) at k 1 and 3. Codes at k 2 and 3 are cut out as 4 times themselves: with
// bits 4 and 6 to go to, all of a k tile move by the same distance.
template <int MORE>
struct Longer {
    static constexpr int SECOND = 4, LOW = 4 / MORE, TILES = 16 / MORE;  // planes of Nibbles, and their k tiles
    static constexpr unsigned FIRST_BITS = ((1 << MORE) - 1) * 0x00100010u, SECOND_BITS = FIRST_BITS << 2;
    static __device__ constexpr int planes(int k) { return k / 16 / TILES * (LOW + 1); }

    // The lowest bit of a byte that is of k tile kt.
    static __device__ __forceinline__ int place(int kt) {
        return MORE == 2 ? 4 - kt % 2 * 4 : kt % 4 < 2 ? 4 + kt % 4 : kt % 4 - 2;
    }
    static __device__ __forceinline__ uint4 fragment(const uint4* planes, int kt) {
        const uint4* run = planes + kt / TILES * (LOW + 1);
        const int at = kt % TILES, left = 4 - place(kt);
        const unsigned w = word(run[at / 4], at % 4), bits = word(run[LOW], at / LOW);
        const unsigned h = left < 0 ? bits >> -left : bits << left, partner = bits >> (8 - left);
        return make_uint4((w & 0x000f000f) | (h & FIRST_BITS), (w >> 8 & 0x000f000f) | (partner & FIRST_BITS),
                          (w >> 2 & 0x003c003c) | (h & SECOND_BITS), (w >> 10 & 0x003c003c) | (partner & SECOND_BITS));
    }
    static __device__ __forceinline__ void put(unsigned char* unit, int kt, int half,
                                               const unsigned char (&code)[4][4]) {
        unsigned char* run = unit + kt / TILES * (LOW + 1) * 512;
        Nibbles::put(run, kt % TILES, half, code);
        for (int i = 0; i < 4; i += LOW)
            for (int odd = 0; odd < 2; odd++) {
                int bits = 0;
                for (int j = 0; j < LOW; j++)
                    for (int second = 0; second < 2; second++)
                        bits |= code[i + j][odd + second * 2] >> 4 << (place(j) + second * 2);
                run[LOW * 512 + (kt + i) % TILES / LOW * 4 + half + odd * 2] = bits;
            }
    }
    static __device__ __forceinline__ int get(const unsigned char* unit, int kt, int half, int i) {
        const unsigned char* run = unit + kt / TILES * (LOW + 1) * 512;
        const int bits = run[LOW * 512 + kt % TILES / LOW * 4 + half + i % 2 * 2] >> (place(kt) + i / 2 * 2);
        return Nibbles::get(run, kt % TILES, half, i) | (bits & ((1 << MORE) - 1)) << 4;
    }
};

// -- scales -----------------------------------------------------------------------------------------------------------
// Of<K>: what a lane needs of a unit, for rows g and g + 8: LANE and OUTER bytes, which the four lanes of g share.
// ZERO: subtracted from every code. NESTED: scale and min are integers, under outer(half, 0) and -outer(half, 1).

// 16 bits, S, for each GROUP k, and mins of the same kind if MINS. Of a row in a unit: its scales, then its mins.
template <int GROUP_, class S, int ZERO_, bool MINS_>
struct Grouped {
    static constexpr int GROUP = GROUP_, ZERO = ZERO_;
    static constexpr bool MINS = MINS_, NESTED = false;

    template <int K>
    struct Of {
        static constexpr int GROUPS = K / GROUP, EACH = GROUPS * (1 + MINS), LANE = EACH * 4, OUTER = 0;
        unsigned v[LANE / 4];

        __device__ __forceinline__ float at(int i) const {
            const float2 pair = unpack2<S>(v[i / 2]);
            return i % 2 ? pair.y : pair.x;
        }
        __device__ __forceinline__ float scale(int half, int group) const { return at(half * EACH + group); }
        __device__ __forceinline__ float min(int half, int group) const { return at(half * EACH + GROUPS + group); }

        // One of them in memory.
        static __device__ __forceinline__ float scale_at(const unsigned char* inner, const unsigned char*, int half,
                                                         int i) {
            return to_float(reinterpret_cast<const S*>(inner)[half * EACH + i]);
        }
        static __device__ __forceinline__ float min_at(const unsigned char* inner, const unsigned char*, int half,
                                                       int i) {
            return scale_at(inner, nullptr, half, GROUPS + i);
        }
    };
};

// Bytes for each GROUP k under one half, d, for a unit: scales from 0 on with mins under another half, dmin, if MINS,
// which are subtracted; else signed scales, kept as 128 more. Of a row: scales, then mins; d, then dmin.
template <int GROUP_, int ZERO_, bool MINS_>
struct Nested {
    static constexpr int GROUP = GROUP_, ZERO = ZERO_;
    static constexpr bool MINS = MINS_, NESTED = true;

    template <int K>
    struct Of {
        static constexpr int GROUPS = K / GROUP, EACH = GROUPS * (1 + MINS), LANE = EACH * 2, OUTER = 4 * (1 + MINS);
        unsigned v[(LANE + OUTER) / 4];

        // A byte as float: added to 2^23, less that, and less 128 more if it is signed.
        __device__ __forceinline__ float byte(int i, float less, int more = 0) const {
            return __uint_as_float(__byte_perm(v[i / 4], 0x4b000000, 0x7440 | (i % 4 + more))) - less;
        }
        __device__ __forceinline__ float outer(int half, int i) const {
            const int at = half * (1 + MINS) + i;
            const float2 pair = unpack2<__half>(v[LANE / 4 + at / 2]);
            return at % 2 ? pair.y : pair.x;
        }
        // Of group `group` + more: more, which need not be a constant, is 0 or 1, and group then even.
        __device__ __forceinline__ float scale(int half, int group, int more = 0) const {
            return byte(half * EACH + group, MINS ? 0x1p23f : 0x1p23f + 128.f, more);
        }
        __device__ __forceinline__ float min(int half, int group, int more = 0) const {
            return byte(half * EACH + GROUPS + group, 0x1p23f, more);
        }

        // One of them in memory, under its outer scale; the product is exact.
        static __device__ __forceinline__ float scale_at(const unsigned char* inner, const unsigned char* outer,
                                                         int half, int i) {
            const float d = to_float(reinterpret_cast<const __half*>(outer)[half * (1 + MINS)]);
            return __fmul_rn(d, inner[half * EACH + i] - (MINS ? 0 : 128));
        }
        static __device__ __forceinline__ float min_at(const unsigned char* inner, const unsigned char* outer, int half,
                                                       int i) {
            const float dmin = to_float(reinterpret_cast<const __half*>(outer)[half * 2 + 1]);
            return __fmul_rn(-dmin, inner[half * EACH + GROUPS + i]);
        }
    };
};

// -- the format -------------------------------------------------------------------------------------------------------

// Codes and scales in units of K, multiplied by x of type T.
template <class CODES, class SCALES, int K, class T>
struct Quantised {};

// BYTES from p into registers, 16 at a time where there are as many.
template <int BYTES>
__device__ __forceinline__ void load_words(unsigned* v, const unsigned char* p) {
    if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++) {
            const uint4 w = load_stream(reinterpret_cast<const uint4*>(p) + i);
            v[i * 4] = w.x, v[i * 4 + 1] = w.y, v[i * 4 + 2] = w.z, v[i * 4 + 3] = w.w;
        }
    } else if constexpr (BYTES == 8) {
        const uint2 w = load_stream(reinterpret_cast<const uint2*>(p));
        v[0] = w.x, v[1] = w.y;
    } else {
        static_assert(BYTES == 4, "one load, or several of 16 bytes");
        v[0] = load_stream(reinterpret_cast<const unsigned*>(p));
    }
}

template <int BYTES>
__device__ __forceinline__ void copy_words(char* to, const unsigned char* p) {
    constexpr int EACH = BYTES < 16 ? BYTES : 16;
#pragma unroll
    for (int i = 0; i < BYTES; i += EACH) cp_async<EACH>(to + i, p + i);
}

template <class CODES, class SCALES, int K_, class T_>
struct Format<Quantised<CODES, SCALES, K_, T_>> {
    using T = T_;
    using Weight = unsigned char;
    using Scales = typename SCALES::template Of<K_>;
    static constexpr int K = K_, CHUNK = SCALES::GROUP == 16 ? 16 : 32, PLANES = CODES::planes(K);
    static constexpr int LANE = Scales::LANE, OUTER = Scales::OUTER;
    static constexpr int SHARING = SCALES::NESTED ? SPAN / K : 1;
    static constexpr int CODE_BYTES = PLANES * 512, STEP = CODE_BYTES + 8 * LANE, RUN = SHARING * STEP + 8 * OUTER;
    static constexpr int SLOT = CODE_BYTES + 32 * (LANE + OUTER);
    static constexpr unsigned ONES = 0x00010001, SECONDS = ONES * CODES::SECOND;
    static constexpr bool KEPT = false, PREFETCHES = true;
    static constexpr float FACTOR = DOWN;

    struct A {
        uint4 planes[PLANES];
        Scales scales;
    };

    struct Copy {
        uint4 v[K / 32];
    };

    // Where a lane's part of x is: 16 bytes of 32 k are a fragment of one k tile and of the next.
    template <bool DIRECTLY>
    struct Columns {
        const T* p;
        int chunk;  // elements to the next one

        __device__ __forceinline__ uint4 pair(int i) const {
            uint4 v;
            if constexpr (CHUNK == 32) {
                v = *reinterpret_cast<const uint4*>(p + i * chunk);
            } else {
                const uint2 a = *reinterpret_cast<const uint2*>(p + 2 * i * chunk);
                const uint2 b = *reinterpret_cast<const uint2*>(p + (2 * i + 1) * chunk);
                v = make_uint4(a.x, a.y, b.x, b.y);
            }
            return DIRECTLY ? prepare(v) : v;
        }
    };

    // Steps are a warp's, whose number is a multiple of SHARING.
    struct Place {
        const unsigned char* codes;  // the lane's 16 bytes of plane 0
        int behind;                  // bytes from the step to what is behind its run

        static __device__ __forceinline__ Place of(const unsigned char* weight, int tile, int step, int steps) {
            const unsigned char* run = weight + (static_cast<size_t>(tile) * (steps / SHARING) + step / SHARING) * RUN;
            const int at = step % SHARING;
            return {run + at * STEP + threadIdx.x % 32 * 16, (SHARING - at) * STEP};
        }
        __device__ __forceinline__ Place fixed() const { return {one_address(codes), behind}; }
        __device__ __forceinline__ Place advance(int by) const { return {codes + by / SHARING * RUN, behind}; }
        __device__ __forceinline__ Place row_tile(int by, int steps) const { return advance(by * steps); }

        __device__ __forceinline__ const unsigned char* inner() const { return codes + CODE_BYTES + of_lane(LANE); }
        __device__ __forceinline__ const unsigned char* outer() const { return codes + behind + of_lane(OUTER); }

        // From the lane's codes to what its g has where each of them has so many bytes.
        static __device__ __forceinline__ int of_lane(int each) {
            const int lane = threadIdx.x % 32;
            return lane / 4 * each - lane * 16;
        }
    };

    static __device__ __forceinline__ A load(const Place& from) {
        A a;
#pragma unroll
        for (int i = 0; i < PLANES; i++)
            a.planes[i] = load_stream(reinterpret_cast<const uint4*>(from.codes + i * 512));
        load_words<LANE>(a.scales.v, from.inner());
        if constexpr (OUTER > 0) load_words<OUTER>(a.scales.v + LANE / 4, from.outer());
        return a;
    }

    // Each lane copies what it reads itself, so that nobody waits for anybody else.
    static __device__ __forceinline__ void copy(char* slot, const Place& from) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < PLANES; i++) cp_async16(slot + i * 512 + lane * 16, from.codes + i * 512);
        copy_words<LANE>(slot + CODE_BYTES + lane * LANE, from.inner());
        if constexpr (OUTER > 0) copy_words<OUTER>(slot + CODE_BYTES + 32 * LANE + lane * OUTER, from.outer());
    }

    static __device__ __forceinline__ A read(const char* slot) {
        const int lane = threadIdx.x % 32;
        A a;
#pragma unroll
        for (int i = 0; i < PLANES; i++) a.planes[i] = *reinterpret_cast<const uint4*>(slot + i * 512 + lane * 16);
        read_words<LANE>(a.scales.v, slot + CODE_BYTES + lane * LANE);
        if constexpr (OUTER > 0) read_words<OUTER>(a.scales.v + LANE / 4, slot + CODE_BYTES + 32 * LANE + lane * OUTER);
        return a;
    }

    template <int BYTES_>
    static __device__ __forceinline__ void read_words(unsigned* v, const char* from) {
        struct alignas(BYTES_ < 16 ? BYTES_ : 16) Words {
            unsigned v[BYTES_ / 4];
        };
        const Words words = *reinterpret_cast<const Words*>(from);
#pragma unroll
        for (int i = 0; i < BYTES_ / 4; i++) v[i] = words.v[i];
    }

    template <bool DIRECTLY>
    static __device__ __forceinline__ Columns<DIRECTLY> columns(const T* p, int chunk) {
        return {p, chunk};
    }
    static __device__ __forceinline__ Columns<true> columns(const Copy* copy) {
        return {reinterpret_cast<const T*>(copy), CHUNK / 4};
    }
    static __device__ __forceinline__ void copy_columns(Copy* to, const T* p, int chunk) {
#pragma unroll
        for (int i = 0; i < K / CHUNK; i++)
            cp_async<CHUNK / 2>(reinterpret_cast<char*>(to->v) + i * CHUNK / 2, p + i * chunk);
    }

    static __device__ __forceinline__ uint4 prepare(uint4 v) {
        constexpr unsigned first = UP, second = UP - (CODES::SECOND == 16 ? 4 : CODES::SECOND == 4 ? 2 : 0) * EXPONENT;
        return make_uint4(multiply_bf16x2(v.x, first), multiply_bf16x2(v.y, second), multiply_bf16x2(v.z, first),
                          multiply_bf16x2(v.w, second));
    }

    // A fragment of one k tile that is code 1, or minus so many, everywhere.
    static __device__ __forceinline__ uint4 one() { return make_uint4(ONES, ONES, SECONDS, SECONDS); }
    static __device__ __forceinline__ uint4 minus(unsigned code) {
        const unsigned first = ONES * code | MINUS, second = SECONDS * code | MINUS;
        return make_uint4(first, first, second, second);
    }

    // Sums of a group, of one row tile and eight columns, by the scales of rows g and g + 8.
    static __device__ __forceinline__ void add(float (&acc)[4], float scale, float partner, const float (&sum)[4]) {
        acc[0] = fmaf(scale, sum[0], acc[0]), acc[1] = fmaf(scale, sum[1], acc[1]);
        acc[2] = fmaf(partner, sum[2], acc[2]), acc[3] = fmaf(partner, sum[3], acc[3]);
    }

    // Sums of some row tiles and columns. Nested: of every other group apart, as one row of x has half of the columns
    // of an mma for each of two groups (multiply_single).
    static constexpr int CLASSES = SCALES::NESTED ? 2 : 1;

    // One row of x is multiplied by multiply_single. Not in steps of 256 k: NVRTC 12.9 and nvcc 13.0 read one of their
    // words of codes for another (tests/test_nvrtc.py looks for words that nothing reads).
    template <class S>
    static constexpr bool SINGLE = SCALES::NESTED && K < SPAN && S::ROWS == 1;

    template <class S>
    struct Acc {
        static constexpr int KEPT = SINGLE<S> ? 1 : CLASSES;  // of one row a lane has one of them
        float sum[S::TILES][S::COLS][4];
        float rest[KEPT][S::TILES][S::COLS][4];

        __device__ __forceinline__ float (&of(int i)) [S::TILES][S::COLS][4] { return CLASSES == 1 ? sum : rest[i]; }

        __device__ __forceinline__ void collect() {
            if constexpr (CLASSES == 1) return;
#pragma unroll
            for (int r = 0; r < S::TILES; r++)
#pragma unroll
                for (int c = 0; c < S::COLS; c++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if constexpr (SINGLE<S>) {
                            const float v = rest[0][r][c][i];
                            sum[r][c][i] = v + __shfl_xor_sync(0xffffffffu, v, 2);
                        } else {
                            sum[r][c][i] = rest[0][r][c][i] + rest[1][r][c][i];
                        }
                    }
        }
    };

    template <class S, bool DIRECTLY>
    static __device__ __forceinline__ void multiply(Acc<S>& acc, const A (&a)[S::TILES],
                                                    const Columns<DIRECTLY> (&x)[S::COLS]) {
        if constexpr (SINGLE<S>)
            multiply_single<S>(acc, a, x[0]);
        else
            multiply_columns<S>(acc, a, x);
    }

    template <class S, bool DIRECTLY>
    static __device__ __forceinline__ void multiply_columns(Acc<S>& acc, const A (&a)[S::TILES],
                                                            const Columns<DIRECTLY> (&x)[S::COLS]) {
        constexpr int TILES = S::TILES, COLS = S::COLS;
        constexpr int KT = SCALES::GROUP / 16, PAIRS = (KT + 1) / 2;  // k tiles of a group, and pairs of them
#pragma unroll
        for (int i = 0; i < CLASSES; i++) {                                // one after the other: fewer registers
            float inner[TILES][COLS][4] = {}, below[TILES][COLS][4] = {};  // Nested
#pragma unroll
            for (int g = i; g < Scales::GROUPS; g += CLASSES) {
                float offset[COLS][4] = {}, total[COLS][4] = {};  // -zero sum(x), and sum(x)
                uint2 b[COLS][KT];
#pragma unroll
                for (int c = 0; c < COLS; c++) {
                    uint4 pairs[PAIRS];
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) pairs[j] = x[c].pair(g * KT / 2 + j);
#pragma unroll
                    for (int kt = 0; kt < KT; kt++) {
                        b[c][kt] = tile(pairs, g * KT % 2 + kt);
                        if (SCALES::ZERO) mma<T>(offset[c], minus(SCALES::ZERO), b[c][kt]);
                        if (SCALES::MINS) mma<T>(total[c], one(), b[c][kt]);
                    }
                }
#pragma unroll
                for (int r = 0; r < TILES; r++) {
                    const Scales& s = a[r].scales;
#pragma unroll
                    for (int c = 0; c < COLS; c++) {
                        float sum[4] = {offset[c][0], offset[c][1], offset[c][2], offset[c][3]};
#pragma unroll
                        for (int kt = 0; kt < KT; kt++)
                            mma<T>(sum, CODES::fragment(a[r].planes, g * KT + kt), b[c][kt]);
                        add(SCALES::NESTED ? inner[r][c] : acc.sum[r][c], s.scale(0, g), s.scale(1, g), sum);
                        if (SCALES::MINS)
                            add(SCALES::NESTED ? below[r][c] : acc.sum[r][c], s.min(0, g), s.min(1, g), total[c]);
                    }
                }
            }
            if constexpr (SCALES::NESTED)
#pragma unroll
                for (int r = 0; r < TILES; r++)
#pragma unroll
                    for (int c = 0; c < COLS; c++) add_nested(acc.of(i)[r][c], a[r].scales, inner[r][c], below[r][c]);
        }
    }

    static __device__ __forceinline__ void add_nested(float (&acc)[4], const Scales& s, const float (&inner)[4],
                                                      const float (&below)[4]) {
        add(acc, s.outer(0, 0), s.outer(1, 0), inner);
        if constexpr (SCALES::MINS) add(acc, -s.outer(0, 1), -s.outer(1, 1), below);
    }

    // One row of x: of two groups columns 0 to 3 of an mma have the x of the first, and 0 for the second, columns 4 to
    // 7 the other way round. So both add up in one chain, and a lane, which has the sums of columns 2 q and 2 q + 1,
    // looks up the scales of one of them.
    template <class S, bool DIRECTLY>
    static __device__ __forceinline__ void multiply_single(Acc<S>& acc, const A (&a)[S::TILES],
                                                           const Columns<DIRECTLY>& x) {
        constexpr int KT = SCALES::GROUP / 16, PAIRS = (KT + 1) / 2;
        static_assert(Scales::GROUPS % 2 == 0 && S::COLS == 1);
        const int given = threadIdx.x % 32 / 16, own = threadIdx.x % 4 / 2;  // groups of the lane's x, and of its sums
        float inner[S::TILES][4] = {}, below[S::TILES][4] = {};
#pragma unroll
        for (int g = 0; g < Scales::GROUPS; g += 2) {
            uint4 pairs[PAIRS];
#pragma unroll
            for (int j = 0; j < PAIRS; j++) pairs[j] = x.pair((KT == 1 ? g / 2 : (g + given) * PAIRS) + j);
            float offset[4] = {}, total[4] = {};
            uint2 b[2 * KT];
#pragma unroll
            for (int kt = 0; kt < 2 * KT; kt++) {
                b[kt] = kt / KT == given ? tile(pairs, KT == 1 ? kt : kt % KT) : make_uint2(0, 0);
                if (SCALES::ZERO) mma<T>(offset, minus(SCALES::ZERO), b[kt]);
                if (SCALES::MINS) mma<T>(total, one(), b[kt]);
            }
#pragma unroll
            for (int r = 0; r < S::TILES; r++) {
                float sum[4] = {offset[0], offset[1], offset[2], offset[3]};
#pragma unroll
                for (int kt = 0; kt < 2 * KT; kt++) mma<T>(sum, CODES::fragment(a[r].planes, g * KT + kt), b[kt]);
                const Scales& s = a[r].scales;
                add(inner[r], s.scale(0, g, own), s.scale(1, g, own), sum);
                if (SCALES::MINS) add(below[r], s.min(0, g, own), s.min(1, g, own), total);
            }
        }
#pragma unroll
        for (int r = 0; r < S::TILES; r++) add_nested(acc.of(0)[r][0], a[r].scales, inner[r], below[r]);
    }

    // The fragment of a k tile in pairs of them.
    static __device__ __forceinline__ uint2 tile(const uint4* pairs, int kt) {
        const uint4 v = pairs[kt / 2];
        return kt % 2 ? make_uint2(v.z, v.w) : make_uint2(v.x, v.y);
    }

    // -- single rows: g (half 0) of a tile or its partner (half 1) ----------------------------------------------------

    // The k, from the first of a run of 64 on, of code j of lane q in the run's k tile i; and the other way round.
    static __device__ __forceinline__ int k_of(int i, int q, int j) {
        return (CHUNK == 32 ? i / 2 * 32 + q * 8 + i % 2 * 4 : i * 16 + q * 4) + j;
    }
    static __device__ __forceinline__ int lane_of(int k) { return CHUNK == 32 ? k % 32 / 8 : k % 16 / 4; }
    static __device__ __forceinline__ int tile_of(int k) { return CHUNK == 32 ? k / 32 * 2 + k % 8 / 4 : k / 16; }

    // A step, of `steps`, of a row tile.
    template <class Byte>
    static __device__ __forceinline__ Byte* step_of(Byte* weight, int tile, int step, int steps) {
        const size_t run = static_cast<size_t>(tile) * (steps / SHARING) + step / SHARING;
        return weight + run * RUN + step % SHARING * STEP;
    }

    // A lane's codes of the four k tiles from kt on.
    static __device__ __forceinline__ void put(unsigned char* unit, int g, int q, int half, int kt,
                                               const unsigned char (&code)[4][4]) {
        CODES::put(unit + (g * 4 + q) * 16, kt, half, code);
    }

    // At k, a multiple of 4, as the definition rounds them.
    static __device__ __forceinline__ float4 four(const unsigned char* weight, int tile, int g, int half, int at,
                                                  int k) {
        const unsigned char* unit = step_of(weight, tile, at / K, k / K);
        const unsigned char* inner = unit + CODE_BYTES + g * LANE;
        const unsigned char* outer = unit + (SHARING - at / K % SHARING) * STEP + g * OUTER;
        at %= K;
        const int lane = g * 4 + lane_of(at), kt = tile_of(at), group = at / SCALES::GROUP;
        const float scale = Scales::scale_at(inner, outer, half, group);
        const float min = SCALES::MINS ? Scales::min_at(inner, outer, half, group) : 0.f;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float code = CODES::get(unit + lane * 16, kt, half, i) - SCALES::ZERO;
            v[i] = SCALES::MINS ? __fadd_rn(__fmul_rn(scale, code), min) : __fmul_rn(scale, code);
        }
        return make_float4(v[0], v[1], v[2], v[3]);
    }
};
