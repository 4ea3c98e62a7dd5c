#pragma once
// As much of a test framework as the pieces need: every case runs, and those that fail say where.

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace distreal::pieces {

struct Case {
    const char* sentence;
    void (*run)();
};

inline void expect(bool holds, const char* what, const char* file, int line) {
    if (!holds) {
        throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": expected " + what);
    }
}

#define EXPECT(condition) ::distreal::pieces::expect((condition), #condition, __FILE__, __LINE__)

template <class Cases>
int run_cases(const Cases& cases) {
    int failures = 0;
    for (const Case& one : cases) {
        try {
            one.run();
            std::printf("passed: %s\n", one.sentence);
        } catch (const std::exception& error) {
            std::printf("FAILED: %s: %s\n", one.sentence, error.what());
            ++failures;
        }
        std::fflush(stdout);
    }
    return failures == 0 ? 0 : 1;
}

}  // namespace distreal::pieces
