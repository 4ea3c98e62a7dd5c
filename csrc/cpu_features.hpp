#pragma once

#include <span>
#include <string_view>

namespace distreal {

struct CpuFeature {
    std::string_view name;
    bool present;  // the processor has it, and the operating system saves its registers
};

// The features of this architecture that kernels may ask for, in a fixed order. Asked once per process.
std::span<const CpuFeature> cpu_features();

// Whether `features` lists `name` as present. A name of another architecture is simply absent.
bool has_feature(std::span<const CpuFeature> features, std::string_view name);

}  // namespace distreal
