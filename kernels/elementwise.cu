// What works on single elements: what stands between the products of the feed-forward part, the step to the next token.
#include "activation.cuh"
#include "ptx.cuh"
#include "types.cuh"

constexpr int THREADS = 256;
constexpr int MAIL = 4;  // tokens of a row that the host can still read; as in engine/sizes.py

// out[r, c] = silu(gate_up[r, c]) * gate_up[r, width + c].
// gate_up [rows, 2 width], out [rows, width]
//
// LAUNCH: grid (ceil(width / VEC / 256), rows), block 256, dependent.
// PRECOND: VEC 1, or VEC 8 and width a multiple of 8.
template <class T, int VEC>
__global__ void __launch_bounds__(THREADS) silu_mul(const T* gate_up, T* out, int width) {
    grid_launch();
    grid_wait();
    const int c = (blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (c >= width) return;
    const T* from = gate_up + size_t(blockIdx.y) * 2 * width + c;
    T* to = out + size_t(blockIdx.y) * width + c;
    if constexpr (VEC == 8) {
        float gate[8], up[8];
        load8(from, gate);
        load8(from + width, up);
#pragma unroll
        for (int e = 0; e < 8; e++) gate[e] = silu(gate[e]) * up[e];
        store8(to, gate);
    } else {
        to[0] = from_float<T>(silu(to_float(from[0])) * to_float(from[width]));
    }
}

// out[i] = gelu(x[i]).   x, out [count], out may be x
//
// LAUNCH: grid (ceil(count / VEC / 256)), block 256, dependent.
// PRECOND: VEC 1, or VEC 8 and count a multiple of 8.
template <class T, int VEC>
__global__ void __launch_bounds__(THREADS) gelu(const T* x, T* out, int count, int tanh) {
    grid_launch();
    grid_wait();
    const int i = (blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= count) return;
    if constexpr (VEC == 8) {
        float v[8];
        load8(x + i, v);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = gelu(v[e], tanh);
        store8(out + i, v);
    } else {
        out[i] = from_float<T>(gelu(to_float(x[i]), tanh));
    }
}

// The sampled tokens become the next step's input; rows of the spare sequence stay as they are. A token of -1 (logits
// that were not numbers) goes on as 0: the host reads the -1 and ends that request.
//
//   box[r, place] = tokens[r], place = (place + 1) % MAIL with place = places[r]
//   ids[r] = max(tokens[r], 0), positions[r] += 1, visible[r] += 1
// tokens, seqs, ids, positions, visible, places [rows], box [rows, MAIL]
//
// box is memory of the host, so that no copy has to follow the step. The host reads it once an event behind this kernel
// is done, and what a kernel wrote is visible to everybody then: nothing here needs a __threadfence_system.
//
// The kernels after this one read positions and visible, and with them the cache, before they wait. So this one does
// not let them start early, and its writes are in memory when it ends.
//
// LAUNCH: grid (1), block 256, dependent.  PRECOND: rows <= 256.
__global__ void __launch_bounds__(THREADS) advance(const int* tokens, const int* seqs, int* ids, int* positions,
                                                   int* visible, int* places, int* box, int rows, int spare) {
    grid_wait();
    const int row = threadIdx.x;
    if (row < rows && seqs[row] != spare) {
        const int token = tokens[row], place = places[row];
        box[row * MAIL + place] = token;
        places[row] = (place + 1) % MAIL;
        ids[row] = max(token, 0);
        positions[row]++;
        visible[row]++;
    }
    __threadfence();
}
