#pragma once
// Memory in which a kernel cannot leave its arrays unseen: beyond both ends lie pages that must not be touched, and
// what is between them and the array must keep its bits.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace distreal::held {

inline constexpr int pattern = 0xff;  // as every byte of a float or double: not a number

template <class Real>
class Fenced {
  public:
    // The array ends at the upper fence, or begins at the lower one, as near as its alignment allows.
    explicit Fenced(std::size_t size, std::size_t alignment = sizeof(Real), bool at_end = true) : size_(size) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t bytes = (size * sizeof(Real) + alignment - 1) / alignment * alignment;
        inside_ = (bytes + page - 1) / page * page;
        mapped_ = inside_ + 2 * page;
        void* const memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            throw std::runtime_error("no memory");
        }
        base_ = static_cast<unsigned char*>(memory);
        first_ = base_ + page;
        if (inside_ > 0 && mprotect(first_, inside_, PROT_READ | PROT_WRITE) != 0) {
            throw std::runtime_error("no memory");
        }
        std::memset(first_, pattern, inside_);
        data_ = reinterpret_cast<Real*>(at_end ? first_ + inside_ - bytes : first_);
    }
    explicit Fenced(const std::vector<double>& values) : Fenced(values.size()) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            data_[i] = static_cast<Real>(values[i]);
        }
    }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;
    ~Fenced() { munmap(base_, mapped_); }

    Real* data() const { return data_; }
    std::size_t size() const { return size_; }
    Real& operator[](std::size_t i) const { return data_[i]; }
    std::vector<double> read() const { return {data_, data_ + size_}; }

    // All that a kernel could have written, the array's surroundings included.
    void append_bits(std::vector<unsigned char>& bits) const { bits.insert(bits.end(), first_, first_ + inside_); }

    bool surroundings_are_untouched() const {
        const auto* const begin = reinterpret_cast<const unsigned char*>(data_);
        const auto* const end = reinterpret_cast<const unsigned char*>(data_ + size_);
        for (const unsigned char* byte = first_; byte < first_ + inside_; ++byte) {
            if ((byte < begin || byte >= end) && *byte != pattern) {
                return false;
            }
        }
        return true;
    }

  private:
    std::size_t size_;
    std::size_t inside_ = 0;
    std::size_t mapped_ = 0;
    unsigned char* base_ = nullptr;
    unsigned char* first_ = nullptr;
    Real* data_ = nullptr;
};

template <class Real>
bool holds_pattern(const Real& element) {
    unsigned char expected[sizeof(Real)];
    std::memset(expected, pattern, sizeof(Real));
    return std::memcmp(&element, expected, sizeof(Real)) == 0;
}

}  // namespace distreal::held
