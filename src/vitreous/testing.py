"""What every architecture and every method must be able to do: suites that anybody's own can be run through."""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitreous.catalog.arguments import ImageSize
from vitreous.catalog.lookup import load
from vitreous.catalog.registry import (
    TRAINING_STAGES,
    card,
    create_model,
    kind_of,
    sizes_for,
    stage,
)
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.errors import ModelError
from vitreous.layers.answers import Answer
from vitreous.layers.backbone import Backbone
from vitreous.layers.quantizers import Quantizer, rows_of
from vitreous.layers.restorer import Restorer, pad_to_multiple
from vitreous.layers.sizes import as_size
from vitreous.methods._apply import Applied, applied, apply, reinstall
from vitreous.methods.adapt._freeze import freeze_base
from vitreous.tasks.losses import ClassTargets
from vitreous.tasks.teacher import Distillation

SMALL = 0.2  # spread of parameters that were constant
VARIATION = 0.1, 30.0  # of outputs over images
BFLOAT16 = 0.2  # root mean square error, as a share of that
M = TypeVar("M", bound=nn.Module)
SIZES = (9, 15, 33)
OBLONG = ((12, 21), (34, 9))
BANDS = (1, 3, 13, 200)
CLASSES = 5


def checks_of(name: str) -> tuple[Callable[[str], None], ...]:
    """Return the quick checks of a system's kind (:mod:`vitreous.catalog.kinds`), which take the name of a variant."""
    path = kind_of(name).checks
    return load(path) if path else ()


def check_model(name: str) -> None:
    """Run every quick check of its kind on a variant: of an architecture, a restorer or a filter.

    Args:
        name: a registered variant; small ones (``*_test``) make this a matter of a second.

    Raises:
        AssertionError: a promise of the kind's base class is broken; the message says which.
    """
    for check in checks_of(name):
        check(name)


def make(name: str, *, bands: int = 4, image_size: ImageSize = 15, seed: int = 0) -> Backbone:
    """Build a variant of a model as :func:`network` does."""
    model = network(name, bands=bands, image_size=image_size, seed=seed)
    assert isinstance(model, Backbone), f"{name} is not a Backbone"
    return model


def network(name: str, *, bands: int = 4, image_size: ImageSize = 15, seed: int = 0) -> Any:
    """Build a variant of any kind with reproducible weights, every part of which shows in the output.

    A fresh network hides most of itself: LayerScale of 1e-5, zero-initialised adapters and last layers, weights of
    standard deviation 0.02 in narrow layers, batch norms that have seen nothing. Its output hardly depends on the
    image, and no check of it could fail. So weights are made as large as a trained network's (:func:`enliven`).
    """
    sizes = sizes_for(name, num_classes=CLASSES, image_size=image_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(name, bands=bands, **sizes)
        base = load(kind_of(name).base)
        assert isinstance(model, base), f"{name} is not a {base.__name__}"
        # Restorers have few norms or none: what is amplified once stays so.
        enliven(model, 1.0 if isinstance(model, Restorer) else 1.2)
        _measure_batch_norms(model, images(32, bands, image_size, seed=3))
    return model


def enliven(model: nn.Module, gain: float = 1.0) -> None:
    """Give parameters spread of order 1 where they have next to none; others are left alone.

    A constant of zero (biases, zero-initialised layers) and a small one (LayerScale) would silence what they belong
    to, a constant of one (norms) would not show whether it is applied. Matrices get at least the root mean square
    that keeps the size of what they multiply.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            # The standard deviation of equal float32 values is not always zero.
            constant = bool(parameter.max() == parameter.min())
            inputs = (
                parameter[0].numel() if parameter.ndim > 1 and len(parameter) > 1 else SMALL**-2
            )
            if constant:
                value, noise = float(parameter.flatten()[0]), torch.randn_like(parameter)
                if value == 0:
                    parameter.copy_(noise * (0.5 * inputs**-0.5 if parameter.ndim > 1 else SMALL))
                elif abs(value) < SMALL:
                    parameter.copy_(0.5 + SMALL * noise.abs())
                else:
                    parameter.mul_(1 + SMALL * noise.abs())
            elif parameter.ndim > 1:
                size = float(parameter.square().mean().sqrt())
                parameter.mul_(max(1.0, gain * inputs**-0.5 / size))


def _measure_batch_norms(model: nn.Module, x: Tensor) -> None:
    """Set running statistics by images, as training does; without, deep networks in eval mode fade or explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def images(count: int, bands: int, size: ImageSize, seed: int = 1) -> Tensor:
    """Return random images ``(count, bands, height, width)``: noise around a spectrum of each one's own."""
    generator = torch.Generator().manual_seed(seed)
    height, width = as_size(size)
    values = torch.randn(count, bands, height * width + 1, generator=generator)
    return (values[..., :1] + values[..., 1:]).unflatten(-1, (height, width))


def spread(outputs: Tensor) -> float:
    """Return how much outputs ``(images, ...)`` vary over images: root mean square from their mean."""
    return float((outputs - outputs.mean(0)).square().mean().sqrt())


def check_near(found: Tensor, expected: Tensor, share: float, what: str) -> None:
    """Compare outputs of the same images; what counts is how much outputs vary over images, not how large they are.

    Args:
        found: outputs ``(images, ...)`` of two or more images.
        expected: what they should be.
        share: largest difference that is allowed anywhere, as a share of the spread of ``expected`` over images.
        what: beginning of the message.

    Raises:
        AssertionError: shapes differ, values do, or ``expected`` is the same for all images.
    """
    assert found.shape == expected.shape, (
        f"{what}: {tuple(found.shape)} is not {tuple(expected.shape)}"
    )
    over_images = spread(expected)
    assert over_images > 0, f"{what}: the same for all images"
    largest = float((found - expected).abs().max()) / over_images
    assert largest <= share, (
        f"{what}: differs by {largest:.1e} of the spread over images, {share:g} is allowed"
    )


def check_sizes_and_bands(name: str) -> None:
    """Finite scores of the right shape at several sizes and band counts; other bands are refused."""
    for size in SIZES:
        for bands in BANDS if size == SIZES[1] else BANDS[1:2]:
            with torch.no_grad():
                scores = make(name, bands=bands, image_size=size).eval()(images(2, bands, size))
            assert scores.shape == (2, CLASSES), f"{name}: {tuple(scores.shape)} at size {size}"
            assert torch.isfinite(scores).all(), f"{name}: not finite at size {size}, {bands} bands"


def check_oblong(name: str) -> None:
    """Built for images that are not square, it sees all of them, row and column in their places."""
    for size in OBLONG:
        model = make(name, image_size=size).eval()
        assert (model.size, model.image_size) == (size, size), f"{name}: {model.size} at {size}"
        x = images(2, 4, size).requires_grad_()
        scores = model(x)
        assert scores.shape == (2, CLASSES), f"{name}: {tuple(scores.shape)} at {size}"
        assert torch.isfinite(scores).all(), f"{name}: not finite at {size}"
        scores.square().sum().backward()
        assert x.grad is not None
        seen = x.grad.abs().amax((0, 1)) > 0
        step = model.feature_info[-1].stride  # fewer pixels than these may be left out at the end
        rows, columns = (side // step * step for side in size)
        assert seen.any(1)[:rows].all(), f"{name}: does not see every row of {size}"
        assert seen.any(0)[:columns].all(), f"{name}: does not see every column of {size}"
        _check_levels(model, x.detach(), name)
        _check_other_orientation(model, name)


def _check_levels(model: Backbone, x: Tensor, name: str) -> None:
    """Each level has the channels that are declared, and a cell for every stride of pixels, up to rounding."""
    with torch.no_grad():
        levels = model.forward_levels(x)
    assert len(levels) == len(model.feature_info), f"{name}: {len(levels)} levels"
    for level, info in zip(levels, model.feature_info, strict=True):
        assert level.shape[:2] == (len(x), info.channels), (
            f"{name}: {tuple(level.shape)} is not {info}"
        )
        for cells, side in zip(level.shape[2:], x.shape[2:], strict=True):
            assert side // info.stride <= cells <= -(-side // info.stride) + 1, (
                f"{name}: {info}: {cells} cells of {side} pixels"
            )


def _check_other_orientation(model: Backbone, name: str) -> None:
    """Images that lie the other way are accepted where any size is, and refused in words otherwise."""
    height, width = model.size
    try:
        with torch.no_grad():
            scores = model(images(1, 4, (width, height)))
    except ModelError as error:
        assert not model.any_size, f"{name}: refuses {width} x {height}"
        assert f"{height} x {width}" in str(error), f"{name}: {error}"
    else:
        assert model.any_size, f"{name}: takes {width} x {height}, built for {height} x {width}"
        assert torch.isfinite(scores).all(), f"{name}: not finite at {width} x {height}"


def check_loading(name: str) -> None:
    """A file brings a network back as it was, and its weights fit images of any other height and width."""
    model, x = make(name, image_size=OBLONG[0]).eval(), images(2, 4, OBLONG[0])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = save_model(model, Path(folder) / "m.safetensors")
        again, report = load_model(path)
        assert torch.equal(again(x), model(x)), f"{name}: a file changes the weights"
        assert (again.size, report.resized) == (model.size, ()), f"{name}: {report}"
        for size in (OBLONG[0][::-1], OBLONG[1], 15):
            other, report = load_model(path, image_size=size)
            assert report.complete and other.size == as_size(size), f"{name} at {size}: {report}"
            assert torch.isfinite(other(images(2, 4, size))).all(), f"{name}: not finite at {size}"


def check_variation(name: str) -> None:
    """Outputs vary with the image and with the weights, both at order 1: what other checks compare can differ."""
    x = images(8, 4, 15)
    with torch.no_grad():
        outputs, others = (network(name, seed=seed).eval()(x) for seed in (0, 7))
    for what, found in (("outputs", outputs), ("what weights add to them", outputs - others)):
        low, high = VARIATION
        assert low < spread(found) < high, (
            f"{name}: the spread of {what} over images is {spread(found):.1e}"
        )


def check_gradients(name: str) -> None:
    """A gradient reaches every parameter."""
    model = _without_dropout(network(name).train())
    model(images(8, 4, 15)).square().sum().backward()
    silent = silent_parameters(model)
    assert not silent, f"{name}: no gradient reaches {silent}"


def silent_parameters(model: nn.Module) -> list[str]:
    """Name the parameters that should be trained and that the last backward pass has not reached."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().any())
    ]


def _without_dropout(model: M) -> M:
    """Switch off dropout and stochastic depth, which may silence a branch."""
    for module in model.modules():
        if isinstance(getattr(module, "p", None), float):
            module.__dict__["p"] = 0.0
    return model


def check_frozen(name: str) -> None:
    """What a network names as frozen is there, and a step of training leaves that, and only that, as it was."""
    model = _without_dropout(network(name).train())
    patterns: tuple[str, ...] = getattr(model, "frozen", ())
    if not patterns:
        return
    state = model.state_dict()
    modules = {name for name, _ in model.named_modules()}
    idle = [p for p in patterns if not fnmatch.filter([*modules, *state], p)]
    assert not idle, f"{name}: freezes {idle}, which it does not have"
    held = [part for pattern in patterns for part in fnmatch.filter(modules, pattern)]
    frozen = {
        key
        for key in state
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
        or any(key.startswith(f"{part}.") for part in held)
    }
    assert any(p.requires_grad for p in model.parameters()), f"{name}: all of it is frozen"
    before = {key: value.clone() for key, value in state.items()}
    model(images(8, 4, 15)).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign())
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert not moved & frozen, f"{name}: training changes {sorted(moved & frozen)}, which is frozen"


def check_evaluation(name: str) -> None:
    """In eval mode, the same image gives the same result, alone and in a batch, of scores and of levels."""
    model = network(name).eval()
    x = images(4, 4, 15)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(together, model(x)), f"{name}: evaluation is not deterministic"
        alone = torch.cat([model(image[None]) for image in x])
        check_near(alone, together, 1e-3, f"{name}: depends on its batch")
        if isinstance(model, Backbone):
            single = [model.forward_levels(image[None]) for image in x]
            for number, level in enumerate(model.forward_levels(x)):
                alone = torch.cat([levels[number] for levels in single])
                check_near(alone, level, 1e-3, f"{name}: level {number} depends on its batch")


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
        scores = model.forward_head(model.forward_features(x))
        check_near(scores, model(x), 1e-4, f"{name}: the head on forward_features")
    _check_levels(model, x, name)


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
    few, many = (dict(network(name, bands=b).named_parameters()) for b in (3, 7))
    differ = {n for n in few if few[n].shape != many[n].shape}
    model = network(name)
    declared = set(model.band_parameters)
    assert differ == declared, f"{name}: bands shape {differ}, band_parameters says {declared}"
    assert set(model.band_axes) <= declared, f"{name}: band_axes {model.band_axes} of no parameter"
    for n in differ:
        axis = model.band_axis(n)
        apart = [
            at for at, (a, b) in enumerate(zip(few[n].shape, many[n].shape, strict=True)) if a != b
        ]
        found = (few[n].shape[axis], many[n].shape[axis])
        assert (apart, found) == ([axis], (3, 7)), f"{name}: bands are on axes {apart} of {n}"


def check_checkpointing(name: str) -> None:
    """Activation checkpointing changes no gradient."""
    found = []
    for on in (False, True):
        model = network(name).train()
        model.checkpointing = on
        torch.manual_seed(0)
        model(images(4, 4, 15)).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, again = found
    assert set(plain) == set(again), f"{name}: gradients of {set(plain) ^ set(again)} come and go"
    rounding = 1e-6 * max(float(gradient.abs().max()) for gradient in plain.values())
    for parameter, gradient in plain.items():
        largest = float((again[parameter] - gradient).abs().max())
        allowed = 1e-3 * float(gradient.abs().max()) + rounding
        assert largest <= allowed, f"{name}: checkpointing changes the gradient of {parameter}"


def check_bfloat16(name: str) -> None:
    """Autocast to bfloat16 stays close."""
    model, x = network(name).eval(), images(8, 4, 15)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).float()
    error = _distance(rough, exact)
    assert error < BFLOAT16, f"{name}: bfloat16 is off by {error:.1%} of the spread over images"


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, as a share of the spread over images."""
    return float((found - expected).square().mean().sqrt()) / spread(expected)


def check_compiled(name: str) -> None:
    """``torch.compile`` equals eager (minutes; not one of the quick checks)."""
    model, x = network(name).eval(), images(4, 4, 15)
    with torch.no_grad():
        check_near(torch.compile(model)(x), model(x), 1e-3, f"{name}: compiled")


def check_onnx(name: str) -> None:
    """The exported graph equals eager, at a second batch size and of oblong images too (needs the extra ``deploy``)."""
    model = network(name).eval()
    _compare_onnx(model, name)
    fits = not isinstance(model, Backbone) or model.any_size
    other = model if fits else network(name, image_size=OBLONG[0]).eval()
    _compare_onnx(other, f"{name}, {OBLONG[0]}", OBLONG[0])


def _compare_onnx(model: nn.Module, what: str, size: ImageSize = 15) -> None:
    """Export a network for images of a size with 4 bands, and compare its scores at two batch sizes."""
    import onnxruntime

    x = images(2, 4, size)
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
        for batch in (x, images(5, 4, size, seed=2)):
            with torch.no_grad():
                expected = model(batch)
            found = torch.from_numpy(session.run(None, {"image": batch.numpy()})[0])
            check_near(found, expected, 2e-3, f"{what} as ONNX")


def golden(name: str) -> dict[str, list[list[float]]]:
    """Return what a variant gives today for four images, a few values of each; a change of them must be meant.

    Returns:
        ``output`` and of a backbone ``level 0``, ``level 1``, ...: a list of numbers per image.
    """
    model, x = network(name).eval(), images(4, 4, 15)
    with torch.no_grad():
        found = {"output": model(x)}
        if isinstance(model, Backbone):
            found |= {f"level {i}": level for i, level in enumerate(model.forward_levels(x))}
    return {what: _sampled(values.flatten(1)) for what, values in found.items()}


def _sampled(rows: Float[Tensor, "images values"]) -> list[list[float]]:
    """Return up to six values of each row, from all over it."""
    places = torch.linspace(0, rows.shape[1] - 1, min(6, rows.shape[1])).long()
    return [[float(f"{value:.6g}") for value in row] for row in rows[:, places].tolist()]


def check_golden(name: str, known: dict[str, list[list[float]]]) -> None:
    """Today's values are the known ones (:func:`golden`)."""
    found = golden(name)
    assert set(found) == set(known), f"{name}: {sorted(found)}, known are {sorted(known)}"
    for what, values in found.items():
        check_near(torch.tensor(values), torch.tensor(known[what]), 2e-3, f"{name}: golden {what}")


# -- restorers ----------------------------------------------------------------------------------------------


def make_restorer(name: str, *, bands: int = 4, seed: int = 0) -> Restorer:
    """Build a variant of a restorer as :func:`network` does."""
    model = network(name, bands=bands, seed=seed)
    assert isinstance(model, Restorer), f"{name} is not a Restorer"
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


def check_restorer_loading(name: str) -> None:
    """A file brings a restorer back as it was, and its weights serve cubes of other bands."""
    model, x = make_restorer(name).eval(), images(2, 4, 12)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = save_model(model, Path(folder) / "m.safetensors")
        again, report = load_model(path)
        assert torch.equal(again(x), model(x)), f"{name}: a file changes the weights"
        assert report.complete, f"{name}: {report}"
        other, report = load_model(path, bands=7)
        assert report.complete, f"{name} with other bands: {report}"
        restored = other(images(2, 7, 12))
        assert restored.shape[1] == 7, f"{name}: 7 bands became {restored.shape[1]}"
        assert torch.isfinite(restored).all(), f"{name}: not finite with other bands"


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
    if stage(name) in TRAINING_STAGES:
        check_refusal(name, model)  # there is nothing to be applied
        if stage(name) == "distill":
            check_distillation(name, model)
        return
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
    plain = make(model).eval()
    before = copy.deepcopy(plain.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = apply(plain, name, calibration=[images(16, 4, 15, seed=2)])
    assert found.model is not plain
    assert not applied(plain), f"{name}: notes itself on the given model"
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key]), f"{name}: changes {key} of the given model"
    return found


def check_refusal(name: str, model: str) -> None:
    """What the card does not name is refused in words."""
    try:
        changed(name, model)
    except ModelError as error:
        assert error.fix, f"{name}: refuses {model} without saying what to do"
        return
    raise AssertionError(f"{name} serves {model}, which its card does not name")


def check_distillation(name: str, model: str) -> None:
    """A teacher's answers move the same weights as labels do, and more so where they say something else."""
    distillation = Distillation.of(name, {})
    student, x = _without_dropout(make(model)).train(), images(8, 4, 15)
    distillation.prepare(student)
    silent = _silent_in_training(make(model))
    chance = torch.Generator().manual_seed(3)
    said = torch.randn(8, CLASSES, generator=chance)
    levels = student.forward_levels(x) if distillation.reads_levels else None
    theirs = None if levels is None else [level.detach() + 1 for level in levels]
    own = Answer(student(x), levels)
    targets = ClassTargets(torch.arange(8) % CLASSES)
    losses = [distillation.loss(own, Answer(one, theirs), targets) for one in (said, -said)]
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses), f"{name}: {losses}"
    assert not torch.equal(*losses), f"{name} on {model}: does not listen to the teacher"
    losses[0].backward()
    assert set(silent_parameters(student)) <= silent, f"{name} on {model}: no gradient reaches all"


def check_method_scores(name: str, model: str) -> None:
    """The changed model gives finite scores, the same ones alone and in a batch."""
    plain, x = make(model).eval(), images(4, 4, 15)
    new = changed(name, model).model
    with torch.no_grad():
        together, exact = new(x), plain(x)
        assert torch.equal(together, new(x)), f"{name} on {model}: evaluation is not deterministic"
        alone = torch.cat([new(image[None]) for image in x])
    assert together.shape == (4, CLASSES)
    assert torch.isfinite(together).all()
    what = f"{name} on {model}: depends on its batch"
    if stage(name) == "quantize":
        check_near_quantized(alone, together, exact, what)
    else:
        check_near(alone, together, 1e-3, what)


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
    """What ``adapt`` adds can be trained, all of it; ``reduce`` cuts no parameter off from its gradient."""
    if stage(name) == "quantize":
        return
    new = changed(name, model).model
    if stage(name) == "adapt":
        freeze_base(new)
        learning = {n for n, p in new.named_parameters() if p.requires_grad}
        known = dict(make(model).named_parameters())
        added = {n for n, _ in new.named_parameters() if n not in known}
        assert added <= learning, f"{name} on {model}: frozen are {added - learning}"
        # A narrow layer of one set of weights may be dead: zero behind its ReLU for all images.
        found = [_silent_in_training(_moved(new, seed)) for seed in range(3)]
        silent = set.intersection(*found)
    else:
        silent = _silent_in_training(new) - _silent_in_training(make(model))
    assert not silent, f"{name} on {model}: no gradient reaches {sorted(silent)}"


def _moved(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose adapters, which begin at nothing, have been trained somewhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        moved = copy.deepcopy(model)
        enliven(moved)
    return moved


def _silent_in_training(model: nn.Module) -> set[str]:
    """Name the parameters that a step of training would leave alone."""
    _without_dropout(model.train())(images(8, 4, 15)).square().sum().backward()
    return set(silent_parameters(model))


def check_method_effect(name: str, model: str) -> None:
    """Adapters begin at nothing and can change scores; fewer tokens are fewer; every quantizer rounds."""
    new, report = changed(name, model)
    what = f"{name} on {model}"
    if stage(name) == "adapt":
        _check_adapters(make(model).eval(), new.eval(), what)
    elif stage(name) == "prune":
        counts = [sum(p.numel() for p in net.parameters()) for net in (new, make(model))]
        assert counts[0] < counts[1], f"{what}: as many parameters as before"
    elif stage(name) == "reduce":
        _check_reducers(new.eval(), report.rows, what)
    elif stage(name) == "quantize":
        _check_quantizers(new.eval(), what)


def _check_adapters(plain: nn.Module, new: nn.Module, what: str) -> None:
    x = images(4, 4, 15)
    with torch.no_grad():
        exact = plain(x)
        check_near(new(x), exact, 1e-3, f"{what}: before any training")
        assert _distance(_moved(new, 0)(x), exact) > 0.01, (
            f"{what}: adapters change next to nothing"
        )


def _check_reducers(new: nn.Module, rows: list[dict[str, Any]], what: str) -> None:
    """Count the tokens behind each block that the report names."""
    assert any(row["tokens after"] < row["tokens before"] for row in rows), f"{what}: drops nothing"
    tokens: dict[str, int] = {}

    def count(layer: str, output: Tensor | tuple[Any, ...]) -> None:
        tokens[layer] = (output if isinstance(output, Tensor) else output[0]).shape[1]

    for row in rows:
        new.get_submodule(row["layer"]).register_forward_hook(
            lambda module, inputs, output, layer=row["layer"]: count(layer, output)
        )
    with torch.no_grad():
        new(images(2, 4, 15))
    for row in rows:
        assert tokens.get(row["layer"]) == row["tokens after"], (
            f"{what}: {tokens}, reported is {row}"
        )


def _check_quantizers(new: nn.Module, what: str) -> None:
    """Look at what goes into each quantizer and what comes out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    quantizers = {n: m for n, m in new.named_modules() if isinstance(m, Quantizer)}
    assert quantizers, f"{what}: has no quantizer"
    for name, quantizer in quantizers.items():
        quantizer.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    with torch.no_grad():
        new(images(4, 4, 15))
    assert seen.keys() == quantizers.keys(), f"{what}: unused are {quantizers.keys() - seen.keys()}"
    for name, (before, after) in seen.items():
        scale = getattr(quantizers[name], "scale", torch.ones(()))
        rows = rows_of(after, tuple(scale.shape))
        alone = rows.shape[1] == 1  # a single number at its own scale needs no rounding
        assert alone or not torch.equal(before, after), f"{what}: {name} rounds nothing"
        values = max(len(row.unique()) for row in rows)
        assert values <= quantizers[name].levels + 1, f"{what}: {name} gives {values} values"


def check_near_quantized(found: Tensor, expected: Tensor, exact: Tensor, what: str) -> None:
    """Compare outputs of a quantized network that differ by rounding.

    A last bit may push a number to the next code, in one kernel and not in another; that costs a part of what
    quantization costs as a whole.

    Args:
        found: outputs ``(images, ...)``.
        expected: what they should be.
        exact: those of the network before quantization, which says how much that is.
        what: beginning of the message.
    """
    check_near(found, expected, max(1e-3, _distance(expected, exact)), what)


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
    check_method_effect,
)


def _tensors(features: object) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    assert isinstance(features, list | tuple)
    return [tensor for part in features for tensor in _tensors(part)]


CHECKS: tuple[Callable[[str], None], ...] = (
    check_sizes_and_bands,
    check_oblong,
    check_variation,
    check_gradients,
    check_frozen,
    check_evaluation,
    check_single_image,
    check_saving,
    check_loading,
    check_features,
    check_head,
    check_weight_decay,
    check_bands_parameters,
    check_checkpointing,
    check_bfloat16,
)

FILTER_CHECKS: tuple[Callable[[str], None], ...] = (check_cubes, check_other_bands, check_tiles)

RESTORER_CHECKS: tuple[Callable[[str], None], ...] = (
    check_cubes,
    check_other_bands,
    check_tiles,
    check_values,
    check_variation,
    check_gradients,
    check_frozen,
    check_evaluation,
    check_single_image,
    check_saving,
    check_restorer_loading,
    check_weight_decay,
    check_bands_parameters,
    check_checkpointing,
    check_bfloat16,
)
