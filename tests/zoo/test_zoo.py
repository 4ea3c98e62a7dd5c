from __future__ import annotations

from math import prod, sqrt

import numpy as np
import pytest

import distreal_edge
from distreal_edge import zoo
from distreal_edge.dropout import uniform_vector
from distreal_edge.errors import NetworkError
from distreal_edge.network import Network, Preprocessing


def count_weights(network: Network) -> int:
    return sum(prod(parameter.shape) for parameter in network.plan.parameters.values())


@pytest.mark.parametrize(
    ("name", "settings", "weights"),
    [
        # He et al. state 0.27 M; 269,722 with padded shortcuts, and 2,752 more with projections.
        ("resnet20", {}, 269_722 + 2_752),
        ("resnet8", {}, 78_042),
        # Huang et al. state 0.2 M for L = 40, k = 12; the usual implementations have 176,122.
        ("densenet40", {}, 176_122),
        ("densenet40", {"classes": 100}, 188_092),
        # McMahan et al. state 1,663,370 for MNIST.
        ("femnist_cnn", {"classes": 10}, 1_663_370),
        ("femnist_cnn", {}, 1_690_046),
        # torchvision's mobilenet_v2 has 3,504,872 for ImageNet; strides have no weights.
        ("mobilenet_v2", {"classes": 1000}, 3_504_872),
        ("mobilenet_v2", {}, 2_236_682),
        # The smaller and larger ones that torchvision and Keras publish.
        ("mobilenet_v2", {"classes": 1000, "width": 0.5}, 1_968_680),
        ("mobilenet_v2", {"classes": 1000, "width": 1.4}, 6_108_776),
        ("vgg_small", {}, 864 + 9_216 + 18_432 + 36_864 + 73_728 + 147_456 + 2 * 448 + 2_048 * 10 + 10),
        (
            "vgg_small",
            {"image_size": 28, "in_channels": 1},
            288 + 9_216 + 18_432 + 36_864 + 73_728 + 147_456 + 896 + 11_530,
        ),
    ],
)
def test_a_network_has_the_published_number_of_weights(name: str, settings: dict[str, int], weights: int) -> None:
    assert count_weights(zoo.NETWORKS[name](**settings)) == weights


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_any_channels_classes_and_sizes_are_possible(name: str) -> None:
    network = zoo.NETWORKS[name](classes=5, in_channels=4, image_size=20)
    assert network.plan.input_shape == (4, 20, 20)
    assert network.plan.classes == 5


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_name_on_the_command_line_is_the_public_name(name: str) -> None:
    assert zoo.NETWORKS[name] is getattr(zoo, name)
    assert name in zoo.__all__
    assert distreal_edge.zoo is zoo


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_weights_follow_from_the_seed(name: str) -> None:
    first, again, other = (zoo.NETWORKS[name](seed=seed).weights for seed in (1, 1, 2))
    for tensor in first:
        np.testing.assert_array_equal(first[tensor], again[tensor])
    assert any(np.any(first[tensor] != other[tensor]) for tensor in first)


def test_weights_are_uniform_within_one_over_the_root_of_the_fan_in() -> None:
    weights = zoo.femnist_cnn().weights["conv2.weight"]
    bound = 1 / sqrt(32 * 25)
    assert np.abs(weights).max() <= bound
    assert np.std(weights) == pytest.approx(bound / sqrt(3), rel=0.02)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_only_a_network_without_batch_norm_rescales(name: str) -> None:
    assert zoo.NETWORKS[name]().plan.rescale == (name == "femnist_cnn")


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_preprocessing_goes_into_the_plan_and_is_none_by_default(name: str) -> None:
    channels = zoo.NETWORKS[name]().plan.input_shape[0]
    preprocessing = Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels, crop_padding=4, horizontal_flip=True)
    assert zoo.NETWORKS[name](preprocessing=preprocessing).plan.preprocessing == preprocessing
    assert zoo.NETWORKS[name]().plan.preprocessing == Preprocessing()


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_network_survives_its_file(name: str) -> None:
    network = zoo.NETWORKS[name]()
    back = Network.from_bytes(network.to_bytes())
    assert back.plan == network.plan
    for tensor, weights in network.weights.items():
        np.testing.assert_array_equal(back.weights[tensor], weights)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_half_of_the_filters_cost_less_than_half_of_the_macs_and_more_than_a_quarter(name: str) -> None:
    network = zoo.NETWORKS[name]()
    groups = len(network.groups)
    share = network.cost(uniform_vector(0.5, groups)).macs / network.cost(uniform_vector(0.0, groups)).macs
    assert 0.25 < share < 0.5


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(NetworkError, match="max_pool#2"):
        zoo.vgg_small(image_size=4)


def test_the_groups_of_resnet8_are_its_streams_and_the_inner_convolutions() -> None:
    assert [(group.name, group.filters) for group in zoo.resnet8().groups] == [
        ("conv1", 16),  # with layer1.0.conv2
        ("layer1.0.conv1", 16),
        ("layer2.0.conv1", 32),
        ("layer2.0.conv2", 32),  # with layer2.0.downsample.0
        ("layer3.0.conv1", 64),
        ("layer3.0.conv2", 64),
    ]


def test_every_convolution_of_densenet_and_vgg_is_a_group_of_its_own() -> None:
    assert len(zoo.densenet40().groups) == 1 + 3 * 6 * 2 + 2
    assert [group.filters for group in zoo.vgg_small().groups] == [32, 32, 64, 64, 128, 128]


def test_the_groups_of_mobilenet_are_its_expansions_and_its_streams() -> None:
    sizes = [group.filters for group in zoo.mobilenet_v2().groups]
    expected = [32, 16]  # the first convolution, and the only stage without expansion
    for entering, stream, blocks in (
        (96, 24, 2),
        (144, 32, 3),
        (192, 64, 4),
        (384, 96, 3),
        (576, 160, 3),
        (960, 320, 1),
    ):  # the expansion into the stage, the stage's stream, and the expansions inside it
        expected += [entering, stream, *[6 * stream] * (blocks - 1)]
    assert sizes == [*expected, 1280]
