// Elementwise kernels: SiLU * up and GELU of the MLP, and advancing to the next token.
#include "activation.cuh"
#include "ptx.cuh"
#include "types.cuh"

constexpr int THREADS = 256;
constexpr int MAIL = 4;  // entries per row of the token ring buffer; as in engine/sizes.py

// out[r, c] = silu(gate_up[r, c]) * gate_up[r, width + c].
// gate_up [rows, 2 width], out [rows, width]
//
// LAUNCH: grid (ceil(width / VEC / 256), rows), block 256, dependent.
// PRECOND: VEC is 1, or 8 with a width that is a multiple of 8.
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

// out[i] = gelu(x[i]); tanh: by the tanh approximation.   x, out [count], out may be x
//
// LAUNCH: grid (ceil(count / VEC / 256)), block 256, dependent.
// PRECOND: VEC is 1, or 8 with a count that is a multiple of 8.
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

// Make the sampled tokens the next step's input, and write them to the host's token ring buffer. Padding rows stay as
// they are. A token of -1 (non-finite logits) continues as 0; the host reads the -1 and ends that request.
//
//   ring[r, entry[r]] = tokens[r], entry[r] = (entry[r] + 1) % MAIL
//   ids[r] = max(tokens[r], 0), positions[r] += 1, visible[r] += 1
// tokens, seqs, ids, positions, visible, entry [rows]; ring [rows, MAIL] in pinned host memory; padding: index of the
// padding sequence
//
// The host reads the ring after an event that follows this kernel, so no copy is needed. A completed event makes all
// writes visible to the host, so no __threadfence_system is needed either.
//
// The next step's kernels read positions and visible, and through them the KV cache, before their grid_wait(). So this
// kernel does not call grid_launch(), and its writes are in memory when it ends.
//
// LAUNCH: grid (1), block 256, dependent.  PRECOND: rows <= 256.
__global__ void __launch_bounds__(THREADS) advance(const int* tokens, const int* seqs, int* ids, int* positions,
                                                   int* visible, int* entry, int* ring, int rows, int padding) {
    grid_wait();
    const int row = threadIdx.x;
    if (row < rows && seqs[row] != padding) {
        const int token = tokens[row], at = entry[row];
        ring[row * MAIL + at] = token;
        entry[row] = (at + 1) % MAIL;
        ids[row] = max(token, 0);
        positions[row]++;
        visible[row]++;
    }
    __threadfence();
}
