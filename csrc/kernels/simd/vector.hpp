#pragma once
// One vector of floats, in the length of the instruction set that this source is compiled for. The operations are GCC's
// and Clang's vector extensions; only what they cannot say is written per architecture.
//
// Everything under kernels/simd/ is compiled once for each instruction set, into a namespace of its own: two copies of
// one inline function would otherwise become one, and which one would be the linker's choice. For the same reason
// nothing here may call a function template or inline function of the standard library that the compiler might not
// inline: tests/native look for such symbols in the object files.

#ifndef DISTREAL_SIMD
#error "compile a kernels_*.cpp, which names the instruction set"
#endif

#include <cstddef>
#include <cstdint>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace distreal::DISTREAL_SIMD {

#if defined(__AVX512F__) && !defined(DISTREAL_SIMD_256)
inline constexpr int lanes = 16;
inline constexpr int registers = 32;
#elif defined(__AVX512VL__)
inline constexpr int lanes = 8;
inline constexpr int registers = 32;
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int lanes = 8;
inline constexpr int registers = 16;
#elif defined(__aarch64__)
inline constexpr int lanes = 4;
inline constexpr int registers = 32;
#else
#error "the flags of this source do not name a known instruction set"
#endif

using Vector = float __attribute__((vector_size(lanes * sizeof(float))));
using UnalignedVector = float __attribute__((vector_size(lanes * sizeof(float)), aligned(4), may_alias));
using Integers = std::int32_t __attribute__((vector_size(lanes * sizeof(float))));

#define DISTREAL_INLINE [[gnu::always_inline]] inline

// Values are aligned to `lanes` floats in the arena, but parameters and packed weights need not be.
DISTREAL_INLINE Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
DISTREAL_INLINE void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
DISTREAL_INLINE Vector spread(float value) { return value - Vector{}; }
DISTREAL_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }  // contracted to one rounding

// Keep a loaded value in its register: GCC otherwise folds an unaligned load into every instruction that uses it.
DISTREAL_INLINE void pin(Vector& value) {
#if defined(__aarch64__)
    asm volatile("" : "+w"(value));
#else
    asm volatile("" : "+v"(value));
#endif
}

DISTREAL_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
DISTREAL_INLINE Vector minimum(Vector a, Vector b) { return a < b ? a : b; }

DISTREAL_INLINE float sum_of_lanes(Vector value) {
    float sum = 0.0F;
    for (int lane = 0; lane < lanes; ++lane) {
        sum += value[lane];
    }
    return sum;
}

}  // namespace distreal::DISTREAL_SIMD
