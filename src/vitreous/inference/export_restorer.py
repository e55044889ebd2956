"""A trained restorer as a graph that other runtimes compute.

It is one graph, ``cube``: tiles ``(batch, bands, side, side)`` of raw physical values, NaN where a pixel is invalid, to
restored physical values ``(batch, bands, side * scale, side * scale)``. How tiles are cut and joined stays with
``inference/restore.py``, whatever computes them. The graph takes the bands that the restorer was trained on: ranges of
other bands would have to be found in the scene.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.errors import ModelError
from vitreous.inference.export import (
    Limits,
    Parity,
    Part,
    check_parity,
    check_request,
    parity_of,
    write_export,
)
from vitreous.inference.export_format import RUNTIMES
from vitreous.inference.integers import integer_form
from vitreous.inference.restore import SceneRestorer, TileRestorer
from vitreous.inference.runtimes import Exported
from vitreous.layers.ranges import fill_tiles
from vitreous.scenes.cube import read_with_context

LIMITS = Limits(1e-3, 1e-4, 1.0, "Nothing was written; export to another --format.")
TILES_EACH_WAY = 3  # that are compared


@dataclass(frozen=True)
class RestorerProduct:
    """What is exported.

    Attributes:
        restorer: the network with its ranges.
        name: of its architecture.
        source: SHA-256 of the model file it came from; empty where it came from none.
        provenance: the ground that its weights have learned from; None where nobody knows.
        task: what it was trained for.
    """

    restorer: SceneRestorer
    name: str
    source: str = ""
    provenance: Provenance | None = None
    task: str = "restore"


class CubeGraph(nn.Module):
    """From raw tiles to restored ones."""

    def __init__(self, restorer: SceneRestorer) -> None:
        super().__init__()
        self.net, self.ranges = restorer.net, restorer.ranges

    def forward(
        self, tiles: Float[Tensor, "batch bands side side"]
    ) -> Float[Tensor, "batch bands side*scale side*scale"]:
        """Scale, restore and scale back."""
        return self.ranges.inverse(self.net(self.ranges(fill_tiles(tiles))))


def export_restorer(
    product: RestorerProduct, folder: str | Path, *, form: str, scene: xr.DataArray
) -> Parity:
    """Write an export of a restorer and check it on tiles of a scene.

    Args:
        product: the restorer.
        folder: where; an older export there is replaced.
        form: ``onnx``, ``openvino`` or ``torch``.
        scene: a scene of the restorer's bands.

    Returns:
        How well the graph agrees with the network.

    Raises:
        ConfigError: an unknown format, a package that is missing, or a folder that holds something else.
        ModelError: the network cannot be written as such a graph, or does not agree with it; nothing is left.
    """
    check_request(form, folder)
    plain = copy.deepcopy(product.restorer).cpu().eval().requires_grad_(False)
    ready, quantization = integer_form(plain, form)
    side, bands = plain.tile_size, len(plain.contract.used)
    part = Part(CubeGraph(ready), torch.zeros(2, bands, side, side), (0,))

    def measure(exported: Exported) -> Parity:
        parity = compare(plain, exported.restorer, scene, RUNTIMES[form])
        check_parity(parity, LIMITS)
        return parity

    said: dict[str, Any] = {
        "task": product.task,
        "kind": "cubes",
        "name": product.name,
        "contract": plain.contract.to_json(),
        "settings": {"tile_size": side, "scale": plain.scale},
        "methods": [],
        "quantization": quantization._asdict(),
        "source": product.source,
        "provenance": provenance_to_json(product.provenance),
    }
    return write_export(folder, form, {"cube": part}, said, measure)


def compare(
    plain: SceneRestorer, exported: TileRestorer, scene: xr.DataArray, runtime: str
) -> Parity:
    """Compare two restorers on tiles all over a scene.

    Args:
        plain: the network.
        exported: its export.
        scene: the scene.
        runtime: what computes the export.

    Raises:
        ModelError: there is no valid pixel in any of them, or the scene lacks a band.
    """
    tiles = _some_tiles(plain, scene)
    valid = tiles.isfinite().all(1)
    if not valid.any():
        raise ModelError(
            "None of the tiles for the parity check has valid data.",
            "Check the scene's no-data value.",
        )
    ours, theirs = plain.restore_tiles(tiles), exported.restore_tiles(tiles)
    shares = (ours - theirs).abs() / plain.ranges.span[:, None, None]
    fine = valid.repeat_interleave(plain.scale, 1).repeat_interleave(plain.scale, 2)
    return parity_of(runtime, int(valid.sum()), shares.movedim(1, -1)[fine].numpy())


def _some_tiles(
    restorer: SceneRestorer, scene: xr.DataArray
) -> Float[Tensor, "tiles bands size size"]:
    """Read tiles from all over a scene, mirrored where it is smaller than one."""
    bands, side = restorer.contract.select(scene), restorer.tile_size
    tops, lefts = (
        np.unique(np.linspace(0, max(0, scene.sizes[axis] - side), TILES_EACH_WAY).astype(int))
        for axis in ("y", "x")
    )
    return torch.from_numpy(
        np.stack(
            [
                read_with_context(
                    scene,
                    slice(int(top), int(top) + side),
                    slice(int(left), int(left) + side),
                    bands,
                    0,
                )
                for top in tops
                for left in lefts
            ]
        )
    )
