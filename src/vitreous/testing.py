"""What every architecture and every method must be able to do: suites that anybody's own can be run through."""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitreous.catalog.registry import card, create_model, stage
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone
from vitreous.layers.restorer import Restorer, pad_to_multiple
from vitreous.methods._apply import Applied, applied, apply, reinstall

SIZES = (9, 15, 33)
BANDS = (1, 3, 13, 200)
CLASSES = 5


def check_model(name: str) -> None:
    """Run every quick check on a variant.

    Args:
        name: a registered variant; small ones (``*_test``) make this a matter of a second.

    Raises:
        AssertionError: a promise of ``layers/backbone.py`` is broken; the message says which.
    """
    for check in CHECKS:
        check(name)


def make(name: str, *, bands: int = 4, image_size: int = 15, seed: int = 0) -> Backbone:
    """Build a variant of a model as :func:`network` does."""
    model = network(name, bands=bands, image_size=image_size, seed=seed)
    assert isinstance(model, Backbone), f"{name} is no Backbone"
    return model


def network(
    name: str, *, bands: int = 4, image_size: int = 15, seed: int = 0
) -> Backbone | Restorer:
    """Build a variant of any kind with reproducible weights, none of them silent.

    Zero-initialised parts (adapters, LayerScale, last layers) would hide what is behind them, so every parameter
    that is constant is given some spread.
    """
    sizes = {"num_classes": CLASSES, "image_size": image_size}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(name, bands=bands, **(sizes if card(name).kind == "model" else {}))
        assert isinstance(model, Backbone | Restorer), f"{name} is no Backbone and no Restorer"
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() == 1 or parameter.std() == 0:
                    parameter.add_(0.05 * torch.randn_like(parameter).abs())
    return model


def images(count: int, bands: int, size: int, seed: int = 1) -> Tensor:
    """Return random images ``(count, bands, size, size)``."""
    return torch.randn(count, bands, size, size, generator=torch.Generator().manual_seed(seed))


def check_sizes_and_bands(name: str) -> None:
    """Finite scores of the right shape at several sizes and band counts; other bands are refused."""
    for size in SIZES:
        for bands in BANDS if size == SIZES[1] else BANDS[1:2]:
            with torch.no_grad():
                scores = make(name, bands=bands, image_size=size).eval()(images(2, bands, size))
            assert scores.shape == (2, CLASSES), f"{name}: {tuple(scores.shape)} at size {size}"
            assert torch.isfinite(scores).all(), f"{name}: not finite at size {size}, {bands} bands"


def check_gradients(name: str) -> None:
    """A gradient reaches every parameter."""
    model = network(name).train()
    for module in model.modules():
        if isinstance(getattr(module, "p", None), float):
            module.__dict__["p"] = 0.0  # dropout and stochastic depth may silence a branch
    model(images(8, 4, 15)).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert not silent, f"{name}: no gradient reaches {silent}"


def check_evaluation(name: str) -> None:
    """In eval mode, the same image gives the same result, alone and in a batch."""
    model = network(name).eval()
    x = images(3, 4, 15)
    with torch.no_grad():
        together, again, alone = model(x), model(x), model(x[1:2])
    assert torch.equal(together, again), f"{name}: evaluation is not deterministic"
    torch.testing.assert_close(
        together[1:2],
        alone,
        rtol=1e-4,
        atol=1e-5,
        msg=lambda m: f"{name}: depends on its batch. {m}",
    )


def check_single_image(name: str) -> None:
    """Training works on a single image."""
    network(name).train()(images(1, 4, 15)).sum().backward()


def check_saving(name: str) -> None:
    """Weights written and read back give the same bits; so does a copy."""
    model, x = network(name).eval(), images(2, 4, 15)
    other = network(name, seed=7).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_file(model.state_dict(), Path(folder) / "w.safetensors")
        other.load_state_dict(load_file(Path(folder) / "w.safetensors"))
        assert torch.equal(other(x), model(x)), f"{name}: saving changes the weights"
        assert torch.equal(copy.deepcopy(model)(x), model(x)), f"{name}: a copy differs"


def check_features(name: str) -> None:
    """Levels have the channels and strides that are declared; the head reads ``forward_features``."""
    model = make(name, image_size=33).eval()
    x = images(2, 4, 33)
    with torch.no_grad():
        levels = model.forward_levels(x)
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    assert len(levels) == len(model.feature_info), f"{name}: {len(levels)} levels"
    for level, info in zip(levels, model.feature_info, strict=True):
        assert level.shape[:2] == (2, info.channels), f"{name}: {tuple(level.shape)} is not {info}"
        for side in level.shape[2:]:
            assert 33 // info.stride <= side <= -(-33 // info.stride) + 1, f"{name}: {info}: {side}"


def check_head(name: str) -> None:
    """A new head has new classes and leaves the trunk alone."""
    model, x = make(name).eval(), images(2, 4, 15)
    with torch.no_grad():
        before = model.forward_features(x)
        model.reset_head(3)
        after = model.forward_features(x)
        assert model(x).shape == (2, 3), f"{name}: reset_head(3) gives {tuple(model(x).shape)}"
    assert model.num_classes == 3
    for old, new in zip(_tensors(before), _tensors(after), strict=True):
        assert torch.equal(old, new), f"{name}: reset_head changes the features"


def check_weight_decay(name: str) -> None:
    """Only existing parameters are spared from weight decay, all vectors among them."""
    model = network(name)
    names = dict(model.named_parameters())
    spared = model.no_weight_decay()
    assert spared <= set(names), f"{name}: {spared - set(names)} do not exist"
    assert {n for n, p in names.items() if p.ndim <= 1} <= spared


def check_bands_parameters(name: str) -> None:
    """``band_parameters`` name all parameters whose shape depends on the bands."""
    few, many = (dict(make(name, bands=b).named_parameters()) for b in (3, 7))
    differ = {n for n in few if few[n].shape != many[n].shape}
    declared = set(make(name).band_parameters)
    assert differ == declared, f"{name}: bands shape {differ}, band_parameters says {declared}"
    for n in differ:
        assert (few[n].shape[1], many[n].shape[1]) == (3, 7), f"{name}: axis 1 of {n} is not bands"


def check_checkpointing(name: str) -> None:
    """Activation checkpointing changes no gradient."""
    found = []
    for on in (False, True):
        model = network(name).train()
        model.checkpointing = on
        torch.manual_seed(0)
        model(images(4, 4, 15)).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(
            plain, again, msg=lambda m: f"{name}: checkpointing differs. {m}"
        )


def check_bfloat16(name: str) -> None:
    """Autocast to bfloat16 stays close."""
    model, x = network(name).eval(), images(4, 4, 15)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).float()
    error = (rough - exact).norm() / exact.norm()
    assert error < 0.1, f"{name}: bfloat16 is {error:.1%} off"


def check_compiled(name: str) -> None:
    """``torch.compile`` equals eager (minutes; not one of the quick checks)."""
    model, x = network(name).eval(), images(2, 4, 15)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-4)


def check_onnx(name: str) -> None:
    """The exported graph equals eager, at a second batch size too (needs the extra ``deploy``)."""
    _compare_onnx(network(name).eval(), name)


def _compare_onnx(model: nn.Module, what: str) -> None:
    """Export a network for images of 15 x 15 with 4 bands, and compare its scores at two batch sizes."""
    import onnxruntime

    x = images(2, 4, 15)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (x,),
            path,
            input_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (x, images(5, 4, 15)):
            with torch.no_grad():
                expected = model(batch)
            found = torch.from_numpy(session.run(None, {"image": batch.numpy()})[0])
            torch.testing.assert_close(
                found, expected, rtol=1e-3, atol=1e-4, msg=lambda m: f"{what}: {m}"
            )


def golden(name: str) -> list[float]:
    """Return what a variant gives today, of cubes ten values of it; a change of them must be meant."""
    with torch.no_grad():
        found = network(name).eval()(images(2, 4, 15)).flatten()
    values = found[:: max(1, len(found) // 10)][:10]
    return [float(f"{value:.5g}") for value in values.tolist()]


# -- restorers ----------------------------------------------------------------------------------------------


def check_restorer(name: str) -> None:
    """Run every quick check on a variant of a restorer.

    Args:
        name: a registered variant; small ones (``*_test``) make this a matter of a second.

    Raises:
        AssertionError: a promise of ``layers/restorer.py`` is broken; the message says which.
    """
    for check in RESTORER_CHECKS:
        check(name)


def make_restorer(name: str, *, bands: int = 4, seed: int = 0) -> Restorer:
    """Build a variant of a restorer as :func:`network` does."""
    model = network(name, bands=bands, seed=seed)
    assert isinstance(model, Restorer), f"{name} is no Restorer"
    return model


def check_cubes(name: str) -> None:
    """Finite cubes of the same bands and of ``scale`` times the size, at several sizes and band counts."""
    for height, width, bands in (
        (9, 9, 3),
        (33, 7, 3),
        (5, 16, 1),
        (1, 2, 4),
        (15, 15, 13),
        (9, 12, 200),
    ):
        model = make_restorer(name, bands=bands).eval()
        with torch.no_grad():
            restored = model(images(2, bands, max(height, width))[..., :height, :width])
        expected = (2, bands, height * model.scale, width * model.scale)
        assert restored.shape == expected, f"{name}: {tuple(restored.shape)} is not {expected}"
        assert torch.isfinite(restored).all(), f"{name}: not finite at {(bands, height, width)}"


def check_other_bands(name: str) -> None:
    """The same weights take cubes of other bands where that is declared; they are refused in words otherwise."""
    model = make_restorer(name).eval()
    for bands in BANDS:
        try:
            with torch.no_grad():
                restored = model(images(1, bands, 12))
        except ModelError as error:
            assert not model.any_bands, f"{name}: refuses {bands} bands"
            assert error.fix, f"{name}: refuses {bands} bands without saying what to do"
        else:
            assert model.any_bands, f"{name}: takes {bands} bands, not only {model.bands}"
            assert restored.shape[1] == bands, f"{name}: {bands} bands became {restored.shape[1]}"
            assert torch.isfinite(restored).all(), f"{name}: not finite at {bands} bands"


def check_tiles(name: str) -> None:
    """What tiling needs is declared: whole cubes need no mirroring, others are mirrored below and on the right."""
    model = make_restorer(name).eval()
    assert model.scale >= 1, f"{name}: scale {model.scale}"
    assert model.multiple >= 1, f"{name}: multiple {model.multiple}"
    assert model.reach >= 0, f"{name}: reach {model.reach}"
    whole, odd = images(1, 4, 2 * model.multiple), images(1, 4, 2 * model.multiple + 1)
    with torch.no_grad():
        assert torch.equal(model(whole), model.restore(whole)), f"{name}: mirrors whole cubes"
        padded, side = (
            model.restore(pad_to_multiple(odd, model.multiple)),
            model.scale * odd.shape[2],
        )
        assert torch.equal(model(odd), padded[..., :side, :side]), f"{name}: pads in another way"


def check_values(name: str) -> None:
    """No value is clipped on its way: outside of 0 to 1, each still moves the output."""
    x = images(1, 4, 12).mul(2).requires_grad_()
    make_restorer(name).eval()(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.ne(0).all(), f"{name}: {x.grad.eq(0).sum()} of the input's values have no effect"


# -- methods ------------------------------------------------------------------------------------------------


def check_method(name: str, model: str) -> None:
    """Run every quick check of a method on a model.

    Args:
        name: a variant of a registered method.
        model: a registered variant of a model; small ones (``*_test``) make this a matter of a second.

    Raises:
        AssertionError: a promise of ``methods/_apply.py`` is broken; the message says which.
    """
    if not serves(name, model):
        check_refusal(name, model)
        return
    for check in METHOD_CHECKS:
        check(name, model)


def serves(name: str, model: str) -> bool:
    """Tell whether a method's card names a model."""
    return any(fnmatch.fnmatch(model, pattern) for pattern in card(name).models)


def changed(name: str, model: str) -> Applied:
    """Apply a method to a model with reproducible weights, calibrated on random images where it asks for them."""
    return copy.deepcopy(_changed(name, model))


@functools.lru_cache(maxsize=1)
def _changed(name: str, model: str) -> Applied:
    """Do what :func:`changed` says, once for all checks: a method may search for seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return apply(make(model).eval(), name, calibration=[images(16, 4, 15, seed=2)])


def check_refusal(name: str, model: str) -> None:
    """What the card does not name is refused in words."""
    try:
        changed(name, model)
    except ModelError as error:
        assert error.fix, f"{name}: refuses {model} without saying what to do"
        return
    raise AssertionError(f"{name} serves {model}, which its card does not name")


def check_method_scores(name: str, model: str) -> None:
    """The changed model gives finite scores, the same ones alone and in a batch; the given one is left as it was."""
    plain, x = make(model).eval(), images(3, 4, 15)
    before = copy.deepcopy(plain.state_dict())
    new = apply(plain, name, calibration=[images(16, 4, 15, seed=2)]).model
    assert new is not plain
    assert not applied(plain), f"{name}: notes itself on the given model"
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key]), f"{name}: changes {key} of the given model"
    with torch.no_grad():
        together, again, alone = new(x), new(x), new(x[1:2])
    assert together.shape == (3, CLASSES)
    assert torch.isfinite(together).all()
    assert torch.equal(together, again), f"{name} on {model}: evaluation is not deterministic"
    torch.testing.assert_close(
        together[1:2],
        alone,
        rtol=1e-3,
        atol=1e-4,
        msg=lambda m: f"{name} on {model}: depends on its batch. {m}",
    )


def check_method_report(name: str, model: str) -> None:
    """The report names what was touched, in plain values, and the model notes the method with all settings."""
    new, report = changed(name, model)
    assert report.rows, f"{name}: says nothing about what it did to {model}"
    entry = applied(new)[-1]
    assert entry == {"name": name, "settings": report.settings}
    assert json.loads(json.dumps([entry, report.rows])) == [entry, report.rows]


def check_method_saving(name: str, model: str) -> None:
    """Rebuilt without memory and filled with the tensors, the model gives the same bits; so does a copy."""
    new, x = changed(name, model).model.eval(), images(2, 4, 15)
    with torch.device("meta"):
        bare = create_model(model, bands=4, num_classes=CLASSES, image_size=15)
        back = reinstall(bare, json.loads(json.dumps(applied(new))))
    tensors = {key: value.clone() for key, value in new.state_dict().items()}
    back.load_state_dict(tensors, assign=True)
    assert not [k for k, t in back.named_buffers() if t.is_meta], f"{name}: buffers without memory"
    with torch.no_grad():
        expected = new(x)
        assert torch.equal(back.eval()(x), expected), f"{name} on {model}: saving changes scores"
        assert torch.equal(copy.deepcopy(new)(x), expected), f"{name} on {model}: a copy differs"


def check_method_twice(name: str, model: str) -> None:
    """A second time is refused."""
    new = changed(name, model).model
    try:
        apply(new, name, calibration=[images(16, 4, 15, seed=2)])
    except ModelError:
        return
    raise AssertionError(f"{name} can be applied twice")


def check_method_head(name: str, model: str) -> None:
    """The classifier can still be replaced."""
    new = changed(name, model).model.eval()
    new.reset_head(3)  # type: ignore[operator]
    with torch.no_grad():
        assert new(images(2, 4, 15)).shape == (2, 3)


def check_method_training(name: str, model: str) -> None:
    """A method of the stage ``adapt`` or ``reduce`` lets the model train."""
    if stage(name) == "quantize":
        return
    new = changed(name, model).model.train()
    new(images(4, 4, 15)).square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().any()) for p in new.parameters())


def check_method_onnx(name: str, model: str) -> None:
    """The exported graph equals eager, at a second batch size too (needs the extra ``deploy``; seconds)."""
    _compare_onnx(changed(name, model).model.eval(), f"{name} on {model}")


METHOD_CHECKS: tuple[Callable[[str, str], None], ...] = (
    check_method_scores,
    check_method_report,
    check_method_saving,
    check_method_twice,
    check_method_head,
    check_method_training,
)


def _tensors(features: object) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    assert isinstance(features, list | tuple)
    return [tensor for part in features for tensor in _tensors(part)]


CHECKS: tuple[Callable[[str], None], ...] = (
    check_sizes_and_bands,
    check_gradients,
    check_evaluation,
    check_single_image,
    check_saving,
    check_features,
    check_head,
    check_weight_decay,
    check_bands_parameters,
    check_checkpointing,
    check_bfloat16,
)

RESTORER_CHECKS: tuple[Callable[[str], None], ...] = (
    check_cubes,
    check_other_bands,
    check_tiles,
    check_values,
    check_gradients,
    check_evaluation,
    check_single_image,
    check_saving,
    check_weight_decay,
    check_checkpointing,
    check_bfloat16,
)
