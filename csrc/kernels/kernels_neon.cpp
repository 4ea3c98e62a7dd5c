// NEON, as every 64-bit ARM processor has it.
#define DISTREAL_SIMD neon
#include "kernels/simd/table.hpp"

namespace distreal {

const Kernels<float>& neon_kernels() { return neon::table; }

}  // namespace distreal
