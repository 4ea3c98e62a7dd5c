#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lowering.hpp"
#include "plan.hpp"

namespace distreal {

// Which channels of every value survive a mini-batch.
class Survivors {
  public:
    // `kept` says of every filter whether it survives; channels of no filter always do. A group that keeps nothing, or
    // a wrong number of filters, throws std::invalid_argument.
    Survivors(const Plan& plan, std::span<const bool> kept);

    // Indices among the value's channels at full width, sorted.
    const std::vector<std::int32_t>& channels(int value) const { return channels_[static_cast<std::size_t>(value)]; }
    int count(int value) const { return static_cast<int>(channels(value).size()); }
    // How many of the value's channels before this one survive.
    int before(int value, int channel) const;
    // Positions, among the survivors, of part `part` of `parts` equal parts of the value's channels.
    std::pair<int, int> part(int value, int full, int part, int parts) const;
    // Full filters over surviving ones, by group: what inverted dropout multiplies by.
    const std::vector<double>& inverse_shares() const { return inverse_shares_; }

    bool operator==(const Survivors&) const = default;

  private:
    std::vector<std::vector<std::int32_t>> channels_;
    std::vector<double> inverse_shares_;
};

}  // namespace distreal
