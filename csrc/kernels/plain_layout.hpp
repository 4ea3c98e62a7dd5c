#pragma once
// What the plain kernels share: where elements lie when lanes is 1, and which of them a unit works on.

#include <cstddef>

#include "kernels/kernels.hpp"

namespace distreal::plain {

struct Range {
    int first;
    int end;
};

inline Range blocks_of(const Cut& cut, int unit) {
    const int first = unit / cut.bands * cut.blocks_per_unit;
    const int end = first + cut.blocks_per_unit;
    return {first, end < cut.blocks ? end : cut.blocks};
}

// Of `count` pixels, or positions of a class.
inline Range band_of(const Cut& cut, int unit, int count) {
    const int band = unit % cut.bands;
    return {count * band / cut.bands, count * (band + 1) / cut.bands};
}

// The channels of one pixel of one block.
template <class Real>
Real* at(const View<Real>& view, int block, int pixel) {
    return view.data + block * view.block_stride + pixel * view.pixel_stride;
}

template <class Real>
bool is_live(const Real* live, int block) {
    return live == nullptr || live[block] != Real(0);
}

// The two sums over a unit that one task keeps for every channel, begun at zero.
template <class Real>
Real* cleared_sums(Real* sums, int unit, int channels) {
    if (sums == nullptr) {
        return nullptr;
    }
    Real* const of_unit = sums + static_cast<std::ptrdiff_t>(unit) * 2 * channels;
    for (int i = 0; i < 2 * channels; ++i) {
        of_unit[i] = Real(0);
    }
    return of_unit;
}

}  // namespace distreal::plain
