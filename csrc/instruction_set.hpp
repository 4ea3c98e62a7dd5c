#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "cpu_features.hpp"

namespace distreal {

// What kernels are compiled for, one set of sources each.
enum class InstructionSet { avx512, avx512vl, avx2, neon, plain };

// The environment variable by which a person overrules the choice, to compare or to work around a fault.
inline constexpr const char* instruction_set_variable = "DISTREAL_EDGE_INSTRUCTION_SET";

std::string_view name_of(InstructionSet set);

// Those that run on a processor with `features`, best first. `plain` is always the last.
std::vector<InstructionSet> available_instruction_sets(std::span<const CpuFeature> features);

// The one named `wanted`, or the best when `wanted` is empty.
// Throws std::invalid_argument, which names the possible ones, when `wanted` is unknown or does not run here.
InstructionSet choose_instruction_set(std::span<const CpuFeature> features, std::string_view wanted);

}  // namespace distreal
