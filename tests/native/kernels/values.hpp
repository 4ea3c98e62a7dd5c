#pragma once
// A value as a test thinks of it, and the same value in the memory layout of an instruction set.

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "kernels/kernels.hpp"
#include "memory.hpp"
#include "random.hpp"

namespace distreal::held {

struct Failure {
    std::string message;
};

struct Values {
    int images = 0;
    int pixels = 0;
    int channels = 0;
    std::vector<double> data;

    Values() = default;
    Values(int of_images, int of_pixels, int of_channels, double filled = 0)
        : images(of_images),
          pixels(of_pixels),
          channels(of_channels),
          data(static_cast<std::size_t>(of_images) * static_cast<std::size_t>(of_pixels) *
                   static_cast<std::size_t>(of_channels),
               filled) {}

    double& at(int image, int pixel, int channel) { return data[index(image, pixel, channel)]; }
    double at(int image, int pixel, int channel) const { return data[index(image, pixel, channel)]; }

  private:
    std::size_t index(int image, int pixel, int channel) const {
        return (static_cast<std::size_t>(image) * static_cast<std::size_t>(pixels) + static_cast<std::size_t>(pixel)) *
                   static_cast<std::size_t>(channels) +
               static_cast<std::size_t>(channel);
    }
};

inline Values drawn(Random& random, int images, int pixels, int channels, Grain grain) {
    Values values(images, pixels, channels);
    for (double& value : values.data) {
        value = random.number(grain);
    }
    return values;
}

inline Values drawn_eighths(Random& random, int images, int pixels, int channels, int limit) {
    Values values(images, pixels, channels);
    for (double& value : values.data) {
        value = random.eighths(limit);
    }
    return values;
}

inline void make_absolute(std::vector<double>& numbers) {
    for (double& number : numbers) {
        number = std::abs(number);
    }
}

// What surrounds a view: it may be a part of a concatenation, and blocks may lie further apart than they need to.
struct Placement {
    int channels_before = 0;
    int channels_after = 0;
    int block_gap = 0;
    bool at_end = true;
};

inline Placement drawn_placement(Random& random) {
    Placement placement;
    if (random.chance(0.5)) {
        placement = {random.between(0, 3), random.between(0, 3), random.between(0, 5), true};
    }
    placement.at_end = random.chance(0.7);
    return placement;
}

enum class Idle { zero, finite };       // what lanes without an image hold at the start
enum class Content { given, nothing };  // nothing: the pattern, for what a kernel is to write

template <class Real>
class Placed {
  public:
    Placed(const Values& values, int lanes, const Placement& placement, Idle idle, Content content = Content::given)
        : images_(values.images),
          pixels_(values.pixels),
          channels_(values.channels),
          lanes_(lanes),
          before_(placement.channels_before * lanes),
          pixel_stride_((placement.channels_before + values.channels + placement.channels_after) * lanes),
          block_stride_(values.pixels * pixel_stride_ + placement.block_gap * lanes),
          memory_(static_cast<std::size_t>((blocks() - 1) * block_stride_ + (pixels_ - 1) * pixel_stride_ + before_ +
                                           channels_ * lanes),
                  static_cast<std::size_t>(lanes) * sizeof(Real), placement.at_end) {
        Random random(17);
        for_each_element([&](int image, int pixel, int channel, Real& element) {
            if (content == Content::nothing) {
                return;
            }
            if (image < images_) {
                element = static_cast<Real>(values.at(image, pixel, channel));
            } else {
                element = idle == Idle::zero ? Real(0) : static_cast<Real>(random.number(Grain::rounded));
            }
        });
    }

    View<Real> view() const { return {memory_.data() + before_, block_stride_, pixel_stride_}; }
    View<const Real> readable() const { return view().as_const(); }
    int blocks() const { return (images_ + lanes_ - 1) / lanes_; }
    void append_bits(std::vector<unsigned char>& bits) const { memory_.append_bits(bits); }

    // Fails when anything outside the view was written, or idle lanes hold what they must not.
    Values read(const std::string& name, Idle idle) const {
        Values values(images_, pixels_, channels_);
        std::vector<bool> inside(memory_.size());
        for_each_element([&](int image, int pixel, int channel, Real& element) {
            inside[static_cast<std::size_t>(&element - memory_.data())] = true;
            if (image < images_) {
                values.at(image, pixel, channel) = static_cast<double>(element);
            } else if (idle == Idle::zero ? element != Real(0) : !std::isfinite(element)) {
                throw Failure{name + ": an idle lane of pixel " + std::to_string(pixel) + ", channel " +
                              std::to_string(channel) + " holds " + std::to_string(element)};
            }
        });
        bool untouched = memory_.surroundings_are_untouched();
        for (std::size_t i = 0; i < inside.size(); ++i) {
            untouched = untouched && (inside[i] || holds_pattern(memory_[i]));
        }
        if (!untouched) {
            throw Failure{name + ": something outside the view was written"};
        }
        return values;
    }

  private:
    template <class Visit>
    void for_each_element(const Visit& visit) const {
        const View<Real> all = view();
        for (int image = 0; image < blocks() * lanes_; ++image) {
            for (int pixel = 0; pixel < pixels_; ++pixel) {
                for (int channel = 0; channel < channels_; ++channel) {
                    visit(image, pixel, channel,
                          all.data[image / lanes_ * all.block_stride + pixel * all.pixel_stride + channel * lanes_ +
                                   image % lanes_]);
                }
            }
        }
    }

    int images_;
    int pixels_;
    int channels_;
    int lanes_;
    std::ptrdiff_t before_;
    std::ptrdiff_t pixel_stride_;
    std::ptrdiff_t block_stride_;
    Fenced<Real> memory_;
};

// [blocks][lanes] of 1 and 0.
inline std::vector<double> live_lanes(int images, int lanes) {
    std::vector<double> live(static_cast<std::size_t>((images + lanes - 1) / lanes * lanes), 0.0);
    for (int image = 0; image < images; ++image) {
        live[static_cast<std::size_t>(image)] = 1.0;
    }
    return live;
}

}  // namespace distreal::held
