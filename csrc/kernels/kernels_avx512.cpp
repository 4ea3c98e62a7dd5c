// AVX-512 with 512-bit vectors.
#define DISTREAL_SIMD avx512
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& avx512_kernels() { return avx512::table; }

}  // namespace distreal
