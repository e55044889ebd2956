"""Checkpoints: exact round trips, and files that are not what they should be."""

from __future__ import annotations

import errno
import json
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vitreous.checkpoints import tensors as checkpoint
from vitreous.checkpoints.tensors import (
    load_exactly,
    load_state,
    load_tensors,
    save_state,
    save_tensors,
)
from vitreous.errors import CheckpointError, VitreousError


def same(a, b):
    """Equal in value, type and order of keys."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.float64) / 3)
    | st.just(torch.tensor(2.5))
    | st.just(torch.arange(6, dtype=torch.int32).reshape(2, 3).T)
    | st.just(torch.tensor([1.5, -0.0], dtype=torch.bfloat16))
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc_", max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers(-3, 99), inner, min_size=1, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("xyz", max_size=3), trees, max_size=4))
def test_training_states_come_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(path, state)
    assert same(load_state(path), state)


def test_an_optimiser_comes_back(tmp_path):
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [net.weight], "adapter": True}, {"params": [net.bias], "peak": 1e-3}]
    )
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"optimizer": optimizer.state_dict()})
    back = load_state(tmp_path / "s")["optimizer"]
    assert same(back, optimizer.state_dict())
    assert list(back["state"]) == [0, 1]


def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(TypeError, match="set cannot be part"):
        save_state(tmp_path / "state.safetensors", {"a": {"b": {1, 2}}})
    assert not list(tmp_path.iterdir())


def test_views_of_one_tensor_are_kept_apart(tmp_path):
    base = torch.arange(4.0)
    save_tensors(tmp_path / "m.safetensors", {"a": base, "b": base[::2]}, {})
    tensors, _ = load_tensors(tmp_path / "m.safetensors")
    assert torch.equal(tensors["a"], base)
    assert torch.equal(tensors["b"], base[::2])


def test_others_may_read_what_was_written(tmp_path):
    save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.arange(12.0).reshape(3, 4)}, {"schema": 1, "x": [1, 2]})
    return path


def test_every_truncation_is_noticed(written):
    content = written.read_bytes()
    for length in range(len(content)):
        written.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_tensors(written)


def test_every_flipped_bit_of_the_header_is_noticed_or_harmless(written):
    """No flip may crash, hang or change a shape unnoticed; one inside a text gives another text."""
    content = written.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    refused = 0
    for position in range(end):
        for bit in (0, 3, 6):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            written.write_bytes(flipped)
            try:
                tensors, _ = load_tensors(written)
            except CheckpointError:
                refused += 1
                continue
            assert all(t.numel() * t.element_size() == 48 for t in tensors.values())
    assert refused > end


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint at all",
        pickle.dumps({"weight": [1.0, 2.0]}),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        b"\x89HDF\r\n\x1a\n" + bytes(100),
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|not written by vitreous") as caught:
        load_tensors(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


def test_safetensors_of_others_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not written by vitreous"):
            load_tensors(path)
    for text in ("{", "[" * 100_000, "1" * 10_000):
        save_file({"a": torch.zeros(1)}, path, metadata={"vitreous": text})
        with pytest.raises(CheckpointError, match="damaged"):
            load_tensors(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(tmp_path / "model.safetensors")


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 2)
    save_tensors(tmp_path / "m", {str(k): torch.zeros(1) for k in range(3)}, {})
    with pytest.raises(CheckpointError, match="claims 3 tensors"):
        load_tensors(tmp_path / "m")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"__tensor__": "7"}},
        {"a": {"__tensor__": ["0"]}},
        {"a": {"__int_keys__": [1]}},
        {"a": {"__int_keys__": [[1, 2, 3]]}},
        {"a": {"__tuple__": 4}},
    ],
)
def test_a_state_that_refers_to_nothing_is_refused(tmp_path, header):
    save_tensors(tmp_path / "s", {"0": torch.zeros(1)}, header)
    with pytest.raises(CheckpointError, match="not a valid training state"):
        load_state(tmp_path / "s")


def test_a_full_disk_keeps_the_previous_file(written, monkeypatch):
    before = written.read_bytes()

    def full(*_, **__):
        raise SafetensorError(
            f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
        )

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(VitreousError, match="disk is full"):
        save_tensors(written, {"weight": torch.zeros(9)}, {})
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_only_a_perfect_fit_is_loaded():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    sound = {name: torch.ones_like(t) for name, t in before.items()}
    wrong = {
        "0.weight": torch.ones(2, 4),
        "0.bias": torch.ones(2, dtype=torch.float64),
        "head.weight": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_exactly(net, wrong, "the net")
    for part in (
        "do not fit the net",
        "1 missing (1.weight)",
        "1 unexpected (head.weight)",
        "1 with a different shape (0.weight (2, 4) instead of (2, 3))",
        "1 with a different type (0.bias torch.float64 instead of torch.float32)",
    ):
        assert part in caught.value.problem
    assert same(dict(net.state_dict()), before)
    load_exactly(net, sound, "the net")
    assert same(dict(net.state_dict()), sound)


def test_long_complaints_are_cut():
    with pytest.raises(CheckpointError, match=r"10 unexpected \(0, 1, 2, \.\.\.\)"):
        load_exactly(nn.Identity(), {str(k): torch.ones(1) for k in range(10)}, "it")


def test_the_description_is_in_the_header_as_json(written):
    content = written.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["vitreous"]) == {"schema": 1, "x": [1, 2]}
