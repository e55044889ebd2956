"""What parts of a model say to the training around them, and are told; several optimizers; frozen parts."""

from __future__ import annotations

import csv
import itertools

import pytest
import torch
from torch import nn

from run_folders import equal, history, stopped_after_saving, weights
from tiny_scene import tiny_recipe, tiny_settings, write_scene
from vitreous.catalog.registry import create_model
from vitreous.errors import ModelError, VitreousError
from vitreous.layers.frozen import averaged_copy
from vitreous.recipe import RestoreRecipe, make_recipe
from vitreous.tasks import classify, loop, restore, training
from vitreous.tasks.classify import train
from vitreous.tasks.hooks import Hooks

LOLA = {"model": "lola_specvit_test", "patch_size": 5}


class Charging(nn.Module):
    """Hands its input on, and charges for it; counts what it is told."""

    def __init__(self, weight=0.0, name="balance"):
        super().__init__()
        self.weight, self.name = weight, name
        self.told, self.term = [], None

    def forward(self, x, *_):
        self.term = {self.name: self.weight * x.square().mean()}
        return x

    def losses(self):
        return self.term

    def progress(self, done):
        self.told.append(done)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, *, resume=False, **changes):
    return train(tiny_recipe(folder, **changes), resume=resume, show=False)


@pytest.fixture
def inserted(monkeypatch):
    """Put a part into every network that is trained, where it is named; collect the parts."""
    parts = []

    def insert(where, part):
        freeze = training._freeze

        def put(classifier, recipe):
            own = part()
            parts.append(own)
            old = classifier.net.get_submodule(where)
            classifier.net.set_submodule(where, nn.Sequential(old, own))
            freeze(classifier, recipe)

        monkeypatch.setattr(training, "_freeze", put)
        return parts

    return insert


# -- what parts charge and are told -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "norm"),
        ({"mode": "patch"}, "patch_embed"),
        ({**LOLA}, "norm"),  # behind a front-end that several steps share ...
        ({**LOLA}, "spectral"),  # ... and inside of it
        ({"mode": "dense", "model": "convnext_test", "tile_size": 16}, "backbone"),
    ],
)
def test_terms_are_logged_and_move_the_weights(tmp_path, places, inserted, settings, where):
    where = place_of(settings, where)
    folders = {}
    for name, weight in (("free", 0.0), ("charged", 3.0)):
        inserted(where, lambda weight=weight: Charging(weight))
        folders[name] = trained_without_reload(tmp_path, {**places, **settings, "name": name})
    rows = {name: history(folder) for name, folder in folders.items()}
    assert all(float(row["loss_balance"]) == 0 for row in rows["free"])
    assert all(float(row["loss_balance"]) > 0 for row in rows["charged"])
    assert rows["free"][-1]["train_loss"] != rows["charged"][-1]["train_loss"]


def place_of(settings, where):
    net = create_model(settings.get("model", "vit_test"), bands=4, num_classes=3, image_size=9)
    if where == "spectral":
        return next(name for name, part in net.named_modules() if isinstance(part, nn.Conv3d))
    if where == "norm":
        return [n for n, part in net.named_modules() if isinstance(part, nn.LayerNorm)][-1]
    if where == "backbone":
        from vitreous.layers.decoders import DenseNet

        dense = DenseNet(net, "fpn", 64)
        return next(n for n, part in dense.named_modules() if isinstance(part, nn.Conv2d))
    return where


def trained_without_reload(folder, settings):
    """Train to the end of the gradient descent: a network with a foreign part cannot be loaded again."""

    class Done(Exception):
        pass

    def stop(*_, **__):
        raise Done

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Done):
        patched.setattr(classify, "_keep", stop)
        run(folder, **settings)
    return folder / "runs" / "classify" / settings["name"]


def test_parts_are_told_how_much_is_done(tmp_path, places, inserted):
    parts = inserted("norm", Charging)
    folder = trained_without_reload(tmp_path, {**places, "name": "a"})
    told = parts[0].told
    steps = int(history(folder)[-1]["step"])
    assert len(told) == steps
    assert told[0] == 0 and all(a < b for a, b in itertools.pairwise(told)) and told[-1] < 1
    assert told[-1] == pytest.approx(1 - 1 / steps)


def test_terms_of_one_name_are_added_and_old_ones_are_not_counted_twice():
    first, second = Charging(1.0), Charging(2.0)
    model = nn.Sequential(first, second)
    hooks = Hooks(model)
    x = torch.ones(2, 3)
    with hooks.front():
        first(x)
    second(x)
    assert float(hooks.terms(of_front=True)["balance"]) == 1
    assert float(hooks.terms()["balance"]) == 2
    model(x)
    assert float(Hooks(model).terms()["balance"]) == 3


@pytest.mark.parametrize("term", [{"a": 1.0}, {"a": torch.ones(2)}, {"a b": torch.ones(())}])
def test_what_is_no_term_is_refused(term):
    part = Charging()
    part.term = term
    with pytest.raises(ModelError, match="named scalar"):
        Hooks(nn.Sequential(part)).terms()


def test_a_term_that_becomes_infinite_stops_the_training(tmp_path, places, inserted):
    inserted("norm", lambda: Charging(float("inf")))
    with pytest.raises(VitreousError, match="diverged"):
        run(tmp_path, **places, clip=1e-3)


def test_logs_with_terms_resume(tmp_path, places, inserted, monkeypatch, save_always):
    inserted("norm", lambda: Charging(0.1))
    settings = {**places, "epochs": 3, "name": "run"}
    with stopped_after_saving(monkeypatch):
        run(tmp_path, **settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classify, "_keep", lambda *_, **__: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            run(tmp_path, **settings, resume=True)
    with (tmp_path / "runs" / "classify" / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all(float(row["loss_balance"]) > 0 for row in rows)


def test_restorers_have_the_hooks_too(tmp_path, places, monkeypatch):
    made = []
    fit_restorer = restore.RestoreTask if hasattr(restore, "RestoreTask") else None
    assert fit_restorer is None  # imported where it is needed
    from vitreous.tasks import fit_restorer as module

    start = module.RestoreTask.__init__

    def put(task, model, *rest):
        part = Charging(0.5)
        made.append(part)
        model.set_submodule(
            name_of_first_convolution(model),
            nn.Sequential(model.get_submodule(name_of_first_convolution(model)), part),
        )
        start(task, model, *rest)

    monkeypatch.setattr(module.RestoreTask, "__init__", put)
    monkeypatch.setattr(restore, "_keep", lambda *_, **__: (_ for _ in ()).throw(RuntimeError))
    recipe = make_recipe(
        {
            "scene": places["scene"],
            "runs": str(tmp_path),
            "model": "hsdt_test",
            "steps": 4,
            "crop": 6,
            "batch_size": 2,
            "val_fraction": 0,
            "test_fraction": 0.6,
            "name": "r",
            "accelerator": "cpu",
        },
        RestoreRecipe,
    )
    with pytest.raises(RuntimeError):
        restore.train(recipe, show=False)
    assert made[0].told == [0, 0.25, 0.5, 0.75]
    assert float(history(tmp_path / "restore" / "r")[0]["loss_balance"]) > 0


def name_of_first_convolution(model):
    return next(n for n, part in model.named_modules() if isinstance(part, nn.Conv3d | nn.Conv2d))


# -- frozen parts -----------------------------------------------------------------------------------------


def frozen_network(*patterns):
    net = create_model("efficientformer_test", bands=4, num_classes=3, image_size=9)
    net.frozen = patterns
    return net


def test_frozen_parts_stay_in_evaluation_mode_without_gradients():
    net = frozen_network("patch_embed*", "head.bias").train()
    inside = {name for name, _ in net.named_modules() if name.startswith("patch_embed")}
    assert inside and all(not net.get_submodule(name).training for name in inside)
    assert net.training and net.head.training
    held = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert held == {n for n, _ in net.named_parameters() if n.startswith("patch_embed")} | {
        "head.bias"
    }
    wrapped = nn.Sequential(net).eval().train()
    assert all(not net.get_submodule(name).training for name in inside)
    assert wrapped.training


def test_frozen_parts_come_out_of_a_training_as_they_went_in(tmp_path, places, monkeypatch):
    """Weights and statistics alike, in the model and in its average, which shares what does not move."""
    seen = {}
    freeze = training._freeze

    def hold(classifier, recipe):
        classifier.net.frozen = ("patch_embed*",)
        freeze(classifier, recipe)
        seen.update(
            {n: t.clone() for n, t in classifier.state_dict().items() if "patch_embed" in n}
        )

    monkeypatch.setattr(training, "_freeze", hold)
    folder = run(tmp_path, **places, model="efficientformer_test", patch_size=9)
    after = weights(folder)
    assert any("running_mean" in name for name in seen)
    assert all(torch.equal(after[name], seen[name]) for name in seen)
    metrics = (folder / "config.json").read_text()
    own = sum(
        p.numel()
        for n, p in create_model(
            "efficientformer_test", bands=4, num_classes=3, image_size=9
        ).named_parameters()
        if not n.startswith("patch_embed")
    )
    assert f'"trainable": {own}' in metrics


def test_an_average_copies_what_moves_and_shares_what_does_not():
    net = frozen_network("patch_embed*").train()
    average = averaged_copy(net)
    for (name, own), (_, copied) in zip(
        net.named_parameters(), average.named_parameters(), strict=True
    ):
        assert (own is copied) == name.startswith("patch_embed")
        assert not copied.requires_grad


# -- several optimizers and averages ----------------------------------------------------------------------


class Duel(loop.Task):
    """A network that fits, and another that is trained every second step, with an average of its own."""

    columns = ("epoch", "step", "seconds", "learning_rate", "train_loss")
    shown = {"train_loss": "loss"}  # noqa: RUF012
    optimizer_names = ("main", "critic")

    def __init__(self, recipe):
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 2), recipe, 4, sums=2)
        self.critic = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        self.slow = self.add_average("critic", self.critic, 0.5, "critic")

    def train_dataloader(self):
        def batches():
            for _ in range(4):
                yield torch.randn(5, 3)

        class Batches(torch.utils.data.IterableDataset):
            def __iter__(self):
                return batches()

            def __len__(self):
                return 4

        return torch.utils.data.DataLoader(Batches(), batch_size=None, generator=torch.Generator())

    def configure_optimizers(self):
        return [
            torch.optim.AdamW(self.model.parameters(), lr=1e-2),
            torch.optim.SGD(self.critic.parameters(), lr=1e-1, momentum=0.9),
        ]

    def training_step(self, batch, batch_idx):
        loss = (self.model(batch) - 1).square().mean()
        self.manual_backward(self.objective(loss))
        self.step()
        if batch_idx % 2:
            with torch.no_grad():
                fake = self.model(batch)
            self.manual_backward(self.critic(fake).square().mean() + self.critic[0].weight.sum())
            self.step("critic")
        self.sums += torch.tensor([float(loss.detach()), 1.0], dtype=torch.float64)

    def row(self):
        sums = self.total(self.sums)
        return {"train_loss": sums[0] / sums[1]}


def state(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def test_two_optimizers_and_averages_resume_to_the_bit(tmp_path, monkeypatch, save_always):
    recipe = make_recipe(tiny_settings(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = Duel(recipe)
    loop.fit(whole, tmp_path / "a", resume=False, show=False)
    assert whole.steps == {"main": 16, "critic": 8}
    assert [row["step"] for row in whole.history] == [4, 8, 12, 16]
    assert not torch.equal(whole.slow[0].weight, whole.critic[0].weight)
    assert torch.equal(whole.slow[1].running_mean, whole.critic[1].running_mean)
    for _ in range(3):
        with stopped_after_saving(monkeypatch):
            loop.fit(Duel(recipe), tmp_path / "b", resume=True, show=False)
    resumed = Duel(recipe)
    loop.fit(resumed, tmp_path / "b", resume=True, show=False)
    assert equal(state(resumed), state(whole))
    assert resumed.steps == whole.steps


def test_each_average_follows_its_own_optimizer(tmp_path):
    recipe = make_recipe(tiny_settings(tmp_path))
    task = Duel(recipe)
    before = state(task)
    task.steps = {"main": 1000, "critic": 1000}
    with torch.no_grad():
        for parameter in (*task.model.parameters(), *task.critic.parameters()):
            parameter.add_(1.0)
    task._follow(task.averages["critic"], task.critic, 0.5, "critic")
    after = state(task)
    moved = after["averages.critic.0.weight"] - before["averages.critic.0.weight"]
    assert torch.allclose(moved, torch.full_like(moved, 0.5))
    assert torch.equal(after["average.weight"], before["average.weight"])


def test_a_state_of_other_optimizers_is_refused(tmp_path, monkeypatch, save_always):
    recipe = make_recipe(tiny_settings(tmp_path))
    with stopped_after_saving(monkeypatch):
        loop.fit(Duel(recipe), tmp_path, resume=True, show=False)
    monkeypatch.setattr(Duel, "optimizer_names", ("main", "judge"))
    with pytest.raises(VitreousError, match="does not match"):
        loop.fit(Duel(recipe), tmp_path, resume=True, show=False)
