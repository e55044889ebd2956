"""Architectures in files: what goes in comes out, for other bands too, and what does not fit is refused."""

import argparse
import contextlib
import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model
from vitreous.checkpoints import hub
from vitreous.checkpoints.convert import convert
from vitreous.checkpoints.foreign import read_foreign
from vitreous.checkpoints.load_report import PartialLoadError
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.checkpoints.tensors import load_exactly, load_tensors, save_tensors
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.layers.bands import Bands
from vitreous.testing import images, make

RGB = Bands(3, (665.0, 560.0, 490.0), (30.0, 35.0, 65.0), ("B04", "B03", "B02"))
TIMM = {"patch_embed.": "patch_embed.proj.", "class_token": "cls_token"}


def _timm(model):
    """Return a vit's weights under the names that timm and DeiT use."""
    return {
        next(
            (new + key.removeprefix(old) for old, new in TIMM.items() if key.startswith(old)), key
        ): value
        for key, value in model.state_dict().items()
    }


def _scores(model, x):
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture
def rgb():
    return make("vit_test", bands=3)


@pytest.fixture
def file(rgb, tmp_path):
    return save_model(rgb, tmp_path / "m.safetensors", bands=RGB, origin="a test")


# -- our own files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_test", "lola_specvit_test"])
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model = make(name, bands=4)
    path = save_model(model, tmp_path / "m.safetensors")
    again, report = load_model(path)
    assert torch.equal(_scores(again, images(3, 4, 15)), _scores(model, images(3, 4, 15)))
    assert report.complete
    assert set(report.used) == set(model.state_dict())
    assert (report.method, report.reset, report.resized) == (None, (), ())
    assert (again.variant, again.bands, again.num_classes, again.image_size) == (name, 4, 5, 15)
    again.requires_grad_(True)(images(2, 4, 15)).sum().backward()  # it owns its memory


def test_changed_arguments_come_back(tmp_path):
    model = create_model("vit_test", bands=2, num_classes=3, pool="mean", depth=1)
    again, _ = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert again.arguments == {"pool": "mean", "depth": 1}
    assert torch.equal(_scores(again, images(2, 2, 15)), _scores(model, images(2, 2, 15)))


def test_what_is_known_of_the_bands_travels_through_files(file, tmp_path):
    model, report = load_model(file)
    assert report.bands == RGB
    assert (
        load_model(save_model(model, tmp_path / "b.safetensors", bands=report.bands))[1].bands
        == RGB
    )
    assert load_tensors(file)[1]["origin"] == "a test"


def test_shuffled_bands_give_the_same_scores(rgb, file):
    order = [2, 0, 1]
    target = Bands(3, tuple(RGB.wavelengths[k] for k in order), tuple(RGB.fwhm[k] for k in order))
    model, report = load_model(file, bands=target)
    assert report.method == "overlap"
    assert report.adapted == ("patch_embed.weight",)
    x = images(2, 3, 15)
    torch.testing.assert_close(_scores(model, x[:, order]), _scores(rgb, x))


def test_a_grey_image_is_seen_alike_through_more_bands(rgb, file):
    model, report = load_model(file, bands=7)
    assert (model.bands, report.method) == (7, "repeat")
    grey = images(2, 1, 15)
    torch.testing.assert_close(
        _scores(model, grey.expand(-1, 7, -1, -1)), _scores(rgb, grey.expand(-1, 3, -1, -1))
    )


def test_the_method_can_be_chosen(file, rgb):
    model, report = load_model(file, bands=5, method="zero")
    assert report.method == "zero"
    x = images(2, 5, 15)
    torch.testing.assert_close(_scores(model, x), _scores(rgb, x[:, :3]))


def test_other_classes_get_a_new_head_on_the_same_trunk(rgb, file):
    model, report = load_model(file, num_classes=9)
    assert report.reset == ("head.weight", "head.bias")
    assert not set(report.reset) & set(report.used)
    assert "new head with 9 classes" in str(report)
    x = images(2, 3, 15)
    assert _scores(model, x).shape == (2, 9)
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), rgb.eval().forward_features(x))
    kept, report = load_model(file, num_classes=5)
    assert report.reset == ()
    renewed, report = load_model(file, num_classes=5, new_head=True)
    assert report.reset == ("head.weight", "head.bias")
    assert torch.equal(kept.head.weight, rgb.head.weight)
    assert not torch.equal(renewed.head.weight, rgb.head.weight)


def test_another_image_size_resamples_positions(file, rgb):
    model, report = load_model(file, image_size=33)
    assert report.resized == ("pos_embed",)
    x = images(2, 3, 33)  # a plain ViT resamples its positions at any size: the same, done once
    torch.testing.assert_close(_scores(model, x), _scores(rgb, x))


def test_positions_on_a_grid_are_resampled_too(tmp_path):
    path = save_model(make("lola_specvit_test"), tmp_path / "m.safetensors")
    model, report = load_model(path, image_size=33)
    assert report.resized == ("pos_embed",)
    assert torch.isfinite(_scores(model, images(2, 4, 33))).all()
    back = save_model(model, tmp_path / "b.safetensors")
    assert load_model(back)[1].made.image_size == 33


def test_small_images_are_seen_as_if_enlarged(tmp_path):
    """At 112 pixels a token has 16; at 28, which leaves as many tokens, it has 4."""
    changes = {"token_size": None, "positions": "sincos"}
    model = create_model("vit_test", bands=3, num_classes=5, image_size=112, **changes)
    path = save_model(model, tmp_path / "m.safetensors")
    small, report = load_model(path, image_size=28)
    assert report.resized == ("patch_embed.weight",)
    assert small.token_size == 4
    x = images(2, 3, 28)
    cells = torch.nn.functional.unfold(x, 4, stride=4).view(2, 3, 4, 4, 49).permute(0, 4, 1, 2, 3)
    big = torch.nn.functional.interpolate(cells.flatten(0, 1), (16, 16), mode="bilinear")
    image = big.view(2, 7, 7, 3, 16, 16).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 112, 112)
    torch.testing.assert_close(_scores(small, x), _scores(model, image), rtol=1e-3, atol=1e-5)


def test_a_model_that_could_not_be_rebuilt_is_not_written(tmp_path):
    path = tmp_path / "m.safetensors"
    model = make("vit_test")
    with pytest.raises(ModelError, match="4 bands, not 3"):
        save_model(model, path, bands=RGB)
    model.norm = torch.nn.Identity()
    with pytest.raises(ModelError, match="no longer a plain vit_test"):
        save_model(model, path)
    unnamed = type(model)(3, 2, 15, dim=8, heads=2, depth=1, token_size=3)
    with pytest.raises(ModelError, match="not created by name"):
        save_model(unnamed, path)
    with pytest.raises(ModelError, match="not a valid name for a model file"):
        save_model(make("vit_test"), tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda h: h.update(kind="model"), "not hold a bare architecture"),
        (lambda h: h.update(schema=99), "format 99"),
        (lambda h: h.update(name="vit_tst"), "damaged"),
        (lambda h: h.pop("bands"), "damaged"),
        (lambda h: h["bands"].update(count=-1), "damaged"),
        (lambda h: h["bands"].update(wavelengths=[0.6, 0.5, 0.4]), "damaged"),
        (lambda h: h.update(num_classes=10**12), "damaged"),
        (lambda h: h.update(image_size=10**9), "damaged"),
        (lambda h: h.update(model_args={"depth": 10**9}), "damaged"),
        (lambda h: h.update(model_args={"dim": 200, "heads": 2}), "with a different shape"),
        (lambda h: h.update(model_args={"depth": 3}), "missing"),
        (lambda h: h.update(model_args={"depth": 1}), "unexpected"),
        (lambda h: h.update(model_args=[1]), "damaged"),
    ],
)  # fmt: skip
def test_a_header_that_was_tampered_with_is_refused(file, change, said):
    tensors, header = load_tensors(file)
    change(header)
    save_tensors(file, tensors, header)
    with pytest.raises(CheckpointError, match=said):
        load_model(file)


def test_a_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(file)


def test_modules_built_without_memory_fill_what_no_file_holds():
    """Position indices are in no file; a model that indexed with empty ones would answer with whatever lies around."""
    real = make("lola_specvit_test")
    with torch.device("meta"):
        empty = create_model("lola_specvit_test", bands=4, num_classes=5)
    load_exactly(empty, real.state_dict(), "a test")
    assert torch.equal(_scores(empty, images(2, 4, 15)), _scores(real, images(2, 4, 15)))


# -- the files of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"model": sd, "epoch": 3, "optimizer": {"state": {0: torch.zeros(3)}}},
        lambda sd: {"model": {k: v + 1 for k, v in sd.items()}, "model_ema": sd},
        lambda sd: {"state_dict": {f"module.{k}": v for k, v in sd.items()}},
        lambda sd: {"state_dict": {f"model._orig_mod.{k}": v for k, v in sd.items()}},
        lambda sd: sd | {"blocks.0.attn.relative_position_index": torch.zeros(4, 4).long()},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_published_layouts_are_unwrapped(rgb, wrap, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(_timm(rgb)), path, _use_new_zipfile_serialization=suffix == ".pth")
    model, report = convert(path, "vit_test", image_size=15)
    assert torch.equal(_scores(model, images(2, 3, 15)), _scores(rgb, images(2, 3, 15)))
    assert report.complete
    assert (model.bands, model.num_classes) == (3, 5)
    assert report.derived in ((), ("blocks.0.attn.relative_position_index",))


def test_safetensors_of_others_and_half_precision(rgb, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({k: v.half().contiguous() for k, v in _timm(rgb).items()}, path)
    model, report = convert(path, "vit_test", image_size=15)
    assert report.complete
    assert next(model.parameters()).dtype == torch.float32
    x = images(2, 3, 15)
    torch.testing.assert_close(_scores(model, x), _scores(rgb, x), rtol=0.02, atol=0.02)


def test_the_image_size_is_read_off_the_weights(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(_timm(make("vit_test", bands=3, image_size=384)), path)
    model, report = convert(path, "vit_test")
    assert (model.image_size, report.resized) == (384, ())


def test_weights_of_any_number_of_bands_need_one(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(make("lola_specvit_test", bands=4).state_dict(), path)
    with pytest.raises(ModelError, match="any number of bands"):
        convert(path, "lola_specvit_test", image_size=15)
    model, report = convert(path, "lola_specvit_test", image_size=15, bands=6)
    assert (model.bands, report.method, report.complete) == (6, None, True)


def test_bands_classes_and_size_on_the_way_in(rgb, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(_timm(rgb), path)
    model, report = convert(
        path, "vit_test", image_size=33, bands=Bands(4, (490.0, 560.0, 665.0, 842.0)),
        num_classes=2, source_bands=RGB,
    )  # fmt: skip
    assert report.method == "nearest"
    assert (report.resized, report.reset) == (("pos_embed",), ("head.weight", "head.bias"))
    assert _scores(model, images(2, 4, 33)).shape == (2, 2)
    with pytest.raises(ModelError, match="take 3 bands, but 4 are described"):
        convert(path, "vit_test", source_bands=Bands(4))


def test_a_trunk_without_head_needs_a_number_of_classes(rgb, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in _timm(rgb).items() if not k.startswith("head")}, path)
    with pytest.raises(CheckpointError, match="has no head"):
        convert(path, "vit_test", image_size=15)
    model, report = convert(path, "vit_test", image_size=15, num_classes=4)
    assert (report.complete, report.reset) == (True, ("head.weight", "head.bias"))
    with torch.no_grad():
        x = images(2, 3, 15)
        assert torch.equal(model.forward_features(x), rgb.eval().forward_features(x))


def test_partial_loads_only_when_asked_for(rgb, tmp_path):
    path = tmp_path / "w.pth"
    content = _timm(rgb)
    gone = content.pop("blocks.1.mlp.fc1.weight")
    content["decoder.weight"] = torch.zeros(3)
    content["norm.bias"] = torch.zeros(7)
    torch.save(content, path)
    with pytest.raises(
        PartialLoadError, match=r"1 missing .*1 unexpected .*norm.bias \(7,\)"
    ) as refused:
        convert(path, "vit_test", image_size=15)
    model, report = convert(path, "vit_test", image_size=15, partial=True)
    assert report == refused.value.report
    assert report.missing == ("blocks.1.mlp.fc1.weight",)
    assert report.left_over == ("decoder.weight",)
    assert report.misshapen == ("norm.bias (7,) instead of (16,)",)
    assert torch.equal(model.patch_embed.weight, rgb.patch_embed.weight)
    assert not torch.equal(model.blocks[1].mlp.fc1.weight, gone)
    torch.save({"other.weight": torch.zeros(3), "head.weight": torch.zeros(2, 99)}, path)
    with pytest.raises(PartialLoadError, match=r"\d\d missing"):  # nothing at all of this model
        convert(path, "vit_test", image_size=15, bands=3, partial=True)


class Program:
    def __reduce__(self):
        return os.system, ("touch RUN",)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(
    "content, said", [(Program(), "system"), (argparse.Namespace(a=1), "argparse.Namespace")]
)
def test_code_in_a_pickle_is_never_run(rgb, content, said, modern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"model": _timm(rgb), "args": content}, "w.pth", _use_new_zipfile_serialization=modern
    )
    with pytest.raises(CheckpointError, match=f"{said}, which could run code") as refused:
        convert("w.pth", "vit_test")
    assert "weights_only" not in str(refused.value)  # PyTorch's advice to read it all the same
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_damaged_and_odd_files_are_refused(rgb, tmp_path):
    good = tmp_path / "good.pth"
    torch.save(_timm(rgb), good)
    whole = good.read_bytes()
    bad = tmp_path / "bad.pth"
    for content in (b"", b"<html>not found</html>", whole[: len(whole) // 2], b"\x80\x02}q\x00."):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_foreign(bad)
    for seed in range(12):
        position = int(
            torch.randint(len(whole), (1,), generator=torch.Generator().manual_seed(seed))
        )
        bad.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with contextlib.suppress(VitreousError):  # refused in words, or a weight's value changed
            convert(bad, "vit_test", image_size=15)
    with pytest.raises(CheckpointError, match="No such file"):
        read_foreign(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"suffix '\.h5'"):
        odd = tmp_path / "w.h5"
        odd.write_bytes(whole)
        read_foreign(odd)
    torch.save({"epoch": 3, "losses": [1.0]}, bad)
    with pytest.raises(CheckpointError, match="does not contain a state_dict"):
        read_foreign(bad)


def test_files_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"patch_embed.proj.weight": torch.zeros(1).expand(16, 50_000, 3, 3)}, path)
    with pytest.raises(CheckpointError, match="more than the file holds"):
        convert(path, "vit_test", image_size=15)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_foreign(packed)


def test_the_wrong_kind_of_file_is_said(file, tmp_path):
    with pytest.raises(CheckpointError, match="Use load_model"):
        convert(file, "vit_test")
    with pytest.raises(ModelError, match="is not a network"):
        convert(file, "svm")
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match="not written by vitreous"):
        load_model(tmp_path / "theirs.safetensors")


REFERENCES = {
    "swin": lambda kw: {
        "dim": kw["embed_dim"], "depths": kw["depths"], "heads": kw["num_heads"],
        "window": kw["window_size"], "token_size": kw["patch_size"], "mlp_ratio": kw["mlp_ratio"],
    },
    "convnext": lambda kw: {"dims": kw["dims"], "depths": kw["depths"], "stem_stride": 4},
}  # fmt: skip


@pytest.mark.parametrize("slug", REFERENCES)
def test_the_authors_scores_through_a_checkpoint_file(slug, tmp_path):
    fixture = load_fixture(slug)
    path = tmp_path / "w.pth"
    torch.save({"model": fixture["state_dict"]}, path)
    x = fixture["input"]
    arguments = REFERENCES[slug](fixture["kwargs"])
    model, report = convert(path, f"{slug}_test", image_size=x.shape[-1], model_args=arguments)
    assert report.complete
    told = {*report.used, *report.derived, *report.rewritten}
    assert len(told) >= len(fixture["state_dict"])
    output = fixture["output"]
    expected = output["logits"] if isinstance(output, dict) else output
    torch.testing.assert_close(_scores(model, x), expected, rtol=1e-3, atol=1e-4)
    again, _ = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert torch.equal(_scores(again, x), _scores(model, x))


# -- the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub that is a folder."""
    store = tmp_path / "hub"

    class Refusal(Exception):
        pass

    class Api:
        def create_repo(self, repository, exist_ok):
            (store / repository).mkdir(parents=True, exist_ok=exist_ok)

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            (store / repo_id / path_in_repo).write_bytes(Path(path_or_fileobj).read_bytes())

    def download(repository, name, revision=None):
        if not (store / repository / name).is_file() or revision not in (None, "main"):
            raise Refusal(f"404: {repository} has no {name}\nRequest ID: 1")
        return str(store / repository / name)

    client = types.ModuleType("huggingface_hub")
    client.HfApi, client.hf_hub_download = Api, download
    client.utils = types.ModuleType("huggingface_hub.utils")
    client.utils.HfHubHTTPError = Refusal
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", client.utils)
    return store


def test_a_model_goes_to_the_hub_and_comes_back(rgb, fake_hub, tmp_path):
    save_model(rgb, tmp_path / "m.safetensors", bands=RGB, push_to="someone/a.model-1")
    for address in ("hf://someone/a.model-1", "hf://someone/a.model-1/model.safetensors@main"):
        model, report = load_model(address)
        assert report.bands == RGB
        assert torch.equal(model.head.weight, rgb.head.weight)
    with pytest.raises(VitreousError, match="cannot be downloaded: 404: someone/else has no"):
        load_model("hf://someone/else")


@pytest.mark.parametrize(
    "address", ["hf://x", "hf://a/b/../../etc", "hf:///etc/passwd", "hf://a b/c"]
)
def test_odd_addresses_are_refused(fake_hub, address):
    with pytest.raises(VitreousError, match="not a Hugging Face hub address"):
        hub.local(address)


def test_without_the_client_nothing_is_written(rgb, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(VitreousError, match=r"vitreous\[hub\]"):
        save_model(rgb, tmp_path / "m.safetensors", push_to="someone/model")
    with pytest.raises(VitreousError, match="not a valid repository"):
        save_model(rgb, tmp_path / "m.safetensors", push_to="model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(VitreousError, match=r"vitreous\[hub\]"):
        load_model("hf://someone/model")


# -- restorers ----------------------------------------------------------------------------------------------


RESTORERS = {
    "essaformer": ({"dim": 16, "scale": 4}, lambda x: x, 6),
    "hsdt": ({"channels": 4, "half_layers": 3, "downs": [1]}, lambda x: x[:, 0], 31),
}


@pytest.mark.parametrize("slug", RESTORERS)
def test_checkpoints_of_restorers_are_converted(slug, tmp_path):
    """What its authors' network makes of a cube, a converted file's does; also after it was written and read."""
    arguments, cube_of, bands = RESTORERS[slug]
    fixture = load_fixture(slug)
    torch.save({"state_dict": fixture["state_dict"]}, tmp_path / "w.pth")
    given = {"bands": bands} if slug == "hsdt" else {}
    model, report = convert(tmp_path / "w.pth", f"{slug}_test", model_args=arguments, **given)
    assert report.complete and report.layout.startswith("the authors'")
    assert report.found.endswith("parameters") and report.made.num_classes is None
    x, expected = cube_of(fixture["input"]), cube_of(fixture["output"])
    torch.testing.assert_close(_scores(model, x), expected, rtol=1e-4, atol=1e-5)
    again, _ = load_model(save_model(model, tmp_path / "m.safetensors", bands=report.bands))
    torch.testing.assert_close(_scores(again, x), expected, rtol=1e-4, atol=1e-5)


def test_a_restorer_is_made_for_other_bands(tmp_path):
    """Twice every band in, twice every band out."""
    fixture = load_fixture("essaformer")
    torch.save(fixture["state_dict"], tmp_path / "w.pth")
    model, report = convert(
        tmp_path / "w.pth", "essaformer_test", model_args={"dim": 16, "scale": 4}, bands=12
    )
    assert (report.method, report.adapted) == (
        "repeat", ("first.weight", "last.weight", "last.bias"),
    )  # fmt: skip
    restored = _scores(model, fixture["input"].repeat(1, 2, 1, 1))
    torch.testing.assert_close(restored, fixture["output"].repeat(1, 2, 1, 1), rtol=1e-4, atol=1e-5)


def test_options_of_a_restorer_are_read_off_its_weights(tmp_path):
    for kept in ({"queries": 5, "conv": "dense", "feed_forward": "gdfn"}, {"attention": "self"}):
        model = create_model("hsdt_test", bands=4, **kept).eval()
        torch.save(model.state_dict(), tmp_path / "w.pth")
        _, report = convert(tmp_path / "w.pth", "hsdt_test", bands=4)
        assert report.made.model_args == kept


@pytest.mark.parametrize("wrong", [{"num_classes": 3}, {"image_size": 32}])
def test_classes_and_sizes_of_restorers_are_refused(wrong, tmp_path):
    path = save_model(create_model("essaformer_test", bands=3), tmp_path / "m.safetensors")
    torch.save(load_fixture("essaformer")["state_dict"], tmp_path / "w.pth")
    for load in (lambda: load_model(path, **wrong), lambda: convert(tmp_path / "w.pth", "essaformer_test", **wrong)):  # fmt: skip
        with pytest.raises(ModelError, match="has no classes") as refused:
            load()
        assert refused.value.fix == f"Omit {next(iter(wrong))}."


def test_filters_have_no_weights_to_convert(tmp_path):
    torch.save(load_fixture("essaformer")["state_dict"], tmp_path / "w.pth")
    with pytest.raises(ModelError, match="'bicubic' is not a network"):
        convert(tmp_path / "w.pth", "bicubic")
    with pytest.raises(
        CheckpointError, match=r"looks like the authors' ESSAformer, not like vit_test"
    ):
        convert(tmp_path / "w.pth", "vit_test")


def test_weights_of_oblong_images_need_their_height_and_width(tmp_path):
    model = create_model("vit_test", bands=3, num_classes=5, image_size=(9, 21), token_size=3)
    torch.save(_timm(model), tmp_path / "w.pth")
    given = {"model_args": {"token_size": 3}}
    with pytest.raises(PartialLoadError, match=r"were not square, give their height and width"):
        convert(tmp_path / "w.pth", "vit_test", **given)
    again, report = convert(tmp_path / "w.pth", "vit_test", image_size=(9, 21), **given)
    assert report.complete and report.resized == ()
    x = images(2, 3, (9, 21))
    torch.testing.assert_close(_scores(again, x), _scores(model, x))
