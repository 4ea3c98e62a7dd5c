#include "kernels/geometry.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace distreal {
namespace {

// Along one axis, which coordinates of the gathered side each coordinate of the result reads, as (tap, coordinate).
using AxisTaps = std::vector<std::vector<std::pair<int, int>>>;

AxisTaps forward_axis(const Window& window, int axis, int in, int out) {
    AxisTaps taps(static_cast<std::size_t>(out));
    for (int o = 0; o < out; ++o) {
        for (int k = 0; k < window.kernel[axis]; ++k) {
            const int i = o * window.stride[axis] - window.padding[axis] + k * window.dilation[axis];
            if (0 <= i && i < in) {
                taps[static_cast<std::size_t>(o)].emplace_back(k, i);
            }
        }
    }
    return taps;
}

AxisTaps transposed(const AxisTaps& forward, int in) {
    AxisTaps taps(static_cast<std::size_t>(in));
    for (std::size_t o = 0; o < forward.size(); ++o) {
        for (const auto& [k, i] : forward[o]) {
            taps[static_cast<std::size_t>(i)].emplace_back(k, static_cast<int>(o));
        }
    }
    for (auto& of_pixel : taps) {
        std::ranges::sort(of_pixel);
    }
    return taps;
}

// Two coordinates are of one kind when they read the same taps at the same distances from the first one.
std::vector<std::pair<int, int>> kind_of(const std::vector<std::pair<int, int>>& taps) {
    std::vector<std::pair<int, int>> kind;
    for (const auto& [k, i] : taps) {
        kind.emplace_back(k, i - taps.front().second);
    }
    return kind;
}

// The distinct kinds along one axis, and which of them each coordinate is of.
struct AxisKinds {
    std::vector<std::vector<std::pair<int, int>>> kinds;
    std::vector<std::size_t> of;
};

AxisKinds find_kinds(const AxisTaps& taps) {
    std::map<std::vector<std::pair<int, int>>, std::size_t> known;
    AxisKinds found;
    for (const auto& of_coordinate : taps) {
        const auto [kind, is_new] = known.emplace(kind_of(of_coordinate), known.size());
        if (is_new) {
            found.kinds.push_back(kind->first);
        }
        found.of.push_back(kind->second);
    }
    return found;
}

Gather product(const AxisTaps& rows, const AxisTaps& columns, const Window& window, Plane from, Plane to) {
    const AxisKinds row_kinds = find_kinds(rows);
    const AxisKinds column_kinds = find_kinds(columns);
    Gather gather{window.taps(), from, to, {}};
    for (const auto& row_kind : row_kinds.kinds) {
        for (const auto& column_kind : column_kinds.kinds) {
            TapClass& made = gather.classes.emplace_back();
            for (const auto& [ky, dy] : row_kind) {
                for (const auto& [kx, dx] : column_kind) {
                    made.taps.push_back({ky * window.kernel[1] + kx, dy * from.width + dx});
                }
            }
        }
    }
    for (std::size_t y = 0; y < rows.size(); ++y) {
        for (std::size_t x = 0; x < columns.size(); ++x) {
            TapClass& of_pixel = gather.classes[row_kinds.of[y] * column_kinds.kinds.size() + column_kinds.of[x]];
            const int from_pixel = of_pixel.taps.empty() ? 0 : rows[y][0].second * from.width + columns[x][0].second;
            of_pixel.positions.push_back({static_cast<int>(y) * to.width + static_cast<int>(x), from_pixel});
        }
    }
    std::ranges::stable_sort(gather.classes, std::ranges::greater{},
                             [](const TapClass& one) { return one.positions.size(); });
    return gather;
}

}  // namespace

Gather forward_gather(const Window& window, Plane in, Plane out) {
    return product(forward_axis(window, 0, in.height, out.height), forward_axis(window, 1, in.width, out.width), window,
                   in, out);
}

Gather backward_gather(const Window& window, Plane in, Plane out) {
    return product(transposed(forward_axis(window, 0, in.height, out.height), in.height),
                   transposed(forward_axis(window, 1, in.width, out.width), in.width), window, out, in);
}

TapRuns tap_runs(const Window& window, Plane in, Plane out) {
    TapRuns runs{out, {}};
    runs.of_tap.resize(static_cast<std::size_t>(window.taps()));
    for (int ky = 0; ky < window.kernel[0]; ++ky) {
        for (int kx = 0; kx < window.kernel[1]; ++kx) {
            auto& of_tap = runs.of_tap[static_cast<std::size_t>(ky * window.kernel[1] + kx)];
            for (int oy = 0; oy < out.height; ++oy) {
                const int iy = oy * window.stride[0] - window.padding[0] + ky * window.dilation[0];
                if (iy < 0 || iy >= in.height) {
                    continue;
                }
                // ix = ox * stride + shift must lie within 0..width-1.
                const int stride = window.stride[1];
                const int shift = kx * window.dilation[1] - window.padding[1];
                const int first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
                const int last =
                    in.width - 1 - shift < 0 ? -1 : std::min(out.width - 1, (in.width - 1 - shift) / stride);
                if (first <= last) {
                    of_tap.push_back(
                        {oy * out.width + first, iy * in.width + first * stride + shift, last - first + 1, stride});
                }
            }
        }
    }
    return runs;
}

}  // namespace distreal
