// AVX-512 with 512-bit vectors.
#define DISTREAL_SIMD avx512
#include "kernels/simd/peak.hpp"
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& avx512_kernels() { return avx512::table; }
PeakLoop avx512_peak() { return avx512::peak; }

}  // namespace distreal
