// Chains of dependent launches: who lets the next kernel start when, and what that one may read early.
#include "ptx.cuh"

enum { BEFORE_WAIT, AFTER_WAIT, NEVER_FENCED, NEVER };

// out[0 .. n) = x[0 .. n) + 1.   LAUNCH: grid 1, block 32, dependent
template <int letting_go>
__global__ void writer(const float* x, float* out, int n) {
    if (letting_go == BEFORE_WAIT) grid_launch();
    grid_wait();
    if (letting_go == AFTER_WAIT) grid_launch();
    if (threadIdx.x < n) out[threadIdx.x] = x[threadIdx.x] + 1.0f;
    if (letting_go == NEVER_FENCED) __threadfence();
}

// out = x[from], read before the wait.   LAUNCH: grid 1, block 32, dependent
extern "C" __global__ void early_reader(const float* x, float* out, int from) {
    float v = x[from];
    grid_wait();
    out[threadIdx.x] = v;
}
