"""The record of seen ground: against naive counts, small whatever the scene, and refused where it is damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.data import provenance
from vitreous.data.crops import Area
from vitreous.data.fingerprint import Ground
from vitreous.data.provenance import (
    Seen,
    Unknown,
    pack,
    provenance_from_json,
    provenance_to_json,
    start_leakage,
    unpack,
)
from vitreous.data.roles import Split
from vitreous.errors import CheckpointError

HERE = Ground("here", 40, 50)
ELSEWHERE = Ground("elsewhere", 40, 50)


def roles(seed=0, train=0.05, test=0.4):
    chosen = np.random.default_rng(seed).random((40, 50))
    return np.where(chosen < train, 1, np.where(chosen < train + 0.02, 2, np.where(chosen > 1 - test, 3, 0)))  # fmt: skip


def split_of(image):
    return Split(image.astype(np.uint8), "fixed", {"patch_size": 3})


def flat(image):
    return np.flatnonzero(image)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6), st.floats(0, 1))
def test_masks_come_back(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    text, cell = pack(mask)
    assert cell == 1
    np.testing.assert_array_equal(unpack(text, mask.shape, cell), mask)


def test_a_mask_that_does_not_fit_is_kept_coarser_and_never_covers_less(monkeypatch):
    monkeypatch.setattr(provenance, "MASK_BYTES", 300)
    mask = np.random.default_rng(0).random((301, 203)) < 0.02
    text, cell = pack(mask)
    assert cell > 1 and len(text) <= 300
    back = unpack(text, mask.shape, cell)
    assert back.shape == mask.shape
    assert back[mask].all()
    assert not back.all()


def test_a_record_of_a_large_scene_stays_small():
    chosen = np.zeros((6000, 6000), dtype=np.uint8)
    chosen[np.random.default_rng(0).random(chosen.shape) < 0.01] = 1
    seen = Seen.labels("scene", Ground("x", 6000, 6000), Split(chosen, "random"), 15)
    assert len(json.dumps(seen.to_json())) < 140_000


@pytest.mark.parametrize("patch_size", [1, 5, 9])
def test_what_was_seen_is_what_a_naive_search_finds(patch_size):
    trained = roles()
    seen = Seen.labels("scene", HERE, split_of(trained), patch_size)
    used = np.isin(trained, (1, 2))
    reach = patch_size // 2
    near = np.zeros_like(used)
    for row, column in np.argwhere(used):
        near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 1
    everywhere = np.arange(used.size)
    np.testing.assert_array_equal(seen.holds(everywhere, HERE), used.ravel())
    np.testing.assert_array_equal(seen.holds(everywhere, HERE, seen.reach), near.ravel())
    assert not seen.holds(everywhere, ELSEWHERE, seen.reach).any()


def test_shares_tell_labelled_pixels_patches_and_unlabelled_ground_apart():
    before, now = roles(1), roles(2)
    test = now == 3
    area = Area(slice(0, 40), slice(0, 20))
    start = (
        Seen.values("pretrain", "scene", HERE, area),
        Seen.labels("scene", HERE, split_of(before), 3),
        Seen.labels("other", ELSEWHERE, split_of(before), 3),
        Unknown("file.safetensors"),
    )
    found, seen = start_leakage(start, flat(test), HERE)
    used = np.isin(before, (1, 2))
    left = np.zeros_like(test)
    left[:, :20] = True
    near = start[1].holds(np.arange(test.size), HERE, 1).reshape(test.shape)
    assert found.labelled == pytest.approx(used[test].mean())
    assert found.patches == pytest.approx(near[test].mean())
    assert found.unlabelled == pytest.approx(left[test].mean())
    assert found.share == pytest.approx((near | left)[test].mean()) == seen.mean()
    assert 0 < found.labelled < found.patches < found.share
    assert found.sources == ("pretrain of scene", "classify of scene")
    told = " ".join(found.sentences)
    for words in (
        "with labels on this ground",
        "without labels",
        "provenance of the weights in file",
    ):
        assert words in told
    assert found.to_json() == json.loads(json.dumps(found.to_json()))


def test_nothing_seen_is_said_by_nothing():
    found, seen = start_leakage((), flat(roles() == 3), HERE)
    assert found.share == 0 and not seen.any() and found.sentences == []
    elsewhere = Seen.values("pretrain", "x", ELSEWHERE, Area(slice(0, 40), slice(0, 50)))
    assert start_leakage((elsewhere,), flat(roles() == 3), HERE)[0].sentences == []


# -- in files ---------------------------------------------------------------------------------------------


def records():
    return (
        Unknown("weights.safetensors"),
        Seen.values("restore", "scene.hdr", HERE, Area(slice(3, 9), slice(0, 50))),
        Seen.labels("scene.hdr", Ground("x", 40, 50, "EPSG:32632", (1.0, 0, 0, 0, -1.0, 0)), split_of(roles()), 7),
    )  # fmt: skip


def test_records_come_back_and_their_absence_is_unknown():
    kept = json.loads(json.dumps(provenance_to_json(records())))
    assert provenance_from_json(kept, "run") == records()
    assert provenance_from_json(None, "run") == (Unknown("run"),)
    assert provenance_to_json(None) is None
    assert provenance_from_json([], "run") == ()


@pytest.mark.parametrize(
    "change",
    [
        {"area": [0, 0, 0, 5]},
        {"area": [-1, 3, 0, 5]},
        {"area": [0, 10**6, 0, 10**6]},
        {"area": [0, 10**400, 0, 1]},
        {"pixels": "???"},
        {"pixels": "eJwDAAAAAAE="},
        {"pixels": 7},
        {"cell": 0},
        {"reach": -1},
        {"reach": 10**9},
        {"ground": None},
        {"ground": {}},
    ],
)
def test_damaged_records_are_refused_in_words(change):
    kept = provenance_to_json(records())
    kept[2] = {**kept[2], **change}
    with pytest.raises(CheckpointError, match="of its training ground is damaged") as caught:
        provenance_from_json(kept, "run")
    assert caught.value.fix


@pytest.mark.parametrize("value", [{}, "x", 3, [3], [None], [{"task": "classify"}]])
def test_what_is_no_list_of_records_is_refused(value):
    with pytest.raises(CheckpointError):
        provenance_from_json(value, "run")
