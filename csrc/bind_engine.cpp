#include "bind_engine.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cancellation.hpp"
#include "cpu_features.hpp"
#include "executor.hpp"
#include "instruction_set.hpp"
#include "kernels/choose.hpp"
#include "lowering.hpp"
#include "plan.hpp"

namespace py = pybind11;

namespace distreal {
namespace {

using Sides = std::array<int, 2>;
using Extents = std::tuple<int, int, int>;
template <class Element>
using Array = py::array_t<Element, py::array::c_style>;

Shape shape_of(const Extents& extents) { return {std::get<0>(extents), std::get<1>(extents), std::get<2>(extents)}; }

Operation make_operation(const std::string& kind, std::vector<int> inputs, const Extents& shape, Sides kernel,
                         Sides stride, Sides padding, Sides dilation, int groups, bool bias, double epsilon,
                         bool count_include_pad, double p, bool rescales) {
    return {.kind = kind_named(kind),
            .inputs = std::move(inputs),
            .shape = shape_of(shape),
            .window = {kernel, stride, padding, dilation},
            .groups = groups,
            .bias = bias,
            .epsilon = epsilon,
            .count_include_pad = count_include_pad,
            .p = p,
            .rescales = rescales};
}

// What Python holds as a plan: the plan, and how it is executed.
struct BoundPlan {
    std::shared_ptr<const Lowering> lowering;

    const Plan& plan() const { return lowering->plan(); }
};

BoundPlan make_plan(const Extents& input, std::vector<Operation> operations,
                    const std::vector<Array<std::int32_t>>& filters, std::vector<int> group_sizes,
                    std::vector<double> mean, std::vector<double> std, int crop_padding) {
    std::vector<std::vector<std::int32_t>> ids;
    for (const auto& of_value : filters) {
        ids.emplace_back(of_value.data(), of_value.data() + of_value.size());
    }
    auto plan =
        std::make_shared<const Plan>(shape_of(input), std::move(operations), std::move(ids), std::move(group_sizes),
                                     Preprocessing{std::move(mean), std::move(std), crop_padding});
    return {std::make_shared<const Lowering>(std::move(plan))};
}

// The engine has been given sound arguments by distreal_edge.engine. Checking them again costs nothing, and keeps
// whoever calls this module directly within bounds.
void require(bool holds, const char* complaint) {
    if (!holds) {
        throw std::invalid_argument(complaint);
    }
}

std::span<const bool> kept_span(const Plan& plan, const Array<bool>& kept) {
    require(kept.ndim() == 1 && kept.size() == plan.filter_count() + 1, "kept must be bool [filters + 1]");
    return {kept.data(), static_cast<std::size_t>(kept.size())};
}

const Kernels<float>& wanted_kernels(std::string wanted) {
    if (wanted.empty()) {
        const char* variable = std::getenv(instruction_set_variable);
        wanted = variable == nullptr ? "" : variable;
    }
    return kernels_of(choose_instruction_set(cpu_features(), wanted));
}

Images make_images(const Plan& plan, const py::array& images, const std::optional<Array<std::int32_t>>& corners,
                   const std::optional<Array<bool>>& flips) {
    const Shape& shape = plan.shape(0);
    require(images.ndim() == 4 && images.shape(0) >= 1 && images.shape(0) <= (1 << 20) &&
                images.shape(1) == shape.channels && images.shape(2) == shape.height &&
                images.shape(3) == shape.width && (images.flags() & py::array::c_style) != 0,
            "images must be C-contiguous [N, C, H, W]");
    Images made{images.data(), PixelType::uint8, static_cast<int>(images.shape(0)), nullptr, nullptr};
    if (py::isinstance<py::array_t<float>>(images)) {
        made.type = PixelType::float32;
    } else if (py::isinstance<py::array_t<double>>(images)) {
        made.type = PixelType::float64;
    } else {
        require(py::isinstance<py::array_t<std::uint8_t>>(images), "images must be uint8 or floating-point");
    }
    if (corners) {
        require(corners->ndim() == 2 && corners->shape(0) == made.count && corners->shape(1) == 2,
                "corners must be int32 [N, 2]");
        for (py::ssize_t index = 0; index < corners->size(); ++index) {
            const std::int32_t corner = corners->data()[index];
            require(0 <= corner && corner <= 2 * plan.preprocessing().crop_padding, "a corner is out of range");
        }
        made.corners = corners->data();
    }
    if (flips) {
        require(flips->ndim() == 1 && flips->shape(0) == made.count, "flips must be bool [N]");
        made.flips = reinterpret_cast<const std::uint8_t*>(flips->data());
    }
    return made;
}

// `given` is null where nobody wants to cancel.
const Cancellation& cancellation_or_never(const Cancellation* given) {
    static const Cancellation never;
    return given == nullptr ? never : *given;
}

template <class Real>
class BoundEngine {
  public:
    using Tuples = std::vector<std::vector<Array<Real>>>;

    BoundEngine(const BoundPlan& plan, Tuples weights, Tuples momentum, const Kernels<Real>& kernels)
        : weights_(std::move(weights)),
          momentum_(std::move(momentum)),
          executor_(plan.lowering, kernels, tensors(plan.plan(), weights_, momentum_)) {}

    double step(const py::array& images, const Array<std::int64_t>& labels, const Array<bool>& kept,
                const std::optional<Array<std::int32_t>>& corners, const std::optional<Array<bool>>& flips,
                const std::vector<Array<float>>& draws, double lr, double momentum, double weight_decay, int threads,
                const Cancellation* cancellation) {
        const Plan& plan = executor_.plan();
        const Images made = make_images(plan, images, corners, flips);
        require(labels.ndim() == 1 && labels.size() == made.count, "labels must be int64 [N]");
        for (py::ssize_t index = 0; index < labels.size(); ++index) {
            const std::int64_t label = labels.data()[index];
            require(0 <= label && label < plan.shape(plan.output()).channels, "a label is not one of the classes");
        }
        const std::span<const bool> survivors = kept_span(plan, kept);
        check_draws(plan, survivors, made.count, draws);
        require(threads >= 1, "threads must be 1 or more");
        std::vector<const float*> pointers;
        for (const auto& draw : draws) {
            pointers.push_back(draw.data());
        }
        const py::gil_scoped_release others_may_run;
        return executor_.step(made, labels.data(), survivors, pointers, {lr, momentum, weight_decay}, threads,
                              cancellation_or_never(cancellation));
    }

    void predict(const py::array& images, Array<Real>& scores, int threads, const Cancellation* cancellation) {
        const Plan& plan = executor_.plan();
        const Images made = make_images(plan, images, {}, {});
        require(scores.ndim() == 2 && scores.shape(0) == made.count &&
                    scores.shape(1) == plan.shape(plan.output()).channels && threads >= 1,
                "scores must be [N, classes], and threads 1 or more");
        Real* to = scores.mutable_data();
        const py::gil_scoped_release others_may_run;
        executor_.predict(made, to, threads, cancellation_or_never(cancellation));
    }

    py::list batch_moments(const py::array& images, int threads, const Cancellation* cancellation) {
        const Images made = make_images(executor_.plan(), images, {}, {});
        require(threads >= 1, "threads must be 1 or more");
        std::vector<std::pair<std::vector<double>, std::vector<double>>> moments;
        {
            const py::gil_scoped_release others_may_run;
            moments = executor_.batch_moments(made, threads, cancellation_or_never(cancellation));
        }
        py::list listed;
        for (const auto& [mean, variance] : moments) {
            listed.append(
                py::make_tuple(py::array_t<double>(static_cast<py::ssize_t>(mean.size()), mean.data()),
                               py::array_t<double>(static_cast<py::ssize_t>(variance.size()), variance.data())));
        }
        return listed;
    }

    std::string instruction_set() const { return executor_.kernels().name; }
    std::size_t arena_bytes() const { return executor_.arena_bytes(); }

  private:
    static Real* data_of(std::vector<Array<Real>>& arrays, std::size_t index, py::ssize_t elements) {
        if (index >= arrays.size()) {
            throw std::invalid_argument("an operation lacks a tensor");
        }
        require(arrays[index].size() == elements, "a tensor has a wrong number of elements");
        return arrays[index].mutable_data();
    }

    static std::vector<Tensors<Real>> tensors(const Plan& plan, Tuples& weights, Tuples& momentum) {
        const std::size_t operations = plan.operations().size();
        require(weights.size() == operations && momentum.size() == operations,
                "one entry for each operation is needed");
        std::vector<Tensors<Real>> found(operations);
        for (std::size_t index = 0; index < operations; ++index) {
            const Operation& operation = plan.operations()[index];
            Tensors<Real>& tensors = found[index];
            const py::ssize_t out = operation.shape.channels;
            if (operation.is_matrix()) {
                const py::ssize_t in = plan.shape(operation.inputs[0]).channels / operation.groups;
                const py::ssize_t elements = out * in * operation.window.taps();
                tensors.weight = data_of(weights[index], 0, elements);
                tensors.weight_momentum = data_of(momentum[index], 0, elements);
                if (operation.bias) {
                    tensors.bias = data_of(weights[index], 1, out);
                    tensors.bias_momentum = data_of(momentum[index], 1, out);
                }
            } else if (operation.kind == Kind::batch_norm) {
                tensors.weight = data_of(weights[index], 0, out);
                tensors.bias = data_of(weights[index], 1, out);
                tensors.running_mean = data_of(weights[index], 2, out);
                tensors.running_variance = data_of(weights[index], 3, out);
                tensors.weight_momentum = data_of(momentum[index], 0, out);
                tensors.bias_momentum = data_of(momentum[index], 1, out);
            }
        }
        return found;
    }

    static void check_draws(const Plan& plan, std::span<const bool> kept, int images,
                            const std::vector<Array<float>>& draws) {
        std::size_t next = 0;
        for (int index = 0; index < static_cast<int>(plan.operations().size()); ++index) {
            if (plan.operation(index).kind != Kind::dropout) {
                continue;
            }
            std::int64_t surviving = 0;
            for (const std::int32_t filter : plan.filters(index + 1)) {
                surviving += filter < 0 || kept[static_cast<std::size_t>(filter)] ? 1 : 0;
            }
            const std::int64_t elements = surviving * plan.shape(index + 1).pixels() * images;
            require(next < draws.size() && draws[next].size() == elements,
                    "each dropout needs one random number for every surviving element");
            ++next;
        }
        require(next == draws.size(), "there are more random numbers than dropouts");
    }

    Tuples weights_;  // keeps the arrays alive
    Tuples momentum_;
    Executor<Real> executor_;
};

template <class Real, class Class>
void bind_calls(Class& engine) {
    engine
        .def("step", &BoundEngine<Real>::step, py::arg("images"), py::arg("labels"), py::arg("kept"), py::kw_only(),
             py::arg("corners"), py::arg("flips"), py::arg("draws"), py::arg("lr"), py::arg("momentum"),
             py::arg("weight_decay"), py::arg("threads"), py::arg("cancellation") = py::none(),
             "Train the survivors on one mini-batch; return the mean loss before the update.")
        .def("predict", &BoundEngine<Real>::predict, py::arg("images"), py::arg("scores").noconvert(),
             py::arg("threads"), py::arg("cancellation") = py::none(),
             "Write the full network's class scores into `scores`.")
        .def("batch_moments", &BoundEngine<Real>::batch_moments, py::arg("images"), py::arg("threads"),
             py::arg("cancellation") = py::none(),
             "Return mean and biased variance per channel of what every batch norm of the full network sees.")
        .def_property_readonly("instruction_set", &BoundEngine<Real>::instruction_set,
                               "The instruction set whose kernels are used.")
        .def_property_readonly("arena_bytes", &BoundEngine<Real>::arena_bytes,
                               "How many bytes the largest step so far has needed.");
}

}  // namespace

void bind_engine(py::module_& module) {
    py::class_<Cancellation>(module, "Cancellation",
                             "Ends what was given it early: steps and passes of any engine. It cannot be taken back.")
        .def(py::init<>())
        .def("cancel", &Cancellation::cancel, "Cancel, from any thread; doing it again changes nothing.")
        .def_property_readonly("cancelled", &Cancellation::cancelled, "Whether anybody has cancelled.");
    py::register_exception<Cancelled>(module, "CancelledError");

    const Sides ones{1, 1};
    const Sides zeros{0, 0};
    py::class_<Operation>(module, "Operation", "One operation of a plan, as network/operations.py describes it.")
        .def(py::init(&make_operation), py::arg("kind"), py::arg("inputs"), py::arg("shape"), py::kw_only(),
             py::arg("kernel") = ones, py::arg("stride") = ones, py::arg("padding") = zeros, py::arg("dilation") = ones,
             py::arg("groups") = 1, py::arg("bias") = false, py::arg("epsilon") = 0.0,
             py::arg("count_include_pad") = true, py::arg("p") = 0.0, py::arg("rescales") = false);

    py::class_<BoundPlan>(module, "Plan", "A network's plan, checked and ready to be executed.")
        .def(py::init(&make_plan), py::arg("input_shape"), py::arg("operations"), py::arg("filters"),
             py::arg("group_sizes"), py::arg("mean"), py::arg("std"), py::arg("crop_padding"))
        .def(
            "step_bytes",
            [](const BoundPlan& plan, const Array<bool>& kept, int batch) {
                require(batch >= 1 && batch <= (1 << 20), "a batch has 1 to 1048576 images");
                return step_bytes(*plan.lowering, wanted_kernels(""), kept_span(plan.plan(), kept), batch);
            },
            py::arg("kept"), py::arg("batch"), "Return the bytes of the arena of a training step on one thread.");

    py::class_<BoundEngine<float>> engine(module, "Engine", "Trains and evaluates one network, in float32.");
    engine.def(py::init([](const BoundPlan& plan, BoundEngine<float>::Tuples weights,
                           BoundEngine<float>::Tuples momentum, const std::string& set) {
                   return std::make_unique<BoundEngine<float>>(plan, std::move(weights), std::move(momentum),
                                                               wanted_kernels(set));
               }),
               py::arg("plan"), py::arg("weights").noconvert(), py::arg("momentum").noconvert(),
               py::arg("instruction_set") = "");
    bind_calls<float>(engine);

    py::class_<BoundEngine<double>> plain(module, "PlainEngine64",
                                          "The same in float64 by the plain kernels: an oracle for tests.");
    plain.def(
        py::init([](const BoundPlan& plan, BoundEngine<double>::Tuples weights, BoundEngine<double>::Tuples momentum) {
            return std::make_unique<BoundEngine<double>>(plan, std::move(weights), std::move(momentum),
                                                         plain_kernels<double>());
        }),
        py::arg("plan"), py::arg("weights").noconvert(), py::arg("momentum").noconvert());
    bind_calls<double>(plain);
}

}  // namespace distreal
