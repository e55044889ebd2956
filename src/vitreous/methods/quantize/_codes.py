"""AdaLog's codes: powers of a base that is found by search, read from a table of a few bits.

The base is 2^(q / r) with r = 37 and a whole q: 37 is the base 2, 18 and 19 are near its square root, and any other
base costs a table of as many entries as there are codes, and a shift.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.layers.quantize import QuantLinear
from vitreous.layers.quantizers import Quantizer

RATIO = 37  # r
SHIFT = 0.16997124254703522  # the least value of GELU, below zero


def shift_and_table(
    base: Int[Tensor, "*bases"], bits: int
) -> tuple[Int[Tensor, "*bases codes"], Float[Tensor, "*bases codes"]]:
    """Return the two parts of 2^(-k q / r) for each code k of AdaLog (section 3.2 of the paper).

    Args:
        base: q, the base as a multiple of 1 / r.
        bits: width of a code.

    Returns:
        The whole part of the exponent, which is a shift, and 2 to the power of what is left, in (0.5, 1] and rounded
        to multiples of 1 / (2^(bits + 1) - 2).
    """
    exponent = torch.arange(2**bits, device=base.device) * base[..., None]
    levels = 2 * 2**bits - 2
    return exponent // RATIO, ((-(exponent % RATIO) / RATIO).exp2() * levels).round() / levels


def decode_table(base: Int[Tensor, "*bases"], bits: int) -> Float[Tensor, "*bases codes"]:
    """Return what each code stands for, as a share of the scale, and behind them a zero.

    The values never grow with the code; the zero at place 2^bits is for what is too small for any code.
    """
    shift, table = shift_and_table(base, bits)
    return F.pad(table * (-shift.to(table.dtype)).exp2(), (0, 1))


def log_codes(x: Tensor, scale: Tensor, base: Tensor, shift: float) -> Tensor:
    """Return -r / q log2((x + shift) / scale), the codes before they are rounded (eq. 6 of the paper).

    Search and layer share it, because another order of the same operations rounds values between two codes differently.

    Args:
        x: what is quantized.
        scale: as it broadcasts against ``x``.
        base: q, likewise.
        shift: added to ``x``, so that all of it is above zero.
    """
    share = ((x + shift) / scale).clamp(1e-15, 1.0)
    return share.log2() * -RATIO / base


class AdaLogQuantizer(Quantizer):
    """Codes k = round(-r / q log2(x / scale)) with r = 37 and a searched q, read from a table (eqs. 6-9 of the paper).

    Args:
        bits: of a code, 2 to 8.
        shift: added to the input, so that all of it is above zero. What is returned keeps the shift.
    """

    scale: Tensor
    base: Tensor
    table: Tensor

    def __init__(self, bits: int, shift: float = 0.0) -> None:
        super().__init__(bits)
        self.shift = shift
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("base", torch.tensor(RATIO))
        self.register_buffer("table", decode_table(torch.tensor(RATIO), bits))

    def set_parameters(self, scale: Tensor, base: Tensor) -> None:
        """Set scale and base, and the table that follows from it."""
        self.scale.copy_(scale.reshape(()))
        self.base.copy_(base.reshape(()))
        self.table.copy_(decode_table(self.base, self.bits))

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round x + shift to the nearest power of the base; what is too small for a code is 0."""
        codes = log_codes(x, self.scale, self.base, self.shift).round().clamp(max=self.levels)
        return self.table[codes.long()] * self.scale

    def smooth(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return what :meth:`quantize` does, with gradients that pass through the codes and their table."""
        exact = log_codes(x, self.scale, self.base, self.shift)
        codes = exact.round().detach() + (exact - exact.detach())
        values = torch.exp2(codes * self.base / -RATIO) * self.scale
        values = values.masked_fill(codes >= self.levels, 0.0)
        return self.quantize(x).detach() + (values - values.detach())

    def extra_repr(self) -> str:
        """Show the bits and the shift."""
        return f"{self.bits} bits, shift {self.shift:g}"


class ShiftedLinear(QuantLinear):
    """A quantized linear layer whose input comes shifted; its bias takes the shift out again (section 3.3).

    W (x + t) + (b - t W 1) = W x + b, with W as it is quantized.
    """

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layer."""
        weight = self.quantized_weight()
        shifted = self.input_quantizer.enabled
        bias = self.folded_bias(weight) if shifted else self.bias
        return F.linear(self.input_quantizer(input), weight, bias)

    def folded_bias(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs"]:
        """Return the bias less what the shift adds to the output."""
        moved = weight.sum(1) * -SHIFT
        bias: Tensor | None = self.bias
        return moved if bias is None else bias + moved
