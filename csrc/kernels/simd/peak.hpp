#pragma once

#include "kernels/peak.hpp"
#include "kernels/simd/vector.hpp"

namespace distreal::DISTREAL_SIMD {

// Two multiply-adds a cycle that each take four to six cycles want twelve in flight; with their two operands they fit
// the sixteen registers of AVX2.
inline constexpr int peak_chains = 12;

inline float run_peak(long iterations) {
    Vector factor = spread(0.5F);
    Vector addend = spread(1.0F);
    pin(factor);
    pin(addend);
    Vector sums[peak_chains];
    for (int chain = 0; chain < peak_chains; ++chain) {
        sums[chain] = spread(static_cast<float>(chain));
    }
    for (long iteration = 0; iteration < iterations; ++iteration) {
#pragma GCC unroll 12
        for (int chain = 0; chain < peak_chains; ++chain) {
            // The sum is what is added to: ARM's instruction overwrites that, and GCC would copy anything else first.
            sums[chain] = multiply_add(factor, addend, sums[chain]);
        }
        pin(factor);  // or the product would be the same every time, and computed once
    }
    Vector sum = sums[0];
    for (int chain = 1; chain < peak_chains; ++chain) {
        sum += sums[chain];
    }
    return sum_of_lanes(sum);
}

inline constexpr PeakLoop peak{2.0 * lanes * peak_chains, run_peak};

}  // namespace distreal::DISTREAL_SIMD
