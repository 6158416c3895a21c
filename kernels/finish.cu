// The epilogue of a cuBLAS GEMM: bias and residual add.
#include "types.cuh"

// out = out + bias + residual.   out [R, N] Out, bias [N] float32 or null, residual [R, N] float32 or null
// LAUNCH: grid (ceil(N / 256), R), block 256; not dependent, because the preceding GEMM is cuBLAS's.
template <class Out>
__global__ void __launch_bounds__(256) finish(Out* out, const float* bias, const float* residual, int n) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) return;
    size_t at = static_cast<size_t>(blockIdx.y) * n + column;
    float v = to_float(out[at]);
    if (bias) v += bias[column];
    if (residual) v += residual[at];
    out[at] = from_float<Out>(v);
}
