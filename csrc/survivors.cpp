#include "survivors.hpp"

#include <algorithm>
#include <stdexcept>

namespace distreal {

Survivors::Survivors(const Plan& plan, std::span<const bool> kept) {
    if (kept.size() < static_cast<std::size_t>(plan.filter_count())) {
        throw std::invalid_argument("a subset must say of every filter whether it survives");
    }
    std::vector<int> surviving(plan.group_sizes().size(), 0);
    for (int filter = 0; filter < plan.filter_count(); ++filter) {
        surviving[static_cast<std::size_t>(plan.group_of(filter))] += kept[static_cast<std::size_t>(filter)] ? 1 : 0;
    }
    for (std::size_t group = 0; group < surviving.size(); ++group) {
        if (surviving[group] == 0) {
            throw std::invalid_argument("a filter group keeps no filter");
        }
        inverse_shares_.push_back(static_cast<double>(plan.group_sizes()[group]) / surviving[group]);
    }
    channels_.resize(static_cast<std::size_t>(plan.values()));
    for (int value = 0; value < plan.values(); ++value) {
        const auto& filters = plan.filters(value);
        auto& channels = channels_[static_cast<std::size_t>(value)];
        channels.reserve(filters.size());
        for (std::size_t channel = 0; channel < filters.size(); ++channel) {
            if (filters[channel] < 0 || kept[static_cast<std::size_t>(filters[channel])]) {
                channels.push_back(static_cast<std::int32_t>(channel));
            }
        }
    }
}

int Survivors::before(int value, int channel) const {
    const auto& indices = channels(value);
    return static_cast<int>(std::ranges::lower_bound(indices, channel) - indices.begin());
}

std::pair<int, int> Survivors::part(int value, int full, int part, int parts) const {
    const int size = full / parts;
    return {before(value, part * size), before(value, (part + 1) * size)};
}

}  // namespace distreal
