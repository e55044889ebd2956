"""The test of the tests: faults put into a network or a method on purpose, which checks must notice.

    python tests/mutations.py        measures the whole table (benchmarks/results/mutations.json), minutes

A fault is *always* there (the golden values must notice), or only on one *path*: with a single image, in bfloat16, with
checkpointing, after loading, in the exported graph (the check that compares this path with the usual one must notice).
"""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from vitreous import testing
from vitreous.catalog.registry import STAGES, cards, stage
from vitreous.catalog.results import write_result
from vitreous.layers.lora import LoRALinear
from vitreous.layers.mlp import Mlp
from vitreous.layers.quantizers import Quantizer
from vitreous.methods.adapt.adaptformer import Adapter

ROOT = Path(__file__).resolve().parents[1]
MODELS = [f"{entry.slug}_test" for entry in cards() if entry.kind in {"model", "restorer"}]
METHODS = [  # that leave something in a model
    name
    for entry in cards()
    if entry.kind == "method" and stage(entry.slug) in STAGES
    for name in entry.variants
]

Active = Callable[[nn.Module], bool]
Fault = Callable[[nn.Module, Active], None]  # changes a model, for as long as it is active


def always(model: nn.Module) -> bool:
    """Be there in all circumstances."""
    return True


# -- faults of networks ---------------------------------------------------------------------------------------


def faults(name: str) -> dict[str, dict[str, Fault]]:
    """Return the faults that a variant can have: kind -> place -> fault."""
    model = testing.network(name).eval()
    found: dict[str, dict[str, Fault]] = {
        "attention gives zeros": {n: _output(n, _zeros) for n in attentions(model)},
        "block skipped": {n: _output(n, _inputs) for n in skippable(model, BLOCKS)},
        "norm skipped": {n: _output(n, _inputs) for n in skippable(model, NORMS)},
        "bias at zero": {n: _parameter(n) for n in parameters(model, bias=True)},
        "weight at zero": {n: _parameter(n) for n in parameters(model, bias=False)},
        "batch rolled": {"output": _output("", lambda inputs, out: out.roll(1, 0))},
        "bands reversed": {"input": _input(lambda x: x.flip(1))},
        "image mirrored": {"input": _input(lambda x: x.flip(-1))},
    }
    if name in UNORDERED:
        del found["image mirrored"]
    return {kind: places for kind, places in found.items() if places}


UNORDERED = {"spectral_mlp_test"}  # reads single spectra, wherever they are


def central(name: str) -> Fault:
    """Return one fault of what the network is about, for the paths: no attention, no blocks, or no hidden layers."""
    kinds = faults(name)
    places = kinds.get("attention gives zeros") or kinds.get("block skipped")
    if places is None:
        layers = (n for n, _ in testing.network(name).named_modules())
        places = {n: _output(n, _zeros) for n in layers if re.fullmatch(r"layers\.\d+", n)}

    def fault(model: nn.Module, active: Active) -> None:
        for one in places.values():
            one(model, active)

    return fault


def attentions(model: nn.Module) -> list[str]:
    """Name the modules that mix by attention: cores, or where there are none what is called so."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    cores = [name for name, kind in kinds.items() if kind.endswith("Core")]
    return cores or [name for name, kind in kinds.items() if kind.endswith("Attention")]


BLOCKS, NORMS = r"(Block|^Layer|Refine|^Transformer)$", r"Norm(\dd)?$"


def skippable(model: nn.Module, kind: str) -> list[str]:
    """Name the modules of a kind (a pattern) that give a tensor of the shape that they take."""
    found: list[str] = []

    def look(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if _shapes(output)[:1] == _shapes(inputs)[:1]:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda m, inputs, out, name=name: look(name, inputs, out))
        for name, module in model.named_modules()
        if re.search(kind, type(module).__name__)
    ]
    with torch.no_grad():
        model(testing.images(2, 4, 15))
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(found))


def parameters(model: nn.Module, *, bias: bool) -> list[str]:
    """Name the biases, or all other parameters."""
    return [n for n, _ in model.named_parameters() if n.endswith("bias") == bias and n not in VOID]


# A constant added to all keys, or to the scores of all offsets, moves all scores of a query alike, which the softmax takes
# out again.
VOID = {
    f"stages.{stage}.blocks.{block}.attn.{part}.bias"
    for stage in range(3)
    for block in range(3)
    for part in ("key", "mix_key.norm", "position.layers.2.2")
} | {
    f"stages.1.1.attn.key.{part}.bias"
    for part in ("branches.0.norm", "branches.1.norm", "identity")
}


def _shapes(value: Any) -> list[tuple[int, ...]]:
    parts = [value] if isinstance(value, Tensor) else value if isinstance(value, tuple) else []
    return [tuple(part.shape) for part in parts if isinstance(part, Tensor)]


def _zeros(inputs: tuple[Any, ...], output: Any) -> Any:
    return torch.zeros_like(output)


def _inputs(inputs: tuple[Any, ...], output: Any) -> Any:
    """Return what came in, in the form of what should have come out."""
    if isinstance(output, Tensor):
        return inputs[0]
    return tuple(
        inputs[i]
        if isinstance(part, Tensor) and _shapes((part, inputs[i]))[0] == _shapes(part)[0]
        else part
        for i, part in enumerate(output)
    )


def _output(place: str, change: Callable[[tuple[Any, ...], Any], Any]) -> Fault:
    def fault(model: nn.Module, active: Active) -> None:
        model.get_submodule(place).register_forward_hook(
            lambda module, inputs, output: change(inputs, output) if active(model) else output
        )

    return fault


def _input(change: Callable[[Tensor], Tensor]) -> Fault:
    def fault(model: nn.Module, active: Active) -> None:
        model.register_forward_pre_hook(
            lambda module, inputs: (change(inputs[0]),) if active(model) else None
        )

    return fault


def _parameter(place: str) -> Fault:
    def fault(model: nn.Module, active: Active) -> None:
        with torch.no_grad():
            model.get_parameter(place).zero_()

    return fault


# -- who notices ----------------------------------------------------------------------------------------------


def is_red(check: Callable[..., None], *arguments: Any) -> bool:
    """Tell whether a check fails."""
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


@contextmanager
def faulty(fault: Fault, active: Active, built: int | None = None) -> Iterator[None]:
    """Let every network under test have a fault; with ``built``, the one that is built as that number."""
    network, count = testing.network, iter(range(1000))

    def build(*arguments: Any, **options: Any) -> nn.Module:
        model = network(*arguments, **options)
        if next(count) == built or built is None:
            fault(model, active)
        return model

    with mock.patch.object(testing, "network", build):
        yield


def golden_is_red(name: str, fault: Fault) -> bool:
    """Tell whether the golden values notice a fault."""
    path = ROOT / "tests" / "models" / "golden" / f"{name.removesuffix('_test')}.json"
    with faulty(fault, always):
        return is_red(testing.check_golden, name, json.loads(path.read_text()))


def path_is_red(name: str, path: str, fault: Fault) -> bool:
    """Tell whether the check of a path notices a fault that is there on this path only."""
    check, active, built = PATHS[path]
    with faulty(fault, active, built):
        return is_red(check, name)


def _single(model: nn.Module) -> bool:
    return model.batch == 1


PATHS: dict[str, tuple[Callable[[str], None], Active, int | None]] = {
    "bfloat16": (testing.check_bfloat16, lambda m: torch.is_autocast_enabled("cpu"), None),
    "checkpointing": (testing.check_checkpointing, lambda m: m.checkpointing, None),
    "loading": (testing.check_saving, always, 1),
    "single image": (testing.check_evaluation, _single, None),
    "export": (testing.check_onnx, lambda m: torch.compiler.is_exporting(), None),
}


def noting_the_batch(fault: Fault) -> Fault:
    """Let a model remember how many images it was given, for a fault that asks."""

    def both(model: nn.Module, active: Active) -> None:
        model.batch = 0
        model.register_forward_pre_hook(lambda m, inputs: setattr(m, "batch", len(inputs[0])))
        fault(model, active)

    return both


# -- faults of methods ------------------------------------------------------------------------------------------


def method_faults(name: str, model: str) -> dict[str, Callable[[nn.Module], None]]:
    """Return the faults that a method can have on a model, by place."""
    changed = testing.changed(name, model).model
    kinds: dict[str, Any] = {
        "adapt": (LoRALinear | Adapter, _without_adapter),
        "prune": (Mlp, functools.partial(_whole, model)),
        "reduce": (nn.Module, _without_reducer),
        "quantize": (Quantizer, _switched_off),
    }
    kind, fault = kinds[stage(name)]
    places = [n for n, m in changed.named_modules() if isinstance(m, kind)]
    if stage(name) == "reduce":
        places = [n for n in places if n.endswith(".reducer")]
    if stage(name) == "quantize":
        places = [n for n in places if not _is_single(changed, n)]
    if stage(name) == "adapt":  # built-in adapters are not the method's
        before = dict(testing.make(model).named_modules())
        places = [n for n in places if not isinstance(before.get(n), kind)]
    return {place: functools.partial(fault, place) for place in places}


def _is_single(model: nn.Module, place: str) -> bool:
    """Tell whether a weight has one number per scale, which rounding leaves as it is."""
    layer = model.get_submodule(place.rpartition(".")[0])
    return place.endswith("weight_quantizer") and layer.weight[0].numel() == 1


def _without_adapter(place: str, model: nn.Module) -> None:
    part = model.get_submodule(place)
    if isinstance(part, LoRALinear):
        part.scaling = 0.0
    else:
        part.scale = 0.0


def _whole(name: str, place: str, model: nn.Module) -> None:
    model.set_submodule(place, testing.make(name).get_submodule(place))


def _without_reducer(place: str, model: nn.Module) -> None:
    block = model.get_submodule(place.rpartition(".")[0])
    block.reducer = None


def _switched_off(place: str, model: nn.Module) -> None:
    model.get_submodule(place).enabled = False


def method_is_red(name: str, model: str, fault: Callable[[nn.Module], None]) -> bool:
    """Tell whether a check of methods notices a fault."""

    def broken(name: str, model: str) -> testing.Applied:
        new = copy.deepcopy(healthy)
        fault(new.model)
        return new

    healthy = testing.changed(name, model)
    with mock.patch.object(testing, "changed", broken):
        checks = (testing.check_method_effect, testing.check_method_training)
        return any(is_red(check, name, model) for check in checks)


# -- the table --------------------------------------------------------------------------------------------------


def seen(reds: dict[str, bool], where: str) -> str:
    """Return how many of the faults are noticed; those that are not are printed."""
    for place, red in reds.items():
        if not red:
            print(f"not noticed: {where}: {place}", flush=True)
    return f"{sum(reds.values())} of {len(reds)}"


def row_of_model(name: str, paths: tuple[str, ...]) -> dict[str, Any]:
    """Return one line of the table: each kind of fault, and how many of its places are noticed."""
    row: dict[str, Any] = {"system": name.removesuffix("_test")}
    for kind, places in faults(name).items():
        reds = {place: golden_is_red(name, fault) for place, fault in places.items()}
        row[kind] = seen(reds, f"{name}: {kind}")
    for path in paths:
        fault = noting_the_batch(central(name))
        row[f"{path} only"] = seen({path: path_is_red(name, path, fault)}, name)
    return row


def row_of_method(name: str) -> dict[str, Any]:
    """Return one line of the table, over all models that the method serves."""
    reds = {
        f"{model}: {place}": method_is_red(name, model, fault)
        for model in served(name)
        for place, fault in method_faults(name, model).items()
    }
    kind = METHOD_FAULTS[stage(name)]
    return {"method": name, "models": len(served(name)), "fault": kind, "noticed": seen(reds, name)}


METHOD_FAULTS = {
    "adapt": "adapter kept at zero",
    "prune": "a part left whole",
    "reduce": "reducer drops nothing",
    "quantize": "quantizer switched off",
}


def served(name: str) -> list[str]:
    """Return the models that a method is tried on: all that it serves, but where it searches for minutes."""
    if name == "adalog":
        return ["vit_test"]
    return [
        f"{e.slug}_test"
        for e in cards()
        if e.kind == "model" and testing.serves(name, f"{e.slug}_test")
    ]


def main() -> None:
    """Measure the whole table."""
    paths = tuple(PATHS)
    record([row_of_model(name, paths) for name in MODELS], [row_of_method(n) for n in METHODS])


def record(models: list[dict[str, Any]], methods: list[dict[str, Any]]) -> None:
    """Write the table, and the one of methods beside it."""
    cells = [cell.split(" of ") for row in (*models, *methods) for cell in map(str, row.values())]
    counts = [(int(cell[0]), int(cell[1])) for cell in cells if len(cell) == 2]
    noticed, total = (sum(column) for column in zip(*counts, strict=True))
    columns = list(dict.fromkeys(key for row in models for key in row))
    write_result(
        ROOT / "benchmarks" / "results" / "mutations.json",
        title="Faults put into networks and methods on purpose, and how many of them the checks notice",
        command="python tests/mutations.py",
        rows=[{key: row.get(key, "–") for key in columns} for row in models],
        conclusion=f"{noticed} of {total} faults turn the conformance suite red.",
        methods=methods,
    )


if __name__ == "__main__":
    sys.exit(main())
