"""Images of any height and width: what a size can be, and what follows from it."""

import numpy as np
import pytest
import torch

from vitreous.catalog.registry import check_system, create_model
from vitreous.errors import ModelError
from vitreous.layers.backbone import stem_stride
from vitreous.layers.sizes import as_size, plain_size
from vitreous.tasks.checkpoint import load_tensors
from vitreous.tasks.weights import load_model, save_model
from vitreous.testing import images, make


def build(image_size, **changes):
    return create_model("convnext_test", bands=3, num_classes=2, image_size=image_size, **changes)


def test_a_size_is_a_side_or_height_and_width():
    assert as_size(9) == (9, 9)
    assert as_size([9, 12]) == (9, 12)
    assert plain_size((9, 9)) == 9
    assert plain_size((9, 12)) == (9, 12)


@pytest.mark.parametrize(
    "given", [(24, 36), [24, 36], np.array([24, 36]), (np.int64(24), np.uint8(36)), torch.Size([24, 36])]
)  # fmt: skip
def test_heights_and_widths_of_every_type_build(given):
    net = build(given)
    assert (net.size, net.image_size) == ((24, 36), (24, 36))
    assert all(type(side) is int for side in net.size)


def test_a_square_given_as_two_sides_is_its_side():
    net = build((24, 24))
    assert net.image_size == 24
    assert type(net.image_size) is int


@pytest.mark.parametrize(
    "given",
    [(), (9,), (9, 9, 9), (0, 9), (9, -1), (9, 4097), (True, 9), (9, 9.0), (9.5, 9), ("9", 9), "99", "9x9",
     {9: 9}, {9, 12}, (9, None), (float("nan"), 9), (9, (9, 9)), np.ones((2, 2), int), np.array([9.0, 9.0]), object()],
    ids=str,
)  # fmt: skip
def test_what_is_no_size_is_refused_in_words(given):
    for make_it in (build, lambda size: check_system("convnext_test", {}, image_size=size)):
        with pytest.raises(ModelError, match="image_size of convnext_test cannot be") as refused:
            make_it(given)
        assert "(height, width)" in refused.value.fix


def test_the_shorter_side_decides_the_stride_of_a_stem():
    assert stem_stride((224, 32), 4, later=8) == stem_stride((32, 224), 4, later=8) == 1
    assert stem_stride((224, 300), 4, later=8) == stem_stride(224, 4, later=8) == 4


def test_a_network_of_one_size_refuses_the_other_orientation():
    net = build((24, 36))
    net.any_size = False
    assert net.eval()(images(1, 3, (24, 36))).shape == (1, 2)
    for other in ((36, 24), (24, 24), (36, 36)):
        with pytest.raises(ModelError, match=f"24 x 36, not {other[0]} x {other[1]}"):
            net(images(1, 3, other))


def test_the_least_size_counts_for_both_sides():
    net = build((24, 36), stem_stride=1)
    for size in ((7, 36), (36, 7)):
        with pytest.raises(ModelError, match=f"needs images of 8 pixels or more, not {size[0]} x"):
            net(images(1, 3, size))
        with pytest.raises(ModelError, match="needs images of 8 pixels"):
            build(size, stem_stride=1)


def test_files_hold_a_side_or_both(tmp_path):
    for number, (size, held) in enumerate(((24, 24), ((24, 24), 24), ((24, 36), [24, 36]))):
        path = save_model(build(size), tmp_path / f"{number}.safetensors")
        assert load_tensors(path)[1]["image_size"] == held
        model, report = load_model(path)
        assert model.image_size == report.made.image_size == plain_size(as_size(held))


def test_a_file_can_be_loaded_for_another_height_and_width(tmp_path):
    path = save_model(make("convnext_test", image_size=24), tmp_path / "m.safetensors")
    model, report = load_model(path, image_size=[24, 36])
    assert (model.size, report.made.image_size) == ((24, 36), (24, 36))
    assert load_model(save_model(model, tmp_path / "b.safetensors"))[0].size == (24, 36)
    with pytest.raises(ModelError, match="image_size of convnext_test"):
        load_model(path, image_size=(24, 0))
