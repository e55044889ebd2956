import pytest

from vitreous.layers.lora import LoRALinear
from vitreous.tasks.schedules import cosine, cycle_progress, cyclic_rate


def test_restarts_are_at_10_30_70():
    restarts = [t for t in range(1, 151) if cycle_progress(t, 10, 2) == 0]
    assert restarts == [10, 30, 70, 150]
    assert cycle_progress(20, 10, 2) == 0.5


def test_rates_at_a_restart():
    peak = 1e-3
    assert cyclic_rate(0, peak, first=10, growth=2) == pytest.approx(peak)
    adapters = cyclic_rate(30, peak, first=10, growth=2, factor=2.0)
    assert adapters == pytest.approx(1e-6 + 2 * (peak - 1e-6))
    assert cyclic_rate(9.9999, peak, first=10, growth=2) == pytest.approx(1e-6, rel=1e-2)


def test_the_adapters_scale_runs_from_one_to_a_half():
    layer = LoRALinear(2, 2)
    factors = []
    for time in (0, 5, 9.999999, 10, 20):
        layer.cycle_to(cycle_progress(time, 10, 2))
        factors.append(layer.cycle)
    assert factors == pytest.approx([1, 0.75, 0.5, 1, 0.75], abs=1e-6)


def test_cosine_stays_within_its_ends():
    assert [cosine(p) for p in (-1, 0, 1, 2)] == [1, 1, 0, 0]
