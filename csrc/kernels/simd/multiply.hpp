#pragma once
// The step that convolutions spend their time in: a few numbers times a few vectors, added to as many sums as the
// registers hold.

#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// How many numbers are taken at once at most.
inline constexpr int most_numbers = registers == 32 ? 8 : 6;

// How many vectors go with so many numbers, so that sums, vectors and numbers fill the registers without spilling.
DISTREAL_INLINE constexpr int vectors_with(int numbers) {
    constexpr int wide[] = {0, 8, 8, 7, 6, 4, 4, 3, 3};
    constexpr int narrow[] = {0, 7, 5, 3, 3, 2, 2};
    return registers == 32 ? wide[numbers] : narrow[numbers];
}

inline constexpr int most_vectors = 8;

// NEON multiplies by an element of a vector, so that it reads numbers four at a time, up to three more than it needs.
#if defined(__aarch64__)
inline constexpr int numbers_at_once = 4;
#else
inline constexpr int numbers_at_once = 1;
#endif

// sums[n][v] += numbers[n] * vectors[v]
template <int numbers, int vectors>
DISTREAL_INLINE void add_products(Vector (&sums)[numbers][vectors], const float* by, const Vector (&x)[vectors]) {
#if defined(__aarch64__)
    constexpr int quads = (numbers + 3) / 4;
    float32x4_t w[quads];
    DISTREAL_UNROLL
    for (int q = 0; q < quads; ++q) {
        w[q] = vld1q_f32(by + 4 * q);
    }
    DISTREAL_UNROLL
    for (int n = 0; n < numbers; ++n) {
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            switch (n % 4) {
                case 0:
                    sums[n][v] = vfmaq_laneq_f32(sums[n][v], x[v], w[n / 4], 0);
                    break;
                case 1:
                    sums[n][v] = vfmaq_laneq_f32(sums[n][v], x[v], w[n / 4], 1);
                    break;
                case 2:
                    sums[n][v] = vfmaq_laneq_f32(sums[n][v], x[v], w[n / 4], 2);
                    break;
                default:
                    sums[n][v] = vfmaq_laneq_f32(sums[n][v], x[v], w[n / 4], 3);
            }
        }
    }
#else
    DISTREAL_UNROLL
    for (int n = 0; n < numbers; ++n) {
        const Vector w = spread(by[n]);
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            sums[n][v] = multiply_add(x[v], w, sums[n][v]);
        }
    }
#endif
}

}  // namespace distreal::DISTREAL_SIMD
