#pragma once
// The surviving part of a tensor of weights, before and after packing.

#include <limits>
#include <vector>

#include "holding.hpp"

namespace distreal::held {

struct Matrix {
    std::vector<double> weights;  // of the whole tensor; what does not survive is not a number and must not be read
    std::vector<std::int32_t> to_index;
    std::vector<std::int32_t> from_index;
    std::ptrdiff_t to_stride;
    std::ptrdiff_t from_stride;
    std::vector<double> to_scale;  // empty: none
    std::vector<double> from_scale;
    int taps;

    double& weight(std::size_t j, std::size_t i, int tap) {
        return weights[static_cast<std::size_t>(to_index[j] * to_stride + from_index[i] * from_stride + tap)];
    }

    void make_absolute() {
        held::make_absolute(weights);
        held::make_absolute(to_scale);
        held::make_absolute(from_scale);
    }
};

// Transposed: of a tensor [from][to][taps].
inline Matrix drawn_matrix(Random& random, int to_channels, int from_channels, int taps, bool transposed, Grain grain) {
    const int to_all = to_channels + random.between(0, 5);
    const int from_all = from_channels + random.between(0, 5);
    Matrix matrix{};
    matrix.weights.assign(static_cast<std::size_t>(to_all * from_all * taps), std::numeric_limits<double>::quiet_NaN());
    matrix.to_index = random.survivors(to_channels, to_all);
    matrix.from_index = random.survivors(from_channels, from_all);
    matrix.to_stride = transposed ? taps : from_all * taps;
    matrix.from_stride = transposed ? to_all * taps : taps;
    matrix.taps = taps;
    for (std::size_t j = 0; j < matrix.to_index.size(); ++j) {
        for (std::size_t i = 0; i < matrix.from_index.size(); ++i) {
            for (int tap = 0; tap < taps; ++tap) {
                matrix.weight(j, i, tap) = random.number(grain);
            }
        }
    }
    const auto scales = [&](int count) {
        std::vector<double> drawn;
        for (int i = 0; i < count; ++i) {
            drawn.push_back(grain == Grain::whole ? random.pick({0.5, 1.0, 2.0}) : random.number(grain));
        }
        return drawn;
    };
    if (random.chance(0.3)) {
        matrix.to_scale = scales(to_channels);
    }
    if (random.chance(0.3)) {
        matrix.from_scale = scales(from_channels);
    }
    return matrix;
}

template <class Real>
class PackedMatrix {
  public:
    PackedMatrix(const Kernels<Real>& kernels, const Matrix& matrix, Random& order)
        : packed_(kernels.packed_size(static_cast<int>(matrix.to_index.size()),
                                      static_cast<int>(matrix.from_index.size()), matrix.taps)) {
        const Fenced<Real> weights(matrix.weights);
        const Fenced<Real> to_scale(matrix.to_scale);
        const Fenced<Real> from_scale(matrix.from_scale);
        const Pack<Real> task{
            .weights = weights.data(),
            .to_index = matrix.to_index.data(),
            .from_index = matrix.from_index.data(),
            .to_stride = matrix.to_stride,
            .from_stride = matrix.from_stride,
            .to_scale = matrix.to_scale.empty() ? nullptr : to_scale.data(),
            .from_scale = matrix.from_scale.empty() ? nullptr : from_scale.data(),
            .to_channels = static_cast<int>(matrix.to_index.size()),
            .from_channels = static_cast<int>(matrix.from_index.size()),
            .taps = matrix.taps,
            .packed = packed_.data(),
        };
        run_units(order, kernels.pack_units(task), [&](int unit) { kernels.pack(task, unit); });
        if (!packed_.surroundings_are_untouched()) {
            throw Failure{"something outside the packed weights was written"};
        }
    }

    const Real* data() const { return packed_.data(); }

  private:
    Fenced<Real> packed_;
};

}  // namespace distreal::held
