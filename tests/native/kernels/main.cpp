// Holds kernels to the plain ones, and the plain ones to direct formulas and finite differences.
//
//     kernels CASES                  every test, that many random cases of each
//     kernels CASES NAME [FIRST]     one test, its cases from number FIRST on

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests.hpp"
#include "values.hpp"

// The one set that this program was built for.
#ifdef DISTREAL_TESTED_SET
#define DISTREAL_TESTED_KERNELS DISTREAL_TESTED_SET()
#else
#define DISTREAL_TESTED_KERNELS plain_kernels<float>()
#endif

namespace distreal::held {
namespace {

char current[1000];

void report_signal(int signal) {
    static const char before[] = "a signal stopped ";
    bool written = write(STDERR_FILENO, before, sizeof(before) - 1) >= 0;
    written = write(STDERR_FILENO, current, std::strlen(current)) >= 0 && written;
    written = write(STDERR_FILENO, "\n", 1) >= 0 && written;
    _exit(written ? 100 : 100 + signal);
}

std::string prefix;

// False when a case failed.
template <class TryOne>
bool run_test(const char* name, int first, int cases, const TryOne& try_one) {
    for (int number = first; number < first + cases; ++number) {
        std::uint64_t seed = static_cast<std::uint64_t>(number) << 32U;
        for (const char* letter = name; *letter != 0; ++letter) {
            seed = seed * 31 + static_cast<unsigned char>(*letter);
        }
        Random random(seed);
        prefix = std::string(name) + " " + std::to_string(number) + ":";
        begin_case("");
        try {
            try_one(random);
        } catch (const Failure& failure) {
            std::printf("FAILED %s\n    %s\n", current, failure.message.c_str());
            return false;
        }
    }
    return true;
}

int run_all(int cases, const std::string& only, int first) {
    const Kernels<float>& kernels = DISTREAL_TESTED_KERNELS;
    int tried = 0;
    bool good = true;
    for (const auto& tests :
         {convolution_tests(), weight_gradient_tests(), depthwise_tests(), pass_tests(), pool_tests(), sgd_tests()}) {
        for (const Test& test : tests) {
            if (only.empty() || only == test.name) {
                ++tried;
                good =
                    run_test(test.name, first, cases, [&](Random& random) { test.try_one(kernels, random); }) && good;
            }
        }
    }
    for (const auto& tests : {direct_tests(), difference_tests()}) {
        for (const PlainTest& test : tests) {
            if (only == test.name || (only.empty() && kernels.name == std::string("plain"))) {
                ++tried;
                good = run_test(test.name, first, cases, test.try_one) && good;
            }
        }
    }
    std::printf("%s: %d tests of %d cases each\n", kernels.name, tried, cases);
    return good && tried > 0 ? 0 : 1;
}

}  // namespace

void begin_case(const std::string& description) {
    std::snprintf(current, sizeof(current), "%s %s", prefix.c_str(), description.c_str());
}

}  // namespace distreal::held

int main(int count, char** arguments) {
    std::signal(SIGSEGV, distreal::held::report_signal);
    std::signal(SIGBUS, distreal::held::report_signal);
    std::signal(SIGILL, distreal::held::report_signal);
    std::signal(SIGFPE, distreal::held::report_signal);
    if (count < 2) {
        std::fprintf(stderr, "usage: kernels CASES [NAME [FIRST]]\n");
        return 2;
    }
    return distreal::held::run_all(std::atoi(arguments[1]), count > 2 ? arguments[2] : "",
                                   count > 3 ? std::atoi(arguments[3]) : 0);
}
