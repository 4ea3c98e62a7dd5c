// Images, draws, scores and the loss in blocks of lanes, against loops that follow the definitions.

#include "images.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"

namespace distreal::pieces {
namespace {

constexpr double untouched = -12345.0;

// A value in the blocked layout with gaps between its pixels and blocks, where nothing may be written.
template <class Real>
struct Blocked {
    int lanes;
    int count;
    int channels;
    int pixels;
    std::ptrdiff_t pixel_stride;
    std::ptrdiff_t block_stride;
    std::vector<Real> data;

    Blocked(int lanes_, int count_, int channels_, int pixels_)
        : lanes(lanes_),
          count(count_),
          channels(channels_),
          pixels(pixels_),
          pixel_stride(std::ptrdiff_t{channels_ + 1} * lanes_),
          block_stride(pixel_stride * pixels_ + 5),
          data(static_cast<std::size_t>(block_stride * blocks()), static_cast<Real>(untouched)) {}

    int blocks() const { return (count + lanes - 1) / lanes; }
    View<Real> view() { return {data.data(), block_stride, pixel_stride}; }
    Real& at(int n, int c, int p) {
        return data[static_cast<std::size_t>(n / lanes * block_stride + p * pixel_stride + c * lanes + n % lanes)];
    }

    // Removes every element of the value, and says whether the gaps are as they were. The idle lanes must be zeros.
    bool only_the_value_was_written() {
        bool good = true;
        for (int n = 0; n < blocks() * lanes; ++n) {
            for (int c = 0; c < channels; ++c) {
                for (int p = 0; p < pixels; ++p) {
                    good = good && (n < count || at(n, c, p) == Real{0});
                    at(n, c, p) = static_cast<Real>(untouched);
                }
            }
        }
        return good && std::ranges::all_of(data, [](Real x) { return x == static_cast<Real>(untouched); });
    }
};

// ---- Images ----

template <class Pixel>
struct Batch {
    int count;
    int channels;
    int height;
    int width;
    int margin;
    std::vector<Pixel> images;
    std::vector<std::int32_t> corners;
    std::vector<std::uint8_t> flips;
    std::vector<double> mean;
    std::vector<double> std;
};

int between(std::mt19937& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

template <class Pixel>
Batch<Pixel> random_batch(std::mt19937& random) {
    Batch<Pixel> batch{between(random, 1, 37),
                       between(random, 1, 4),
                       between(random, 1, 9),
                       between(random, 1, 40),
                       between(random, 0, 12),
                       {},
                       {},
                       {},
                       {},
                       {}};
    const int elements = batch.count * batch.channels * batch.height * batch.width;
    for (int i = 0; i < elements; ++i) {
        const int byte = between(random, 0, 255);
        batch.images.push_back(sizeof(Pixel) == 1 ? static_cast<Pixel>(byte) : static_cast<Pixel>(byte / 255.7));
    }
    for (int n = 0; n < batch.count; ++n) {
        batch.corners.push_back(between(random, 0, 2 * batch.margin));
        batch.corners.push_back(between(random, 0, 2 * batch.margin));
        batch.flips.push_back(static_cast<std::uint8_t>(between(random, 0, 1)));
    }
    for (int c = 0; c < batch.channels; ++c) {
        batch.mean.push_back(between(random, 0, 1000) / 999.0);
        batch.std.push_back(between(random, 100, 1000) / 777.0);
    }
    return batch;
}

// Padding, cropping, mirroring and normalising, one after the other, each operation rounded to Real.
template <class Real, class Pixel>
Real expected_pixel(const Batch<Pixel>& batch, const ImageTask<Real, Pixel>& task, int n, int c, int y, int x) {
    const bool mirrored = task.flips != nullptr && task.flips[n] == 1;
    const int cropped_x = mirrored ? batch.width - 1 - x : x;
    const int padded_y = y + (task.corners == nullptr ? batch.margin : task.corners[2 * n]);
    const int padded_x = cropped_x + (task.corners == nullptr ? batch.margin : task.corners[2 * n + 1]);
    const int image_y = padded_y - batch.margin;
    const int image_x = padded_x - batch.margin;
    volatile Real value = 0;
    if (image_y >= 0 && image_y < batch.height && image_x >= 0 && image_x < batch.width) {
        const int index = ((n * batch.channels + c) * batch.height + image_y) * batch.width + image_x;
        value = static_cast<Real>(batch.images[static_cast<std::size_t>(index)]);
    }
    if (sizeof(Pixel) == 1) {
        value = value / Real{255};
    }
    if (task.mean != nullptr) {
        value = value - static_cast<Real>(task.mean[c]);
    }
    if (task.std != nullptr) {
        value = value / static_cast<Real>(task.std[c]);
    }
    return value;
}

template <class Real, class Pixel>
void try_images(unsigned seed) {
    std::mt19937 random(seed);
    const Batch<Pixel> batch = random_batch<Pixel>(random);
    const int lanes = 1 << between(random, 0, 4);
    Blocked<Real> made(lanes, batch.count, batch.channels, batch.height * batch.width);
    const bool cut_blocks = between(random, 0, 1) == 1;
    const auto maybe = [&](const auto& values) { return between(random, 0, 3) > 0 ? values.data() : nullptr; };
    const ImageTask<Real, Pixel> task{batch.images.data(),
                                      batch.count,
                                      batch.channels,
                                      batch.height,
                                      batch.width,
                                      maybe(batch.corners),
                                      batch.margin,
                                      maybe(batch.flips),
                                      maybe(batch.mean),
                                      maybe(batch.std),
                                      made.view(),
                                      lanes,
                                      {made.blocks(), cut_blocks ? 2 : 1, cut_blocks ? 1 : between(random, 1, 5)}};
    for (int unit = task.cut.units() - 1; unit >= 0; --unit) {
        prepare_images(task, unit);
    }
    for (int n = 0; n < batch.count; ++n) {
        for (int c = 0; c < batch.channels; ++c) {
            for (int p = 0; p < made.pixels; ++p) {
                EXPECT(made.at(n, c, p) == expected_pixel(batch, task, n, c, p / batch.width, p % batch.width));
            }
        }
    }
    EXPECT(made.only_the_value_was_written());
}

void images_are_cropped_mirrored_and_normalised_to_the_bit() {
    for (unsigned seed = 0; seed < 60; ++seed) {
        try_images<float, std::uint8_t>(seed);
        try_images<float, float>(seed);
        try_images<float, double>(seed);
        try_images<double, std::uint8_t>(seed);
        try_images<double, float>(seed);
        try_images<double, double>(seed);
    }
}

void no_corner_leads_outside_the_images() {
    constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
    constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min();
    const std::vector<std::uint8_t> images(12, 255);
    const std::vector<std::int32_t> corners{most, most, least, least, 3, most, least, 0};
    Blocked<float> made(4, 4, 1, 3);
    const ImageTask<float, std::uint8_t> task{images.data(), 4,       1,       1,           3, corners.data(), 1,
                                              nullptr,       nullptr, nullptr, made.view(), 4, {1, 1, 1}};
    prepare_images(task, 0);
    for (int n = 0; n < 4; ++n) {
        for (int p = 0; p < 3; ++p) {
            EXPECT(made.at(n, 0, p) == 0.0F);
        }
    }
}

// ---- Dropout ----

template <class Real>
void try_draws(unsigned seed) {
    std::mt19937 random(seed);
    const int count = between(random, 1, 35);
    const int channels = between(random, 1, 20);
    const int pixels = seed % 3 == 0 ? 1 : between(random, 1, 40);
    const int lanes = 1 << between(random, 0, 4);
    const double p = between(random, 0, 90) / 100.0;
    std::vector<float> draws;
    for (int i = 0; i < count * channels * pixels; ++i) {
        draws.push_back(i % 7 == 0 ? static_cast<float>(p) : static_cast<float>(between(random, 0, 999)) / 1000.0F);
    }
    Blocked<Real> made(lanes, count, channels, pixels);
    scatter_lanes<Real>({draws.data(), count, channels, pixels, p, lanes, made.view()});
    for (int n = 0; n < count; ++n) {
        for (int c = 0; c < channels; ++c) {
            for (int q = 0; q < pixels; ++q) {
                const float draw = draws[static_cast<std::size_t>((n * channels + c) * pixels + q)];
                EXPECT(made.at(n, c, q) ==
                       (draw >= static_cast<float>(p) ? static_cast<Real>(1.0 / (1.0 - p)) : Real{0}));
            }
        }
    }
    EXPECT(made.only_the_value_was_written());
}

void draws_become_factors() {
    for (unsigned seed = 0; seed < 100; ++seed) {
        try_draws<float>(seed);
        try_draws<double>(seed);
    }
}

// ---- Scores and loss ----

template <class Real>
void fill(Blocked<Real>& scores, std::mt19937& random, double spread) {
    std::normal_distribution<double> normal(0.0, spread);
    for (int n = 0; n < scores.blocks() * scores.lanes; ++n) {
        for (int c = 0; c < scores.channels; ++c) {
            scores.at(n, c, 0) = static_cast<Real>(normal(random));
        }
    }
}

void scores_come_out_as_rows() {
    std::mt19937 random(5);
    for (const int lanes : {1, 4, 16}) {
        Blocked<float> scores(lanes, 21, 7, 1);
        fill(scores, random, 1.0);
        std::vector<float> rows(21 * 7);
        gather_scores<float>(scores.view().as_const(), 21, 7, lanes, rows.data());
        for (int n = 0; n < 21; ++n) {
            for (int c = 0; c < 7; ++c) {
                EXPECT(rows[static_cast<std::size_t>(n * 7 + c)] == scores.at(n, c, 0));
            }
        }
    }
}

// By the definition, in the widest numbers there are.
template <class Real>
void try_loss(unsigned seed, double tolerance) {
    std::mt19937 random(seed);
    const int count = between(random, 1, 35);
    const int classes = between(random, 1, 20);
    const int lanes = 1 << between(random, 0, 4);
    Blocked<Real> scores(lanes, count, classes, 1);
    fill(scores, random, seed % 2 == 0 ? 1.0 : 30.0);
    std::vector<std::int64_t> labels;
    for (int n = 0; n < count; ++n) {
        labels.push_back(between(random, 0, classes - 1));
    }
    Blocked<Real> gradient(lanes, count, classes, 1);
    const double loss =
        cross_entropy<Real>({scores.view().as_const(), gradient.view(), labels.data(), count, classes, lanes});

    long double expected = 0.0L;
    for (int n = 0; n < count; ++n) {
        long double sum = 0.0L;
        for (int c = 0; c < classes; ++c) {
            sum += std::exp(static_cast<long double>(scores.at(n, c, 0)));
        }
        const auto label = static_cast<int>(labels[static_cast<std::size_t>(n)]);
        expected += std::log(sum) - static_cast<long double>(scores.at(n, label, 0));
        for (int c = 0; c < classes; ++c) {
            const long double share = std::exp(static_cast<long double>(scores.at(n, c, 0))) / sum;
            const long double wanted = (share - (c == label ? 1.0L : 0.0L)) / count;
            EXPECT(std::abs(static_cast<double>(wanted - gradient.at(n, c, 0))) <= tolerance / count);
        }
    }
    EXPECT(std::abs(static_cast<double>(expected / count) - loss) <= tolerance * (1.0 + std::abs(loss)));
    EXPECT(gradient.only_the_value_was_written());

    const double in_place =
        cross_entropy<Real>({scores.view().as_const(), scores.view(), labels.data(), count, classes, lanes});
    EXPECT(in_place == loss);
}

void the_loss_and_its_gradient_follow_the_definition() {
    for (unsigned seed = 0; seed < 200; ++seed) {
        try_loss<float>(seed, 1e-6);
        try_loss<double>(seed, 1e-14);
    }
}

double loss_of(std::vector<float> scores, std::int64_t label) {
    const View<float> view{scores.data(), std::ssize(scores), std::ssize(scores)};
    return cross_entropy<float>({view.as_const(), view, &label, 1, static_cast<int>(scores.size()), 1});
}

void large_scores_do_not_overflow() {
    EXPECT(std::abs(loss_of({1e30F, 0.0F}, 0)) == 0.0);
    EXPECT(std::abs(loss_of({1e30F, 0.0F}, 1) / 1e30 - 1.0) < 1e-6);
    EXPECT(std::abs(loss_of({-1000.0F, -1000.0F}, 1) - std::log(2.0)) < 1e-12);
}

void what_is_no_number_comes_out() {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT(std::isnan(loss_of({nan, 0.0F, 0.0F}, 1)));
    EXPECT(std::isnan(loss_of({0.0F, 0.0F, nan}, 1)));
    EXPECT(!std::isfinite(loss_of({infinity, 0.0F}, 0)));
    EXPECT(!std::isfinite(loss_of({-infinity, 0.0F}, 0)));
    EXPECT(loss_of({-infinity, 0.0F}, 1) == 0.0);
}

constexpr Case cases[] = {
    {"images are cropped, mirrored and normalised to the bit", images_are_cropped_mirrored_and_normalised_to_the_bit},
    {"no corner leads outside the images", no_corner_leads_outside_the_images},
    {"draws become factors", draws_become_factors},
    {"scores come out as rows", scores_come_out_as_rows},
    {"the loss and its gradient follow the definition", the_loss_and_its_gradient_follow_the_definition},
    {"large scores do not overflow", large_scores_do_not_overflow},
    {"what is no number comes out", what_is_no_number_comes_out},
};

}  // namespace
}  // namespace distreal::pieces

int main() { return distreal::pieces::run_cases(distreal::pieces::cases); }
