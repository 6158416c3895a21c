// Sampling: the next token of every row, as engine/ops/sampling.py defines it. All sums are of integers, so their order
// does not matter.
//
//   all blocks of a row   scan the logits -> largest (atomicMax on best) -> ticket; all but the last block end
//   last block            temperature 0: the largest is the token
//                         top_k, top_p:  lowest_kept()
//                           histogram of exponents -> the largest CANDIDATES logits to shared memory
//                           binary search of the bounds over the candidates
//                           too many candidates (flat distributions, rare): search the row in global memory instead
//                         draw:          pick()
//                           weights of the kept tokens, one stretch of the row per warp -> the stretch with the target
//                           weights within that stretch, a few tokens per thread        -> the token
#include "ptx.cuh"
#include "sample.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int BINS = 8 * 41, CANDIDATES = 4096, HELD = CANDIDATES / THREADS, AT_ONCE = 8;

// A row during the draw of its token.
struct Draw {
    Adjusted row;
    int size;  // V
    float largest, temperature;

    __device__ __forceinline__ float exponent_of(float x) const { return exponent(x, largest, temperature); }

    // Eight bins per octave of weight; the largest logits are in bin 0. From bin BINS on all weights are 0, before it
    // some are.
    static __device__ __forceinline__ int bin(float y) { return int(-8.f * y); }
};

// The largest bound with measure(bound) >= need, by binary search over its bits. measure: decreasing, block-wide.
template <class Measure>
__device__ __forceinline__ unsigned search(Measure measure, u64 need) {
    unsigned bound = 0;
#pragma unroll 1
    for (unsigned bit = 1u << 31; bit; bit >>= 1)
        if (measure(bound | bit) >= need) bound |= bit;
    return bound;
}

// Over all tokens with order >= bound: the sum of their weights, or their number.
__device__ __noinline__ u64 measure_row(const Draw d, unsigned bound, bool weights) {
    u64 sum = 0;
#pragma unroll 1
    for (int v = threadIdx.x; v < d.size; v += THREADS) {
        float x = d.row.logit(v);
        if (order(x) >= bound) sum += weights ? weight(d.exponent_of(x)) : 1;
    }
    return block_sum<THREADS>(sum);
}

// The lowest order that top_k and top_p keep; 0 keeps all.
__device__ __forceinline__ unsigned lowest_kept(const Draw& d, int top_k, float top_p) {
    __shared__ unsigned bins[BINS], list[CANDIDATES], length;
    // Count tokens per bin. The candidates are the tokens of the first bins, as many bins as fit into the list.
    if (threadIdx.x < BINS) bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) length = 0;
    __syncthreads();
    u64 total = 0;
#pragma unroll 8
    for (int v = threadIdx.x; v < d.size; v += THREADS) {
        float y = d.exponent_of(d.row.logit(v));
        total += weight(y);
        if (weight(y)) atomicAdd(&bins[d.bin(y)], 1u);
    }
    __syncthreads();
    const u64 upto = block_scan<THREADS>(threadIdx.x < BINS ? bins[threadIdx.x] : 0);
    const int used = block_sum<THREADS>(upto <= CANDIDATES ? 1 : 0);  // bins
    const u64 weighty = block_max<THREADS>(upto);                     // tokens that have a weight
#pragma unroll 8
    for (int v = threadIdx.x; v < d.size; v += THREADS) {
        float x = d.row.logit(v), y = d.exponent_of(x);
        if (d.bin(y) < used && weight(y)) list[atomicAdd(&length, 1u)] = order(x);
    }
    total = block_sum<THREADS>(total);
    const unsigned count = length;
    unsigned key[HELD];
    u64 heavy[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        unsigned at = threadIdx.x + i * THREADS;
        key[i] = at < count ? list[at] : 0;
        heavy[i] = at < count ? weight(d.exponent_of(value_of(key[i]))) : 0;
    }
    auto number = [&](unsigned bound) {
        unsigned sum = 0;
#pragma unroll
        for (int i = 0; i < HELD; i++) sum += key[i] >= bound ? 1 : 0;
        return block_sum<THREADS>(sum);
    };
    auto mass = [&](unsigned bound) {
        u64 sum = 0;
#pragma unroll
        for (int i = 0; i < HELD; i++) sum += key[i] >= bound ? heavy[i] : 0;
        return block_sum<THREADS>(sum);
    };
    unsigned lowest = 0;
    if (top_k > 0 && top_k < weighty) {
        if (top_k <= count) {
            lowest = search(number, top_k);
            total = mass(lowest);
        } else {
            lowest = search([&](unsigned bound) { return measure_row(d, bound, false); }, top_k);
            total = measure_row(d, lowest, true);
        }
    }
    if (top_p < 1.f) {
        u64 need = max(u64(1), __umul64hi(total, u64(top_p * 18446744073709551616.f)));
        unsigned bound = mass(0) >= need ? search(mass, need)
                                         : search([&](unsigned b) { return measure_row(d, b, true); }, need);
        lowest = max(lowest, bound);
    }
    return lowest;
}

// The token at which the running sum of the kept weights exceeds floor(random total / 2^64).
template <class Weight>
__device__ __forceinline__ int pick(const Draw& d, Weight kept, u64 random) {
    // First one stretch of the row per warp; then, in the stretch that contains the target, a few tokens per thread.
    __shared__ int stretch, token;
    __shared__ u64 before;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = (d.size + WARPS - 1) / WARPS;
    u64 sum = 0;
#pragma unroll 8
    for (int v = warp * length + lane; v < min(d.size, (warp + 1) * length); v += 32) sum += kept(d.row.logit(v));
    u64 upto = block_scan<THREADS>(sum);
    const u64 target = __umul64hi(random, block_max<THREADS>(upto));
    u64 ends = __shfl_sync(0xffffffffu, upto, 31), starts = __shfl_sync(0xffffffffu, upto - sum, 0);
    if (lane == 0 && starts <= target && target < ends) stretch = warp, before = starts;
    __syncthreads();
    const int each = (length + THREADS - 1) / THREADS, from = stretch * length + threadIdx.x * each;
    const int to = min(from + each, min(d.size, (stretch + 1) * length));
    sum = 0;
    for (int v = from; v < to; v++) sum += kept(d.row.logit(v));
    upto = before + block_scan<THREADS>(sum);
    if (upto - sum <= target && target < upto) {
        u64 running = upto - sum;
        for (int v = from; v < to; v++) {
            running += kept(d.row.logit(v));
            if (running > target) {
                token = v;
                break;
            }
        }
    }
    __syncthreads();
    return token;
}

// logits [B, size]; last [B]: indices into seqs and positions [R]; rules [S + 1]; counts [S + 1, size]; out [B].
// best [B] and tickets [B] are 0 before and after.
//
// LAUNCH: grid (x, B), block 512, dependent. x: any number; the x blocks of a row divide its logits.
// PRECOND: everything but logits and counts was complete when the step began, because it is read before grid_wait().
__global__ void __launch_bounds__(THREADS, 1)
    sample(const float* logits, const int* last, const int* seqs, const int* positions, const Rules* rules, int* counts,
           int* out, u64* best, int* tickets, int size) {
    grid_launch();
    const int row = blockIdx.y, seq = seqs[last[row]], position = positions[last[row]] + 1;
    const Rules& r = rules[seq];
    Draw d;
    d.size = size;
    d.temperature = r.temperature;
    Adjusted& l = d.row;
    l.logits = logits + size_t(row) * size;
    l.repetition = r.repetition_penalty, l.presence = r.presence_penalty, l.frequency = r.frequency_penalty;
    const bool penalised = l.repetition != 1.f || l.presence != 0.f || l.frequency != 0.f;
    l.counts = penalised ? counts + size_t(seq) * size : nullptr;
    l.banned = position < r.stop_from ? r.stop_ids : nullptr;
    grid_wait();

    // The largest logit, of equal ones the first: the order in the high half, the index from the end in the low half.
    u64 mine = 0;
    auto see = [&](float x, int v) { mine = max(mine, u64(order(x)) << 32 | (0xffffffffu - v)); };
    const int first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
    if (size % 4 == 0 && !l.counts && !l.banned) {  // unchanged logits: 16-byte loads, issued back to back
        const float4* quads = reinterpret_cast<const float4*>(l.logits);
#pragma unroll 1
        for (int i = first; i < size / 4; i += AT_ONCE * step) {
            float4 x[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                if (i + j * step < size / 4) x[j] = quads[i + j * step];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const int v = 4 * (i + j * step);
                if (v < size) see(x[j].x, v), see(x[j].y, v + 1), see(x[j].z, v + 2), see(x[j].w, v + 3);
            }
        }
    } else {
#pragma unroll 8
        for (int v = first; v < size; v += step) see(l.logit(v), v);
    }
    mine = block_max<THREADS>(mine);
    __shared__ u64 most;
    __shared__ bool comes_last;
    if (threadIdx.x == 0) {
        atomicMax(best + row, mine);
        __threadfence();
        comes_last = atomicAdd(tickets + row, 1) == int(gridDim.x) - 1;
        if (comes_last) most = atomicExch(best + row, u64(0)), tickets[row] = 0;
    }
    __syncthreads();
    if (!comes_last) return;

    const unsigned top = unsigned(most >> 32);
    int token = int(0xffffffffu - unsigned(most));
    d.largest = value_of(top);
    if (top == NOT_A_NUMBER || !(fabsf(d.largest) < __uint_as_float(0x7f800000u))) {
        token = -1;
    } else if (d.temperature >= __uint_as_float(0x00800000u)) {
        const float p = r.top_p;
        const int k = r.top_k;
        const unsigned lowest = (k > 0 && k < size) || p < 1.f ? lowest_kept(d, k, p) : 0;
        const u64 least = u64(r.min_p * ONE);
        auto kept = [&](float x) -> u64 {
            u64 w = weight(d.exponent_of(x));
            return order(x) >= lowest && w >= least ? w : 0;
        };
        token = pick(d, kept, philox(r.seed, position));
    }
    if (threadIdx.x == 0) {
        out[row] = token;
        if (penalised && token >= 0) counts[size_t(seq) * size + token] += 2;
    }
}
