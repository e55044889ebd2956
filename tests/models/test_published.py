"""Parameter counts and multiply-adds of every card equal what was published."""

import inspect

import pytest
import torch

from vitreous.catalog.registry import card, cards, create_model, system_module
from vitreous.inference.cost import count_cost

ROWS = [
    pytest.param(
        row, id=f"{row['variant']}-{row.get('image_size', '')}-{row.get('num_classes', '')}"
    )
    for entry in cards()
    if entry.kind in {"model", "restorer"}
    for row in entry.published
    if {"parameters", "parameters_m", "gmacs"} & set(row)
]


@pytest.mark.parametrize("row", ROWS)
def test_published_cost(row):
    builder = inspect.signature(system_module(row["variant"]).build).parameters
    restores = card(row["variant"]).kind == "restorer"  # cubes of any size, and no classes
    size = row.get("image_size", 15 if restores else builder["image_size"].default)
    bands = row.get("bands", 15 if size == 15 else 3)
    sizes = {"num_classes": row.get("num_classes", 1000), "image_size": size}
    with torch.device("meta"):
        model = create_model(
            row["variant"],
            bands=bands,
            **({} if restores else sizes),
            **row.get("arguments", {}),
        )
    parameters = sum(p.numel() for p in model.parameters())
    if "parameters" in row:
        assert parameters == row["parameters"]
    if "parameters_m" in row:
        assert parameters / 1e6 == pytest.approx(row["parameters_m"], rel=0.005)
    if "gmacs" in row:
        macs = count_cost(model, bands, size).macs
        assert macs / 1e9 == pytest.approx(row["gmacs"], rel=0.02)
