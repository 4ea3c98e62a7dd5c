#include "kernels/choose.hpp"

namespace distreal {

const Kernels<float>& kernels_of(InstructionSet set) {
    switch (set) {
#if defined(__x86_64__)
        case InstructionSet::avx512:
            return avx512_kernels();
        case InstructionSet::avx512vl:
            return avx512vl_kernels();
        case InstructionSet::avx2:
            return avx2_kernels();
#elif defined(__aarch64__)
        case InstructionSet::neon:
            return neon_kernels();
#endif
        default:
            return plain_kernels<float>();
    }
}

}  // namespace distreal
