"""Learning from a trained run: what the teacher sees, what its answers do, who is refused, what is kept."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from run_folders import equal, history, stopped_after_saving, weights
from tiny_scene import BANDS, CLASSES, tiny_cube, tiny_labels, tiny_recipe, write_scene
from vitreous.cli.main import app
from vitreous.errors import ConfigError, VitreousError
from vitreous.layers.answers import Answer, Heads
from vitreous.methods.distill import deit
from vitreous.tasks import classify, fit
from vitreous.tasks.answers_store import AnswerStore
from vitreous.tasks.classify import evaluate, train
from vitreous.tasks.runs import load_run
from vitreous.tasks.teacher import SceneTeacher

STUDENT = {
    "model": "vit_tiny_distilled",
    "model_args": {"dim": 16, "depth": 2, "heads": 2, "token_size": 3},
    "patch_size": 9,
    "distill": "deit_hard",
}
LOLA = {"model": "lola_specvit_test", "patch_size": 5}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, *, resume=False, **changes):
    return train(tiny_recipe(folder, **changes), resume=resume, show=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, places):
    """A convolutional teacher with components of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    return run(
        folder,
        **places,
        model="convnext_test",
        patch_size=9,
        components=6,
        epochs=8,
        learning_rate=1e-2,
        name="teacher",
    )


# -- what it sees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "student",
    [
        {},
        {"patch_size": 5},  # the teacher sees further
        {"patch_size": 13},
        {"mode": "patch"},
        {**LOLA, "model_args": {}},  # a front-end that several steps share
    ],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_asked_about_the_very_pixels_that_the_student_sees(
    tmp_path, places, teacher, monkeypatch, student, noisy
):
    """The student's channels are the teacher's: then the patches of both are the same, whatever is done to them."""
    settings = {**STUDENT, **student, "components": 6, "epochs": 1, "gain": 0.1, "mixup": 0.4}
    settings |= {"noise": 0.1} if noisy else {"noise": 0.0}
    pairs = []
    score = fit.ClassifyTask._distilled

    def compare(task, scores, targets, regions, index, draw, seen):
        known = fit.mixed_patches(fit.gather_patches(regions.regions, index), draw.mixed)
        own = task.lesson.teacher.classifier
        read = own.score

        def record(patches):
            pairs.append((known, patches, draw))
            return read(patches)

        with monkeypatch.context() as patched:
            patched.setattr(own, "score", record)
            return score(task, scores, targets, regions, index, draw, seen)

    monkeypatch.setattr(fit.ClassifyTask, "_distilled", compare)
    same = run(tmp_path, **places, model="convnext_test", patch_size=9, components=6, name="same")
    run(tmp_path, **places, **settings, teacher=str(same))
    assert len(pairs) > 1
    for known, theirs, _ in pairs:
        least = min(known.shape[-1], theirs.shape[-1])
        a, b = (centre(x, least) for x in (known, theirs))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert any(draw.turn for *_, draw in pairs) and any(draw.mixed for *_, draw in pairs)


def centre(patches, side):
    out = (patches.shape[-1] - side) // 2
    return patches[..., out : out + side, out : out + side]


def test_of_a_scene_as_it_is_it_says_what_its_map_says(tmp_path, places, teacher, monkeypatch):
    """With its own preprocessing, on the pixels of a student of other channels and another patch."""
    found = {}
    score = fit.ClassifyTask._distilled

    def record(task, scores, targets, regions, index, draw, seen):
        middle = index.shape[-1] // 2
        answer = task.lesson.teacher.answer(*seen(), index[:, middle, middle])
        found.setdefault("classes", []).append(answer.scores.argmax(1))
        found.setdefault("truth", []).append(targets.classes)
        return score(task, scores, targets, regions, index, draw, seen)

    monkeypatch.setattr(fit.ClassifyTask, "_distilled", record)
    quiet = {"flips": False, "mixup": 0.0, "noise": 0.0, "gain": 0.0, "epochs": 1}
    student = run(tmp_path, **places, **{**STUDENT, "patch_size": 3}, **quiet, teacher=str(teacher))
    own = load_run(teacher)
    data, splits = classify.reopened(load_run(student))
    pixels = splits[0].pixels(1)
    from vitreous.inference.pixels import classify_pixels

    expected = classify_pixels(own.classifier, data.first, pixels) - 1
    pairs = torch.stack([torch.cat(found["classes"]), torch.cat(found["truth"])], 1)
    wanted = np.stack([expected, data[0].classes_at(pixels) - 1], 1)
    passes = len(pairs) // len(wanted)
    assert sorted(map(tuple, pairs.tolist())) == sorted(
        map(tuple, np.tile(wanted, (passes, 1)).tolist())
    )
    assert len(set(expected.tolist())) > 1


def test_a_tile_is_taught_by_tiles_and_by_patches(tmp_path, places, teacher):
    dense = {"mode": "dense", "model": "convnext_test", "tile_size": 16, "name": "dense"}
    first = run(tmp_path, **places, **dense)
    for number, by in enumerate((first, teacher)):
        folder = run(
            tmp_path,
            **places,
            **{**dense, "name": f"s{number}"},
            teacher=str(by),
            distill="deit_soft",
        )
        assert 0 <= evaluate(folder)["systems"][0]["test"]["oa"] <= 1
        assert all(float(row["train_loss"]) > 0 for row in history(folder))


def test_feature_levels_are_those_of_the_same_pixels(tmp_path, places, teacher, monkeypatch):
    """A student that starts as its teacher has the same maps, whatever the pixels are turned and mixed to."""
    found = []

    def loss(student, teacher, targets, *, kind="hard", temperature=1.0, weight=0.5):
        found.append((student.levels, teacher.levels))
        return targets.loss(student.scores)

    monkeypatch.setattr(deit, "LEVELS", True, raising=False)
    monkeypatch.setattr(deit, "loss", loss)
    settings = {"model": "convnext_test", "patch_size": 9, "components": 6, "mixup": 0.4}
    run(
        tmp_path,
        **places,
        **settings,
        init=str(teacher),
        teacher=str(teacher),
        distill="deit_hard",
        epochs=1,
        noise=0.05,
    )
    for own, theirs in zip(*found[0], strict=True):
        assert not theirs.requires_grad and own.requires_grad
        torch.testing.assert_close(own.detach(), theirs, rtol=1e-3, atol=1e-3)
    assert len(found[0][0]) == 4


# -- what it changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("distill", ["deit_hard", "deit_soft"])
def test_the_student_learns_what_the_teacher_says_although_the_labels_say_otherwise(
    tmp_path, places, teacher, distill
):
    """Labels are shuffled, and the teacher's weight is 1: what is learned is the teacher's."""
    labels = tiny_labels()
    chance = np.random.default_rng(0)
    wrong = chance.permutation(labels.ravel()).reshape(labels.shape)
    others = write_scene(tmp_path / "wrong", wrong, cube=tiny_cube(labels))
    folder = run(
        tmp_path,
        **others,
        **{**STUDENT, "distill": distill},
        epochs=8,
        teacher=str(teacher),
        learning_rate=1e-2,
        distill_args={"weight": 1.0},
        val_fraction=0.0,
    )
    student = load_run(folder).classifier
    student.net.head.load_state_dict(student.net.distillation_head.state_dict())
    data, _ = classify.reopened(load_run(folder))
    from vitreous.inference.pixels import classify_pixels

    pixels = np.arange(labels.size)
    found = classify_pixels(student, data.first, pixels)
    assert (found == labels.ravel()).mean() > 0.8
    assert (found == wrong.ravel()).mean() < 0.6


def test_heads_learn_apart_in_training_and_are_averaged_at_inference(tmp_path, places, teacher):
    folder = run(tmp_path, **places, **STUDENT, teacher=str(teacher))
    net = load_run(folder).classifier.net
    x = torch.randn(2, net.bands, 9, 9)
    both = (net.head, net.distillation_head)
    features = net.forward_features(x)
    expected = (both[0](features[:, 0]) + both[1](features[:, 1])) / 2
    assert torch.equal(net(x), expected)
    assert isinstance(net.train()(x), torch.Tensor)  # ordinary training
    deit.prepare(net)
    found = net(x)
    assert isinstance(found, Heads)
    torch.testing.assert_close(found.mean, expected)
    assert torch.equal(net.eval()(x), expected)
    assert not torch.equal(found.labels, found.teacher)


def test_the_losses_are_those_of_the_paper():
    from vitreous.tasks.losses import ClassTargets

    chance = torch.Generator().manual_seed(0)
    labels, taught, said = (torch.randn(5, 4, generator=chance) for _ in range(3))
    targets = ClassTargets(torch.tensor([0, 1, 2, 3, 0]))
    student = Answer(Heads(labels, taught))
    entropy = torch.nn.functional.cross_entropy
    hard = deit.loss(student, Answer(said), targets)
    expected = entropy(labels, targets.classes) / 2 + entropy(taught, said.argmax(1)) / 2
    torch.testing.assert_close(hard, expected)
    soft = deit.loss(student, Answer(said), targets, kind="soft", temperature=3.0, weight=0.1)
    p, q = (said / 3).softmax(1), (taught / 3).softmax(1)
    divergence = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft, 0.9 * entropy(labels, targets.classes) + 0.1 * divergence)
    alone = deit.loss(Answer(labels), Answer(said), targets)
    torch.testing.assert_close(
        alone, entropy(labels, targets.classes) / 2 + entropy(labels, said.argmax(1)) / 2
    )


def test_the_teacher_is_not_trained(tmp_path, places, teacher, monkeypatch):
    seen = []
    result = fit.ClassifyTask.result

    def record(task):
        net = task.lesson.teacher.classifier
        seen.append(
            (
                net.training,
                [p.requires_grad for p in net.parameters()],
                {name: tensor.clone() for name, tensor in net.state_dict().items()},
            )
        )
        assert not any("teacher" in name for name in task.state_dict())
        return result(task)

    monkeypatch.setattr(fit.ClassifyTask, "result", record)
    run(tmp_path, **places, **STUDENT, teacher=str(teacher))
    ((training, gradients, state),) = seen
    assert not training and not any(gradients)
    assert equal(state, weights(teacher))


def test_interrupted_the_rest_is_the_same(tmp_path, places, teacher, monkeypatch, save_always):
    settings = {**places, **STUDENT, "teacher": str(teacher), "epochs": 3}
    whole = weights(run(tmp_path, **settings, name="whole"))
    for _ in range(2):
        with stopped_after_saving(monkeypatch):
            started = (tmp_path / "runs" / "classify" / "run").exists()
            run(tmp_path, **settings, resume=started)
    assert equal(weights(run(tmp_path, **settings, resume=True)), whole)


# -- answers on disk --------------------------------------------------------------------------------------


def test_kept_answers_train_the_same_student_without_asking_again(
    tmp_path, places, teacher, monkeypatch
):
    """Another student that sees the same pixels does not ask either; one of another seed does."""
    asked = []
    answer = SceneTeacher.answer

    def count(self, *arguments, **options):
        asked.append(1)
        return answer(self, *arguments, **options)

    monkeypatch.setattr(SceneTeacher, "answer", count)
    settings = {**places, **STUDENT, "distill": "deit_soft", "teacher": str(teacher)}
    settings |= {"teacher_store": str(tmp_path / "answers"), "teacher_top": 2}
    first = weights(run(tmp_path, **settings, name="first"))
    times = len(asked)
    assert times > 1
    assert equal(weights(run(tmp_path, **settings, name="second")), first)
    deeper = {**settings, "model_args": {**STUDENT["model_args"], "depth": 1, "drop_path": 0.3}}
    run(tmp_path, **deeper, name="other")
    assert len(asked) == times
    run(tmp_path, **settings, name="seed", seed=3)
    assert len(asked) > times
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_answers_keep_the_most_likely_classes_and_share_the_rest(tmp_path):
    logits = torch.tensor([[4.0, 1.0, 0.0, -1.0, 2.0]])
    store = AnswerStore(tmp_path, {"teacher": "a"}, top=2)
    found = store.scores(0, 0, lambda: logits)
    store.close()
    expected = logits.softmax(1)
    probabilities = found.exp()
    torch.testing.assert_close(probabilities[0, [0, 4]], expected[0, [0, 4]], rtol=1e-2, atol=1e-3)
    rest = (1 - expected[0, [0, 4]].sum()) / 3
    torch.testing.assert_close(probabilities[0, 1:4], rest.repeat(3), rtol=1e-1, atol=1e-3)
    again = AnswerStore(tmp_path, {"teacher": "a"}, top=2)
    assert torch.equal(again.scores(0, 0, lambda: torch.zeros(1, 5)), found)
    assert not torch.equal(
        AnswerStore(tmp_path, {"teacher": "b"}, top=2).scores(0, 0, lambda: -logits), found
    )


# -- what is kept -----------------------------------------------------------------------------------------


def test_the_run_keeps_its_teacher_and_what_it_has_seen(tmp_path, places, teacher):
    """The teacher trained on other pixels: those are among the student's test pixels, and count as seen."""
    other = run(
        tmp_path, **places, model="convnext_test", patch_size=9, seed=5, epochs=1, name="other"
    )
    folder = run(tmp_path, **places, **STUDENT, teacher=str(other))
    noted = json.loads((folder / "config.json").read_text())["teacher"]
    assert noted["run"] == str(other) and noted["name"] == "convnext_test"
    assert noted["distill"] == "deit_hard" and noted["settings"]["weight"] == 0.5
    assert len(noted["sha256"]) == 64 and noted["receptive_size"] == 9
    metrics = json.loads((folder / "metrics.json").read_text())
    plain = json.loads(
        (
            run(tmp_path, **places, **{**STUDENT, "distill": None}, name="p") / "metrics.json"
        ).read_text()
    )
    assert metrics["start"]["labelled"] > 0.1 and plain["start"] is None
    assert metrics["split"]["optimistic"]
    assert "The weights of the teacher were trained with labels" in metrics["start"]["sentences"][0]
    assert [seen.task for seen in load_run(folder).provenance] == ["classify", "classify"]
    assert evaluate(folder)["start"] == metrics["start"]


def test_what_the_teacher_sees_counts_for_leakage(tmp_path, places, teacher):
    folder = run(tmp_path, **places, **{**STUDENT, "patch_size": 3}, teacher=str(teacher))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"]["patch_size"] == 9
    assert load_run(folder).provenance[-1].reach == 4
    assert evaluate(folder)["split"]["leakage"] == metrics["split"]["leakage"]


def test_another_teacher_cannot_take_over(tmp_path, places, teacher, monkeypatch, save_always):
    own = tmp_path / "own"
    shutil.copytree(teacher, own)
    settings = {**places, **STUDENT, "teacher": str(own), "epochs": 3}
    with stopped_after_saving(monkeypatch):
        run(tmp_path, **settings)
    other = run(tmp_path, **places, model="convnext_test", patch_size=9, name="o", epochs=1)
    shutil.copy(other / "model.safetensors", own / "model.safetensors")
    with pytest.raises(ConfigError, match="changed after"):
        run(tmp_path, **settings, resume=True)


# -- who is refused ---------------------------------------------------------------------------------------


def refusals(tmp_path, places, teacher):
    labels = tiny_labels()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(teacher, unfinished)
    (unfinished / "model.safetensors").unlink()
    svm = run(tmp_path, **places, model="svm", name="svm")
    dense = run(tmp_path, **places, mode="dense", model="convnext_test", tile_size=16, name="dense")
    two = np.where(labels == 3, 1, labels)
    fewer = run(tmp_path, **write_scene(tmp_path / "fewer", two), name="fewer", epochs=1)
    bands = tiny_cube(labels)[: BANDS - 2]
    folder = tmp_path / "narrow"
    from vitreous.scenes import numpy_files
    from vitreous.scenes.cube import make_scene

    folder.mkdir()
    numpy_files.write(make_scene(bands, unit="reflectance"), folder / "scene.npy")
    np.save(folder / "labels.npy", labels)
    narrow = run(
        tmp_path,
        scene=str(folder / "scene.npy"),
        labels=str(folder / "labels.npy"),
        name="narrow",
        epochs=1,
    )
    return {
        "does not exist": {"teacher": str(tmp_path / "nowhere")},
        "has not finished": {"teacher": str(unfinished)},
        "not a network": {"teacher": str(svm)},
        "tiles of 16 pixels": {"teacher": str(dense)},
        "other classes: 1 only in the labels, such as 3": {"teacher": str(fewer)},
        "cannot read": {"teacher": str(narrow)},
        "no setting 'wieght'": {"teacher": str(teacher), "distill_args": {"wieght": 1}},
        "out of range": {"teacher": str(teacher), "distill_args": {"weight": 2.0}},
        "does not distil": {"teacher": str(teacher), "distill": "lora"},
        "Unknown method: ": {"teacher": str(teacher), "distill": "deit_hrad"},
    }


def test_wrong_teachers_are_refused_in_words_and_leave_nothing(tmp_path, places, teacher):
    assert CLASSES == 3
    for number, (words, changes) in enumerate(refusals(tmp_path, places, teacher).items()):
        name = f"refused{number}"
        with pytest.raises(VitreousError, match=words):
            run(tmp_path, **places, **{**STUDENT, **changes, "name": name})
        assert not (tmp_path / "runs" / "classify" / name).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher", "RUN"], "given together"),
        (["--distill", "deit_hard"], "given together"),
        (["--distill-args", "weight=1"], "needs a method"),
    ],
)
def test_half_a_distillation_is_refused(words, said):
    done = CliRunner().invoke(app, ["train", "--dry-run", *words])
    assert done.exit_code == 2 and said in done.output


def test_a_distillation_is_not_applied_to_a_finished_model():
    from vitreous import apply, create_model

    with pytest.raises(VitreousError, match="while a model is trained") as caught:
        apply(create_model("vit_test", bands=4, num_classes=3, image_size=9), "deit_hard")
    assert "--distill" in caught.value.fix
