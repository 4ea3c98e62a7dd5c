#include "images.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <type_traits>

namespace distreal {
namespace {

// How one channel's pixels become values. The order of roundings is that of network/preprocessing.py.
template <class Real, class Pixel>
struct Normalisation {
    Real mean;
    Real std;

    Real operator()(Pixel pixel) const {
        Real value = static_cast<Real>(pixel);
        if constexpr (std::is_same_v<Pixel, std::uint8_t>) {
            value /= Real{255};
        }
        return (value - mean) / std;
    }
};

// x - 0 and x / 1 are exact: without mean or std the pixel stays what it is.
template <class Real, class Pixel>
Normalisation<Real, Pixel> normalisation_of(const ImageTask<Real, Pixel>& task, int channel) {
    return {task.mean == nullptr ? Real{0} : static_cast<Real>(task.mean[channel]),
            task.std == nullptr ? Real{1} : static_cast<Real>(task.std[channel])};
}

// The normalised values of all bytes: faster than normalising each pixel.
template <class Real>
struct Table {
    std::array<Real, 256> values;

    explicit Table(const Normalisation<Real, std::uint8_t>& normalise) {
        for (std::size_t pixel = 0; pixel < values.size(); ++pixel) {
            values[pixel] = normalise(static_cast<std::uint8_t>(pixel));
        }
    }
    Real operator()(std::uint8_t pixel) const { return values[pixel]; }
};

struct Range {
    int begin;
    int end;
};

Range part(int count, int index, int parts) {
    return {static_cast<int>(std::int64_t{count} * index / parts),
            static_cast<int>(std::int64_t{count} * (index + 1) / parts)};
}

// Where an image's pixels go: pixel x of a row of the image becomes pixel x + shift of the cropped row.
struct Crop {
    std::int64_t top;  // the image's row that becomes the first one
    std::int64_t shift;
    bool flip;
};

template <class Real, class Pixel>
Crop crop_of(const ImageTask<Real, Pixel>& task, int image) {
    Crop crop{0, 0, task.flips != nullptr && task.flips[image] != 0};
    if (task.corners != nullptr) {
        const std::int32_t* corner = task.corners + std::ptrdiff_t{2} * image;
        crop.top = std::int64_t{corner[0]} - task.margin;
        crop.shift = std::int64_t{task.margin} - corner[1];
    }
    return crop;
}

// Fills one lane of a row: `count` pixels of the source lie at `from`, the first of them becomes pixel `first` of the
// `width` ones, and what is left on both sides is black.
template <class Real, class Pixel, class Normalise>
void prepare_row(const Pixel* from, int first, int count, int width, Real black, const Normalise& normalise, Real* to,
                 std::ptrdiff_t step) {
    for (int x = 0; x < first; ++x) {
        to[x * step] = black;
    }
    Real* inner = to + first * step;
    for (int x = 0; x < count; ++x) {
        inner[x * step] = normalise(from[x]);
    }
    for (int x = first + count; x < width; ++x) {
        to[x * step] = black;
    }
}

template <class Real, class Pixel, class Normalise>
void prepare_lane(const ImageTask<Real, Pixel>& task, int image, int channel, Range rows, const Normalise& normalise) {
    const Crop crop = crop_of(task, image);
    const int first = static_cast<int>(std::clamp<std::int64_t>(crop.shift, 0, task.width));
    const int end = static_cast<int>(std::clamp<std::int64_t>(crop.shift + task.width, 0, task.width));
    const Real black = normalise(Pixel{0});
    const std::ptrdiff_t row_stride = task.to.pixel_stride * task.width;
    const Pixel* plane =
        task.images + (std::ptrdiff_t{image} * task.channels + channel) * task.height * std::ptrdiff_t{task.width};
    Real* to = task.to.data + image / task.lanes * task.to.block_stride + std::ptrdiff_t{channel} * task.lanes +
               image % task.lanes + rows.begin * row_stride;
    // A mirrored row is written from its end.
    const std::ptrdiff_t step = crop.flip ? -task.to.pixel_stride : task.to.pixel_stride;
    to += crop.flip ? row_stride - task.to.pixel_stride : 0;
    for (int y = rows.begin; y < rows.end; ++y, to += row_stride) {
        const std::int64_t source = y + crop.top;
        const bool inside = source >= 0 && source < task.height && first < end;
        const Pixel* from = inside ? plane + source * task.width + (first - crop.shift) : plane;
        prepare_row(from, first, inside ? end - first : 0, task.width, black, normalise, to, step);
    }
}

template <class Real>
void clear_lane(const View<Real>& to, int block, int offset, Range pixels) {
    Real* lane = to.data + block * to.block_stride + offset;
    for (int p = pixels.begin; p < pixels.end; ++p) {
        lane[p * to.pixel_stride] = Real{0};
    }
}

// How many rows of one channel and block are filled lane by lane before the next rows: their lines stay in the first
// cache from the first lane to the last.
constexpr std::size_t strip_bytes = std::size_t{16} << 10;

template <class Real, class Pixel>
int strip_rows(const ImageTask<Real, Pixel>& task) {
    const std::size_t row_bytes =
        static_cast<std::size_t>(task.width) * static_cast<std::size_t>(task.lanes) * sizeof(Real);
    return static_cast<int>(std::max<std::size_t>(1, strip_bytes / std::max<std::size_t>(1, row_bytes)));
}

template <class Real, class Pixel, class Normalise>
void prepare_strip(const ImageTask<Real, Pixel>& task, int block, int channel, Range rows, const Normalise& normalise) {
    const int first = block * task.lanes;
    for (int lane = 0; lane < task.lanes; ++lane) {
        if (first + lane < task.count) {
            prepare_lane(task, first + lane, channel, rows, normalise);
        } else {
            clear_lane(task.to, block, channel * task.lanes + lane, {rows.begin * task.width, rows.end * task.width});
        }
    }
}

// Pixels whose lanes are filled together. Few, because pixels may lie a multiple of a page apart, and then their lines
// share one set of the cache.
constexpr int draw_strip = 8;

template <class Real>
void scatter_strip(const DropoutTask<Real>& task, int block, int channel, Range pixels) {
    const auto limit = static_cast<float>(task.p);
    const auto kept = static_cast<Real>(1.0 / (1.0 - task.p));
    const std::ptrdiff_t step = task.to.pixel_stride;
    const int count = pixels.end - pixels.begin;
    for (int lane = 0; lane < task.lanes; ++lane) {
        const int image = block * task.lanes + lane;
        std::array<Real, draw_strip> factors{};
        if (image < task.count) {
            const float* draws = task.draws + (std::ptrdiff_t{image} * task.channels + channel) * task.pixels;
            const auto decide = [&](int p) {
                factors[static_cast<std::size_t>(p)] = draws[pixels.begin + p] >= limit ? kept : Real{0};
            };
            if (count == draw_strip) {  // a number that the compiler knows: it decides for several pixels at a time
                for (int p = 0; p < draw_strip; ++p) {
                    decide(p);
                }
            } else {
                for (int p = 0; p < count; ++p) {
                    decide(p);
                }
            }
        }
        Real* to = task.to.data + block * task.to.block_stride + channel * task.lanes + lane + pixels.begin * step;
        for (int p = 0; p < count; ++p) {
            to[p * step] = factors[static_cast<std::size_t>(p)];
        }
    }
}

}  // namespace

template <class Real, class Pixel>
void prepare_images(const ImageTask<Real, Pixel>& task, int unit) {
    const Range rows = part(task.height, unit % task.cut.bands, task.cut.bands);
    const int first_block = unit / task.cut.bands * task.cut.blocks_per_unit;
    const int end_block = std::min(first_block + task.cut.blocks_per_unit, task.cut.blocks);
    const int strip = strip_rows(task);
    for (int channel = 0; channel < task.channels; ++channel) {
        const auto normalise = normalisation_of(task, channel);
        const auto prepare = [&](const auto& how) {
            for (int block = first_block; block < end_block; ++block) {
                for (int row = rows.begin; row < rows.end; row += strip) {
                    prepare_strip(task, block, channel, {row, std::min(row + strip, rows.end)}, how);
                }
            }
        };
        if constexpr (std::is_same_v<Pixel, std::uint8_t>) {
            prepare(Table<Real>(normalise));
        } else {
            prepare(normalise);
        }
    }
}

template <class Real>
void scatter_lanes(const DropoutTask<Real>& task, int block) {
    if (task.pixels == 1 && task.channels > 1) {  // features: their draws lie side by side as those of pixels do
        DropoutTask<Real> features = task;
        features.pixels = task.channels;
        features.channels = 1;
        features.to.pixel_stride = task.lanes;
        return scatter_lanes(features, block);
    }
    for (int pixel = 0; pixel < task.pixels; pixel += draw_strip) {
        for (int channel = 0; channel < task.channels; ++channel) {
            scatter_strip(task, block, channel, {pixel, std::min(pixel + draw_strip, task.pixels)});
        }
    }
}

template <class Real>
void scatter_lanes(const DropoutTask<Real>& task) {
    for (int block = 0; block * task.lanes < task.count; ++block) {
        scatter_lanes(task, block);
    }
}

template <class Real>
void gather_scores(View<const Real> from, int images, int classes, int lanes, Real* scores) {
    for (int image = 0; image < images; ++image) {
        const Real* lane = from.data + image / lanes * from.block_stride + image % lanes;
        for (int c = 0; c < classes; ++c) {
            scores[std::ptrdiff_t{image} * classes + c] = lane[std::ptrdiff_t{c} * lanes];
        }
    }
}

template <class Real>
double cross_entropy(const LossTask<Real>& task) {
    double total = 0.0;
    const std::ptrdiff_t step = task.lanes;
    for (int image = 0; image < task.images; ++image) {
        const std::ptrdiff_t block = image / task.lanes;
        const Real* scores = task.scores.data + block * task.scores.block_stride + image % task.lanes;
        Real* gradient = task.gradient.data + block * task.gradient.block_stride + image % task.lanes;
        const auto label = static_cast<std::ptrdiff_t>(task.labels[image]);
        Real most = scores[0];
        for (int c = 1; c < task.classes; ++c) {
            most = std::max(most, scores[c * step]);
        }
        const double label_score = static_cast<double>(scores[label * step]) - static_cast<double>(most);
        double sum = 0.0;
        for (int c = 0; c < task.classes; ++c) {
            const Real power = std::exp(scores[c * step] - most);
            gradient[c * step] = power;
            sum += static_cast<double>(power);
        }
        total += std::log(sum) - label_score;
        const double scale = 1.0 / (sum * task.images);
        for (int c = 0; c < task.classes; ++c) {
            const double share = static_cast<double>(gradient[c * step]) * scale;
            gradient[c * step] = static_cast<Real>(c == label ? share - 1.0 / task.images : share);
        }
    }
    for (int image = task.images; image % task.lanes != 0; ++image) {
        for (int c = 0; c < task.classes; ++c) {
            clear_lane(task.gradient, image / task.lanes, c * task.lanes + image % task.lanes, {0, 1});
        }
    }
    return total / task.images;
}

template void prepare_images(const ImageTask<float, std::uint8_t>&, int);
template void prepare_images(const ImageTask<float, float>&, int);
template void prepare_images(const ImageTask<float, double>&, int);
template void prepare_images(const ImageTask<double, std::uint8_t>&, int);
template void prepare_images(const ImageTask<double, float>&, int);
template void prepare_images(const ImageTask<double, double>&, int);
template void scatter_lanes(const DropoutTask<float>&, int);
template void scatter_lanes(const DropoutTask<double>&, int);
template void scatter_lanes(const DropoutTask<float>&);
template void scatter_lanes(const DropoutTask<double>&);
template void gather_scores(View<const float>, int, int, int, float*);
template void gather_scores(View<const double>, int, int, int, double*);
template double cross_entropy(const LossTask<float>&);
template double cross_entropy(const LossTask<double>&);

}  // namespace distreal
