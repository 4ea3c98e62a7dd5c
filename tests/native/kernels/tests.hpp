#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"
#include "random.hpp"

namespace distreal {

// Faulty on purpose, to try the tests themselves.
const Kernels<float>& broken_kernels();

}  // namespace distreal

namespace distreal::held {

// What is being tried, so that it can be named when it fails, even by a signal.
void begin_case(const std::string& description);

// One test of a kernel tries one case drawn from `random`, and throws a Failure.
struct Test {
    const char* name;
    void (*try_one)(const Kernels<float>&, Random& random);
};

std::vector<Test> convolution_tests();
std::vector<Test> weight_gradient_tests();
std::vector<Test> depthwise_tests();
std::vector<Test> pass_tests();
std::vector<Test> pool_tests();
std::vector<Test> sgd_tests();

// Of the plain kernels: each tries one case.
struct PlainTest {
    const char* name;
    void (*try_one)(Random& random);
};

std::vector<PlainTest> direct_tests();
std::vector<PlainTest> difference_tests();

}  // namespace distreal::held
