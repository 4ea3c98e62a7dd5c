#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace distreal {

// A window that slides over a plane, as in convolutions and pools: [vertical, horizontal].
struct Window {
    std::array<int, 2> kernel;
    std::array<int, 2> stride;
    std::array<int, 2> padding;
    std::array<int, 2> dilation;

    int taps() const { return kernel[0] * kernel[1]; }
};

struct Plane {
    int height;
    int width;

    int pixels() const { return height * width; }
};

// Which pixels a window reads to make each pixel of a result. Padding is never read: pixels near the border simply
// have fewer taps, so that nothing is multiplied by zero and no plane needs a halo. Pixels with the same taps form one
// class, so that the loop over taps is the same for all of them.
struct Tap {
    std::int32_t index;   // ky * kernel[1] + kx
    std::int32_t offset;  // pixels from the position's anchor
};

struct Position {
    std::int32_t to;    // the pixel that is made
    std::int32_t from;  // its anchor: the pixel that the first tap of the class reads
};

struct TapClass {
    std::vector<Tap> taps;  // by index; the first has offset 0. Empty: nothing reaches these pixels, and they are zero
    std::vector<Position> positions;  // by `to`
};

// Every pixel of the result is in exactly one class.
struct Gather {
    int taps;  // of the whole window
    Plane from;
    Plane to;
    std::vector<TapClass> classes;  // those with most positions first
};

// Pairs of an output pixel and the input pixel that one tap reads for it, as runs along rows.
struct Run {
    std::int32_t out;  // first output pixel; the next ones follow
    std::int32_t in;   // first input pixel
    std::int32_t count;
    std::int32_t in_step;  // pixels from one input to the next
};

struct TapRuns {
    Plane out;
    std::vector<std::vector<Run>> of_tap;  // by tap index; one run for each of some neighbouring rows of `out`
};

// The output pixels of a convolution from its input pixels.
Gather forward_gather(const Window& window, Plane in, Plane out);

// The gradients of the input pixels from those of the output pixels.
Gather backward_gather(const Window& window, Plane in, Plane out);

// What the gradient of each tap's weights sums over.
TapRuns tap_runs(const Window& window, Plane in, Plane out);

}  // namespace distreal
