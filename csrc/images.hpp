#pragma once
// The two ends of a step: images and draws into blocks of lanes (the layout is in kernels/kernels.hpp), class scores
// out of them, and the loss. Real is float or double.

#include <cstdint>

#include "kernels/kernels.hpp"

namespace distreal {

// Crops, mirrors and normalises images as network/preprocessing.py does, in Real arithmetic. Pixel is uint8_t, float or
// double.
template <class Real, class Pixel>
struct ImageTask {
    const Pixel* images;  // [count][channels][height][width]; bytes are divided by 255
    int count;
    int channels;
    int height;
    int width;
    const std::int32_t* corners;  // [count][2]: top and left, in 0..2 * margin; null: not cropped
    int margin;                   // black pixels on every side of an image, from which the corners count
    const std::uint8_t* flips;    // [count]: other than 0 mirrors left to right, after cropping; null: none
    const double* mean;           // [channels] or null
    const double* std;            // [channels] or null
    View<Real> to;                // height * width pixels; idle lanes become zeros
    int lanes;
    Cut cut;  // its bands are of rows
};

template <class Real, class Pixel>
void prepare_images(const ImageTask<Real, Pixel>& task, int unit);

// What element-wise dropout multiplies with: 1 / (1 - p) where the draw is at least p, and 0 elsewhere.
template <class Real>
struct DropoutTask {
    const float* draws;  // [count][channels][pixels], in 0..1
    int count;
    int channels;
    int pixels;
    double p;
    int lanes;
    View<Real> to;  // idle lanes become zeros
};

// One block of `lanes` images, or all of them.
template <class Real>
void scatter_lanes(const DropoutTask<Real>& task, int block);
template <class Real>
void scatter_lanes(const DropoutTask<Real>& task);

// Writes the class scores, which are values of a single pixel, as [images][classes].
template <class Real>
void gather_scores(View<const Real> from, int images, int classes, int lanes, Real* scores);

template <class Real>
struct LossTask {
    View<const Real> scores;     // one pixel
    View<Real> gradient;         // of the mean loss; zeros in idle lanes. May be `scores` itself
    const std::int64_t* labels;  // [images], each in 0..classes-1
    int images;
    int classes;
    int lanes;
};

// Returns the mean softmax cross-entropy of the images, and makes its gradient. Scores that are no numbers make a loss
// that is none.
template <class Real>
double cross_entropy(const LossTask<Real>& task);

}  // namespace distreal
