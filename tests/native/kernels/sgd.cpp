#include <limits>
#include <sstream>

#include "holding.hpp"
#include "tests.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

struct SgdCase {
    int all_rows;
    int all_columns;
    int taps;
    std::vector<std::int32_t> row;
    std::vector<std::int32_t> column;
    std::vector<double> weights;  // what is not touched is not a number and must keep its bits
    std::vector<double> momentum;
    std::vector<double> gradient;
    std::vector<double> scale;  // empty: none
    double lr;
    double momentum_factor;
    double weight_decay;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Fenced<Real> placed_weights(weights);
        const Fenced<Real> placed_momentum(momentum);
        const Fenced<Real> placed_gradient(gradient);
        const Fenced<Real> placed_scale(scale);
        std::vector<bool> touched(weights.size());
        for (const std::int32_t r : row) {
            for (const std::int32_t c : column) {
                for (int tap = 0; tap < taps; ++tap) {
                    touched[static_cast<std::size_t>((r * all_columns + c) * taps + tap)] = true;
                }
            }
        }
        for (std::size_t i = 0; i < weights.size(); ++i) {
            if (!touched[i]) {
                std::memset(&placed_weights[i], pattern, sizeof(Real));
                std::memset(&placed_momentum[i], pattern, sizeof(Real));
            }
        }
        const SgdTask<Real> task{
            .weights = placed_weights.data(),
            .momentum = placed_momentum.data(),
            .row_stride = all_columns * taps,
            .row = row.data(),
            .column = column.data(),
            .rows = static_cast<int>(row.size()),
            .columns = static_cast<int>(column.size()),
            .taps = taps,
            .gradient = placed_gradient.data(),
            .scale = scale.empty() ? nullptr : placed_scale.data(),
            .lr = static_cast<Real>(lr),
            .momentum_factor = static_cast<Real>(momentum_factor),
            .weight_decay = static_cast<Real>(weight_decay),
        };
        run_units(order, task.rows, [&](int unit) { kernels.sgd(task, unit); });
        for (std::size_t i = 0; i < weights.size(); ++i) {
            if (!touched[i] && !(holds_pattern(placed_weights[i]) && holds_pattern(placed_momentum[i]))) {
                throw Failure{"element " + std::to_string(i) + " was written, which is not touched"};
            }
        }
        Outcome outcome;
        outcome.add("weights", placed_weights, 1, all_rows, all_columns * taps);
        outcome.add("momentum", placed_momentum, 1, all_rows, all_columns * taps);
        return outcome;
    }

    // Weights lose what they gain in magnitude: a negative rate adds.
    SgdCase magnitudes() const {
        SgdCase absolute = *this;
        make_absolute(absolute.weights);
        make_absolute(absolute.momentum);
        make_absolute(absolute.gradient);
        make_absolute(absolute.scale);
        absolute.lr = -lr;
        return absolute;
    }

    double factor(const std::string& /*output*/) const { return rounding(5); }
};

void try_sgd(const Kernels<float>& kernels, Random& random) {
    SgdCase one{};
    one.taps = random.pick({1, 1, 2, 4, 9, 9, 25, 49});
    const int rows = random.between(1, 9);
    const int columns = random.chance(0.2) ? random.between(1, 300) : drawn_channels(random);
    one.all_rows = rows + random.between(0, 4);
    one.all_columns = columns + random.between(0, 9);
    one.row = random.survivors(rows, one.all_rows);
    one.column = random.survivors(columns, one.all_columns);
    const int size = one.all_rows * one.all_columns * one.taps;
    one.weights = random.numbers(size, Grain::rounded);
    one.momentum = random.numbers(size, Grain::rounded);
    one.gradient = random.numbers(rows * columns * one.taps, Grain::rounded);
    if (random.chance(0.3)) {
        one.scale = random.numbers(columns, Grain::rounded);
    }
    one.lr = static_cast<float>(random.unit());
    one.momentum_factor = random.pick({0.0, 0.5, static_cast<double>(0.9F)});
    one.weight_decay = random.pick({0.0, static_cast<double>(5e-4F), 0.25});
    std::ostringstream text;
    text << rows << " of " << one.all_rows << " rows, " << columns << " of " << one.all_columns << " columns, "
         << one.taps << " taps" << (one.scale.empty() ? "" : ", scale");
    begin_case(text.str());
    hold(kernels, one, random);
}

}  // namespace

std::vector<Test> sgd_tests() { return {{"sgd", try_sgd}}; }

}  // namespace distreal::held
