"""Mixers as their papers and references write them, map by map with channels first: what ours are timed against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.layers.convmix import ConvMlp
from vitreous.models.dhvt import AggregationFeedForward, HeadInteraction
from vitreous.models.hornet import GlobalLocalFilter, RecursiveGate
from vitreous.models.smt import Modulation


def modulation(self: Modulation, x: Tensor) -> Tensor:
    """SMT: heads are convolved and concatenated one after the other, and tokens become maps and tokens again."""
    batch, height, width, dim = x.shape
    tokens = x.flatten(1, 2)
    value = self.value(tokens)
    source = self.source(tokens).reshape(batch, height, width, len(self.heads), -1)
    parts = source.permute(3, 0, 4, 1, 2)
    seen = [
        conv(part.contiguous()).unsqueeze(2) for conv, part in zip(self.heads, parts, strict=True)
    ]
    mixed = self.aggregate(torch.cat(seen, 2).reshape(batch, dim, height, width))
    out = self.proj(mixed.flatten(2).transpose(1, 2) * value)
    return out.unflatten(1, (height, width))


def convolved_mlp(self: ConvMlp, x: Tensor) -> Tensor:
    """A feed-forward whose map has its channels first in memory."""
    hidden = self.fc1(x)
    mixed = self.dwconv(hidden.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
    return self.fc2(self.act(mixed + hidden if self.residual else mixed))


def recursive_gate(self: RecursiveGate, x: Tensor) -> Tensor:
    """HorNet: convolutions of one cell, channels first."""
    maps = _pointwise(self.proj_in, x.permute(0, 3, 1, 2).contiguous())
    features, others = maps.split([self.widths[0], sum(self.widths)], 1)
    mixed = self.convolve(others.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous() * self.scale
    first, *gates = mixed.split(self.widths, 1)
    features = features * first
    for widen, gate in zip(self.widen, gates, strict=True):
        features = _pointwise(widen, features) * gate
    return _pointwise(self.proj_out, features).permute(0, 2, 3, 1)


def global_local(self: GlobalLocalFilter, x: Tensor) -> Tensor:
    """HorNet's global filter, its map's channels first."""
    near, far = self.pre_norm(x).permute(0, 3, 1, 2).contiguous().chunk(2, 1)
    near = self.local(near)
    gate = torch.view_as_complex(self.gate.weight).permute(2, 0, 1)
    size = far.shape[2:]
    far = torch.fft.irfft2(torch.fft.rfft2(far, norm="ortho") * gate, s=size, norm="ortho")
    joined = torch.cat([near.unsqueeze(2), far.unsqueeze(2)], 2).flatten(1, 2)
    return self.post_norm(joined.permute(0, 2, 3, 1))


def head_interaction(
    self: HeadInteraction, x: Tensor, turn: Tensor | None = None, grid: Any = None
) -> Tensor:
    """DHVT: head tokens behind the others, attention step by step."""
    batch, count, dim = x.shape
    means = x.reshape(batch, count, self.heads, -1).transpose(1, 2).mean(2)
    described = self.describe(means).reshape(batch, self.heads, self.heads, -1)
    described = self.act(self.norm(described)).flatten(2) + self.positions
    tokens = torch.cat([x, described], 1)
    qkv = self.qkv(tokens).reshape(batch, -1, 3, self.heads, dim // self.heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
    mixed = self.proj((weights @ value).transpose(1, 2).reshape(batch, -1, dim))
    first, cells, own = mixed.split([1, count - 1, self.heads], 1)
    return torch.cat([first + own.mean(1, keepdim=True), cells], 1)


def aggregation(self: AggregationFeedForward, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """DHVT's feed-forward, its map's channels first in memory."""
    first, cells = x[:, :1], x[:, 1:].transpose(1, 2).reshape(len(x), -1, *grid).contiguous()
    hidden = self.expand(cells)
    cells = self.reduce(self.mix(hidden) + hidden)
    weight = self.excite(self.act(self.compress(F.adaptive_avg_pool2d(cells, 1).flatten(1))))
    return torch.cat([first * weight[:, None], cells.flatten(2).transpose(1, 2)], 1)


def _pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer as a convolution of one cell."""
    assert isinstance(layer, nn.Linear)
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)


TRANSCRIPTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    Modulation: modulation,
    ConvMlp: convolved_mlp,
    RecursiveGate: recursive_gate,
    GlobalLocalFilter: global_local,
    HeadInteraction: head_interaction,
    AggregationFeedForward: aggregation,
}


def transcribe(module: nn.Module) -> None:
    """Let a module compute as it is written here, where it is."""
    if type(module) in TRANSCRIPTIONS:
        module.forward = partial(TRANSCRIPTIONS[type(module)], module)
