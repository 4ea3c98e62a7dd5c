#pragma once
// Convolutions, dense and depthwise. Sums run in the innermost loops over channels, which lie side by side.

#include <cstddef>

#include "kernels/plain_activation.hpp"
#include "kernels/plain_layout.hpp"

namespace distreal::plain {

inline std::size_t packed_size(int to_channels, int from_channels, int taps) {
    return static_cast<std::size_t>(to_channels) * static_cast<std::size_t>(from_channels) *
           static_cast<std::size_t>(taps);
}

template <class Real>
int pack_units(const Pack<Real>& task) {
    return task.to_channels;
}

// To [to][from][tap]; a unit is one `to`.
template <class Real>
void pack(const Pack<Real>& task, int unit) {
    const Real to_scale = task.to_scale == nullptr ? Real(1) : task.to_scale[unit];
    Real* packed = task.packed + static_cast<std::ptrdiff_t>(unit) * task.from_channels * task.taps;
    for (int i = 0; i < task.from_channels; ++i) {
        const Real from_scale = task.from_scale == nullptr ? Real(1) : task.from_scale[i];
        const Real* const weights =
            task.weights + task.to_index[unit] * task.to_stride + task.from_index[i] * task.from_stride;
        for (int tap = 0; tap < task.taps; ++tap) {
            *packed++ = weights[tap] * to_scale * from_scale;
        }
    }
}

// What happens to a sum before it is written, in a GatherTask or a DepthwiseTask.
template <class Real, class Task>
void finish(const Task& task, int block, int pixel, int channel, Real sum, Real* sums) {
    Real& to = at(task.to, block, pixel)[channel];
    if (task.bias != nullptr) {
        sum += task.bias[channel];
    }
    if (task.accumulate) {
        sum += to;
    }
    if (task.through != nullptr) {
        const ThroughActivation<Real>& through = *task.through;
        const Real y = at(through.y, block, pixel)[channel];
        sum *= derivative(through.activation, through.scale[channel] * y + through.shift[channel]);
        sums[channel] += sum;
        sums[task.to_channels + channel] += sum * (y - through.mean[channel]);
    } else if (sums != nullptr && is_live(task.live, block)) {
        sums[channel] += sum;
        sums[task.to_channels + channel] += sum * sum;
    }
    to = sum;
}

// Calls make(block, taps, position) for every pixel that the unit of a GatherTask or DepthwiseTask makes.
template <class Task, class Make>
void for_each_position(const Task& task, int unit, const Make& make) {
    const Range blocks = blocks_of(task.cut, unit);
    for (int block = blocks.first; block < blocks.end; ++block) {
        for (const TapClass& of_class : task.gather->classes) {
            const Range band = band_of(task.cut, unit, static_cast<int>(of_class.positions.size()));
            for (int i = band.first; i < band.end; ++i) {
                make(block, of_class.taps, of_class.positions[static_cast<std::size_t>(i)]);
            }
        }
    }
}

template <class Real, class Task>
Real* sums_of(const Task& task, int unit) {
    return cleared_sums(task.through == nullptr ? task.moments : task.through->sums, unit, task.to_channels);
}

template <class Real>
void gather(const GatherTask<Real>& task, int unit) {
    Real* const sums = sums_of<Real>(task, unit);
    const int all_taps = task.gather->taps;
    for_each_position(task, unit, [&](int block, const std::vector<Tap>& taps, const Position& position) {
        for (int o = 0; o < task.to_channels; ++o) {
            const Real* const of_output = task.packed + static_cast<std::ptrdiff_t>(o) * task.from_channels * all_taps;
            Real sum = 0;
            for (const Tap& tap : taps) {
                const Real* const from = at(task.from, block, position.from + tap.offset);
                const Real* weight = of_output + tap.index;
                for (int i = 0; i < task.from_channels; ++i, weight += all_taps) {
                    sum += *weight * from[i];
                }
            }
            finish(task, block, position.to, o, sum, sums);
        }
    });
}

template <class Real>
int weight_gradient_units(const WeightGradientTask<Real>& task) {
    return task.parts * task.out_channels;
}

template <class Real>
std::size_t weight_gradient_scratch(const WeightGradientTask<Real>& task) {
    return static_cast<std::size_t>(task.in_channels);
}

// A unit is one output channel of one part; the parts divide the images.
template <class Real>
void weight_gradient(const WeightGradientTask<Real>& task, int unit, Real* scratch) {
    const int part = unit / task.out_channels;
    const int o = unit % task.out_channels;
    const int taps = task.window->taps();
    Real* const result = task.result + static_cast<std::ptrdiff_t>(unit) * task.in_channels * taps;
    for (int tap = 0; tap < taps; ++tap) {
        for (int i = 0; i < task.in_channels; ++i) {
            scratch[i] = Real(0);
        }
        for (int block = task.blocks * part / task.parts; block < task.blocks * (part + 1) / task.parts; ++block) {
            for (const Run& run : task.runs->of_tap[static_cast<std::size_t>(tap)]) {
                for (int k = 0; k < run.count; ++k) {
                    const Real gradient = at(task.gradient, block, run.out + k)[o];
                    const Real* const in = at(task.in, block, run.in + k * run.in_step);
                    for (int i = 0; i < task.in_channels; ++i) {
                        scratch[i] += in[i] * gradient;
                    }
                }
            }
        }
        for (int i = 0; i < task.in_channels; ++i) {
            result[i * taps + tap] = scratch[i];
        }
    }
}

template <class Real>
void depthwise_forward(const DepthwiseTask<Real>& task, int unit) {
    Real* const sums = sums_of<Real>(task, unit);
    const int all_taps = task.gather->taps;
    for_each_position(task, unit, [&](int block, const std::vector<Tap>& taps, const Position& position) {
        for (int o = 0; o < task.to_channels; ++o) {
            Real sum = 0;
            for (const Tap& tap : taps) {
                sum += task.weights[o * all_taps + tap.index] *
                       at(task.from, block, position.from + tap.offset)[task.partner[o]];
            }
            finish(task, block, position.to, o, sum, sums);
        }
    });
}

template <class Real>
void depthwise_backward(const DepthwiseTask<Real>& task, int unit) {
    Real* const sums = sums_of<Real>(task, unit);
    const int all_taps = task.gather->taps;
    for_each_position(task, unit, [&](int block, const std::vector<Tap>& taps, const Position& position) {
        for (int i = 0; i < task.to_channels; ++i) {
            Real sum = 0;
            for (int o = task.first[i]; o < task.first[i + 1]; ++o) {
                for (const Tap& tap : taps) {
                    sum += task.weights[o * all_taps + tap.index] * at(task.from, block, position.from + tap.offset)[o];
                }
            }
            finish(task, block, position.to, i, sum, sums);
        }
    });
}

template <class Real>
int depthwise_weight_units(const DepthwiseWeightTask<Real>& task) {
    return task.parts * task.out_channels;
}

// A unit is one output channel of one part; the parts divide the images.
template <class Real>
void depthwise_weight(const DepthwiseWeightTask<Real>& task, int unit) {
    const int part = unit / task.out_channels;
    const int o = unit % task.out_channels;
    const int taps = task.window->taps();
    for (int tap = 0; tap < taps; ++tap) {
        Real sum = 0;
        for (int block = task.blocks * part / task.parts; block < task.blocks * (part + 1) / task.parts; ++block) {
            for (const Run& run : task.runs->of_tap[static_cast<std::size_t>(tap)]) {
                for (int k = 0; k < run.count; ++k) {
                    sum += at(task.in, block, run.in + k * run.in_step)[task.partner[o]] *
                           at(task.gradient, block, run.out + k)[o];
                }
            }
        }
        task.result[static_cast<std::ptrdiff_t>(unit) * taps + tap] = sum;
    }
}

}  // namespace distreal::plain
