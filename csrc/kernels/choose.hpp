#pragma once

#include "instruction_set.hpp"
#include "kernels/kernels.hpp"

namespace distreal {

// The kernels of an instruction set, which must run on this processor.
const Kernels<float>& kernels_of(InstructionSet set);

}  // namespace distreal
