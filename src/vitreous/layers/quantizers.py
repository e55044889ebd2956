"""Quantizers: rounding to the values that few bits can stand for, and finding the scales.

All of it is simulated: a quantizer rounds its input to the 2^bits values that integers of so few bits could stand for,
and gives them back as floats ("fake quantization"), so that the loss of accuracy can be measured on any machine. Speed
comes from exporting the scales to a runtime with integer kernels.

Rounding has no gradient. A quantizer refuses to be trained through instead of letting a fine-tuning run that learns
nothing, unless it is asked to hand gradients straight through (:attr:`Quantizer.trainable`).

Scales are measured in one forward pass inside ``with observing(model)`` (``layers/quantize.py``): each quantizer sets
itself by the first tensor that comes and quantizes it at once, so that what follows is measured on inputs that are
quantized already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError

MOST = 2**24  # numbers that a range is measured on; of more, evenly spaced ones
SEARCHED = (0.999, 0.9999, 0.99999)  # RepQ-ViT's candidates for where to clip
FEWEST_BITS, MOST_BITS = 2, 16
SMALLEST = 1e-6  # step of a range that is nothing but zero


class Quantizer(nn.Module):
    """Rounds a tensor to few values, once it has been calibrated.

    A subclass registers its scales as buffers whose shapes follow from its arguments alone, and writes
    :meth:`calibrate`, :meth:`widen` and :meth:`quantize`.

    Args:
        bits: of a code; 2 to 16.

    Attributes:
        enabled: whether it does anything (:func:`set_enabled`).
        observing: whether it measures what comes (:func:`observing`).
        fresh: whether nothing has come yet while observing.
        trainable: whether gradients pass as if nothing were rounded (Bengio et al., 2013), where values are not clipped.

    Raises:
        ModelError: bits out of range.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        check_bits(bits)
        self.bits = bits
        self.enabled, self.observing, self.fresh, self.trainable = True, False, False, False

    @property
    def levels(self) -> int:
        """Number of codes."""
        return int(2**self.bits)

    def calibrate(self, x: Tensor) -> None:
        """Set the scales by ``x``."""
        raise NotImplementedError

    def widen(self, x: Tensor) -> None:
        """Extend the range so that it also serves ``x``: a module may be called more than once per pass."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to the values that codes stand for."""
        raise NotImplementedError

    def within(self, x: Tensor) -> Tensor:
        """Tell which values are not clipped; all, unless a quantizer has ends."""
        return torch.ones_like(x, dtype=torch.bool)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Quantize; while observing, set the scales by ``x`` first.

        Raises:
            ModelError: in training, where gradients would be lost.
        """
        if not self.enabled:
            return x
        if self.trainable and torch.is_grad_enabled() and not self.observing:
            return _StraightThrough.apply(x, self)
        if self.training and torch.is_grad_enabled():
            raise ModelError(
                "A quantized model cannot be trained: rounding has no gradient.",
                "Train first, then quantize; call eval() for inference.",
            )
        if self.observing:
            with torch.no_grad():
                (self.calibrate if self.fresh else self.widen)(x)
            self.fresh = False
        return self.quantize(x)


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of clipping: 1 where a value is within the range of the codes, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer) -> Tensor:
        rounded = quantizer.quantize(x)
        ctx.save_for_backward(quantizer.within(x))
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None


class UniformQuantizer(Quantizer):
    """Values at equal steps: k = clamp(round(x / scale) + zero_point, 0, 2^bits - 1), x' = (k - zero_point) scale.

    Args:
        bits: of a code.
        shape: of ``scale`` and ``zero_point``, as it broadcasts against the tensors: ``()`` is one for all,
            ``(dim,)`` one per channel of the last axis, ``(outputs, 1)`` one per row of a weight.
        quantiles: candidates for the share of values below the upper end of the range (the share 1 - p lies below the
            lower end); the one with the least squared error is taken, the first of equals. 1 is the true range.
        covers_zero: let the range reach to zero, so that zero has a code of its own and zero points are codes, as
            integer kernels ask for. Without, a range far from zero is resolved more finely.
        symmetric: codes -(2^(bits-1) - 1) to 2^(bits-1) - 1 around zero, as integer kernels like their weights. They
            are kept as k = code + 2^(bits-1), with that as zero point.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        shape: Sequence[int] = (),
        *,
        quantiles: Sequence[float] = SEARCHED,
        covers_zero: bool = True,
        symmetric: bool = False,
    ) -> None:
        super().__init__(bits)
        self.quantiles = tuple(quantiles)
        self.covers_zero, self.symmetric = covers_zero, symmetric
        self.register_buffer("scale", torch.ones(tuple(shape)))
        self.register_buffer("zero_point", torch.zeros(tuple(shape)))

    @property
    def lowest(self) -> int:
        """The lowest code used: 1 where symmetric, so that as many lie below zero as above."""
        return int(self.symmetric)

    def calibrate(self, x: Float[Tensor, "*shape"]) -> None:
        """Set scale and zero point by the candidate range with the least squared error."""
        rows = self._rows(x)
        ends = quantiles(rows, [*self.quantiles, *(1 - p for p in self.quantiles)])
        high, low = ends[: len(self.quantiles)], ends[len(self.quantiles) :]
        found = [self.step_and_zero(*both) for both in zip(low, high, strict=True)]
        scale, zero = found[0]
        if len(found) > 1:
            least = self._error(rows, scale, zero)
            for other_scale, other_zero in found[1:]:
                error = self._error(rows, other_scale, other_zero)
                better = error < least
                scale = torch.where(better, other_scale, scale)
                zero = torch.where(better, other_zero, zero)
                least = torch.where(better, error, least)
        self.set_parameters(scale, zero)

    def widen(self, x: Float[Tensor, "*shape"]) -> None:
        """Let the range cover its own and that of ``x``."""
        low, high = self._range()
        self.calibrate(x)
        other_low, other_high = self._range()
        self.set_parameters(
            *self.step_and_zero(torch.minimum(low, other_low), torch.maximum(high, other_high))
        )

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round; codes are never formed, since k - zero_point is clamped just as well."""
        return _round(x, self.scale, self.zero_point, self.lowest, self.levels)

    def within(self, x: Tensor) -> Tensor:
        """Tell which values are no further out than half a step beyond the ends of the range."""
        code = x / self.scale + self.zero_point
        return (code >= self.lowest - 0.5) & (code <= self.levels - 0.5)

    def codes(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the codes of ``x``, 0 to 2^bits - 1: those that :meth:`quantize` decodes."""
        rounded = torch.round(
            x / self.scale
        )  # before the zero point is added, which could turn a tie
        return (rounded + self.zero_point).clamp_(self.lowest, self.levels - 1)

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point; any shape with as many elements will do."""
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.zero_point.copy_(zero_point.reshape(self.scale.shape))

    def _range(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest value that has a code, one per row."""
        low = (self.lowest - self.zero_point) * self.scale
        high = (self.levels - 1 - self.zero_point) * self.scale
        return low.flatten(), high.flatten()

    def step_and_zero(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of ranges."""
        # A range of one value has no step; from zero to that value it does.
        through_zero = (high <= low) | self.covers_zero
        low = torch.where(through_zero, low.clamp(max=0), low)
        high = torch.where(through_zero, high.clamp(min=0), high)
        if self.symmetric:
            scale = torch.maximum(-low, high) / (self.levels // 2 - 1)
        else:
            scale = (high - low) / (self.levels - 1)
        scale = scale.clamp(min=SMALLEST)
        if self.symmetric:
            return scale, torch.full_like(scale, self.levels // 2)
        return scale, torch.round(-low / scale)

    def _error(
        self, rows: Float[Tensor, "rows values"], scale: Tensor, zero: Tensor
    ) -> Float[Tensor, "rows"]:
        rounded = _round(rows, scale[:, None], zero[:, None], self.lowest, self.levels)
        return rounded.sub_(rows).square_().mean(1)

    def _rows(self, x: Tensor) -> Float[Tensor, "rows values"]:
        return rows_of(x, tuple(self.scale.shape))

    def extra_repr(self) -> str:
        """Show the bits and the shape."""
        symmetric = ", symmetric" if self.symmetric else ""
        return f"{self.bits} bits, {tuple(self.scale.shape)}{symmetric}"


class LogQuantizer(Quantizer):
    """Values at equal ratios, for what is spread over orders of magnitude between 0 and 1, as attention is.

    k = round(-steps log2(x / scale)); x' = scale 2^(-k / steps), and 0 where k is no code (k >= 2^bits).

    Args:
        bits: of a code.
        steps: values per factor of two.
        quantiles: candidates for the share of values below ``scale``; the least squared error decides.
    """

    scale: Tensor

    def __init__(self, bits: int, steps: int = 1, *, quantiles: Sequence[float] = SEARCHED) -> None:
        super().__init__(bits)
        self.steps, self.quantiles = steps, tuple(quantiles)
        self.register_buffer("scale", torch.ones(()))

    def calibrate(self, x: Float[Tensor, "*shape"]) -> None:
        """Set the scale by the candidate with the least squared error."""
        rows = rows_of(x, ())
        least = math.inf
        best = torch.ones_like(self.scale)
        for scale in quantiles(rows, self.quantiles).flatten():
            error = float(self._round(rows, scale).sub_(rows).square_().mean())
            if scale > 0 and error < least:
                least, best = error, scale
        self.scale.copy_(best)

    def widen(self, x: Float[Tensor, "*shape"]) -> None:
        """Take the larger scale of the two."""
        own = self.scale.clone()
        self.calibrate(x)
        self.scale.copy_(torch.maximum(own, self.scale))

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round to the nearest ratio; zero stays zero."""
        return self._round(x, self.scale)

    def _round(self, x: Tensor, scale: Tensor) -> Tensor:
        # log2(0) is -inf: its k is no code, which makes it zero again.
        k = torch.round(torch.log2(x / scale).mul_(-self.steps)).clamp_(min=0)
        return self._decode(k).mul_(scale).masked_fill_(k >= self.levels, 0.0)

    def _decode(self, k: Tensor) -> Tensor:
        return torch.exp2(k / -self.steps)

    def extra_repr(self) -> str:
        """Show the bits and the base."""
        return f"{self.bits} bits, base 2^(1/{self.steps})"


class Log2Quantizer(LogQuantizer):
    """Powers of two: a product with them is a shift."""

    def __init__(self, bits: int, *, quantiles: Sequence[float] = SEARCHED) -> None:
        super().__init__(bits, 1, quantiles=quantiles)


class LogSqrt2Quantizer(LogQuantizer):
    """Powers of the square root of two, as a shift and a factor for odd codes (RepQ-ViT).

    2^(-k/2) = 2^(-ceil(k/2)) (1 + (sqrt 2 - 1) (k mod 2)).
    """

    def __init__(self, bits: int, *, quantiles: Sequence[float] = SEARCHED) -> None:
        super().__init__(bits, 2, quantiles=quantiles)

    def _decode(self, k: Tensor) -> Tensor:
        odd = torch.remainder(k, 2)  # not a number for k = inf, which is masked out
        return torch.exp2((k + odd) / -2) * (odd * (math.sqrt(2) - 1) + 1)


def check_bits(bits: int) -> None:
    """Refuse bits that make no quantizer.

    Raises:
        ModelError: they are none of 2 to 16.
    """
    if not isinstance(bits, int) or not FEWEST_BITS <= bits <= MOST_BITS:
        raise ModelError(
            f"Numbers cannot be quantized to {bits!r} bits.",
            f"Use {FEWEST_BITS} to {MOST_BITS} bits; 8, 6 and 4 are common.",
        )


def rows_of(x: Tensor, shape: tuple[int, ...]) -> Float[Tensor, "rows values"]:
    """Return the values that belong to each scale, one row per scale; of very many, evenly spaced ones.

    Args:
        x: a tensor.
        shape: of the scales, as it broadcasts against ``x``.
    """
    own = [x.ndim - len(shape) + axis for axis, size in enumerate(shape) if size > 1]
    others = [axis for axis in range(x.ndim) if axis not in own]
    rows = x.detach().float().permute(*own, *others).reshape(math.prod(shape), -1)
    values = rows.shape[1]
    step = -(-rows.numel() // MOST)
    while (
        math.gcd(step, values) > 1
    ):  # a common factor would meet the same channels again and again
        step += 1
    return rows[:, ::step]


def quantiles(
    rows: Float[Tensor, "rows values"], shares: Sequence[float]
) -> Float[Tensor, "shares rows"]:
    """Return the values below which the given shares of each row lie, interpolated; exact for any number of values.

    Only the wanted places are sorted out, which takes a fraction of the time and memory of sorting.
    """
    if set(shares) <= {0, 1}:
        ends = torch.aminmax(rows, dim=1)
        return torch.stack([ends.max if share else ends.min for share in shares])
    last = rows.shape[1] - 1
    places = np.asarray(shares) * last
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, last)
    ordered = np.partition(rows.cpu().numpy(), np.unique([below, above]), axis=1)
    share = (places - below).astype(np.float32)
    values = ordered[:, below] + share * (ordered[:, above] - ordered[:, below])
    return torch.from_numpy(values.T.copy()).to(rows.device)


def _round(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, levels: int) -> Tensor:
    """Quantize uniformly."""
    return torch.round(x / scale).clamp_(lowest - zero, levels - 1 - zero).mul_(scale)
