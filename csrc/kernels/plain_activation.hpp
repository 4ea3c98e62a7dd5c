#pragma once

#include <cmath>

#include "kernels/kernels.hpp"

namespace distreal::plain {

// What is not a number stays so, or a diverged network would look sound.
template <class Real>
Real activated(Activation activation, Real x) {
    switch (activation) {
        case Activation::none:
            return x;
        case Activation::relu:
            return x < Real(0) ? Real(0) : x;
        case Activation::relu6:
            return x < Real(0) ? Real(0) : (x > Real(6) ? Real(6) : x);
        case Activation::hardswish:
            return x * activated(Activation::relu6, x + Real(3)) / Real(6);
        case Activation::sigmoid:
            return Real(1) / (Real(1) + std::exp(-x));
    }
    return x;
}

template <class Real>
Real derivative(Activation activation, Real x) {
    switch (activation) {
        case Activation::none:
            return Real(1);
        case Activation::relu:
            return x <= Real(0) ? Real(0) : Real(1);
        case Activation::relu6:
            return x <= Real(0) || x >= Real(6) ? Real(0) : Real(1);
        case Activation::hardswish:
            return x <= Real(-3) ? Real(0) : (x >= Real(3) ? Real(1) : (Real(2) * x + Real(3)) / Real(6));
        case Activation::sigmoid: {
            const Real y = activated(activation, x);
            return y * (Real(1) - y);
        }
    }
    return Real(1);
}

inline bool derivative_follows_from_result(Activation activation) {
    return activation == Activation::relu || activation == Activation::relu6 || activation == Activation::sigmoid;
}

template <class Real>
Real derivative_from_result(Activation activation, Real y) {
    return activation == Activation::sigmoid ? y * (Real(1) - y) : derivative(activation, y);
}

}  // namespace distreal::plain
