#pragma once

#include <optional>
#include <vector>

#include "holding.hpp"

namespace distreal::held {

// Everything is in eighths, so that the activation's argument is exact and lies on the same side of its corners, or on
// them, in every precision.
struct Through {
    Activation activation;
    Values y;
    std::vector<double> scale;
    std::vector<double> shift;
    std::vector<double> mean;
    Placement placement;

    void make_absolute() {
        activation = Activation::none;
        held::make_absolute(y.data);
        for (double& of_channel : mean) {
            of_channel = -std::abs(of_channel);
        }
    }
};

inline Through drawn_through(Random& random, const Values& result) {
    Through through{};
    through.activation = random.pick({Activation::none, Activation::relu, Activation::relu6});
    through.y = drawn_eighths(random, result.images, result.pixels, result.channels, 4);
    for (int c = 0; c < result.channels; ++c) {
        through.scale.push_back(random.pick({-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0}));
        through.shift.push_back(random.eighths(4));
        through.mean.push_back(random.eighths(4));
    }
    through.placement = drawn_placement(random);
    return through;
}

template <class Real>
class PlacedThrough {
  public:
    PlacedThrough(const std::optional<Through>& through, int lanes, Real* sums)
        : y_(through ? through->y : Values(1, 1, 1), lanes, through ? through->placement : Placement{}, Idle::finite),
          scale_(through ? through->scale : std::vector<double>()),
          shift_(through ? through->shift : std::vector<double>()),
          mean_(through ? through->mean : std::vector<double>()) {
        if (through) {
            task_ = ThroughActivation<Real>{.activation = through->activation,
                                            .y = y_.readable(),
                                            .scale = scale_.data(),
                                            .shift = shift_.data(),
                                            .mean = mean_.data(),
                                            .sums = sums};
        }
    }

    const ThroughActivation<Real>* task() const { return task_ ? &*task_ : nullptr; }

  private:
    Placed<Real> y_;
    Fenced<Real> scale_;
    Fenced<Real> shift_;
    Fenced<Real> mean_;
    std::optional<ThroughActivation<Real>> task_;
};

}  // namespace distreal::held
