"""Images of any height and width: what a size can be, and what follows from it."""

import numpy as np
import pytest
import torch

from vitreous.catalog.registry import check_system, create_model
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.checkpoints.tensors import load_tensors
from vitreous.errors import ModelError
from vitreous.layers.backbone import stem_stride
from vitreous.layers.decoders import DECODERS, DenseNet
from vitreous.layers.sizes import as_size, plain_size
from vitreous.layers.windows import DistanceBias, RelativePositionBias
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
     {9: 9}, {9, 12}, (9, None), (float("nan"), 9), (9, (9, 9)), np.ones((2, 2), int), np.array([9.0, 9.0]), object],
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


# -- what was learned for other heights and widths --------------------------------------------------------------


@pytest.mark.parametrize("kind", [RelativePositionBias, DistanceBias])
def test_a_bias_tells_rows_from_columns(kind):
    """In an oblong window, as in a square one that holds it."""
    wide, large = kind((2, 5), 3), kind(5, 3)
    torch.nn.init.normal_(large.table)
    with torch.no_grad():
        side = round(len(large.table) ** 0.5)
        middle = side // 2 if kind is RelativePositionBias else 0
        rows = range(middle - 1, middle + 2) if middle else range(2)
        image = large.table.unflatten(0, (side, side))
        wide.table.copy_(image[list(rows)].flatten(0, 1))
        torch.testing.assert_close(wide(2, 5), large(2, 5))
        assert not torch.allclose(wide(2, 5), large(5, 2))


@pytest.mark.parametrize("kind", [RelativePositionBias, DistanceBias])
def test_a_bias_for_other_windows_keeps_its_axes(kind):
    """A table that depends on the rows alone still does, as one of columns alone."""
    old, new = kind((2, 4), 1), kind((4, 3), 1)
    sides = (3, 7) if kind is RelativePositionBias else (2, 4)
    for axis, other in ((0, 1), (1, 0)):
        ramp = torch.linspace(-1, 1, sides[axis])
        table = ramp[:, None] if axis == 0 else ramp[None, :]
        resized = new.resized(table.expand(sides).reshape(-1, 1), old.window)
        wanted = (7, 5) if kind is RelativePositionBias else (4, 3)
        image = resized.unflatten(0, wanted)[..., 0]
        assert image.std(other).max() < 1e-6
        assert image.std(axis).min() > 0.3


def test_a_table_of_a_known_window_is_turned_where_only_its_axes_change():
    """(2, 5) and (5, 2) have tables of one length."""
    turned = DistanceBias((5, 2), 1).resized(torch.arange(10.0)[:, None], (2, 5))
    assert turned[:, 0].tolist() == [0, 1, 5, 6, 5, 6, 5, 6, 5, 6]
    known = torch.arange(10.0)[:, None]
    assert DistanceBias((2, 5), 1).resized(known, (2, 5)).equal(known)
    assert DistanceBias((2, 5), 1).resized(known, None) is known  # nobody knows; it fits


def test_tables_that_nobody_can_read_are_left_as_they_are():
    for table in (torch.zeros(7, 1), torch.zeros(4), torch.zeros(0, 1), torch.zeros(2, 2, 1)):
        assert DistanceBias((3, 4), 1).resized(table, None) is table
        assert DistanceBias((3, 4), 1).resized(table, (2, 3)) is table


@pytest.mark.parametrize("name", ["swin_test", "cvt_test"])
def test_learned_positions_are_turned_with_the_image(name, tmp_path):
    """Tables for 12 x 20 and 20 x 12 images are equally long; only what they were made for tells which is which."""
    option = {"swin": "absolute_positions", "cvt": "positions"}[name.removesuffix("_test")]
    model = create_model(name, bands=3, num_classes=2, image_size=(12, 20), **{option: True})
    key = {"swin": "pos_embed", "cvt": "stages.0.pos_embed"}[name.removesuffix("_test")]
    table = model.state_dict()[key]
    rows, columns = (12, 20)
    with torch.no_grad():  # the position of a cell is its row
        table.copy_(
            torch.arange(float(rows)).repeat_interleave(columns)[None, :, None].expand_as(table)
        )
    path = save_model(model, tmp_path / "m.safetensors")
    turned, report = load_model(path, image_size=(20, 12))
    assert key in report.resized
    found = turned.state_dict()[key][0, :, 0].unflatten(0, (20, 12))
    assert found.std(1).max() < 1e-5
    torch.testing.assert_close(found[:, 0], found[:, 0].sort().values)


def test_decoders_take_oblong_images():
    for decoder in DECODERS:
        for size in ((12, 21), (34, 9)):
            trunk = make("swin_test", image_size=size)
            net = DenseNet(trunk, decoder, width=8).eval()
            assert net(images(2, 4, size)).shape == (2, 5, *size)
