"""Learned positions on other grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitreous.layers.positions import resize_map, resize_positions

SIZES = [((15, 15), (12, 21)), ((4, 4), (3, 9)), ((7, 5), (14, 15)), ((1, 3), (2, 1))]


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_maps_are_resampled_as_by_torch(grid, size):
    image = torch.randn(2, 3, *grid, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image, size, mode="bicubic", align_corners=False)
    torch.testing.assert_close(resize_map(image, size), expected, rtol=1e-4, atol=1e-5)


def test_steps_are_the_inverse_of_scale_factors():
    image = torch.randn(1, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    factors = (12.1 / 6, 5.1 / 7)
    expected = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    found = resize_map(image, (12, 5), tuple(1 / factor for factor in factors))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Placed(nn.Module):
    """Adds learned positions of 15 x 15 cells to tokens of 12 x 21."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 225, 8))

    def forward(self, x):
        return x + resize_positions(self.table, (12, 21), grid=(15, 15))


def test_exported_positions_are_those_of_the_network(tmp_path):
    """A constant that an exporter resizes in advance was off by the values' own size."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x = Placed().eval(), torch.randn(2, 252, 8)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-4)
