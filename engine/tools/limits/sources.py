"""CUDA C++ of the probes.

This is the only CUDA C++ outside kernels/. The probes test features of GPU and driver (dynamic parallelism, textures,
device-side graph launch), most of which the CPU emulator does not have.
"""

PLAIN = r"""
// data[i] += 1
extern "C" __global__ void add_one(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] += 1.0f;
}

// data[i] *= 2
extern "C" __global__ void times_two(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] *= 2.0f;
}

// data[i] += value
extern "C" __global__ void add(float* data, float value, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] += value;
}

// to[i] = from[i]
extern "C" __global__ void copy(const float* from, float* to, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from[i];
}

// sum[i] = a[i] + b[i]
extern "C" __global__ void sum(const float* a, const float* b, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}

// Reverse every 128 elements in static shared memory. Block 128; n a multiple of 128.
extern "C" __global__ void reverse_static(float* data, int n) {
    __shared__ float kept[128];
    float* mine = data + blockIdx.x * 128;
    kept[threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    mine[threadIdx.x] = kept[127 - threadIdx.x];
}

// Reverse all n elements in n * 4 bytes of dynamic shared memory. Grid 1.
extern "C" __global__ void reverse_dynamic(float* data, int n) {
    extern __shared__ float whole[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) whole[i] = data[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) data[i] = whole[n - 1 - i];
}

// data[i] *= factor
__constant__ float factor;
extern "C" __global__ void times_constant(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] *= factor;
}

// out[i] = the texture sampled half way between elements i and i + 1. A 1-D texture of n elements, linear, clamped.
extern "C" __global__ void between(cudaTextureObject_t texture, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex1D<float>(texture, i + 1.0f);
}

// Wait until the host has written a question, at most about 2^31 clocks; then answer = question + 1. Grid 1.
extern "C" __global__ void answer_host(volatile int* question, volatile int* answer) {
    long long began = clock64();
    while (*question == 0 && clock64() - began < (1ll << 31)) {}
    *answer = *question + 1;
    __threadfence_system();
}

// The two blocks of a cluster exchange their numbers through distributed shared memory. Grid 2, block 1.
#if __CUDA_ARCH__ >= 900
extern "C" __global__ void __cluster_dims__(2) swap(float* data) {
    __shared__ float mine;
    mine = data[blockIdx.x];
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    data[blockIdx.x] = *static_cast<float*>(__cluster_map_shared_rank(&mine, __clusterRelativeBlockRank() ^ 1));
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
}
#endif
"""

# Linked with the device runtime, libcudadevrt.
DEVICE_RUNTIME = r"""
extern "C" __global__ void add_one(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] += 1.0f;
}

// Dynamic parallelism: a kernel that launches add_one. Grid 1, block 1.
extern "C" __global__ void launch_kernel(float* data, int n, int* status) {
    add_one<<<(n + 127) / 128, 128>>>(data, n);
    *status = cudaGetLastError();
}

// One round of a WHILE node: repeat while left > 0. Grid 1, block 1.
extern "C" __global__ void count_down(cudaGraphConditionalHandle handle, int* left) {
    *left -= 1;
    cudaGraphSetConditional(handle, *left > 0);
}

// Set the condition of an IF or SWITCH node to *value. Grid 1, block 1.
extern "C" __global__ void choose(cudaGraphConditionalHandle handle, const int* value) {
    cudaGraphSetConditional(handle, *value);
}

// Launch a graph (instantiated for device launch) beside the graph of this kernel. Grid 1, block 1.
extern "C" __global__ void launch_graph(cudaGraphExec_t graph, int* status) {
    *status = cudaGraphLaunch(graph, cudaStreamGraphFireAndForget);
}
"""
