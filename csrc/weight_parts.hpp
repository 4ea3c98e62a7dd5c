#pragma once

#include <cstddef>

namespace distreal {

// Makes one row of a weight gradient of the same row of its parts, which lie `part_stride` elements apart: they are
// always added up in the same order. `to` may be the row of the first part.
template <class Real>
void add_parts_of_row(const Real* row, int parts, std::ptrdiff_t part_stride, std::ptrdiff_t elements, Real* to) {
    for (std::ptrdiff_t i = 0; i < elements; ++i) {
        to[i] = row[i];
    }
    for (int part = 1; part < parts; ++part) {
        const Real* more = row + part * part_stride;
        for (std::ptrdiff_t i = 0; i < elements; ++i) {
            to[i] += more[i];
        }
    }
}

}  // namespace distreal
