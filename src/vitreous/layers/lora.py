"""A linear layer with a low-rank adapter, optionally gated and with a full-rank residual.

    y = W x + b  +  g(x) * s U D x  +  R x,    g(x) = sigmoid(G x) or 1,    s = alpha / r

Hu et al., LoRA, 2021 (the plain form); LoLA-SpecViT, 2025 (gate G and residual R). W and b are the layer's own
``weight`` and ``bias``, so the layer is an ``nn.Linear`` to everything that looks for one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError

LOWEST = 0.5  # factor on the adapter at the end of a cycle


class LoRALinear(nn.Linear):
    """``nn.Linear`` plus an adapter whose parameters are all named ``lora_*``.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether the linear layer has a bias (the adapter never has).
        rank: inner width r of the adapter.
        alpha: the adapter is scaled by alpha / rank.
        gate: multiply the adapter by sigmoid(G x).
        residual: add R x.
        zero_init: start with U = 0 and R = 0, so that the layer begins as its base; otherwise everything is
            truncated normal (std 0.02), as the reference of LoLA-SpecViT ends up doing.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        gate: bool = False,
        residual: bool = False,
        zero_init: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.scaling = alpha / rank
        self.cycle = 1.0  # factor of training where the schedule is cyclic
        self.lora_down = nn.Parameter(torch.empty(rank, in_features))
        self.lora_up = nn.Parameter(torch.empty(out_features, rank))
        self.lora_gate = nn.Parameter(torch.empty(out_features, in_features)) if gate else None
        self.lora_residual = (
            nn.Parameter(torch.empty(out_features, in_features)) if residual else None
        )
        self._init_adapter(zero_init)

    def _init_adapter(self, zero_init: bool) -> None:
        for parameter in (self.lora_down, self.lora_up, self.lora_gate, self.lora_residual):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        if zero_init:
            nn.init.zeros_(self.lora_up)
            if self.lora_residual is not None:
                nn.init.zeros_(self.lora_residual)

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layer; every map that reads ``input`` is done in one product."""
        weight = self.weight if self.lora_residual is None else self.weight + self.lora_residual
        scale = self.scaling * (self.cycle if self.training else 1.0)
        if self.lora_gate is None:
            both = F.linear(input, torch.cat([weight, self.lora_down]))
            base, down = torch.split(both, [self.out_features, self.lora_down.shape[0]], dim=-1)
            adapted = F.linear(down, self.lora_up * scale)
        else:
            both = F.linear(input, torch.cat([weight, self.lora_gate, self.lora_down]))
            widths = [self.out_features, self.out_features, self.lora_down.shape[0]]
            base, gate, down = torch.split(both, widths, dim=-1)
            adapted = torch.sigmoid(gate) * F.linear(down, self.lora_up * scale)
        output = base + adapted
        return output if self.bias is None else output + self.bias

    def cycle_to(self, share: float) -> None:
        """Scale the adapter of training as LoLA-SpecViT does: by 1 at a restart, by half at the end of a cycle.

        Args:
            share: of the learning rate's cycle that is done, from 0 to 1.
        """
        self.cycle = LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * share)) / 2

    def merged(self) -> nn.Linear:
        """Return one plain linear layer that computes the same.

        Raises:
            ModelError: the adapter is gated, so its effect depends on the input.
        """
        if self.lora_gate is not None:
            raise ModelError(
                "A gated LoRA layer cannot be merged: its gate depends on the input.",
                "Keep it as it is, or train without the gate.",
            )
        weight = self.weight + self.scaling * self.lora_up @ self.lora_down
        if self.lora_residual is not None:
            weight = weight + self.lora_residual
        plain = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype
        )
        with torch.no_grad():
            plain.weight.copy_(weight)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain.train(self.training)

    def folded(self) -> nn.Linear | FoldedLoRA:
        """Return what computes the same at inference, made of plain linear layers: one, or three behind a gate."""
        return self.merged() if self.lora_gate is None else FoldedLoRA(self)

    def extra_repr(self) -> str:
        """Show the shape and the adapter's form."""
        form = "".join(
            f", {name}"
            for name, on in (("gate", self.lora_gate), ("residual", self.lora_residual))
            if on is not None
        )
        return f"{super().extra_repr()}, rank={self.lora_down.shape[0]}, scaling={self.scaling:g}{form}"


class FoldedLoRA(nn.Module):
    """A gated :class:`LoRALinear` for use, as two plain linear layers that a method can see and replace.

        y = b + sigmoid(g) * up(d),    (b, g, d) = joint(x)

    ``joint`` holds W + R and its bias, G and D one below the other; ``up`` holds s U.

    Args:
        layer: the gated layer; it stays as it is.
    """

    def __init__(self, layer: LoRALinear) -> None:
        super().__init__()
        assert layer.lora_gate is not None
        rank, outputs, has_bias = (
            layer.lora_down.shape[0],
            layer.out_features,
            layer.bias is not None,
        )
        self.widths = [outputs, outputs, rank]
        made = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.joint = nn.Linear(layer.in_features, sum(self.widths), has_bias, **made)
        self.up = nn.Linear(rank, outputs, bias=False, **made)
        with torch.no_grad():
            base = (
                layer.weight if layer.lora_residual is None else layer.weight + layer.lora_residual
            )
            self.joint.weight.copy_(torch.cat([base, layer.lora_gate, layer.lora_down]))
            self.up.weight.copy_(layer.scaling * layer.lora_up)
            if has_bias:
                self.joint.bias.zero_()[:outputs] = layer.bias
        self.train(layer.training)

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layer."""
        base, gate, down = self.joint(input).split(self.widths, -1)
        return base + torch.sigmoid(gate) * self.up(down)


def fold_lora(model: nn.Module) -> None:
    """Replace every :class:`LoRALinear` in ``model`` by plain linear layers that compute the same at inference."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear)]
    for name, layer in found:
        model.set_submodule(name, layer.folded())
