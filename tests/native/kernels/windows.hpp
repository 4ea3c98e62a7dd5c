#pragma once

#include <array>
#include <sstream>
#include <string>

#include "kernels/geometry.hpp"
#include "kernels/kernels.hpp"
#include "random.hpp"

namespace distreal::held {

struct Sliding {
    Window window;
    Plane in;
    Plane out;
};

inline int length_after(const Window& window, std::size_t axis, int length) {
    const int reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
    const int room = length + 2 * window.padding[axis] - reach;
    return room < 0 ? 0 : room / window.stride[axis] + 1;
}

// The windows that networks are made of, and for which kernels have ways of their own.
inline Window drawn_usual_window(Random& random, bool of_pool) {
    const int side = of_pool ? random.pick({2, 2, 3}) : random.pick({1, 3, 3, 3, 5});
    const int stride = of_pool ? random.pick({1, 2, 2, side}) : random.pick({1, 1, 2});
    const int padding = of_pool ? random.between(0, side / 2) : side / 2;
    return {{side, side}, {stride, stride}, {padding, padding}, {1, 1}};
}

// Every kind of window. In a pool's window at least one pixel lies inside the plane wherever it stands.
inline Sliding drawn_sliding(Random& random, bool of_pool = false) {
    for (;;) {
        Window window{};
        const bool square = random.chance(0.6);
        for (std::size_t axis = 0; axis < 2; ++axis) {
            window.kernel[axis] = random.pick({1, 1, 2, 3, 3, 3, 4, 5, 7});
            window.stride[axis] = random.pick({1, 1, 1, 2, 2, 3});
            window.dilation[axis] = random.pick({1, 1, 1, 1, 2, 3});
            const int reach = window.dilation[axis] * (window.kernel[axis] - 1);
            window.padding[axis] = of_pool ? random.between(0, window.kernel[axis] / 2)
                                           : random.pick({0, reach / 2, reach / 2, random.between(0, reach + 1)});
            if (square && axis == 1) {
                window.kernel[1] = window.kernel[0];
                window.stride[1] = window.stride[0];
                window.dilation[1] = window.dilation[0];
                window.padding[1] = window.padding[0];
            }
        }
        if (random.chance(0.4)) {
            window = drawn_usual_window(random, of_pool);
        }
        const int largest = random.pick({3, 9, 9, 20, 20, 40});
        const Plane in{random.between(1, largest), random.between(1, largest)};
        const Plane out{length_after(window, 0, in.height), length_after(window, 1, in.width)};
        if (out.height == 0 || out.width == 0) {
            continue;
        }
        bool every_window_sees_a_pixel = true;
        for (const TapClass& of_class : forward_gather(window, in, out).classes) {
            every_window_sees_a_pixel = every_window_sees_a_pixel && !of_class.taps.empty();
        }
        if (every_window_sees_a_pixel || !of_pool) {
            return {window, in, out};
        }
    }
}

inline std::ostream& operator<<(std::ostream& stream, const Sliding& sliding) {
    const Window& w = sliding.window;
    const auto pair = [&](const char* name, const std::array<int, 2>& of) {
        stream << " " << name << of[0] << "x" << of[1];
    };
    pair("k", w.kernel);
    pair("s", w.stride);
    pair("p", w.padding);
    pair("d", w.dilation);
    return stream << " " << sliding.in.height << "x" << sliding.in.width << ">" << sliding.out.height << "x"
                  << sliding.out.width;
}

inline int drawn_channels(Random& random) {
    return random.chance(0.7) ? random.between(1, 17)
                              : random.pick({19, 23, 24, 25, 29, 31, 32, 33, 37, 41, 47, 48, 49, 53, 63, 64, 65, 129});
}

// Channels on both sides of a convolution, and how many multiplications its case may take. A few cases have so many
// channels that their weights outgrow the first cache, where kernels may take them in portions.
struct Channels {
    int one;
    int other;
    double most_products;
};

inline Channels drawn_channel_pair(Random& random) {
    if (random.chance(0.9)) {
        return {drawn_channels(random), drawn_channels(random), 1e6};
    }
    const int many = random.pick({97, 128, 200, 256, 257, 385, 512, 577});
    const int other = random.pick({random.between(1, 40), 64, 96, 131, 256});
    return random.chance(0.5) ? Channels{many, other, 1e7} : Channels{other, many, 1e7};
}

inline int drawn_images(Random& random, int lanes) {
    return random.pick({1, lanes, lanes, lanes + 1, 2 * lanes, 2 * lanes + 1, 3 * lanes, 3 * lanes + lanes / 2,
                        random.between(1, 4 * lanes)});
}

// A Cut for the same units whatever the number of lanes.
struct Cutting {
    int images_per_unit;
    int bands;

    Cut cut(int images, int lanes) const {
        const int of_unit = images_per_unit < lanes ? 1 : images_per_unit / lanes;
        return {(images + lanes - 1) / lanes, of_unit, bands};
    }
};

inline Cutting drawn_cutting(Random& random, int images, int lanes, bool may_have_bands = true) {
    if (may_have_bands && random.chance(0.4)) {
        return {lanes, random.between(1, 5)};
    }
    return {lanes * random.between(1, (images + lanes - 1) / lanes), 1};
}

inline std::ostream& operator<<(std::ostream& stream, const Cutting& cutting) {
    return stream << " cut " << cutting.images_per_unit << " images a unit, " << cutting.bands << " bands";
}

}  // namespace distreal::held
