"""Splits: the promise that nothing leaks, on random labels and on real ones."""

import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.data.blocks import TEST, TRAIN, VAL, make_grid
from vitreous.data.roles import Split
from vitreous.data.splits import (
    buffered_blocks,
    fixed_split,
    make_split,
    merged_labels,
    split_from_files,
    stratified_random,
)
from vitreous.errors import SplitError
from vitreous.recipe import make_recipe
from vitreous.scenes.cube import make_labels


def fields(seed: int, height: int = 60, width: int = 70, num_classes: int = 4, side: int = 9):
    """Rectangular fields of random classes with unlabelled gaps, like a farmed scene."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes + 1, (height // side + 1, width // side + 1))
    image = np.kron(coarse, np.ones((side, side), dtype=np.int32))[:height, :width]
    image[rng.random(image.shape) < 0.1] = 0
    image[0, :num_classes] = np.arange(1, num_classes + 1)
    return image.astype(np.int32)


def naive_leakage(roles, patch_size, source=TRAIN, target=TEST):
    half = patch_size // 2
    pixels = np.argwhere(roles == target)
    seen = 0
    for row, column in pixels:
        patch = roles[
            max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1
        ]
        seen += bool((patch == source).any())
    return seen / len(pixels) if len(pixels) else 0.0


def quiet_blocks(labels, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return buffered_blocks(labels, **options)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patch_size=st.integers(1, 12),
    block_size=st.one_of(st.none(), st.integers(2, 30)),
    train_fraction=st.floats(0.1, 0.8),
    val_fraction=st.sampled_from([0.0, 0.1, 0.4]),
    side=st.integers(2, 12),
)
def test_blocks_never_leak(seed, patch_size, block_size, train_fraction, val_fraction, side):
    labels = fields(seed, 36, 41, side=side)
    try:
        split = quiet_blocks(
            labels,
            patch_size=patch_size,
            block_size=block_size,
            train_fraction=train_fraction,
            val_fraction=val_fraction,
            seed=seed,
        )
    except SplitError as error:
        assert "too close" in str(error)
        return
    assert split.leakage(patch_size) == 0
    assert not split.optimistic
    for source, target in ((TRAIN, VAL), (VAL, TRAIN), (VAL, TEST), (TEST, TRAIN)):
        assert naive_leakage(split.roles, patch_size, source, target) == 0
    assert not split.roles[labels == 0].any()
    dropped = int(((split.roles == 0) & (labels > 0)).sum())
    assert split.params["buffer_pixels"] == dropped
    assert sum(split.counts.values()) + dropped == (labels > 0).sum()
    assert split.classes_without(TRAIN, labels) == []
    assert split.classes_without(TEST, labels) == split.params["classes_without_test"]
    if val_fraction == 0:
        assert split.counts["val"] == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), patch_size=st.integers(1, 9), density=st.floats(0.01, 1))
def test_leakage_equals_the_naive_count(seed, patch_size, density):
    rng = np.random.default_rng(seed)
    roles = rng.integers(0, 4, (17, 23)) * (rng.random((17, 23)) < density)
    split = Split(roles.astype(np.uint8), "random")
    assert split.leakage(patch_size) == pytest.approx(naive_leakage(roles, patch_size), abs=1e-12)


def test_leakage_at_the_edge_of_a_patch():
    roles = np.zeros((1, 20), dtype=np.uint8)
    roles[0, 0], roles[0, 7] = TRAIN, TEST
    split = Split(roles, "files", {"patch_size": 13})
    assert split.leakage(13) == 0
    assert not split.optimistic
    assert split.leakage(14) == 1  # an even patch may extend either way
    assert split.leakage(15) == 1
    assert Split(roles, "files", {"patch_size": 15}).optimistic


def test_block_assignment_follows_the_shares_when_there_is_no_buffer():
    labels = fields(3, 200, 200, side=5)
    split = quiet_blocks(labels, patch_size=1, train_fraction=0.4, val_fraction=0.1, block_size=10)
    for k in range(1, 5):
        of_class = split.roles[labels == k]
        shares = np.array([(of_class == role).mean() for role in (TRAIN, VAL, TEST)])
        np.testing.assert_allclose(shares, np.array([0.36, 0.1, 0.6]) / 1.06, atol=0.05)


def test_blocks_are_whole_up_to_the_buffer():
    labels = fields(1, 80, 80)
    split = quiet_blocks(labels, patch_size=5, block_size=16)
    for top in range(0, 80, 16):
        for left in range(0, 80, 16):
            roles = set(np.unique(split.roles[top : top + 16, left : left + 16])) - {0}
            assert len(roles) <= 1


def test_a_class_in_one_field_is_trained_and_named():
    labels = np.ones((60, 60), dtype=np.int32)
    labels[:, 30:] = 2
    labels[3:6, 3:6] = 3
    image = make_labels(labels, class_names=["corn", "oats", "lone tree"])
    with pytest.warns(UserWarning, match="3 'lone tree'"):
        split = buffered_blocks(image, patch_size=9)
    assert split.params["classes_without_test"] == [3]
    assert (split.roles[labels == 3] == TRAIN).any()


def test_blocks_say_when_nothing_can_be_tested():
    labels = np.zeros((40, 40), dtype=np.int32)
    labels[10:13, 10:13] = 1
    labels[13:16, 10:13] = 2
    with pytest.raises(SplitError, match="are too close together"):
        quiet_blocks(labels, patch_size=15)


def test_unlabelled_surroundings_change_nothing_that_matters():
    """A scene of far larger extent with the same labels still keeps its promise and its coverage."""
    labels = np.zeros((400, 500), dtype=np.int32)
    labels[150:210, 200:270] = fields(5)
    split = quiet_blocks(labels, patch_size=7)
    assert split.leakage(7) == 0
    assert split.classes_without(TRAIN, labels) == []
    assert min(split.counts.values()) > 0


def test_neighbouring_blocks_are_paired_once():
    grid = make_grid(np.ones((30, 30), dtype=np.int64), block_size=10, reach=3)
    pairs = {frozenset(pair) for pair in grid.pairs}
    assert len(pairs) == len(grid.pairs) == 6 + 6 + 4 + 4  # across, down, both diagonals


METHODS = {
    "blocks": lambda labels, seed: quiet_blocks(labels, patch_size=5, seed=seed),
    "random": lambda labels, seed: stratified_random(labels, train_fraction=0.2, seed=seed),
    "fixed": lambda labels, seed: fixed_split(labels, every_third(labels), seed=seed),
    "files": lambda labels, seed: split_from_files(
        every_third(labels), labels - every_third(labels), seed=seed
    ),
}


def every_third(labels):
    keep = np.zeros(labels.size, dtype=bool)
    keep[::3] = True
    return np.where(keep.reshape(labels.shape), labels, 0)


@pytest.mark.parametrize("method", METHODS)
def test_seed_reproduces_and_matters(method):
    labels = fields(0)
    first, again, other = (METHODS[method](labels, seed) for seed in (1, 1, 2))
    assert first.hash == again.hash
    assert first.hash != other.hash
    assert first.method == method
    assert first.counts["val"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_type_and_memory_order_of_labels_do_not_matter(method):
    labels = fields(0)
    expected = METHODS[method](labels, 3).hash
    assert METHODS[method](labels.astype(np.uint8), 3).hash == expected
    assert METHODS[method](np.asfortranarray(labels.astype(np.int64)), 3).hash == expected


def test_class_numbers_do_not_matter():
    labels = fields(2)
    renumbered = np.array([0, 7, 40, 300, 65535])[labels]
    assert quiet_blocks(labels, patch_size=5).hash == quiet_blocks(renumbered, patch_size=5).hash


def test_hash_is_a_known_value_and_changes_with_any_role():
    roles = (np.arange(12, dtype=np.uint8) % 4).reshape(3, 4)
    split = Split(roles, "random")
    assert split.hash == "49b39bc3e2a9d72909dfc5e28b289c786526d3dc5a425abb5112a567e84aced7"
    assert Split(roles.astype(np.int64), "files", {"a": 1}, seed=9).hash == split.hash
    assert Split(roles.reshape(4, 3), "random").hash != split.hash
    for index in range(12):
        changed = roles.copy()
        changed.flat[index] = (changed.flat[index] + 1) % 4
        assert Split(changed, "random").hash != split.hash


def test_roles_cannot_be_changed_afterwards():
    split = Split(np.ones((2, 2), dtype=np.uint8), "random")
    with pytest.raises(ValueError, match="read-only"):
        split.roles[0, 0] = 3


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), fraction=st.floats(0.01, 0.99), val=st.sampled_from([0, 0.1, 0.5])
)
def test_random_takes_the_share_of_every_class(seed, fraction, val):
    labels = fields(seed, 30, 30, side=4)
    split = stratified_random(labels, train_fraction=fraction, val_fraction=val, seed=seed)
    assert split.optimistic
    assert ((split.roles > 0) == (labels > 0)).all()
    for k in np.unique(labels[labels > 0]):
        of_class = split.roles[labels == k]
        chosen, tested = int((of_class != TEST).sum()), int((of_class == TEST).sum())
        assert abs(chosen - fraction * of_class.size) <= 1
        assert chosen >= 1
        assert tested >= 1
        assert abs(int((of_class == VAL).sum()) - val * chosen) <= 1
        assert (of_class == TRAIN).any()


def test_random_per_class_takes_half_of_a_small_class_and_says_so():
    labels = np.repeat([1, 2], [100, 5]).reshape(5, 21)
    with pytest.warns(UserWarning, match="class 2"):
        split = stratified_random(labels, per_class=10, val_fraction=0)
    assert (split.roles[labels == 1] == TRAIN).sum() == 10
    assert (split.roles[labels == 2] == TRAIN).sum() == 2


def test_random_refuses_a_class_of_one_pixel_by_name():
    labels = np.ones((5, 5), dtype=np.int32)
    labels[2, 2] = 2
    image = make_labels(labels, class_names=["soil", "well"])
    with pytest.raises(SplitError, match=r"2 'well'.*merge"):
        stratified_random(image, train_fraction=0.1)


def test_fixed_tests_what_does_not_train():
    labels = fields(4)
    train = every_third(labels)
    train[5, 5], labels[5, 5] = 3, 0  # trained although the reference no longer labels it
    split = fixed_split(labels, train, val_fraction=0)
    np.testing.assert_array_equal(split.roles == TRAIN, train > 0)
    np.testing.assert_array_equal(split.roles == TEST, (labels > 0) & (train == 0))
    merged = merged_labels(labels, train)
    assert merged.values[5, 5] == 3
    assert (merged.values[split.roles > 0] > 0).all()


def test_files_train_where_both_are_labelled():
    train = np.array([[1, 2, 0, 0], [1, 2, 0, 0]])
    test = np.array([[0, 2, 1, 3], [0, 0, 2, 0]])
    with pytest.warns(UserWarning) as caught:
        split = split_from_files(train, test, val_fraction=0)
    messages = " ".join(str(w.message) for w in caught)
    assert "1 pixels are in both the training and the test labels" in messages
    assert "in the test labels only, which are always misclassified: class 3" in messages
    np.testing.assert_array_equal(split.roles, [[1, 1, 3, 3], [1, 1, 3, 0]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 4), dtype=int), "No pixel is labelled"),
        (np.zeros((0, 4), dtype=int), "No pixel is labelled"),
        (np.ones((4, 4), dtype=int), "Only one class"),
        (np.arange(16).reshape(4, 4) - 1, "smallest label is -1"),
        (np.ones((4, 4)), "integers"),
        (np.ones((2, 4, 4), dtype=int), "integers"),
    ],
)
def test_impossible_labels_are_refused(labels, message):
    for make in (
        lambda: buffered_blocks(labels, patch_size=3),
        lambda: stratified_random(labels, train_fraction=0.5),
        lambda: fixed_split(fields(0), labels),
        lambda: split_from_files(labels, fields(0)),
    ):
        with pytest.raises(SplitError, match=message):
            make()


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: buffered_blocks(labels, patch_size=3, train_fraction=1.0),
        lambda labels: buffered_blocks(labels, patch_size=3, val_fraction=1.0),
        lambda labels: buffered_blocks(labels, patch_size=3, block_size=0),
        lambda labels: stratified_random(labels),
        lambda labels: stratified_random(labels, train_fraction=0.1, per_class=3),
        lambda labels: stratified_random(labels, per_class=0),
        lambda labels: stratified_random(labels, train_fraction=float("nan")),
        lambda labels: fixed_split(labels, labels),
        lambda labels: fixed_split(labels, labels[1:]),
        lambda labels: split_from_files(labels, labels),
        lambda labels: split_from_files(labels, labels[:, 1:]),
    ],
)
def test_impossible_requests_are_refused(make):
    with pytest.raises(SplitError) as caught:
        make(fields(0))
    assert caught.value.fix


def test_recipe_chooses_the_method():
    labels = fields(6)
    random = make_split(labels, make_recipe({"split": "random", "train_per_class": 10}), 7)
    assert random.params["per_class"] == 10
    assert random.params["patch_size"] == 7
    blocks = make_split(
        labels, make_recipe({"train_fraction": 0.5, "block_size": 12, "seed": 8}), 5
    )
    assert (
        blocks.hash
        == quiet_blocks(labels, patch_size=5, train_fraction=0.5, block_size=12, seed=8).hash
    )
    fixed = make_recipe({"split": "fixed"})
    assert make_split(labels, fixed, 5, train_labels=every_third(labels)).method == "fixed"
    with pytest.raises(SplitError, match="no predefined training pixels"):
        make_split(labels, fixed, 5)
    files = make_recipe({"split": "files", "test_labels": "test.tif"})
    rest = labels - every_third(labels)
    assert make_split(every_third(labels), files, 5, test_labels=rest).method == "files"
    with pytest.raises(SplitError, match="no test labels"):
        make_split(labels, files, 5)


@pytest.mark.parametrize("method", METHODS)
def test_saved_split_comes_back_exactly(method, tmp_path: Path):
    split = METHODS[method](fields(0), 4)
    split.save(tmp_path / "split.npz")
    loaded = Split.load(tmp_path / "split.npz")
    np.testing.assert_array_equal(loaded.roles, split.roles)
    assert (loaded.method, loaded.params, loaded.seed) == (split.method, split.params, split.seed)
    assert loaded.hash == split.hash
    assert [path.name for path in tmp_path.iterdir()] == ["split.npz"]


def rewrite(path: Path, **changes):
    """Write the split file again with other members, as somebody who tampers would."""
    with np.load(path) as archive:
        members = dict(archive)
    members.update(changes)
    np.savez_compressed(
        path, **{name: value for name, value in members.items() if value is not None}
    )


def changed_role(path: Path):
    roles = np.load(path)["roles"].copy()
    roles[np.nonzero(roles == TEST)[0][0], np.nonzero(roles == TEST)[1][0]] = TRAIN
    rewrite(path, roles=roles)


def changed_method(path: Path):
    meta = json.loads(np.load(path)["meta"].tobytes())
    meta["method"] = "blocks"
    rewrite(path, meta=np.frombuffer(json.dumps(meta, sort_keys=True).encode(), dtype=np.uint8))


def lying_shape(path: Path):
    """A header of 4 TB before four bytes of data."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000000, 2000000), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "roles.npy",
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\1\1\3\3",
        )


def swollen(path: Path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("roles.npy", b"\0" * 100)
        archive.writestr("meta.npy", b"\0" * 2**22)


@pytest.mark.parametrize(
    "tamper",
    [
        changed_role,
        changed_method,
        lying_shape,
        swollen,
        lambda path: rewrite(path, roles=np.full((3, 3), 7, dtype=np.uint8)),
        lambda path: rewrite(path, roles=np.array([["a", {}]], dtype=object)),
        lambda path: rewrite(path, seal=None),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.unlink(),
    ],
)
def test_a_changed_file_is_refused(tamper, tmp_path: Path):
    path = tmp_path / "split.npz"
    METHODS["random"](fields(0), 1).save(path)
    tamper(path)
    with pytest.raises(SplitError):
        Split.load(path)


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused_or_harmless(position, flip, saved_split):
    good, path = saved_split
    content = bytearray(good)
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    try:
        loaded = Split.load(path)
    except SplitError:
        return
    original = METHODS["random"](fields(0), 1)
    assert loaded.hash == original.hash
    assert (loaded.method, loaded.params) == (original.method, original.params)


@pytest.fixture(scope="module")
def saved_split(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "split.npz"
    METHODS["random"](fields(0), 1).save(path)
    return path.read_bytes(), path


@pytest.mark.parametrize("patch_size", [15, 21])
def test_indian_pines_blocks(shared_data: Path, patch_size: int):
    labels = np.load(shared_data / "indian_pines" / "Indian_pines_gt.npy").astype(np.int32)
    split = quiet_blocks(labels, patch_size=patch_size)
    assert split.leakage(patch_size) == 0
    assert split.classes_without(TRAIN, labels) == []
    # 20 pixels of oats in one strip and 28 of grass-pasture-mowed in one field cannot be on both sides.
    assert {7, 9} <= set(split.params["classes_without_test"]) <= {1, 7, 9, 16}
    counts = split.counts
    assert counts["train"] > 1000
    assert counts["val"] > 200
    assert counts["test"] > 3000
    assert split.params["buffer_pixels"] < 0.5 * (labels > 0).sum()


def test_random_patches_on_indian_pines_leak(shared_data: Path):
    labels = np.load(shared_data / "indian_pines" / "Indian_pines_gt.npy").astype(np.int32)
    split = stratified_random(labels, train_fraction=0.1)
    assert split.leakage(15) > 0.95
    assert 0 < split.leakage(3) < split.leakage(5) < split.leakage(15)


# -- blocks to resample -----------------------------------------------------------------------------------


def test_a_split_by_blocks_is_resampled_by_its_own():
    labels = np.kron(np.arange(36).reshape(6, 6) % 3 + 1, np.ones((8, 8), dtype=int))
    split = quiet_blocks(labels, patch_size=3, train_fraction=0.5, block_size=7)
    pixels = split.pixels(TEST)
    blocks = split.blocks_of(pixels)
    assert blocks.side == 7
    rows, columns = np.divmod(pixels, 48)
    for number in np.unique(blocks.of_pixel):
        inside = blocks.of_pixel == number
        assert len({*zip(rows[inside] // 7, columns[inside] // 7, strict=True)}) == 1
    # A block has one role: none of those that test is anybody else's.
    used = split.blocks_of(np.flatnonzero((split.roles == TRAIN) | (split.roles == VAL)))
    assert not set(used.of_pixel) & set(blocks.of_pixel)


def test_other_splits_are_resampled_by_blocks_of_a_patch_and_many_blocks_are_joined(monkeypatch):
    from vitreous.data import roles

    labels = np.kron(np.arange(36).reshape(6, 6) % 3 + 1, np.ones((8, 8), dtype=int))
    split = stratified_random(labels, train_fraction=0.3)
    split.params["patch_size"] = 11
    pixels = split.pixels(TEST)
    assert split.blocks_of(pixels).side == 11
    monkeypatch.setattr(roles, "MOST_BLOCKS", 5)
    joined = split.blocks_of(pixels)
    assert joined.side == 44
    assert len(np.unique(joined.of_pixel)) == 4
