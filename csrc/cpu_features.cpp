#include "cpu_features.hpp"

#include <algorithm>
#include <array>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace distreal {
namespace {

#if defined(__x86_64__)

auto detect() {
    // The builtin asks CPUID *and* XGETBV: a feature whose registers the kernel does not save counts as absent.
    __builtin_cpu_init();
    return std::to_array<CpuFeature>({
        {"sse4.2", __builtin_cpu_supports("sse4.2") != 0},
        {"avx", __builtin_cpu_supports("avx") != 0},
        {"avx2", __builtin_cpu_supports("avx2") != 0},
        {"fma", __builtin_cpu_supports("fma") != 0},
        {"avx512f", __builtin_cpu_supports("avx512f") != 0},
        {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
        {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
        {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
    });
}

#elif defined(__aarch64__) && defined(__linux__)

auto detect() {
    const unsigned long first = getauxval(AT_HWCAP);
    const unsigned long second = getauxval(AT_HWCAP2);
    return std::to_array<CpuFeature>({
        {"neon", (first & HWCAP_ASIMD) != 0},
        {"lse", (first & HWCAP_ATOMICS) != 0},  // atomics of ARMv8.1; a Raspberry Pi 4 has none
        {"fp16", (first & HWCAP_FPHP) != 0 && (first & HWCAP_ASIMDHP) != 0},
        {"dotprod", (first & HWCAP_ASIMDDP) != 0},
        {"sve", (first & HWCAP_SVE) != 0},
        {"i8mm", (second & HWCAP2_I8MM) != 0},
    });
}

#else

// Nothing is known about this architecture, so nothing is promised: the plain kernels run everywhere.
auto detect() { return std::array<CpuFeature, 0>{}; }

#endif

}  // namespace

std::span<const CpuFeature> cpu_features() {
    static const auto features = detect();
    return features;
}

bool has_feature(std::span<const CpuFeature> features, std::string_view name) {
    return std::ranges::any_of(features,
                               [name](const CpuFeature& feature) { return feature.present && feature.name == name; });
}

}  // namespace distreal
