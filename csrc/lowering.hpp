#pragma once

#include <memory>
#include <vector>

#include "kernels/kernels.hpp"
#include "plan.hpp"

namespace distreal {

// Where a value lies: in the storage of `root`, from that value's channel `offset` on (counted at full width).
struct Place {
    int root;
    int offset;
};

// How a node hands the gradient of one of its inputs on.
enum class Handing {
    none,        // nobody needs it
    write,       // it is the first part of that gradient
    accumulate,  // it is added to what there is
    alias,       // the gradient of what the node made becomes it, without a copy
};

struct Gradient {
    int value = 0;
    Handing handing = Handing::none;
    bool clear_first = false;  // only a part of the storage is written first: the whole of it starts from zeros
};

enum class NodeKind { convolution, depthwise, chain, pool, multiply, copy, flatten, dropout };

// What is executed at once: an operation, or a chain of batch norm, addition and activation in one pass.
struct Node {
    NodeKind kind;
    int operation;            // the one whose value it makes
    std::vector<int> inputs;  // values; of a chain: what comes first, and the other operand of the addition
    int out;                  // the value it makes
    int out_offset = 0;       // copy: the channel of `out` from which on it writes
    int batch_norm = -1;      // chain: this operation or -1
    Activation activation = Activation::none;  // chain
    bool moments = false;                      // a batch norm wants the statistics of what this makes
    bool has_gradient = false;  // the class scores depend on it, and something before or in it is trained
    bool through = false;       // chain: whoever completes the gradient of `out` passes it through the activation
    int completes = -1;         // convolution, depthwise: the position of the chain that it does this for
    bool again = false;         // chain: what it makes is not kept, but made again where the backward pass needs it
    int makes_again = -1;       // convolution, depthwise: the position of the chain that makes its input again
    int completed_by = -1;      // chain: the position of the one that does this
    std::vector<Gradient> gradients = {};  // by input

    bool residual() const { return kind == NodeKind::chain && inputs.size() == 2; }
    // Whether a chain's derivative follows from what it made, instead of from what it read.
    bool mask_from_out() const {
        return activation != Activation::none && activation != Activation::hardswish && (residual() || batch_norm < 0);
    }
};

// A plan as nodes in order: what is fused, what shares storage, and who adds what to which gradient. It depends on the
// plan alone, not on what survives.
class Lowering {
  public:
    explicit Lowering(std::shared_ptr<const Plan> plan);

    const Plan& plan() const { return *plan_; }
    const std::vector<Node>& nodes() const { return nodes_; }
    Place place(int value) const { return places_[static_cast<std::size_t>(value)]; }
    // Whether the value has storage at all: values inside chains have none.
    bool stored(int value) const { return stored_[static_cast<std::size_t>(value)]; }
    // The value whose gradient shares its storage with this one's: itself, or what a node handed on by alias. Of roots.
    int gradient_root(int root) const { return gradient_roots_[static_cast<std::size_t>(root)]; }
    bool input_moments() const { return input_moments_; }    // a batch norm wants the statistics of the input
    bool output_partial() const { return output_partial_; }  // the class scores are a part of their storage

  private:
    void place_values();
    void make_nodes();
    Node make_chain(int first, std::vector<bool>& taken);
    void find_moments();
    void hand_gradients();
    void hand(Node& node, std::size_t input, bool may_alias);
    void find_through();
    void find_again();
    bool alone(int value) const;  // has a storage of its own that no other value shares

    std::shared_ptr<const Plan> plan_;
    std::vector<Place> places_;
    std::vector<bool> shared_;  // by root: other values lie in it
    std::vector<bool> stored_;
    std::vector<Node> nodes_;
    std::vector<int> gradient_roots_;
    std::vector<bool> started_;  // by gradient root: something was handed
    bool input_moments_ = false;
    bool output_partial_ = false;
};

}  // namespace distreal
