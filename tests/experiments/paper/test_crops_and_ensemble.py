import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.paper.crops_and_ensemble import (
    crops,
    evaluation,
    figure,
    network,
    report,
    study,
)


def ramps(count):
    """Images whose two channels are the row and the column of each pixel."""
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    image = np.stack([rows, columns], -1)
    return jnp.asarray(np.broadcast_to(image, (count, *image.shape)))


@pytest.fixture(scope="module")
def parts_of():
    """The parts of 400 such images by seed, in one program."""
    parts = jax.jit(lambda key: crops.augment(key, ramps(400), 28))
    return lambda seed: np.asarray(parts(jax.random.key(seed)))


def test_parts_have_the_sizes_and_proportions_promised(parts_of):
    parts = parts_of(0)
    assert parts.shape == (400, 28, 28, 2)
    # Pixels of the image per pixel of the part, from the middle, where no border is.
    height = 28 * (parts[:, 18, 14, 0] - parts[:, 10, 14, 0]) / 8
    width = 28 * (parts[:, 14, 18, 1] - parts[:, 14, 10, 1]) / 8
    mirrored = width < 0
    assert 0.4 < mirrored.mean() < 0.6
    width = np.abs(width)
    area, shape = height * width / 32**2, width / height
    # The smallest crop of the evaluation is 28 of 44 pixels wide; a stretched part that
    # would leave the image is cut, which makes some a little smaller.
    assert (28 / 44) ** 2 * 0.85 < area.min() < 0.45
    assert 0.9 < area.max() <= 1.02
    # Values of a ramp that is reduced are off by up to 1 %, see test_crops.
    assert 0.75 * 0.99 < shape.min() < 0.8
    assert 1.25 < shape.max() < 4 / 3 * 1.01
    # Inside the image: interpolated values are between those of its pixels.
    assert parts.min() >= -1e-4
    assert parts.max() <= 31 + 1e-4


def test_a_function_of_the_key(parts_of):
    first = parts_of(0)
    np.testing.assert_array_equal(first, parts_of(0))
    assert not np.allclose(first, parts_of(1))


def test_images_of_a_batch_are_cut_each_in_its_own_way(parts_of):
    first, second, *_ = parts_of(0)
    assert not np.allclose(first, second)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375)])
def test_144_different_crops_inside_the_image(height, width):
    scheme = crops.scheme(height, width, 224)
    assert len(scheme) == len(set(scheme)) == 4 * 3 * 6 * 2
    assert Counter(crop.shorter for crop in scheme) == dict.fromkeys(
        (256, 288, 320, 352), 36
    )
    for crop in scheme:
        rows, columns = crops.resized(height, width, crop.shorter)
        assert min(rows, columns) == crop.shorter
        assert crop.side in (224, crop.shorter)
        assert 0 <= crop.top <= rows - crop.side
        assert 0 <= crop.left <= columns - crop.side


def test_positions_at_the_first_scale():
    """A landscape of 256 x 384: squares at 0, 64 and 128."""
    scheme = crops.scheme(512, 768, 224)
    found = [crop[1:4] for crop in scheme[:36] if not crop.mirrored]
    expected = [
        (top, square + left, side)
        for square in (0, 64, 128)
        for top, left, side in [
            (0, 0, 224), (0, 32, 224), (32, 0, 224), (32, 32, 224), (16, 16, 224),
            (0, 0, 256),
        ]
    ]  # fmt: skip
    assert found == expected


def test_a_portrait_is_a_landscape_turned():
    turned = {
        crop._replace(top=crop.left, left=crop.top)
        for crop in crops.scheme(500, 375, 224)
    }
    assert turned == set(crops.scheme(375, 500, 224))


def test_every_crop_has_its_mirror_image():
    scheme = crops.scheme(375, 500, 224)
    assert {crop._replace(mirrored=not crop.mirrored) for crop in scheme} == set(scheme)


def test_of_a_square_image_three_squares_are_one():
    counted = Counter(crops.scheme(32, 32, 28))
    assert len(counted) == 48
    assert set(counted.values()) == {3}
    assert {crop.shorter for crop in counted} == {32, 36, 40, 44}


@pytest.mark.parametrize("shape", [(32, 32), (24, 32), (48, 32)])
def test_the_single_crop_is_one_of_them(shape):
    single = crops.single(*shape, 14)
    assert single in crops.scheme(*shape, 14)
    assert single.shorter == 16
    assert single.side == 14


def test_size_must_be_a_multiple_of_7():
    with pytest.raises(ValueError, match="`size` must be a positive multiple of 7"):
        crops.scheme(32, 32, 27)


def test_a_crop_without_resizing_is_a_slice():
    images = jax.random.normal(jax.random.key(0), (2, 16, 20, 3))
    crop = crops.Crop(16, 2, 5, 14, mirrored=False)
    expected = images[:, 2:16, 5:19]
    np.testing.assert_allclose(crops.take(images, crop, 14), expected, atol=1e-6)
    mirrored = crops.take(images, crop._replace(mirrored=True), 14)
    np.testing.assert_allclose(mirrored, expected[:, :, ::-1], atol=1e-6)


def test_a_larger_scale_shows_less():
    """A ramp of the columns: the crop's ends are where the scheme puts them."""
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    crop = crops.Crop(44, 16, 16, 28, mirrored=False)  # The lower right corner.
    row = np.asarray(crops.take(ramp, crop, 28))[0, 14, :, 0]
    # Pixel centres: column j of 44 lies at (j + .5) 32/44 - .5 of the image's.
    expected = (np.arange(16, 44) + 0.5) * 32 / 44 - 0.5
    # The last column is beyond the last pixel's centre, where the ramp ends.
    np.testing.assert_allclose(row[:-1], expected[:-1], atol=1e-4)


def test_the_whole_square_is_resized():
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    crop = crops.Crop(44, 0, 0, 44, mirrored=False)
    row = np.asarray(crops.take(ramp, crop, 28))[0, 14, :, 0]
    expected = (np.arange(28) + 0.5) * 32 / 28 - 0.5
    # A triangle over a few whole pixels keeps a ramp to a tenth of a pixel only.
    np.testing.assert_allclose(row[1:-1], expected[1:-1], atol=0.1)


@pytest.fixture
def probabilities():
    """Returns probabilities for 3 networks, 2 seeds, 50 images, 10 classes; labels."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(10), (3, 2, 50)), rng.integers(10, size=50)


def test_ensembles_average_probabilities(probabilities):
    predicted, labels = probabilities
    wrong = evaluation.wrong_by_size(predicted, labels)
    assert [len(wrong[count]) for count in (1, 2, 3)] == [3, 3, 1]
    for place, (a, b) in enumerate(itertools.combinations(range(3), 2)):
        for seed, image in itertools.product(range(2), range(50)):
            mean = [
                (predicted[a, seed, image, c] + predicted[b, seed, image, c]) / 2
                for c in range(10)
            ]
            expected = mean.index(max(mean)) != labels[image]
            assert wrong[2][place, seed, image] == expected


def test_drop_by_hand():
    # There are two seeds and four images.
    before = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], float)
    after = np.array([[1, 0, 0, 0], [1, 0, 0, 1]], float)
    found = evaluation.drop(before, after)
    assert found["seeds"] == [0.5, 0]
    # The mean over the seeds falls by 0, 1, .5 and -.5 for the four images.
    error = np.std([0, 1, 0.5, -0.5]) / 2
    assert found["standard_error"] == pytest.approx(error, abs=1e-5)


def test_the_mean_over_all_crops():
    """Compares with the crops one by one, for two seeds of a linear network."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 16, 16, 1))
    variables = jnp.asarray(rng.normal(size=(2, 14 * 14, 10)), jnp.float32)

    def logits(matrix, crop):
        return crop.reshape(len(crop), -1) @ matrix

    one, mean = evaluation.predict(logits, variables, images, 14)

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(-1, keepdims=True)

    def of(crop):
        taken = np.asarray(crops.take(jnp.asarray(images, jnp.float32), crop, 14))
        flat = taken.reshape(3, -1).astype(float)
        return np.stack([softmax(flat @ np.asarray(each, float)) for each in variables])

    expected = np.mean([of(crop) for crop in crops.scheme(16, 16, 14)], 0)
    # The logits are float32 sums of 196 terms, and about 10.
    np.testing.assert_allclose(mean, expected, atol=1e-4)
    np.testing.assert_allclose(one, of(crops.single(16, 16, 14)), atol=1e-4)


def test_parts_of_the_images_make_the_whole(monkeypatch):
    images = np.random.default_rng(0).uniform(size=(5, 16, 16, 1))
    variables = jax.random.normal(jax.random.key(0), (1, 14 * 14, 3))

    def logits(matrix, crop):
        return crop.reshape(len(crop), -1) @ matrix

    whole = evaluation.predict(logits, variables, images, 14)
    monkeypatch.setattr(evaluation, "_PART", 2)
    parts = evaluation.predict(logits, variables, images, 14)
    for actual, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def shapes_of(member):
    """Returns the shapes of the variables for images of 14 pixels; compiles nothing."""
    net = network.Network(4, member)
    return jax.eval_shape(lambda: net.variables(jax.random.key(0), (14, 14, 1)))


def filled(shapes):
    """Returns variables of these shapes with made-up numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes
    )


def test_six_networks_with_the_changes_of_the_paper():
    members = list(network.MEMBERS.values())
    assert len(members) == len(set(members)) == 6
    assert {member.dropout for member in members} == {0.0, 0.05, 0.1}
    assert network.NETWORKS[network.UNCHANGED] == network.Member()
    assert list(network.NETWORKS) == [*network.MEMBERS, network.UNCHANGED]
    for member in members:  # Each changed by some of them.
        assert member != network.Member()


def test_larger_initial_weights_of_the_convolutions_only(monkeypatch):
    member = network.Member(initial=2.0)
    made_up = filled(shapes_of(member))
    monkeypatch.setattr(network.Network, "init", lambda *args, **kwargs: made_up)
    larger = network.Network(4, member).variables(jax.random.key(0), (14, 14, 1))
    expected = jax.tree.map(np.copy, made_up)
    for place in range(3):
        expected["params"][f"ConvNorm_{place}"]["Conv_0"]["kernel"] *= 2
    jax.tree.map(np.testing.assert_allclose, dict(larger), expected)


def test_statistics_per_activation_in_the_last_hidden_layer():
    def shapes(per_activation):
        member = network.Member(per_activation=per_activation)
        statistics = shapes_of(member)["batch_stats"]
        return [
            layer["BatchNorm_0"]["mean"].shape
            for _, layer in sorted(statistics.items())
        ]

    assert shapes(False) == [(4,), (8,), (16,)]
    assert shapes(True) == [(4,), (8,), (2, 2, 16)]  # 14, 7, 4, 2 pixels.


@pytest.mark.exhaustive
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_dropout_in_training_only(rate):
    member = network.Member(dropout=rate)
    variables = filled(shapes_of(member))
    net = network.Network(4, member)
    x = jax.random.normal(jax.random.key(1), (8, 14, 14, 1))

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        return net.apply(
            variables,
            x,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )[0]

    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    assert np.array_equal(logits(0, True), logits(1, True)) == (rate == 0)


NETWORKS = len(network.MEMBERS)


def made_up(crops, ensemble, standard_error=0.001):
    """A result with these drops of each of two seeds."""
    counts = [str(count) for count in range(1, NETWORKS + 1)]
    errors = {count: [[0.3, 0.32]] * (NETWORKS if count == "1" else 1)
              for count in counts}  # fmt: skip
    return {
        "command": "python -m experiments crops_and_ensemble",
        "dataset": "digits",
        "origin": "made up",
        "test_images": 1000,
        "distinct_crops": 48,
        "members": list(network.MEMBERS),
        "single": {"1": [0.4, 0.5], "144": [0.35, 0.36]},
        "errors": {"1": errors, "144": errors},
        "drops": {
            "crops": {"seeds": crops, "standard_error": standard_error},
            "ensemble": {"seeds": ensemble, "standard_error": standard_error},
        },
    }


@pytest.mark.parametrize(
    ("crops", "ensemble", "expected"),
    [
        ([0.01, 0.02], [0.03, 0.01], "holds"),
        ([0.01, 0.02], [-0.01, 0.05], "holds partly"),  # Not with every seed.
        ([0.001, 0.002], [0.03, 0.01], "holds partly"),  # May be chance.
        ([-0.01, -0.02], [-0.03, 0.0], "does not hold here"),
    ],
)
def test_verdict(crops, ensemble, expected):
    assert report.verdict(made_up(crops, ensemble)) == expected


def test_table_says_what_was_measured():
    text = report.table(made_up([0.01, 0.02], [0.03, 0.01]))
    assert "Verdict: holds. 144 crops instead of one lower the error by 1.50" in text
    assert "seeds -2.00 to -1.00; standard error 0.10" in text
    assert "| 144 crops, six networks | 31.00 % (30.00 to 32.00) | 20.1 % |" in text
    assert "| 144 crops, one network | 35.50 % (35.00 to 36.00) | 22.0 % |" in text
    assert "made up" in text


def test_a_rise_is_called_so():
    text = report.table(made_up([-0.01, -0.02], [0.03, 0.01]))
    assert "144 crops instead of one raise the error by 1.50 points" in text


def test_figure_has_a_curve_for_one_crop_and_one_for_all():
    left, right = figure.draw(made_up([0.01, 0.02], [0.03, 0.01])).axes
    labels = [line.get_label() for line in left.lines]
    assert [label for label in labels if not label.startswith("_")][:2] == [
        "one crop",
        "144 crops",
    ]
    assert len(right.patches) == 3


@pytest.mark.parametrize(("side", "size"), [(256, 224), (32, 28), (16, 14)])
def test_input_in_the_proportion_of_the_paper(side, size):
    assert study.size_of(side) == size
