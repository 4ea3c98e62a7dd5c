// AVX-512's 32 registers and instructions, with 256-bit vectors.
#define DISTREAL_SIMD avx512vl
#define DISTREAL_SIMD_256
#include "kernels/simd/peak.hpp"
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& avx512vl_kernels() { return avx512vl::table; }
PeakLoop avx512vl_peak() { return avx512vl::peak; }

}  // namespace distreal
