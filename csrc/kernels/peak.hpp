#pragma once

namespace distreal {

// A loop of multiply-adds that depend on nothing but themselves: as much arithmetic as one core can do.
struct PeakLoop {
    double flops_per_iteration;
    float (*run)(long iterations);  // the result means nothing, and keeps the loop alive
};

// One per instruction set. They exist, and may run, where its kernels do (kernels.hpp).
PeakLoop avx512_peak();
PeakLoop avx512vl_peak();
PeakLoop avx2_peak();
PeakLoop neon_peak();

}  // namespace distreal
