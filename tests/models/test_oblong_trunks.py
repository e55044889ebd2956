"""Oblong images in networks over tokens: rows are never taken for columns, in tables, grids, filters and weights."""

import math

import pytest
import torch
import torch.nn.functional as F

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, system_module
from vitreous.checkpoints.convert import convert
from vitreous.layers.positions import resize_positions
from vitreous.testing import images, make

NETWORKS = [
    "vit_test",
    "ggem_test",
    "t2t_vit_test",
    "crossvit_test",
    "tnt_test",
    "spectformer_test",
    "satmae_pp_test",
    "channelvit_test",
]
SIZES = [(18, 27), (33, 15), (11, 19)]  # whole tokens, odd, and what leaves a rest


# -- mirrored at the diagonal -------------------------------------------------------------------------------


def turned_table(table, grid, prefix):
    """Mirror the table of a grid, whose first positions belong to no cell."""
    cells = table[:, prefix:].unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    return torch.cat([table[:, :prefix], cells], 1)


def turned_filter(weight, grid):
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=grid, dim=(0, 1))
    return torch.view_as_real(torch.fft.rfft2(kernel.transpose(0, 1), dim=(0, 1)))


def turned_words(weight, side, axis):
    """Mirror what has a value per word of a patch and channel along an axis."""
    words = weight.unflatten(axis, (side, side, -1)).transpose(axis, axis + 1)
    return words.flatten(axis, axis + 2)


def turned(model):
    """Return the state of the network that sees images mirrored at the diagonal as this one sees images."""
    state = {}
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        part = model.get_submodule(owner)
        if leaf in {"pos_embed", "positions", "outer_pos"}:
            grid = getattr(part, "grid", None)
            if grid is None:  # a branch of crossvit
                grid = model.grids[int(owner.split(".")[1])]
            prefix = value.shape[1] - math.prod(grid)
            value = turned_table(value, grid, prefix)
        elif leaf == "inner_pos":
            value = turned_table(value, (math.isqrt(value.shape[1]),) * 2, 0)
        elif "sentence_embed." in name or ".fold." in name:
            side = math.isqrt(model.inner_pos.shape[1])
            if ".norm1." in name:
                value = turned_words(value, side, 0)
            elif name.endswith(".proj.weight"):
                value = turned_words(value, side, 1)
        elif type(part).__name__ == "SpectralGate":
            value = turned_filter(value, part.grid)
        elif name == "tokenizer.project.weight":
            side = 2 * model.tokenizer.strides[-1] - 1
            value = value.unflatten(1, (-1, side, side)).mT.flatten(1)
        elif value.ndim == 4:
            value = value.mT
        state[name] = value
    return state


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_an_image_mirrored_at_the_diagonal_in_a_mirrored_network(name, size):
    plain, x = make(name, image_size=size).eval(), images(2, 4, size)
    mirrored = make(name, image_size=size[::-1], seed=5).eval()
    mirrored.load_state_dict(turned(plain))
    scores, levels = plain(x), plain.forward_levels(x)
    torch.testing.assert_close(mirrored(x.mT), scores, rtol=1e-3, atol=1e-4)
    for level, other in zip(levels, mirrored.forward_levels(x.mT), strict=True):
        torch.testing.assert_close(other.mT, level, rtol=1e-3, atol=1e-4)
    # Its weights matter: with those of the network itself it sees another image.
    if name != "ggem_test" and size[0] % 3 == size[1] % 3 == 0:
        unturned = dict(plain.state_dict())
        fitting = {k: v for k, v in unturned.items() if v.shape == mirrored.state_dict()[k].shape}
        mirrored.load_state_dict(fitting, strict=False)
        assert not torch.allclose(mirrored(x.mT), scores, rtol=1e-2, atol=1e-2)


# -- tables of other sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(27, 18), (18, 18), (15, 36)])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "crossvit_test"])
@torch.no_grad()
def test_an_image_of_another_size_sees_the_table_of_that_size(name, size):
    """A network carried over to a size gives what the old one gives at that size: same cells, and as many of them too."""
    old = make(name, image_size=(18, 27)).eval()
    x = images(2, 4, size)
    new = make(name, image_size=size, seed=5).eval()
    if strides(old) != strides(new):
        arguments = {"token_size": old.token_size} if hasattr(old, "token_size") else {}
        arguments |= {"stem_stride": old.tokenizer.strides[0]} if hasattr(old, "tokenizer") else {}
        new = create_model(name, bands=4, num_classes=5, image_size=size, **arguments).eval()
    resize = system_module(name).resize
    new.load_state_dict(resize(old.state_dict(), new, old))
    torch.testing.assert_close(new(x), old(x), rtol=1e-4, atol=1e-5)


def strides(model):
    return [info.stride for info in model.feature_info]


@torch.no_grad()
def test_tables_are_interpolated_on_both_axes():
    table = torch.randn(1, 2 + 3 * 5, 4)
    found = resize_positions(table, (7, 4), 2, (3, 5))
    image = table[:, 2:].mT.reshape(1, 4, 3, 5)
    expected = F.interpolate(image, (7, 4), mode="bicubic", align_corners=False).flatten(2).mT
    torch.testing.assert_close(found[:, 2:], expected)
    assert torch.equal(found[:, :2], table[:, :2])
    assert resize_positions(table, (3, 5), 2, (3, 5)) is table
    assert resize_positions(table, (5, 3), 2) is table  # nobody knows: as many as wanted
    assert not torch.equal(resize_positions(table, (5, 3), 2, (3, 5)), table)


@torch.no_grad()
def test_crossvits_branches_have_the_images_shape():
    model = make("crossvit_test", image_size=(24, 48)).eval()
    (rows, columns), large = model.grids
    assert columns > rows and large[1] == 2 * large[0]
    token = 24 // large[0]
    assert model.branches[1].size == (24, 48) == (token * large[0], token * large[1])
    for level, info in zip(
        model.forward_levels(images(2, 4, (24, 48))), model.feature_info, strict=True
    ):
        assert level.shape[2:] == (-(-24 // info.stride), -(-48 // info.stride))


# -- the references -----------------------------------------------------------------------------------------


def laid_out(x, side, grid):
    """Lay the patches of images out on another grid, in the same order row by row."""
    rows, columns = x.shape[2] // side, x.shape[3] // side
    patches = x.unflatten(2, (rows, side)).unflatten(4, (columns, side)).transpose(3, 4)
    patches = patches.flatten(2, 3).unflatten(2, grid)
    return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("name", ["adaptformer", "repq_vit"])
@torch.no_grad()
def test_methods_take_oblong_images_as_square_ones(name):
    """Patches in a strip have the scores that they have in a square: to a method they are tokens."""
    torch.manual_seed(0)
    sizes = {"bands": 4, "num_classes": 5}
    square = create_model("vit_test", image_size=12, **sizes).eval()
    strip = create_model("vit_test", image_size=(6, 24), **sizes).eval()
    strip.load_state_dict(square.state_dict())
    batch = images(16, 4, 12)
    as_strip = laid_out(batch, 3, (2, 8))
    found = vitreous.apply(strip, name, calibration=[as_strip]).model
    expected = vitreous.apply(square, name, calibration=[batch]).model
    torch.testing.assert_close(found(as_strip), expected(batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("slug", "key", "output"),
    [
        ("tnt", "img_size", "logits"),
        ("adaptformer", "img_size", "logits"),
        ("evit", "img_size", "logits"),
        ("mctf", "input_size", "default"),
        ("timm/vit", "img_size", None),
        ("timm/tnt", "img_size", None),
    ],
)
@torch.no_grad()
def test_patches_in_another_shape_are_the_references_patches(slug, key, output, as_list):
    """Positions are a table in the patches' order: laid out as a strip, the same patches have the same scores."""
    fixture = load_fixture(slug)
    kwargs, side = fixture["kwargs"], fixture["kwargs"]["patch_size"]
    count = (kwargs[key] // side) ** 2
    grid = (2, count // 2)
    size = (grid[0] * side, grid[1] * side)
    given = {**kwargs, key: list(size) if as_list else size}
    model = vitreous.from_reference(slug.split("/")[-1], fixture["state_dict"], given).eval()
    assert model.size == size and model.grid == grid
    expected = fixture["output"] if output is None else fixture["output"][output]
    expected = expected["logits"] if isinstance(expected, dict) else expected
    found = model(laid_out(fixture["input"], side, grid))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_patches_of_the_autoencoder_in_another_shape():
    fixture = load_fixture("satmae_pp")
    kwargs, given = {**fixture["kwargs"], "img_size": (8, 32)}, fixture["input"]
    model = vitreous.from_reference("satmae_pp", fixture["state_dict"], kwargs).eval()
    found = model.predict(laid_out(given["imgs"], 4, (2, 8)), given["noise"])
    assert torch.equal(found.mask, fixture["output"]["mask"])
    expected = fixture["output"]["pred"]
    torch.testing.assert_close(model.patchify(found.image), expected, rtol=1e-4, atol=1e-4)
    assert [finer.shape[2:] for finer in found.finer] == [(16, 64), (32, 128)]


@torch.no_grad()
def test_an_oblong_autoencoder_hides_whole_patches_and_shows_the_others():
    encoder = make("satmae_pp_test", image_size=(9, 16))
    model = system_module("satmae_pp").build_pretrainer(encoder, scales=1)
    x = images(2, 4, (18, 32))
    assert model(x).loss.isfinite()
    pictures = model.reconstruct(x)
    side = encoder.token_size
    image, visible = pictures["input"], pictures["visible"]
    assert image.shape == (2, 4, 9 // side * side, 16 // side * side)
    torch.testing.assert_close(image, F.avg_pool2d(x, 2)[..., : image.shape[2], : image.shape[3]])
    cells = visible.unfold(2, side, side).unfold(3, side, side).ne(0).flatten(4)
    assert (cells.all(4) | ~cells.any(4)).all()
    assert 0 < cells.float().mean() < 1
    assert torch.equal(visible[visible != 0], image[visible != 0])
    with pytest.raises(vitreous.errors.ModelError, match="18, 32"):
        model(x.mT)


@torch.no_grad()
def test_converted_weights_have_the_shape_that_is_asked_for(tmp_path):
    """3 x 5 patches and a class token have 16 positions, as 4 x 4 patches would have."""
    fixture = load_fixture("timm/vit")
    weights = {**fixture["state_dict"], "pos_embed": torch.randn(1, 16, 32)}
    torch.save(weights, tmp_path / "oblong.pth")
    shape = {"dim": 32, "depth": 2, "heads": 2, "mlp_ratio": 4.0, "token_size": 8}
    model = convert(tmp_path / "oblong.pth", "vit_test", image_size=(24, 40), model_args=shape)[0]
    expected = vitreous.from_reference("vit", weights, {**fixture["kwargs"], "img_size": (24, 40)})
    x = torch.randn(2, 5, 24, 40)
    assert torch.equal(model.eval()(x), expected.eval()(x))


@torch.no_grad()
def test_channelvits_table_is_that_of_the_first_side():
    """As in their code, where a table made for a square is stretched over images of another shape."""
    fixture = load_fixture("channelvit")
    weights, kwargs = fixture["state_dict"], fixture["kwargs"]
    for given in ([16], 16, (16, 32)):
        model = vitreous.from_reference("channelvit", weights, {**kwargs, "img_size": given}).eval()
        assert model.size == (16, 16)
        table = model.position_table((4, 8), 3)
        image = weights["pos_embed"][:, 1:].mT.reshape(1, -1, 4, 4)
        stretched = F.interpolate(image, scale_factor=(4.1 / 4, 8.1 / 4), mode="bicubic")
        torch.testing.assert_close(table[:, 1:], stretched.flatten(2).mT)
    oblong = {**weights, "pos_embed": torch.randn(1, 1 + 4 * 8, 32)}
    model = vitreous.from_reference("channelvit", oblong, {**kwargs, "img_size": (16, 32)})
    assert model.grid == (4, 8)
    image = oblong["pos_embed"][:, 1:].mT.reshape(1, -1, 4, 8)
    stretched = F.interpolate(image, scale_factor=(5.1 / 4, 6.1 / 8), mode="bicubic")
    torch.testing.assert_close(model.position_table((5, 6), 3)[:, 1:], stretched.flatten(2).mT)
