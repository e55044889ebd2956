"""Learning to recognize images from a trained run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tiny_images import folder_of_pictures
from vitreous.errors import ConfigError, VitreousError
from vitreous.layers.answers import Answer, Heads
from vitreous.recipe import RecognizeRecipe, make_recipe
from vitreous.tasks import fit_images, recognize
from vitreous.tasks.teacher import ImageTeacher

SETTINGS = {
    "epochs": 2,
    "batch_size": 8,
    "warmup_epochs": 0,
    "learning_rate": 5e-3,
    "ema": 0.5,
    "report": False,
}
STUDENT = {
    "model": "vit_tiny_distilled",
    "model_args": {"dim": 16, "depth": 2, "heads": 2, "token_size": 8},
    "distill": "deit_hard",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of_pictures(tmp_path_factory.mktemp("pictures"), {"train": 16, "test": 6})


def train(folder, images, **others):
    settings = {**SETTINGS, "images": str(images), "runs": str(folder / "runs"), **others}
    return recognize.train(make_recipe(settings, RecognizeRecipe), show=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, pictures):
    return train(tmp_path_factory.mktemp("teacher"), pictures, model="convnext_test", name="t")


@pytest.mark.parametrize("distill", ["deit_hard", "deit_soft"])
def test_a_student_learns_from_what_the_teacher_says_of_the_images_that_it_sees(
    tmp_path, pictures, teacher, monkeypatch, distill
):
    asked, heads = [], []
    answer = ImageTeacher.answer
    distilled = fit_images.RecognizeTask._distilled

    def record(self, images, **options):
        asked.append(images.clone())
        return answer(self, images, **options)

    def compare(task, scores, batch, lesson):
        loss = distilled(task, scores, batch, lesson)
        assert torch.equal(asked[-1], batch.image)  # raw values, changed at random
        heads.append(scores)
        return loss

    monkeypatch.setattr(ImageTeacher, "answer", record)
    monkeypatch.setattr(fit_images.RecognizeTask, "_distilled", compare)
    settings = {**STUDENT, "distill": distill, "teacher": str(teacher), "mixup": 0.4}
    folder = train(tmp_path, pictures, **settings, name="s")
    assert len(asked) == len(heads) > 2 and all(isinstance(one, Heads) for one in heads)
    noted = json.loads((folder / "config.json").read_text())["teacher"]
    assert noted["name"] == "convnext_test" and len(noted["sha256"]) == 64
    run = recognize.load_run(folder)
    assert [entry.task for entry in run.provenance] == ["recognize", "recognize"]
    assert isinstance(run.recognizer(asked[0]), torch.Tensor)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["start"] is not None and not metrics["images"]["optimistic"]


def test_images_of_another_size_are_resized_for_the_teacher(teacher):
    own = ImageTeacher(teacher)
    height, width = own.recognizer.size
    images = torch.rand(2, 3, 2 * height, 2 * width) * 255
    said = own.answer(images, levels=True)
    small = torch.nn.functional.interpolate(
        images, (height, width), mode="bilinear", antialias=True
    )
    assert isinstance(said, Answer) and torch.equal(said.scores, own.recognizer(small))
    assert said.levels is not None and len(said.levels) == 4
    assert not any(parameter.requires_grad for parameter in own.recognizer.parameters())


def test_wrong_teachers_of_images_are_refused_and_leave_nothing(tmp_path, pictures, teacher):
    others = tmp_path / "others"
    shutil.copytree(pictures, others)
    for part in ("train", "test"):
        (others / part / "dog").rename(others / part / "wolf")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(teacher, unfinished)
    (unfinished / "model.safetensors").unlink()
    cases = {
        "has not finished": (pictures, {"teacher": str(unfinished)}),
        "does not exist": (pictures, {"teacher": str(tmp_path / "none")}),
        "1 only in the teacher, such as dog": (others, {"teacher": str(teacher)}),
        "does not distil": (pictures, {"teacher": str(teacher), "distill": "lora"}),
    }
    for number, (words, (images, changes)) in enumerate(cases.items()):
        with pytest.raises(VitreousError, match=words):
            train(tmp_path, images, **{**STUDENT, **changes}, name=f"refused{number}")
        assert not (tmp_path / "runs" / "recognize" / f"refused{number}").exists()
    with pytest.raises(ConfigError, match="given together"):
        train(tmp_path, pictures, **{**STUDENT, "distill": None}, teacher=str(teacher))
