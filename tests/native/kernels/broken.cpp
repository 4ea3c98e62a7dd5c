// Kernels with a fault of each kind, to see that it is noticed.

#include "kernels/kernels.hpp"
#include "tests.hpp"

namespace distreal {
namespace {

const Kernels<float>& good() { return plain_kernels<float>(); }

// One element is off by a few roundings.
void inexact_gather(const GatherTask<float>& task, int unit) {
    good().gather(task, unit);
    if (unit == 0 && !task.gather->classes[0].positions.empty() && task.cut.bands == 1) {
        task.to.data[task.gather->classes[0].positions[0].to * task.to.pixel_stride] *= 1.00001F;
    }
}

// Something stays unwritten.
void lazy_depthwise_weight(const DepthwiseWeightTask<float>& task, int unit) {
    if (unit != 1) {
        good().depthwise_weight(task, unit);
    }
}

// Other bits every time, though all within the bound.
void moody_moments(const MomentsTask<float>& task, int unit) {
    static float mood = 1;
    good().moments(task, unit);
    mood = mood == 1 ? 0x1.000002p0F : 1;
    task.moments[0] *= mood;
}

// A pixel's next channel is not this view's.
void untidy_copy(const CopyTask<float>& task, int unit) {
    good().copy(task, unit);
    if (task.pixels > 1 && task.to.pixel_stride > task.channels) {
        task.to.data[task.channels] = 0;
    }
}

// An element that is not touched loses its bits.
void greedy_sgd(const SgdTask<float>& task, int unit) {
    good().sgd(task, unit);
    if (task.column[0] > 0) {
        task.momentum[task.row[unit] * task.row_stride + task.column[0] * task.taps - 1] = 0;
    }
}

// Reads beyond what it was given.
void curious_add(const AddTask<float>& task, int unit) {
    good().add(task, unit);
    volatile float beyond = task.one.data[task.one.block_stride * task.cut.blocks + 65536];
    beyond = beyond + 1;
}

}  // namespace

const Kernels<float>& broken_kernels() {
    static const Kernels<float> table = [] {
        Kernels<float> made = good();
        made.name = "broken";
        made.gather = inexact_gather;
        made.depthwise_weight = lazy_depthwise_weight;
        made.moments = moody_moments;
        made.copy = untidy_copy;
        made.sgd = greedy_sgd;
        made.add = curious_add;
        return made;
    }();
    return table;
}

}  // namespace distreal
