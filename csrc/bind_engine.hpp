#pragma once

#include <pybind11/pybind11.h>

namespace distreal {

void bind_engine(pybind11::module_& module);

}  // namespace distreal
