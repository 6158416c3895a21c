// RoPE, and the append of new keys and values to the KV cache.
#include "ptx.cuh"
#include "types.cuh"

constexpr int THREADS = 256;

// Line of `keys` or `values` that holds head kv of the token at `position`. own: the sequence's row of the block table.
__device__ __forceinline__ size_t line_of(const int* own, int position, int kv, int kv_heads) {
    const size_t page = own[position / PAGE];
    return (page * kv_heads + kv) * PAGE + position % PAGE;
}

// Rotate query heads in place and key heads into the KV cache: with p = positions[r], c = rope[p, i],
// s = rope[p, size / 2 + i],
//   (a[i], a[i + size / 2]) <- (a[i] c - a[i + size / 2] s, a[i + size / 2] c + a[i] s)   for i < size / 2.
// Value heads are copied to the KV cache. qkv [rows, (heads + 2 kv_heads) size]; rope [*, size] float32: cosines, then
// sines; keys, values [P, kv_heads, PAGE, size]; token t of a sequence is in page table[seq, t / PAGE].
//
// LAUNCH: grid (ceil(rows (heads + 2 kv_heads) size / 16 / 256)), block 256: a thread rotates 8 pairs, dependent.
// PRECOND: size is a multiple of 16. Rows of one sequence have different positions (padding rows may share theirs).
template <class T>
__global__ void __launch_bounds__(THREADS)
    rope_append(T* qkv, const float* rope, const int* seqs, const int* positions, const int* table, T* keys, T* values,
                int rows, int heads, int kv_heads, int size, int pages) {
    grid_launch();
    grid_wait();
    const int parts = size / 16, all = heads + 2 * kv_heads;
    int unit = blockIdx.x * THREADS + threadIdx.x;
    const int i = unit % parts * 8;
    unit /= parts;
    const int head = unit % all, row = unit / all;
    if (row >= rows) return;
    const int position = positions[row];
    T* from = qkv + (size_t(row) * all + head) * size + i;
    T* to = from;
    if (head >= heads) {
        const int* own = table + size_t(seqs[row]) * pages;
        const size_t line = line_of(own, position, (head - heads) % kv_heads, kv_heads);
        to = (head < heads + kv_heads ? keys : values) + line * size + i;
    }
    float a[8], b[8];
    load8(from, a);
    load8(from + size / 2, b);
    if (head < heads + kv_heads) {
        float c[8], s[8];
        load8(rope + size_t(position) * size + i, c);
        load8(rope + size_t(position) * size + size / 2 + i, s);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float x = a[e] * c[e] - b[e] * s[e];
            b[e] = b[e] * c[e] + a[e] * s[e];
            a[e] = x;
        }
    }
    store8(to, a);
    store8(to + size / 2, b);
}

// Append new keys and values to the KV cache without rotation. Arrays as above.
//
// LAUNCH: grid (ceil(rows 2 kv_heads size / 8 / 256)), block 256: a thread copies 8 elements, dependent.
// PRECOND: as above.
template <class T>
__global__ void __launch_bounds__(THREADS)
    append(const T* qkv, const int* seqs, const int* positions, const int* table, T* keys, T* values, int rows, int heads,
           int kv_heads, int size, int pages) {
    grid_launch();
    grid_wait();
    const int parts = size / 8;
    int unit = blockIdx.x * THREADS + threadIdx.x;
    const int i = unit % parts * 8;
    unit /= parts;
    const int head = unit % (2 * kv_heads), row = unit / (2 * kv_heads);
    if (row >= rows) return;
    const int position = positions[row];
    const size_t line = line_of(table + size_t(seqs[row]) * pages, position, head % kv_heads, kv_heads);
    float v[8];
    load8(qkv + (size_t(row) * (heads + 2 * kv_heads) + heads + head) * size + i, v);
    store8((head < kv_heads ? keys : values) + line * size + i, v);
}
