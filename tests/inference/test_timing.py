"""Times that are compared: by turns, on one thread."""

from statistics import median

import pytest
import torch

from vitreous.inference.bench import cpu_ratios, one_thread


def test_ratio_of_three_times_the_work():
    ratios = cpu_ratios(lambda: sum(range(300_000)), lambda: sum(range(100_000)), 9)
    assert len(ratios) == 9
    assert 2 < median(ratios) < 4.5


def test_calls_take_turns_on_one_thread():
    before, seen = torch.get_num_threads(), []

    def call(name):
        seen.append(name)
        assert torch.get_num_threads() == 1
        sum(range(1000))

    cpu_ratios(lambda: call("a"), lambda: call("b"), 3)
    assert "".join(seen).endswith("ababab") and "aa" not in "".join(seen)
    assert torch.get_num_threads() == before


def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError), one_thread():
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
