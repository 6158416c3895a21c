// Included before every kernel that is compiled for the CPU: CUDA C++ without CUDA.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __constant__ static
#define __restrict__ __restrict
#define __grid_constant__
#define __align__(n) alignas(n)
#define __CUDA_ARCH__ 900

#include "emu/entry.h"
#include "emu/intrinsics.h"
#include "emu/shared.h"
#include "emu/warp.h"
