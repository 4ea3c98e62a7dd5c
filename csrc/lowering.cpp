#include "lowering.hpp"

#include <algorithm>
#include <utility>

namespace distreal {
namespace {

Activation activation_of(Kind kind) {
    switch (kind) {
        case Kind::relu:
            return Activation::relu;
        case Kind::relu6:
            return Activation::relu6;
        case Kind::hardswish:
            return Activation::hardswish;
        case Kind::sigmoid:
            return Activation::sigmoid;
        default:
            return Activation::none;
    }
}

std::size_t at(int index) { return static_cast<std::size_t>(index); }

}  // namespace

Lowering::Lowering(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {
    place_values();
    make_nodes();
    find_moments();
    hand_gradients();
    find_through();
    find_again();
}

bool Lowering::alone(int value) const { return place(value).root == value && !shared_[at(value)]; }

// Parts of a concatenation are made in place: the last concatenation that a value ends up in is its storage.
void Lowering::place_values() {
    const int values = plan_->values();
    struct Parent {
        int value = -1;
        int offset = 0;
    };
    std::vector<Parent> parents(at(values));
    const auto resolve = [&](int value) {
        Place place{value, 0};
        while (parents[at(place.root)].value >= 0) {
            const Parent& parent = parents[at(place.root)];
            place = {parent.value, place.offset + parent.offset};
        }
        return place;
    };
    const auto is_free = [&](int value) { return parents[at(value)].value < 0; };

    for (int index = values - 2; index >= 0; --index) {
        const Operation& operation = plan_->operation(index);
        const int out = index + 1;
        const int first = operation.inputs[0];
        if (operation.kind == Kind::concat) {
            // The parts may already lie one after the other in a later, longer concatenation.
            const Place start = resolve(first);
            int offset = 0;
            const bool in_order = std::ranges::all_of(operation.inputs, [&](int part) {
                const Place place = resolve(part);
                const bool fits = !is_free(part) && place.root == start.root && place.offset == start.offset + offset;
                offset += plan_->shape(part).channels;
                return fits;
            });
            if (in_order && is_free(out) && start.root != out) {
                parents[at(out)] = {start.root, start.offset};
                continue;
            }
            offset = 0;
            for (const int part : operation.inputs) {
                if (is_free(part) && resolve(out).root != part) {
                    parents[at(part)] = {out, offset};
                }
                offset += plan_->shape(part).channels;
            }
        } else if (operation.kind == Kind::flatten && plan_->shape(first).pixels() == 1) {
            if (is_free(first)) {
                parents[at(first)] = {out, 0};
            } else if (is_free(out) && resolve(first).root != out) {
                parents[at(out)] = {first, 0};
            }
        } else if (operation.kind == Kind::relu || operation.kind == Kind::relu6 || operation.kind == Kind::sigmoid) {
            // In place, where nobody asks for the value before the activation again.
            const bool made_by_matrix = first > 0 && plan_->operation(first - 1).is_matrix();
            if (made_by_matrix && plan_->readers(first).size() == 1 && is_free(first)) {
                parents[at(first)] = {out, 0};
            }
        }
    }
    shared_.assign(at(values), false);
    for (int value = 0; value < values; ++value) {
        places_.push_back(resolve(value));
        if (places_.back().root != value) {
            shared_[at(places_.back().root)] = true;
        }
    }
    stored_.assign(at(values), true);
    for (int value = 0; value < values; ++value) {
        gradient_roots_.push_back(value);
    }
}

Node Lowering::make_chain(int first, std::vector<bool>& taken) {
    Node node{.kind = NodeKind::chain, .operation = first, .inputs = {plan_->operation(first).inputs[0]}, .out = 0};
    int last = first;
    const auto take = [&](int index) {
        taken[at(index)] = true;
        last = index;
    };
    // The next operation may join when it is the only one that reads what the chain makes so far.
    const auto next = [&] {
        const int value = last + 1;
        const auto& readers = plan_->readers(value);
        const bool may_join = readers.size() == 1 && !taken[at(readers[0])] && alone(value);
        return may_join ? readers[0] : -1;
    };
    const auto join_addition = [&](int index) {
        const auto& inputs = plan_->operation(index).inputs;
        node.inputs.push_back(inputs[0] == last + 1 ? inputs[1] : inputs[0]);
        take(index);
    };
    const auto join_activation = [&](int index) {
        node.activation = activation_of(plan_->operation(index).kind);
        take(index);
    };

    const Kind kind = plan_->operation(first).kind;
    if (kind == Kind::batch_norm) {
        node.batch_norm = first;
        take(first);
        const int addition = next();
        if (addition >= 0 && plan_->operation(addition).kind == Kind::add) {
            const auto& inputs = plan_->operation(addition).inputs;
            if (inputs[0] != inputs[1]) {
                join_addition(addition);
            }
        }
    } else if (kind == Kind::add) {
        node.inputs.push_back(plan_->operation(first).inputs[1]);
        take(first);
    } else {
        join_activation(first);
    }
    const int activation = node.activation == Activation::none ? next() : -1;
    if (activation >= 0) {
        const Activation which = activation_of(plan_->operation(activation).kind);
        // The derivative of hardswish needs the sum, which nobody would keep.
        if (which != Activation::none && !(which == Activation::hardswish && node.residual())) {
            join_activation(activation);
        }
    }
    node.operation = last;
    node.out = last + 1;
    return node;
}

void Lowering::make_nodes() {
    const int operations = static_cast<int>(plan_->operations().size());
    std::vector<bool> taken(at(operations), false);
    for (int index = 0; index < operations; ++index) {
        if (taken[at(index)]) {
            continue;
        }
        const Operation& operation = plan_->operation(index);
        const auto plain_node = [&](NodeKind kind) {
            nodes_.push_back({.kind = kind, .operation = index, .inputs = operation.inputs, .out = index + 1});
        };
        switch (operation.kind) {
            case Kind::conv2d:
            case Kind::linear:
                plain_node(plan_->depthwise(index) ? NodeKind::depthwise : NodeKind::convolution);
                break;
            case Kind::max_pool:
            case Kind::avg_pool:
            case Kind::global_avg_pool:
                plain_node(NodeKind::pool);
                break;
            case Kind::multiply:
                plain_node(NodeKind::multiply);
                break;
            case Kind::dropout:
                plain_node(NodeKind::dropout);
                break;
            case Kind::flatten: {
                const Place from = place(operation.inputs[0]);
                const Place to = place(index + 1);
                const bool in_place =
                    plan_->shape(operation.inputs[0]).pixels() == 1 && from.root == to.root && from.offset == to.offset;
                if (!in_place) {
                    plain_node(NodeKind::flatten);
                }
                break;
            }
            case Kind::concat: {
                const Place to = place(index + 1);
                int offset = 0;
                for (const int part : operation.inputs) {
                    const Place from = place(part);
                    if (from.root != to.root || from.offset != to.offset + offset) {
                        nodes_.push_back({.kind = NodeKind::copy,
                                          .operation = index,
                                          .inputs = {part},
                                          .out = index + 1,
                                          .out_offset = offset});
                    }
                    offset += plan_->shape(part).channels;
                }
                break;
            }
            default:
                nodes_.push_back(make_chain(index, taken));
        }
    }
    std::ranges::stable_sort(nodes_, {}, &Node::operation);

    // What is neither the input nor made by a node, or a concatenation of such, has no storage.
    std::vector<bool> inside(at(plan_->values()), false);
    for (int index = 0; index < operations; ++index) {
        inside[at(index) + 1] = taken[at(index)];
    }
    for (const Node& node : nodes_) {
        inside[at(node.out)] = false;
    }
    for (int value = 0; value < plan_->values(); ++value) {
        stored_[at(value)] = !inside[at(value)];
    }
}

// A batch norm needs the statistics of every channel it reads; whoever makes a channel takes them on the way.
void Lowering::find_moments() {
    for (const Node& reader : nodes_) {
        if (reader.batch_norm < 0) {
            continue;
        }
        const Place read = place(reader.inputs[0]);
        const int end = read.offset + plan_->shape(reader.inputs[0]).channels;
        const auto within = [&](int value, int offset, int channels) {
            const Place made = place(value);
            return made.root == read.root && read.offset <= made.offset + offset &&
                   made.offset + offset + channels <= end;
        };
        for (Node& maker : nodes_) {
            const int made = maker.kind == NodeKind::copy ? maker.inputs[0] : maker.out;
            if (within(maker.out, maker.out_offset, plan_->shape(made).channels)) {
                maker.moments = true;
            }
        }
        if (within(0, 0, plan_->shape(0).channels)) {
            input_moments_ = true;
        }
    }
}

void Lowering::hand(Node& node, std::size_t input, bool may_alias) {
    const int value = node.inputs[input];
    Gradient& gradient = node.gradients[input];
    gradient.value = value;
    if (!plan_->differentiable(value)) {
        return;
    }
    const Place from = place(value);
    const Place out = place(node.out);
    if (node.kind == NodeKind::chain && from.root == out.root && from.offset == out.offset) {
        gradient.handing = Handing::alias;  // the activation worked in place, and so does its derivative
        return;
    }
    const int root = gradient_root(from.root);
    if (started_[at(root)]) {
        gradient.handing = Handing::accumulate;
        return;
    }
    if (may_alias && alone(value) && alone(node.out)) {
        gradient_roots_[at(value)] = gradient_root(node.out);
        gradient.handing = Handing::alias;
        return;
    }
    gradient.handing = Handing::write;
    gradient.clear_first = plan_->shape(value).channels != plan_->shape(from.root).channels;
    started_[at(root)] = true;
}

// Backwards through the nodes: the first to hand a gradient on writes it, all later ones add to it.
void Lowering::hand_gradients() {
    started_.assign(at(plan_->values()), false);
    const Place output = place(plan_->output());
    started_[at(output.root)] = true;
    output_partial_ = plan_->shape(plan_->output()).channels != plan_->shape(output.root).channels;
    for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
        node->gradients.resize(node->inputs.size());
        node->has_gradient = started_[at(gradient_root(place(node->out).root))] && plan_->differentiable(node->out);
        if (!node->has_gradient) {
            continue;
        }
        if (node->kind == NodeKind::chain) {
            // The other operand first: batch norm may then work in place only if that one has not taken the place.
            bool taken = false;
            if (node->residual()) {
                hand(*node, 1, true);
                taken = node->gradients[1].handing == Handing::alias;
            }
            hand(*node, 0, !taken);
        } else {
            for (std::size_t input = 0; input < node->inputs.size(); ++input) {
                hand(*node, input, node->kind == NodeKind::dropout);
            }
        }
    }
}

// Where the last to add to a gradient is a convolution, it can take the step through batch norm's activation as well.
void Lowering::find_through() {
    for (std::size_t position = 0; position < nodes_.size(); ++position) {
        Node& chain = nodes_[position];
        const bool simple = chain.activation == Activation::none || chain.activation == Activation::relu ||
                            chain.activation == Activation::relu6;
        if (chain.kind != NodeKind::chain || chain.batch_norm < 0 || chain.residual() || !simple ||
            !chain.has_gradient || !alone(chain.out)) {
            continue;
        }
        const auto last = std::find_if(nodes_.begin() + static_cast<std::ptrdiff_t>(position) + 1, nodes_.end(),
                                       [&](const Node& node) {
                                           return std::ranges::any_of(node.gradients, [&](const Gradient& gradient) {
                                               return gradient.value == chain.out && gradient.handing != Handing::none;
                                           });
                                       });
        if (last == nodes_.end()) {
            continue;
        }
        const bool convolves = last->kind == NodeKind::depthwise ||
                               (last->kind == NodeKind::convolution && plan_->operation(last->operation).groups == 1);
        if (convolves) {
            chain.through = true;
            last->completes = static_cast<int>(position);
            chain.completed_by = static_cast<int>(last - nodes_.begin());
        }
    }
}

// Half of what a training step must remember are activations that a batch norm and an activation made of values that
// are remembered anyway. Where a single convolution reads one, making it again costs one more pass, and its memory is
// free in the meantime.
void Lowering::find_again() {
    for (std::size_t position = 0; position < nodes_.size(); ++position) {
        Node& chain = nodes_[position];
        if (chain.kind != NodeKind::chain || chain.batch_norm < 0 || chain.residual() || !alone(chain.out) ||
            plan_->readers(chain.out).size() != 1) {
            continue;
        }
        const auto reader = std::ranges::find_if(nodes_, [&](const Node& node) {
            return (node.kind == NodeKind::convolution || node.kind == NodeKind::depthwise) &&
                   node.inputs[0] == chain.out && node.has_gradient;
        });
        if (reader != nodes_.end()) {
            chain.again = true;
            reader->makes_again = static_cast<int>(position);
        }
    }
}

}  // namespace distreal
