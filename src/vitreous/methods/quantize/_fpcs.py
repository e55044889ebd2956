"""The search for scales, zero points and bases that AdaLog is calibrated by.

Every product that is quantized is ``left @ right``; a search changes the quantizer of one factor and looks at the
error of the product. Seen from either factor, the other one transposed on its right, this is one and the same problem:

    error(candidate) = | (L^ - L) R + (L R - T) |^2

with L the values to quantize, L^ what a candidate makes of them, R the other factor as it is quantized now and T
the product in floating point, which is computed once. Where R has more columns than rows, its QR factorisation takes
their place: the error changes by a constant only, and a search over the weights of a layer no longer depends on how
many tokens it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.layers.quantizers import quantiles, rows_of
from vitreous.methods.quantize._codes import RATIO, decode_table, log_codes

BASES = (1, 129)  # the q that are tried
PUBLISHED_BASES = (10, 138)
WIDE = 2  # times the rows: what else is sampled, where both sides of a factor are larger
CHUNK = 2**19  # numbers that one step of the scoring holds
TINY = 1e-12


class Setting(NamedTuple):
    """What is searched: a scale, and with it a zero point or a base, both of the shape of a quantizer's buffers."""

    scale: Tensor
    other: Tensor


FakeQuantizer: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Score: TypeAlias = Callable[[Setting], Tensor]


@dataclass(frozen=True)
class Budget:
    """How long a search is.

    Attributes:
        rounds: how often the factors take turns.
        steps: rounds of one search, the first on a coarse grid.
        candidates: candidates that each of them scores.
        width: how many survive; each is replaced by candidates / width new ones.
        rows: a product of more rows (tokens) is scored on so many of them, evenly spaced. The weights of a layer are
            scored on all tokens, at no cost, unless the layer has more than twice as many inputs.
        published: exactly as published: zero points around the middle code whatever the values, no base below
            2^(10 / 37), and the best setting of the last round, even where one before was better.
    """

    rounds: int = 3
    steps: int = 6
    candidates: int = 128
    width: int = 16
    rows: int = 512
    published: bool = False


def uniform(bits: int) -> FakeQuantizer:
    """Return the asymmetric uniform quantizer of (values, scale, zero point).

    Its codes are those of :class:`~vitreous.layers.quantizers.UniformQuantizer`, at the edges between two codes too, so
    it divides as the layer does.
    """
    top = 2**bits - 1

    def fake(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        codes = (values / scale).round_()
        torch.maximum(codes, -zero, out=codes)
        return torch.minimum(codes, top - zero, out=codes).mul_(scale)

    return fake


def logarithmic(bits: int, shift: float = 0.0) -> FakeQuantizer:
    """Return AdaLog of (values, scale, base), with one scale and one base for all values of a candidate.

    Its codes are those of :class:`~vitreous.methods.quantize._codes.AdaLogQuantizer`; its values are less ``shift``.

    Args:
        bits: width of a code.
        shift: added to the values before, and taken away after.
    """

    def fake(values: Tensor, scale: Tensor, base: Tensor) -> Tensor:
        codes = log_codes(values, scale, base, shift).round_().clamp_(max=2**bits)
        # One table for all candidates, one after the other.
        table = decode_table(base.flatten(), bits) * scale.reshape(-1, 1) - shift
        first = torch.arange(len(table), device=base.device).reshape(base.shape) * table.shape[1]
        places = codes.add_(first).to(torch.int32)
        return table.flatten().index_select(0, places.flatten()).view(places.shape)

    return fake


@dataclass
class Factor:
    """One factor of a product, and the quantizer that is searched for it.

    Attributes:
        values: ``(*batch, n, k)``; the other factor, transposed, is multiplied from the right.
        shape: that of scale and zero point or base; axes of 1 are shared.
        bits: width of a code.
        zeros: how many zero points are tried; 0 makes it an AdaLog factor.
        covers_zero: keep zero points among the codes.
        shift: added to the values of an AdaLog factor.
        floor: the least scale.
        scaled: whether the scale of an AdaLog factor is searched.
        sampled: whether a share of the n rows stands for all.
        setting: what has been found.
    """

    values: Float[Tensor, "*batch n k"]
    shape: tuple[int, ...]
    bits: int
    zeros: int = 0
    covers_zero: bool = True
    shift: float = 0.0
    floor: float = TINY
    scaled: bool = True
    sampled: bool = False
    setting: Setting | None = None
    _grid: tuple[Setting, Tensor] | None = None

    @property
    def fake(self) -> FakeQuantizer:
        """The quantizer of (values, scale, zero point or base)."""
        return uniform(self.bits) if self.zeros else logarithmic(self.bits, self.shift)

    def quantized(self) -> Float[Tensor, "*batch n k"]:
        """Return the values as the present setting leaves them."""
        assert self.setting is not None
        return self.fake(self.values, *self.setting)

    def search(
        self,
        right: Float[Tensor, "*batch k o"] | None,
        wanted: Float[Tensor, "*batch n o"] | None,
        budget: Budget,
    ) -> None:
        """Find the setting with the least error of the product, or without one of the values themselves."""
        if right is not None and min(right.shape[-2:]) > WIDE * budget.rows:
            assert wanted is not None
            right, wanted = (_few(side.mT, WIDE * budget.rows).mT for side in (right, wanted))
        values = self.values
        if self.sampled:
            values = _few(values, budget.rows)
            wanted = None if wanted is None else _few(wanted, budget.rows)
        score = scorer(values, right, wanted, self.fake, self.shape)
        start = None if budget.published or right is None else self.setting
        if self.zeros:
            if self._grid is None:
                self._grid = uniform_grid(self, budget)
            self.setting = fpcs(score, *self._grid, budget, self.floor, start)
        else:
            self.setting = self._search_base(score, budget, start)

    def _search_base(self, score: Score, budget: Budget, start: Setting | None) -> Setting:
        """Scan the bases at the present scale; where there is one to find, refine the best eight with scales."""
        assert self.setting is not None
        ones = (1,) * len(self.shape)
        span = PUBLISHED_BASES if budget.published else BASES
        bases = torch.arange(*span, device=self.values.device).reshape(-1, *ones)
        scale = self.setting.scale.expand(len(bases), *self.shape)
        errors = score(Setting(scale, bases))
        if not self.scaled:
            return Setting(self.setting.scale, bases[errors.argmin()])
        kept = bases[errors.flatten().topk(8, largest=False).indices]
        low, high = positive_range(self.values, self.shift)
        count = budget.candidates // 8
        scales = torch.linspace(0, 1, count, device=scale.device) * (high - low) + low
        grid = Setting(scales.repeat(8).reshape(-1, *ones), kept.repeat_interleave(count, 0))
        step = (grid.scale[1] - grid.scale[0]).abs()
        wide = replace(budget, width=budget.candidates // 4)
        return fpcs(score, grid, step, wide, self.floor, start)


def alternate(
    first: Factor, second: Factor, product: Float[Tensor, "*batch n o"], budget: Budget
) -> None:
    """Let two factors take turns, each searching with the other one as it is quantized by then (section 3.4)."""
    for _ in range(budget.rounds):
        first.search(second.quantized().mT, product, budget)
        second.search(first.quantized().mT, product.mT, budget)


def fpcs(
    score: Score,
    grid: Setting,
    step: Tensor,
    budget: Budget,
    floor: float,
    start: Setting | None = None,
) -> Setting:
    """Search from coarse to fine (Fast Progressive Combining Search, algorithm 1).

    The best candidates of a round survive; each hands its zero point or base to a handful of new ones, whose scales
    are spread over one step around its own. Every position of the setting is searched by itself.

    Args:
        score: gives the error of each candidate, ``(candidates, *shape)``.
        grid: the candidates of the first round.
        step: how far their scales are apart, ``shape``.
        budget: how many rounds, candidates and survivors.
        floor: the least scale.
        start: a setting to beat.

    Returns:
        The best setting of the last round, or of all rounds and ``start``.
    """
    children = budget.candidates // budget.width
    best = None if start is None else _with_error(score, start)
    spread = torch.linspace(0, 1, children, device=step.device) - 0.5
    for remaining in reversed(range(budget.steps)):
        errors = score(grid)
        order = errors.neg_().topk(budget.width if remaining else 1, dim=0)
        grid = Setting(*(field.gather(0, order.indices) for field in grid))
        leader = Setting(grid.scale[0], grid.other[0]), order.values[0].neg()
        best = leader if budget.published or best is None else _better(best, leader)
        if remaining:
            offsets = spread.reshape(-1, *(1,) * step.ndim) * step
            scale = (grid.scale[:, None] + offsets).flatten(0, 1).clamp_(min=floor)
            grid = Setting(scale, grid.other.repeat_interleave(children, 0))
            step = step / (children - 0.5)
    assert best is not None
    return best[0]


def scorer(
    left: Float[Tensor, "*batch n k"],
    right: Float[Tensor, "*batch k o"] | None,
    wanted: Float[Tensor, "*batch n o"] | None,
    fake: FakeQuantizer,
    shape: tuple[int, ...],
) -> Score:
    """Return the function that gives each candidate's squared error, summed over the axes that ``shape`` shares."""
    rest = None
    if right is not None and wanted is not None:
        rest = left @ right - wanted
        if right.shape[-1] > right.shape[-2]:
            basis, triangle = torch.linalg.qr(right.mT)
            right, rest = triangle.mT, rest @ basis
    width = max(part[0].numel() for part in (left, rest) if part is not None)

    def score(candidates: Setting) -> Tensor:
        at_once = max(1, CHUNK // width)
        parts = [
            _errors(left, right, rest, fake, shape, Setting(*part))
            for part in zip(*(field.split(at_once) for field in candidates), strict=True)
        ]
        return torch.cat(parts)

    return score


def uniform_grid(factor: Factor, budget: Budget) -> tuple[Setting, Tensor]:
    """Return the first candidates of a uniform quantizer, and how far their scales are apart.

    Scales go from those that span the middle 80 % of the values to those that span all of them. Zero points are whole
    numbers around the one that fits the range; as published, around the middle code, with which values that are not
    centred on zero have no good candidate.
    """
    rows = rows_of(factor.values, factor.shape)
    least, low, high, greatest = quantiles(rows, [0.0, 0.1, 0.9, 1.0]).reshape(4, *factor.shape)
    if factor.covers_zero and not budget.published:
        least, greatest = least.clamp(max=0), greatest.clamp(min=0)
    whole, span, top = greatest - least, high - low, 2**factor.bits - 1
    count, ones = budget.candidates // factor.zeros, (1,) * len(factor.shape)
    grow = torch.linspace(0, 1, count, device=span.device).reshape(-1, *ones)
    scale = ((span + grow * (whole - span)) / top).clamp_(min=factor.floor)
    middle = torch.full_like(span, 2 ** (factor.bits - 1))
    if not budget.published:
        middle = (-least / scale[-1]).round_()
    around = torch.arange(factor.zeros, device=span.device) - factor.zeros // 2
    zero = middle + around.repeat_interleave(count).reshape(-1, *ones)
    if factor.covers_zero:
        zero = zero.clamp_(0, top)
    return Setting(scale.repeat(factor.zeros, *ones), zero), scale[1] - scale[0]


def uniform_start(factor: Factor, budget: Budget) -> Setting:
    """Return the setting that a factor has before its first search: the second largest scale."""
    grid, _ = uniform_grid(factor, budget)
    return Setting(grid.scale[-2], grid.other[-2])


def log_start(factor: Factor, candidates: int) -> Setting:
    """Return the setting that a shifted AdaLog factor has before its first search: nearly all values, base 2."""
    low, high = positive_range(factor.values, factor.shift)
    scale = low + (high - low) * (candidates - 2) / (candidates - 1)
    base = torch.full(factor.shape, RATIO, device=scale.device)
    return Setting(scale.reshape(factor.shape), base)


def positive_range(values: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Return the 90 % quantile of the values above zero and their largest, both shifted."""
    above = values[values > 0]
    if not above.numel():
        return values.new_tensor(shift), values.new_tensor(shift)
    low = above.kthvalue(max(math.ceil(0.9 * above.numel()), 1)).values
    return low + shift, above.max() + shift


def _few(values: Float[Tensor, "*batch n k"], most: int) -> Float[Tensor, "*batch few k"]:
    """Return evenly spaced rows, where there are too many."""
    if values.shape[-2] <= most:
        return values
    return values[..., torch.linspace(0, values.shape[-2] - 1, most).long(), :]


def _errors(
    left: Tensor,
    right: Tensor | None,
    rest: Tensor | None,
    fake: FakeQuantizer,
    shape: tuple[int, ...],
    candidates: Setting,
) -> Float[Tensor, "candidates *shape"]:
    """Score candidates on pieces of the first axis, so that the memory stays bounded."""
    count, batched = len(candidates.scale), left.ndim > 2
    width = max(part[0].numel() for part in (left, rest) if part is not None)
    size = max(1, CHUNK // (count * width))
    # The candidates' axis stands before the last two: the product is then one of large matrices.
    scale, other = (field.movedim(0, -3) for field in candidates)
    axes = [axis + (axis >= left.ndim - 2) for axis, width in enumerate(shape) if width == 1]
    found = []
    for start in range(0, len(left), size):
        part = slice(start, start + size)
        own = [_own(field, part, shape) for field in (scale, other)]
        values = left[part].unsqueeze(-3)
        error = fake(values, *own).sub_(values)
        if right is not None and rest is not None:
            moved = error.flatten(-3, -2) @ (right[part] if batched else right)
            error = moved.unflatten(-2, (count, -1)).add_(rest[part].unsqueeze(-3))
        found.append(error.square_().sum(axes, keepdim=True).movedim(-3, 0))
    return torch.cat(found, 1) if shape[0] > 1 else torch.stack(found).sum(0)


def _own(field: Tensor, part: slice, shape: tuple[int, ...]) -> Tensor:
    """Return the candidates of a piece of the first axis."""
    if shape[0] == 1:
        return field
    return field[part] if len(shape) > 2 else field[:, part]


def _with_error(score: Score, setting: Setting) -> tuple[Setting, Tensor]:
    return setting, score(Setting(*(field[None] for field in setting)))[0]


def _better(old: tuple[Setting, Tensor], new: tuple[Setting, Tensor]) -> tuple[Setting, Tensor]:
    """Return the better of two settings, position by position."""
    wins = new[1] < old[1]
    fields = (torch.where(wins, n, o) for n, o in zip(new[0], old[0], strict=True))
    return Setting(*fields), torch.where(wins, new[1], old[1])
