// AVX2 with FMA.
#define DISTREAL_SIMD avx2
#include "kernels/simd/peak.hpp"
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& avx2_kernels() { return avx2::table; }
PeakLoop avx2_peak() { return avx2::peak; }

}  // namespace distreal
