// The functions of kernels/ptx.cuh on the CPU, with the same names and results. That file documents them.
#pragma once

#include "emu/intrinsics.h"
#include "emu/shared.h"
#include "emu/warp.h"

namespace emu {

struct Operands {
    uint4 a;
    uint2 b;
    float* d;
};

enum class Format { bf16, f16, tf32 };

// D += A B of a whole warp, as a tensor core adds; in tensor_core.cpp.
void tensor_core(Format format, const Operands* const (&lanes)[32]);

inline void require_all(Thread* warp, unsigned lanes) {
    if (lanes == ~0u) return;
    const Site& site = warp[__builtin_ctz(lanes)].site;
    fail("%s (%s:%d) with lanes %#x of a warp: all 32 must take part", site.what, site.file, site.line, lanes);
}

template <Format format>
void mma(const char* what, float (&d)[4], uint4 a, uint2 b, const char* file, int line) {
    Operands operands{a, b, d};
    meet(~0u, {what, file, line}, &operands, nullptr, [](Thread* warp, unsigned lanes) {
        require_all(warp, lanes);
        const Operands* all[32];
        for (unsigned l = 0; l < 32; l++) all[l] = &given<Operands>(warp, l);
        tensor_core(format, all);
    });
}

inline void require_aligned(const char* what, const void* p, unsigned bytes = 16) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("%s: address %p is not a multiple of %u bytes", what, p, bytes);
}

inline void require_shared(const char* what, const void* p, unsigned bytes = 16) {
    if (!is_shared(p, bytes)) fail("%s: address %p is not %u bytes of the block's shared memory", what, p, bytes);
}

// Four tiles of 8 x 8: lane l passes row l % 8 of tile l / 8 and gets two adjacent elements of column l / 4 of each.
inline uint4 ldmatrix_x4_trans(const char* what, const void* row, const char* file, int line) {
    uint4 out;
    meet(~0u, {what, file, line}, &row, &out, [](Thread* warp, unsigned lanes) {
        require_all(warp, lanes);
        uint16_t tile[4][8][8];
        for (unsigned l = 0; l < 32; l++) {
            const void* row = given<const void*>(warp, l);
            require_aligned(warp[l].site.what, row);
            require_shared(warp[l].site.what, row);
            memcpy(tile[l / 8][l % 8], row, 16);
        }
        each_lane(lanes, [&](unsigned l) {
            unsigned words[4], i = l / 4, j = l % 4 * 2;
            for (unsigned t = 0; t < 4; t++) words[t] = tile[t][j][i] | unsigned(tile[t][j + 1][i]) << 16;
            memcpy(warp[l].out, words, sizeof words);
        });
    });
    return out;
}

// Issues a copy of the first `bytes` of data. The schedule decides when it arrives, at the latest when it is waited
// for.
void issue_copy(void* to, uint4 data, size_t bytes);

void commit_copies();

// Lets all but the `allowed` latest groups of this thread arrive.
void await_copies(int allowed);

void grid_wait();

void grid_launch();

// The address of p, a shared variable, in the shared memory of block `rank` of the cluster.
void* in_cluster(void* p, unsigned rank, Site site);

}  // namespace emu

inline void mma_bf16_m16n8k16(float (&d)[4], uint4 a, uint2 b, EMU_SITE) {
    emu::mma<emu::Format::bf16>("mma_bf16_m16n8k16", d, a, b, file, line);
}

inline void mma_f16_m16n8k16(float (&d)[4], uint4 a, uint2 b, EMU_SITE) {
    emu::mma<emu::Format::f16>("mma_f16_m16n8k16", d, a, b, file, line);
}

inline void mma_tf32_m16n8k8(float (&d)[4], uint4 a, uint2 b, EMU_SITE) {
    emu::mma<emu::Format::tf32>("mma_tf32_m16n8k8", d, a, b, file, line);
}

inline unsigned to_tf32(float x) {
    unsigned u = emu::bits<unsigned>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    if ((u & 0x7fffffffu) == 0x7f800000u) return u;
    return (u + 0x1000u) & ~0x1fffu;
}

inline uint4 ldmatrix_x4_trans(const void* row, EMU_SITE) {
    return emu::ldmatrix_x4_trans("ldmatrix_x4_trans", row, file, line);
}

inline void cp_async16(void* shared, const void* global, int bytes = 16) {
    emu::require_aligned("cp_async16, to", shared);
    emu::require_aligned("cp_async16, from", global);
    emu::require_shared("cp_async16, to", shared);
    if (bytes < 0 || bytes > 16) emu::fail("cp_async16: expected 0 to 16 bytes, found %d", bytes);
    uint4 data{};
    if (bytes == 16)
        data = *static_cast<const uint4*>(global);
    else
        for (int i = 0; i < bytes; i++) reinterpret_cast<char*>(&data)[i] = static_cast<const char*>(global)[i];
    emu::issue_copy(shared, data, 16);
}

template <int BYTES>
inline void cp_async(void* shared, const void* global) {
    emu::require_aligned("cp_async, to", shared, BYTES);
    emu::require_aligned("cp_async, from", global, BYTES);
    emu::require_shared("cp_async, to", shared, BYTES);
    uint4 data{};
    memcpy(&data, global, BYTES);
    emu::issue_copy(shared, data, BYTES);
}

inline void cp_async_commit() {
    emu::commit_copies();
}

template <int N>
inline void cp_async_wait() {
    emu::await_copies(N);
}

inline void grid_wait() {
    emu::grid_wait();
}

inline void grid_launch() {
    emu::grid_launch();
}

inline unsigned cluster_rank() {
    return emu::block->rank;
}

inline void barrier_wait(int barrier, int threads, EMU_SITE) {
    emu::named_barrier(barrier, unsigned(threads), true, {"barrier_wait", file, line});
}

inline void barrier_arrive(int barrier, int threads, EMU_SITE) {
    emu::named_barrier(barrier, unsigned(threads), false, {"barrier_arrive", file, line});
}

template <class T>
T* in_cluster(T* p, unsigned rank, EMU_SITE) {
    return static_cast<T*>(emu::in_cluster(const_cast<std::remove_cv_t<T>*>(p), rank, {"in_cluster", file, line}));
}

inline void cluster_sync(EMU_SITE) {
    emu::wait_for_blocks(emu::State::at_cluster_sync, {"cluster_sync", file, line});
}

template <class V>
inline V load_stream(const V* p) {
    emu::require_aligned("load_stream", p, sizeof(V));
    return *p;
}

template <class T>
inline const T* one_address(const T* p) {
    return p;
}

inline void prefetch_l2(const void*) {}

inline void prefetch_l2(const void* p, unsigned bytes) {
    emu::require_aligned("prefetch_l2", p);
    if (bytes % 16) emu::fail("prefetch_l2: expected a multiple of 16 bytes, found %u", bytes);
}

inline unsigned multiply_bf16x2(unsigned a, unsigned b) {
    unsigned d = 0;
    for (int i = 0; i < 32; i += 16) {
        float x = emu::bits<float>(a >> i << 16), y = emu::bits<float>(b >> i << 16);
        __nv_bfloat16 rounded = __float2bfloat16_rn(x * y);
        uint16_t word;
        memcpy(&word, &rounded, 2);
        d |= unsigned(word) << i;
    }
    return d;
}

inline float exp2_approx(float x) {
    float y = exp2f(x < -126.5f ? -200.0f : x);
    return y < 0x1p-126f ? 0.0f : y;
}
