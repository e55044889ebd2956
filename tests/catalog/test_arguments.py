"""What ``create_model`` and ``check_system`` are given: right values build, wrong ones are refused in words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitreous.catalog.registry as registry
from vitreous.catalog.arguments import MOST_BANDS, MOST_CLASSES, MOST_IMAGE_SIZE
from vitreous.catalog.registry import card, cards, check_system, create_model
from vitreous.errors import ConfigError, ModelError

SLUGS = [entry.slug for entry in cards() if entry.kind in {"model", "restorer"}]
CLASSIFIERS = [entry.slug for entry in cards() if entry.kind == "model"]
SIZES = {"bands": 3, "num_classes": 2, "image_size": 9}
NO_NUMBERS = [0.5, 3.0, -1, "3", True, None, [3], float("nan"), float("inf"), 10**30]


def build(name, **changes):
    with torch.device("meta"):
        return create_model(name, **{**SIZES, **changes})


@pytest.mark.parametrize("what", SIZES)
@pytest.mark.parametrize("value", [0, *NO_NUMBERS], ids=str)
def test_sizes_are_whole_numbers_from_one(what, value):
    if [what, value] in [["num_classes", 0], ["image_size", None]]:
        return  # features, and the default
    with pytest.raises(ModelError, match=what) as caught:
        build("vit_test", **{what: value})
    assert caught.value.fix


def test_integers_of_numpy_and_torch_are_whole_numbers():
    net = create_model(
        "vit_test", bands=np.int64(3), num_classes=torch.tensor(2), image_size=np.uint8(9)
    )
    assert (net.bands, net.num_classes, net.image_size) == (3, 2, 9)
    assert all(type(n) is int for n in (net.bands, net.num_classes, net.image_size))
    net = create_model("convnext_test", **SIZES, kernel=np.int64(3), depths=np.ones(4, dtype=int))
    assert net.arguments == {"kernel": 3, "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize("what", ["bands", "num_classes", "image_size"])
def test_the_limits_are_refused_beyond(what):
    limit = {"bands": MOST_BANDS, "num_classes": MOST_CLASSES, "image_size": MOST_IMAGE_SIZE}[what]
    build("convnext_test", **{what: limit})
    with pytest.raises(ModelError, match=f"from . to {limit}"):
        build("convnext_test", **{what: limit + 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": 50_000},  # patch embedding
        {"num_classes": 100_000},
        {"image_size": 4000, "token_size": 1},  # positions
        {"dim": 30_000, "heads": 1},
        {"depth": 250, "dim": 512},
    ],
    ids=str,
)
def test_weights_beyond_the_memory_are_refused_before_they_are_made(changes, monkeypatch):
    monkeypatch.setattr(registry, "physical_memory", lambda: 2**20)
    with pytest.raises(ModelError, match="would take"):
        create_model("vit_test", **{**SIZES, **changes})
    create_model("vit_test", **SIZES)  # which fits
    build("vit_test", **changes)  # nothing is allocated


@pytest.mark.parametrize("slug", SLUGS)
def test_every_argument_refuses_other_types_and_numbers_out_of_range(slug):
    """Whatever the argument: an object, text, a nested list, negative and fractional numbers."""
    builder = registry.system_module(slug).build
    known = set(registry.inspect.signature(builder).parameters) - set(SIZES)
    for argument in sorted(known):
        for value in (object(), "no such word", [[["x"]]], -3, -0.5, float("nan")):
            with pytest.raises(ModelError) as caught:
                check_system(f"{slug}_test", {argument: value}, image_size=9)
            assert argument in str(caught.value) or slug in str(caught.value)
            assert len(str(caught.value)) < 600


def test_words_name_the_argument_the_value_and_what_it_must_be():
    for changes, words in (
        ({"dim": "wide"}, "dim='wide': it must be a whole number"),
        ({"dim": 0}, "dim=0: it must be 1 or more"),
        ({"drop_path": 1.0}, r"drop_path=1\.0: it must be less than 1"),
        ({"distilled": 1}, "distilled=1: it must be true or false"),
        ({"depth": 10**9}, "depth=1000000000: it must be 256 or less"),
        ({"mlp_ratio": 1e-9}, r"weight of blocks\.0\.mlp\.fc1 would have the shape \(0, 16\)"),
        ({"token_size": 10}, "tokens of 10 pixels; an image of 9 has none"),
    ):
        with pytest.raises(ModelError, match=words):
            create_model("vit_test", **SIZES, **changes)
    with pytest.raises(ModelError, match="item 1 must be 1 or more"):
        create_model("convnext_test", **SIZES, dims=[8, 0, 16, 24])


# -- before anything is read --------------------------------------------------------------------------------


def test_a_good_system_is_built_without_memory():
    net = check_system("vit_test", {"depth": 3}, image_size=9)
    assert len(net.blocks) == 3
    assert all(parameter.is_meta for parameter in net.parameters())
    assert check_system("hsdt_test", {"queries": 5}) is not None
    assert check_system("svm", {"C": 3.0}) is None


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("vit_test", {"dims": 3}, "no argument 'dims'"),
        ("vit_test", {"depth": 2.5}, "whole number"),
        ("vit_test", {"heads": 3}, "divisible"),
        ("vit_test", {"token_size": 20}, "has none"),
        ("hsdt_test", {"conv": "s4"}, "s4"),
        ("svm", {"D": 1}, "no setting 'D'"),
        ("svm", {"C": -1}, "C is -1"),
        ("random_forest", {"trees": "many"}, "trees"),
    ],
)
def test_bad_arguments_are_found(name, arguments, error):
    with pytest.raises((ModelError, ConfigError), match=error):
        check_system(name, arguments, image_size=15)


def test_what_is_about_bands_waits_until_they_are_known():
    groups = {"groups": [[0, 1], [2]]}
    check_system("satmae_pp_test", groups)
    check_system("satmae_pp_test", groups, bands=3)
    with pytest.raises(ModelError, match="groups"):
        check_system("satmae_pp_test", groups, bands=4)
    with pytest.raises(ModelError, match="groups"):
        check_system("satmae_pp_test", {"groups": "all"})


# -- properties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", CLASSIFIERS)
@given(
    bands=st.integers(1, 40),
    classes=st.integers(0, 9),
    size=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_any_sizes_give_the_right_shapes_or_words(slug, bands, classes, size, shape):
    """Of 9 x 9 and larger, every square image of the size that a network was built for works."""
    try:
        net = create_model(f"{slug}_test", bands=bands, num_classes=classes, image_size=size).eval()
    except ModelError as error:
        assert size < 9 and error.fix
        return
    for height, width in ((size, size), shape):
        x = torch.zeros(2, bands, height, width)
        try:
            scores, levels = net(x), net.forward_levels(x)
        except ModelError as error:
            assert (height, width) != (size, size) and error.fix
            with pytest.raises(ModelError):
                net.forward_levels(x)
            continue
        assert scores.shape == (2, classes or net.num_features)
        for level, info in zip(levels, net.feature_info, strict=True):
            assert level.shape[:2] == (2, info.channels)
            for side, cells in zip((height, width), level.shape[2:], strict=True):
                assert side // info.stride <= cells <= -(-side // info.stride) + 1


@pytest.mark.parametrize("slug", [slug for slug in SLUGS if slug not in CLASSIFIERS])
@given(bands=st.integers(1, 40), shape=st.tuples(st.integers(1, 24), st.integers(1, 24)))
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_restorers_take_any_bands_and_sizes(slug, bands, shape):
    net = create_model(f"{slug}_test", bands=bands).eval()
    x = torch.rand(1, bands, *shape)
    assert net(x).shape == (1, bands, *(side * net.scale for side in shape))


@pytest.mark.parametrize("name", ["hsdt_test", "bicubic", "low_rank"])
def test_restorers_know_no_classes_and_no_image_size(name):
    for sizes in ({"num_classes": 0}, {"image_size": 9}):
        with pytest.raises(ModelError, match=r"which has no (num_classes|image_size)"):
            create_model(name, bands=3, **sizes)
    for bands in (0, -2, 1.5, "3"):
        with pytest.raises(ModelError, match="bands"):
            create_model(name, bands=bands)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("bicubic", {"scale": 0}), ("bicubic", {"scale": 2.5}), ("low_rank", {"rank": "all"}),
     ("low_rank", {"rank": -1}), ("bicubic", {"times": 2})],
)  # fmt: skip
def test_filters_check_their_arguments_too(name, changes):
    with pytest.raises(ModelError, match=next(iter(changes))):
        create_model(name, bands=3, **changes)


NUMBERS = st.one_of(st.integers(0, 16), st.sampled_from([0.1, 0.5, 1.0, 2.5]), st.booleans())


@pytest.mark.parametrize("slug", CLASSIFIERS)
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
@torch.no_grad()
def test_one_random_argument_makes_a_network_or_is_refused_in_words(slug, data):
    """Nothing that is built fails later: it classifies, and gives the maps that it declares."""
    variant = card(f"{slug}_test").variants[f"{slug}_test"]
    parameters = registry.inspect.signature(registry.system_module(slug).build).parameters
    key = data.draw(st.sampled_from(sorted(set(parameters) - set(SIZES))))
    default = variant.get(key, parameters[key].default)
    if isinstance(default, list | tuple):
        value = data.draw(st.lists(NUMBERS, min_size=len(default), max_size=len(default)))
    else:
        value = data.draw(NUMBERS)
    try:
        net = create_model(f"{slug}_test", bands=3, num_classes=2, image_size=15, **{key: value})
    except ModelError as error:
        assert "cannot be built" not in error.problem or "must be" in error.problem or (
            "would have the shape" in error.problem
        )  # fmt: skip
        return
    x = torch.zeros(1, 3, 15, 15)
    assert net.eval()(x).shape == (1, 2)
    assert [level.shape[1] for level in net.forward_levels(x)] == [
        info.channels for info in net.feature_info
    ]
