"""Scene classifiers in files: networks with their preprocessing and decoder, and estimators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from vitreous.catalog.registry import create_model, system_module
from vitreous.checkpoints.headers import PROVENANCE, SCHEMA, SPECTRA, check_counts
from vitreous.checkpoints.tensors import load_exactly, save_tensors
from vitreous.data.contract import BandContract
from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.files import checked
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.descriptions import EnsembleHeader, EstimatorHeader, NetworkHeader
from vitreous.inference.ensemble import Ensemble, Member
from vitreous.inference.patch_classifier import PatchClassifier
from vitreous.inference.postprocess import Postprocess, read_postprocess
from vitreous.layers.bands import Bands
from vitreous.layers.decoders import DenseNet
from vitreous.layers.preprocess import Preprocess
from vitreous.methods._apply import applied, reinstall
from vitreous.models._pixel_estimator import PixelEstimator

Network: TypeAlias = PatchClassifier | DenseClassifier
Classifier: TypeAlias = Network | PixelEstimator | Ensemble

POSTPROCESS = "postprocess"  # in the header, as in export.json
DAMAGED = "Restore the file, or train again."
SPECTRUM = "spectrum"  # in the header: what the network was told of its bands


def save_classifier(
    path: Path,
    classifier: Classifier,
    *,
    name: str,
    model_args: dict[str, Any],
    class_names: list[str],
    class_colors: list[str],
    provenance: Provenance | None = None,
    class_codes: list[int] | None = None,
    postprocess: Postprocess | None = None,
) -> None:
    """Write everything that is needed to map a raw scene into one file.

    Args:
        path: the file.
        classifier: what was trained.
        name: the system's name.
        model_args: what differs from the variant's own arguments.
        class_names: names of the classes from 1 on.
        class_colors: their ``#rrggbb``.
        provenance: the ground that its weights have learned from; None where nobody knows.
        class_codes: the numbers that stand for the classes in a map; from 1 on where not given.
        postprocess: what becomes of its probabilities.
    """
    assert isinstance(classifier.contract, BandContract)
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "contract": classifier.contract.to_json(),
        "class_names": class_names,
        "class_colors": class_colors,
        PROVENANCE: provenance_to_json(provenance),
        "class_codes": class_codes or list(range(1, len(class_names) + 1)),
        POSTPROCESS: None if postprocess is None else postprocess.to_json(),
    }
    tensors, own = _described(classifier, model_args)
    save_tensors(path, tensors, {**header, **own})


def _described(
    classifier: Classifier, model_args: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return a classifier's tensors, and what the header says of it alone."""
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(classifier, Ensemble):
        members = []
        for number, member in enumerate(classifier.members):
            parts, own = _described(member.classifier, member.model_args)
            tensors |= {f"{number}.{key}": value for key, value in parts.items()}
            members.append({"name": member.name, POSTPROCESS: member.after.to_json(), **own})
        return tensors, {"kind": "ensemble", "members": members}
    if isinstance(classifier, Network):
        return classifier.state_dict(), {
            "kind": "model",
            "bands": classifier.preprocess.channels,
            SPECTRA: classifier.preprocess.spectra.kind,
            SPECTRUM: spectrum_of(classifier.net),
            "num_classes": classifier.num_classes,
            "model_args": model_args,
            "methods": applied(classifier.net),
            "settings": classifier.settings(),
        }
    arrays, meta = classifier.state()
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    return tensors, {"kind": "estimator", "estimator": meta}


def build_classifier(
    path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> Classifier:
    """Rebuild a classifier from its file's tensors and header.

    Args:
        path: the file, for messages.
        tensors: what it holds.
        header: what :func:`save_classifier` has written.

    Raises:
        CheckpointError: the header does not describe one.
    """
    form, build = _FORMS[header["kind"]]
    checked(form, header, path, DAMAGED)
    return build(header, tensors, BandContract.from_json(header["contract"]), path)


def build_postprocess(path: Path, header: dict[str, Any]) -> Postprocess | None:
    """Return what becomes of a classifier's probabilities; None in files of versions that knew of nothing.

    Raises:
        CheckpointError: the header is damaged.
    """
    contract = BandContract.from_json(header["contract"])
    return read_postprocess(header.get(POSTPROCESS), contract, path, DAMAGED)


def _network(
    header: dict[str, Any], tensors: dict[str, torch.Tensor], contract: BandContract, path: Path
) -> Network:
    settings = header["settings"]
    check_counts(header["model_args"], tensors)
    # On the meta device nothing is allocated before the file's own tensors prove the claimed sizes.
    with torch.device("meta"):
        net = make_net(
            header["name"],
            settings,
            bands=_bands(header),
            num_classes=header["num_classes"],
            **header["model_args"],
        )
        reinstall(net, header["methods"])
        preprocess = Preprocess(len(contract.used), header["bands"], header.get(SPECTRA, "none"))
    classifier = make_classifier(net, preprocess, contract, settings)
    load_exactly(classifier, tensors, header["name"])
    return classifier.eval()


def _bands(header: dict[str, Any]) -> int | Bands:
    """Return the channels that a checkpoint's network was built for."""
    known = header.get(SPECTRUM)
    if known is None:
        return int(header["bands"])
    bands = Bands.from_json(known)
    if bands.count != header["bands"]:
        raise ValueError(f"{header['bands']} channels are described as {bands.count}")
    return bands


def spectrum_of(net: nn.Module) -> dict[str, Any] | None:
    """Return what a network was told of its bands, JSON-ready; None where it was told their number alone."""
    bare = net.trunk if isinstance(net, DenseNet) else net
    spectrum = getattr(bare, "spectrum", None)
    return spectrum.to_json() if isinstance(spectrum, Bands) else None


def _ensemble(
    header: dict[str, Any], tensors: dict[str, torch.Tensor], contract: BandContract, path: Path
) -> Ensemble:
    own_alone = {"kind", "members", POSTPROCESS}
    shared = {key: value for key, value in header.items() if key not in own_alone}
    members = []
    for number, said in enumerate(header["members"]):
        if said["kind"] == "ensemble":
            raise ValueError("a member of an ensemble is an ensemble")
        own = {**shared, **said}
        parts = {
            key.partition(".")[2]: value
            for key, value in tensors.items()
            if key.partition(".")[0] == str(number)
        }
        after = build_postprocess(path, own)
        if after is None:
            raise ValueError("a member of an ensemble lacks what becomes of its probabilities")
        made = build_classifier(path, parts, own)
        members.append(Member(own["name"], made, after, own.get("model_args", {})))
    return Ensemble(members)


def _estimator(
    header: dict[str, Any], tensors: dict[str, torch.Tensor], contract: BandContract, path: Path
) -> PixelEstimator:
    arrays = {key: value.numpy() for key, value in tensors.items()}
    made: PixelEstimator = system_module(header["name"]).from_state(
        arrays, header["estimator"], contract
    )
    return made


# What the header of a classifier's checkpoint must hold, and what builds it, by what the header says it is.
_FORMS: dict[str, tuple[type[BaseModel], Callable[..., Classifier]]] = {
    "ensemble": (EnsembleHeader, _ensemble),
    "model": (NetworkHeader, _network),
    "estimator": (EstimatorHeader, _estimator),
}


def make_net(
    name: str, settings: dict[str, Any], *, bands: int | Bands, num_classes: int, **model_args: Any
) -> nn.Module:
    """Build the network of a classifier with such ``settings()``, with fresh weights.

    Raises:
        ModelError: the model cannot be built so, or has no levels for a decoder.
    """
    size = image_size(settings)
    net = create_model(name, bands=bands, num_classes=num_classes, image_size=size, **model_args)
    return with_decoder(net, settings)


def image_size(settings: dict[str, Any]) -> int:
    """Return the side in pixels of the images that a classifier with such ``settings()`` gives its network."""
    return int(settings["tile_size" if settings["mode"] == "dense" else "patch_size"])


def with_decoder(net: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Put a decoder behind an architecture where every pixel is labelled at once."""
    dense = settings["mode"] == "dense"
    return DenseNet(net, settings["decoder"], settings["width"]) if dense else net


def make_classifier(
    net: nn.Module, preprocess: Preprocess, contract: BandContract, settings: dict[str, Any]
) -> Network:
    """Join what :func:`make_net` made with its preprocessing and bands."""
    if not isinstance(net, DenseNet):
        return PatchClassifier(net, preprocess, contract, **settings)
    own = {name: settings[name] for name in ("patch_size", "tile_size", "padding")}
    return DenseClassifier(net, preprocess, contract, **own)
