#include "instruction_set.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace distreal {
namespace {

struct Candidate {
    InstructionSet set;
    std::string_view name;
    std::vector<std::string_view> needs;
};

// Best first; the first whose needs are met wins.
const auto candidates = std::to_array<Candidate>({
    {InstructionSet::avx512, "avx512", {"avx512f", "avx512vl", "avx512dq", "avx2", "fma"}},
    {InstructionSet::avx512vl, "avx512vl", {"avx512f", "avx512vl", "avx512dq", "avx2", "fma"}},
    {InstructionSet::avx2, "avx2", {"avx2", "fma"}},
    {InstructionSet::neon, "neon", {"neon"}},
    {InstructionSet::plain, "plain", {}},
});

}  // namespace

std::string_view name_of(InstructionSet set) { return std::ranges::find(candidates, set, &Candidate::set)->name; }

std::vector<InstructionSet> available_instruction_sets(std::span<const CpuFeature> features) {
    std::vector<InstructionSet> available;
    for (const Candidate& candidate : candidates) {
        if (std::ranges::all_of(candidate.needs,
                                [features](std::string_view need) { return has_feature(features, need); })) {
            available.push_back(candidate.set);
        }
    }
    return available;
}

InstructionSet choose_instruction_set(std::span<const CpuFeature> features, std::string_view wanted) {
    const std::vector<InstructionSet> available = available_instruction_sets(features);
    if (wanted.empty()) {
        return available.front();
    }
    const auto found = std::ranges::find(available, wanted, &name_of);
    if (found != available.end()) {
        return *found;
    }
    std::string possible;
    for (const InstructionSet set : available) {
        possible.append(possible.empty() ? "" : ", ").append(name_of(set));
    }
    const bool known = std::ranges::find(candidates, wanted, &Candidate::name) != candidates.end();
    throw std::invalid_argument(std::string(instruction_set_variable) + "=" + std::string(wanted) +
                                (known ? " does not run on this processor" : " is not an instruction set") +
                                "; unset it or use one of: " + possible);
}

}  // namespace distreal
