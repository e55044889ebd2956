"""A trained recognizer as a graph that other runtimes compute.

It is one graph, ``image``: images ``(batch, bands, height, width)`` of physical values in the network's size to the
probabilities of their classes, ``(batch, classes)``. How images of other sizes are brought to it stays with
``data/image_batches.py``, whatever computes them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.data.image_collection import ImageStore
from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.inference.export import (
    FLOAT_LIMITS,
    INTEGER_LIMITS,
    Parity,
    Part,
    check_parity,
    check_request,
    parity_of,
    write_export,
)
from vitreous.inference.export_format import RUNTIMES
from vitreous.inference.integers import integer_form
from vitreous.inference.recognizer import ImageClassifier, Recognizer, decided
from vitreous.inference.runtimes import Exported
from vitreous.methods._apply import applied

PARITY_IMAGES = 256


@dataclass(frozen=True)
class RecognizerProduct:
    """What is exported.

    Attributes:
        recognizer: the network with its preprocessing.
        name: of its architecture.
        hints: reader options that its images were opened with.
        source: SHA-256 of the model file it came from; empty where it came from none.
        provenance: the images that its weights have learned from; None where nobody knows.
        task: what it was trained for.
    """

    recognizer: Recognizer
    name: str
    hints: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    provenance: Provenance | None = None
    task: str = "recognize"


class ImageGraph(nn.Module):
    """From images in physical values to probabilities."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(
        self, images: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Preprocess and classify."""
        return self.recognizer.probabilities(images)


def export_recognizer(
    product: RecognizerProduct,
    folder: str | Path,
    *,
    form: str,
    store: ImageStore,
    numbers: npt.NDArray[np.int64],
) -> Parity:
    """Write an export of a recognizer and check it on images.

    Args:
        product: the recognizer.
        folder: where; an older export there is replaced.
        form: ``onnx``, ``openvino`` or ``torch``.
        store: images of the recognizer's bands.
        numbers: which of them to check on; at most ``PARITY_IMAGES`` of them, the first, are used.

    Returns:
        How well the graph agrees with the network.

    Raises:
        ConfigError: an unknown format, a package that is missing, or a folder that holds something else.
        ModelError: the network cannot be written as such a graph, or does not agree with it; nothing is left.
    """
    check_request(form, folder)
    plain = copy.deepcopy(product.recognizer).cpu().eval().requires_grad_(False)
    ready, quantization = integer_form(plain, form)
    part = Part(ImageGraph(ready), torch.zeros(2, plain.contract.bands, *plain.size), (0,))

    def measure(exported: Exported) -> Parity:
        parity = compare(plain, exported.recognizer, store, numbers, RUNTIMES[form])
        check_parity(parity, INTEGER_LIMITS if any(quantization) else FLOAT_LIMITS)
        return parity

    said: dict[str, Any] = {
        "task": product.task,
        "kind": "images",
        "name": product.name,
        "contract": plain.contract.to_json(),
        "class_names": plain.class_names,
        "settings": {
            "size": list(plain.size),
            "several": plain.several,
            "fill": plain.fill.tolist(),
            # A mask is a file of this machine, and of the training's images.
            "hints": {key: value for key, value in product.hints.items() if key != "mask"},
        },
        "methods": applied(plain.net),
        "quantization": quantization._asdict(),
        "source": product.source,
        "provenance": provenance_to_json(product.provenance),
    }
    return write_export(folder, form, {"image": part}, said, measure)


def compare(
    plain: Recognizer,
    exported: ImageClassifier,
    store: ImageStore,
    numbers: npt.NDArray[np.int64],
    runtime: str,
) -> Parity:
    """Compare two recognizers on images.

    Args:
        plain: the network.
        exported: its export.
        store: the images.
        numbers: which of them; the first ``PARITY_IMAGES`` are used.
        runtime: what computes the export.
    """
    chosen = numbers[:PARITY_IMAGES]
    ours, theirs = (one.predict(store, chosen) for one in (plain, exported))
    same = (decided(one, several=plain.several) for one in (ours, theirs))
    equal = float(np.equal(*same).mean())
    return parity_of(runtime, len(chosen), np.abs(ours - theirs), equal, counted="images")
