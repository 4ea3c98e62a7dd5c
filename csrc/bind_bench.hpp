#pragma once

#include <pybind11/pybind11.h>

namespace distreal {

void bind_bench(pybind11::module_& module);

}  // namespace distreal
