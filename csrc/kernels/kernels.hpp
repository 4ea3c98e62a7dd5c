#pragma once
// What every instruction set implements: the inner loops of a training step over surviving channels.
//
// Layout. A value is stored in blocks of `lanes` images, `lanes` being the vector length of the instruction set (1 for
// the plain kernels). Channel c of pixel p = y * width + x of image n lies at
//
//     data[(n / lanes) * block_stride + p * pixel_stride + c * lanes + n % lanes]
//
// so that a vector holds the same element of several images: every shape, stride and number of channels fills vectors
// alike, surviving channels lie side by side, and a part of a concatenation is a view with the whole's pixel_stride.
// Lanes of the last block that hold no image are idle: they hold finite numbers in values, and zeros in gradients.
//
// Work. Every kernel computes one unit of a task; units of one task write to different places, so that threads can
// take them in any order. What a unit computes does not depend on the number of threads.

#include <cstddef>
#include <cstdint>

#include "cancellation.hpp"
#include "kernels/geometry.hpp"

namespace distreal {

template <class Real>
struct View {
    Real* data = nullptr;
    std::ptrdiff_t block_stride = 0;  // in elements, as all strides
    std::ptrdiff_t pixel_stride = 0;  // channels * lanes, or more in a part of a concatenation

    View<const Real> as_const() const { return {data, block_stride, pixel_stride}; }
};

// The distance from pixel to pixel for a value of its own. Pixels that lie a multiple of half a page apart would share
// a few sets of the caches, and drive each other out: those get a vector more.
inline std::ptrdiff_t pixel_stride_for(int channels, int lanes, std::size_t element_bytes) {
    const std::size_t bytes = static_cast<std::size_t>(channels) * static_cast<std::size_t>(lanes) * element_bytes;
    const bool collides = lanes > 1 && bytes % 2048 == 0;
    return (static_cast<std::ptrdiff_t>(channels) + (collides ? 1 : 0)) * lanes;
}

// How a task over whole planes is cut: unit u works on blocks of images u / bands * blocks_per_unit and following, and
// there on band u % bands of the pixels (or of every class's positions): those from count * band / bands on.
struct Cut {
    int blocks;           // of images, in the whole task
    int blocks_per_unit;  // the last unit may have fewer
    int bands;            // over 1 only where blocks_per_unit is 1

    int units() const { return (blocks + blocks_per_unit - 1) / blocks_per_unit * bands; }
};

enum class Activation { none, relu, relu6, hardswish, sigmoid };

// ---- Convolution, forward and backward-data: `to[p, o] = sum over taps and i of w[o, i, tap] * from[p', i]` ----

// Where a matrix of weights lies in its tensor, and which of it survives. Weight (j, i, tap) is
// weights[to_index[j] * to_stride + from_index[i] * from_stride + tap] * to_scale[j] * from_scale[i].
template <class Real>
struct Pack {
    const Real* weights;
    const std::int32_t* to_index;    // [to_channels]
    const std::int32_t* from_index;  // [from_channels]
    std::ptrdiff_t to_stride;
    std::ptrdiff_t from_stride;
    const Real* to_scale;    // null: 1
    const Real* from_scale;  // null: 1
    int to_channels;
    int from_channels;
    int taps;
    Real* packed;  // room for packed_size(...)
};

// The batch norm and activation behind a value, to be differentiated by whoever adds the last part of its gradient:
// with pre = scale[c] * y + shift[c], the gradient d of activation(pre) becomes d * activation'(pre), and of the
// products the sums are taken that batch norm needs.
template <class Real>
struct ThroughActivation {
    Activation activation;  // none, relu or relu6
    View<const Real> y;     // of the gathered result's shape
    const Real* scale;      // [channels]
    const Real* shift;
    const Real* mean;
    Real* sums;  // [units][2][channels]: the sums of d and of d * (y - mean) over this unit
};

template <class Real>
struct GatherTask {
    const Gather* gather;
    View<const Real> from;
    View<Real> to;
    int from_channels;
    int to_channels;
    const Real* packed;
    const Real* bias;  // [to_channels] or null
    bool accumulate;   // add to what `to` holds
    Cut cut;
    // For batch statistics: [units][2][to_channels], the sums of the results and of their squares over this unit's live
    // lanes, bias included; null: not wanted. live: [blocks][lanes] of 1 and 0; null: all lanes hold images.
    Real* moments;
    const Real* live;
    const ThroughActivation<Real>* through;  // null: the result is written as it is. Never together with moments
};

// ---- Convolution, backward-weights: `result[o][i][tap] = sum over pixels and images of in[p', i] * gradient[p, o]`
// ----
template <class Real>
struct WeightGradientTask {
    const Window* window;
    const TapRuns* runs;
    View<const Real> in;
    View<const Real> gradient;
    int in_channels;
    int out_channels;
    int blocks;
    int parts;     // into how many parts the images and rows are cut; each part has a result of its own
    Real* result;  // [parts][out_channels][in_channels][taps], all written
    // A unit goes through all images and may take long, so it may leave off with whatever it has when this is
    // cancelled; null: never.
    const Cancellation* cancellation = nullptr;
};

// ---- Depthwise convolution: output channel o reads input channel o / multiplier, of full or surviving channels ----
template <class Real>
struct DepthwiseTask {
    const Window* window;
    const Gather* gather;  // forward or backward
    View<const Real> from;
    View<Real> to;
    int from_channels;
    int to_channels;
    const std::int32_t* partner;  // forward: [to_channels], the surviving input that an output reads. backward: null
    const std::int32_t*
        first;            // backward: [to_channels + 1], outputs first[i]..first[i+1]-1 read input i. forward: null
    const Real* weights;  // packed: [out_channels][taps]
    const Real* bias;     // [to_channels] or null
    bool accumulate;
    Cut cut;
    Real* moments;  // these as in GatherTask
    const Real* live;
    const ThroughActivation<Real>* through;
};

template <class Real>
struct DepthwiseWeightTask {
    const Window* window;
    const TapRuns* runs;
    View<const Real> in;
    View<const Real> gradient;
    const std::int32_t* partner;  // [out_channels]
    int out_channels;
    int blocks;
    int parts;
    Real* result;  // [parts][out_channels][taps], all written
};

// ---- Passes over the channels of a value ----

// Sums over live lanes of y and of y * y, per channel: moments[units][2][channels]. With `squares` off only sums are
// taken and the second half is left alone (gradients of biases; idle lanes of gradients are zeros anyway).
template <class Real>
struct MomentsTask {
    View<const Real> y;
    int pixels;
    int channels;
    Cut cut;
    const Real* live;  // as in GatherTask
    bool squares;
    Real* moments;
};

// out = activation(scale[c] * y + shift[c] + residual), the middle of a network in one pass.
template <class Real>
struct ActivateTask {
    View<const Real> y;
    const Real* scale;  // [channels]; null: 1, and shift is null too
    const Real* shift;
    const View<const Real>* residual;  // null: none
    Activation activation;
    View<Real> out;  // may be y itself
    int pixels;
    int channels;
    Cut cut;
};

// d = gradient * activation'(...), written to `masked` (which may be `gradient`). The derivative follows from `out` for
// relu, relu6 and sigmoid when out.data is not null, else from pre = scale * y + shift (scale null: pre = y).
template <class Real>
struct ActivateBackwardTask {
    View<const Real> gradient;
    View<const Real> y;
    View<const Real> out;  // data null: there is none
    const Real* scale;
    const Real* shift;
    Activation activation;
    View<Real> masked;
    bool accumulate;   // add to what `masked` holds (never with sums)
    const Real* mean;  // [channels]; null: no sums are wanted
    Real* sums;        // [units][2][channels]: of d and of d * (y - mean)
    int pixels;
    int channels;
    Cut cut;
};

// to (+)= a[c] * gradient + b[c] * y + c[c]: the rest of batch norm's backward pass. Idle lanes become zeros.
template <class Real>
struct NormaliseBackwardTask {
    View<const Real> gradient;
    View<const Real> y;
    const Real* a;
    const Real* b;
    const Real* c;
    const Real* live;
    View<Real> to;  // may be gradient itself
    bool accumulate;
    int pixels;
    int channels;
    Cut cut;
};

// to (=, +=) from, channel by channel.
template <class Real>
struct CopyTask {
    View<const Real> from;
    View<Real> to;
    bool accumulate;
    int pixels;
    int channels;
    Cut cut;
};

// out = one + other.
template <class Real>
struct AddTask {
    View<const Real> one;
    View<const Real> other;
    View<Real> out;
    int pixels;
    int channels;
    Cut cut;
};

// to (=, +=) one * other; `other` may have a single pixel that multiplies every pixel of `one`. With `reduce`, `to` has
// a single pixel and gets the sum over pixels of one * other, both of full size (then bands is 1).
template <class Real>
struct MultiplyTask {
    View<const Real> one;
    View<const Real> other;
    bool other_is_single;
    bool reduce;
    View<Real> to;
    bool accumulate;
    int pixels;
    int channels;
    Cut cut;
};

// Pools; max takes the first of equal maxima, row by row. `gather` is the forward one, with padding left out.
template <class Real>
struct PoolTask {
    const Gather* gather;
    const Window* window;
    bool maximum;
    bool count_include_pad;     // average: over the whole window instead of over its pixels inside the plane
    View<const Real> in;        // forward and backward
    View<Real> out;             // forward: made
    View<const Real> gradient;  // backward: of out
    View<Real> in_gradient;     // backward: made
    bool accumulate;            // backward: add to what in_gradient holds; else all of it is written
    int channels;
    Cut cut;  // backward: bands is 1
};

// [C, H, W] to [C * H * W]: feature f[p, c] of pixel p and channel c, or back. `feature` is [pixels][channels].
template <class Real>
struct FlattenTask {
    View<const Real> from;
    View<Real> to;
    bool backward;  // from features to maps
    bool accumulate;
    const std::int32_t* feature;
    int pixels;
    int channels;
    Cut cut;  // bands is 1
};

// SGD with momentum and weight decay on the touched elements of a tensor: of row row[r], elements
// column[i] * tap_count + t, with gradient gradient[r][i][t] * scale[i]. One unit is one row.
template <class Real>
struct SgdTask {
    Real* weights;
    Real* momentum;
    std::ptrdiff_t row_stride;
    const std::int32_t* row;
    const std::int32_t* column;
    int rows;
    int columns;
    int taps;
    const Real* gradient;
    const Real* scale;  // [columns] or null
    Real lr;
    Real momentum_factor;
    Real weight_decay;
};

template <class Real>
struct Kernels {
    const char* name;
    int lanes;

    std::size_t (*packed_size)(int to_channels, int from_channels, int taps);
    int (*pack_units)(const Pack<Real>&);
    void (*pack)(const Pack<Real>&, int unit);
    void (*gather)(const GatherTask<Real>&, int unit);

    int (*weight_gradient_units)(const WeightGradientTask<Real>&);
    std::size_t (*weight_gradient_scratch)(const WeightGradientTask<Real>&);  // elements, for each thread
    void (*weight_gradient)(const WeightGradientTask<Real>&, int unit, Real* scratch);

    void (*depthwise_forward)(const DepthwiseTask<Real>&, int unit);
    void (*depthwise_backward)(const DepthwiseTask<Real>&, int unit);
    int (*depthwise_weight_units)(const DepthwiseWeightTask<Real>&);
    void (*depthwise_weight)(const DepthwiseWeightTask<Real>&, int unit);

    void (*moments)(const MomentsTask<Real>&, int unit);
    void (*activate)(const ActivateTask<Real>&, int unit);
    void (*activate_backward)(const ActivateBackwardTask<Real>&, int unit);
    void (*normalise_backward)(const NormaliseBackwardTask<Real>&, int unit);
    void (*copy)(const CopyTask<Real>&, int unit);
    void (*add)(const AddTask<Real>&, int unit);
    void (*multiply)(const MultiplyTask<Real>&, int unit);
    void (*pool_forward)(const PoolTask<Real>&, int unit);
    void (*pool_backward)(const PoolTask<Real>&, int unit);
    void (*flatten)(const FlattenTask<Real>&, int unit);
    void (*sgd)(const SgdTask<Real>&, int unit);
};

// The reference of every kernel: plain loops, lanes = 1, for float and double.
template <class Real>
const Kernels<Real>& plain_kernels();

// Those of one instruction set. The functions exist only where the compiler's target has the instruction set, and
// what they return must be called only on a processor that has it, too.
const Kernels<float>& avx512_kernels();
const Kernels<float>& avx512vl_kernels();
const Kernels<float>& avx2_kernels();
const Kernels<float>& neon_kernels();

}  // namespace distreal
