// Prints what the compiled module would say about this processor, without Python: "neon=1 lse=0 ... -> neon".

#include <cstdio>
#include <string>

#include "cpu_features.hpp"
#include "instruction_set.hpp"

int main() {
    for (const distreal::CpuFeature& feature : distreal::cpu_features()) {
        std::printf("%s=%d ", std::string(feature.name).c_str(), feature.present ? 1 : 0);
    }
    const auto chosen = distreal::choose_instruction_set(distreal::cpu_features(), "");
    std::printf("-> %s\n", std::string(distreal::name_of(chosen)).c_str());
}
