// NEON, as every 64-bit ARM processor has it.
#define DISTREAL_SIMD neon
#include "kernels/simd/peak.hpp"
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& neon_kernels() { return neon::table; }
PeakLoop neon_peak() { return neon::peak; }

}  // namespace distreal
