"""``--model auto``: candidates compared by cross-validation on the training pixels, and the best of them trained.

Every candidate answers for the held-out pixels of every fold (``data/folds.py``), with and without refinement. Slow ones
stop after a fold in which they are behind. The best, or the mean of the best where that is clearly better, is trained on
all training pixels. No validation pixels are withheld; test pixels take no part.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vitreous.data.blocks import TEST
from vitreous.data.contract import BandContract
from vitreous.data.folds import FEWEST_HELD_OUT, MOSTLY_NEAR, draw_folds, near_share
from vitreous.data.roles import Blocks, Splits
from vitreous.errors import CheckpointError, ConfigError
from vitreous.files import atomic_path, read_json, write_json
from vitreous.inference.ensemble import Ensemble, Member
from vitreous.inference.pixels import TILE, probabilities_at
from vitreous.inference.postprocess import (
    Postprocess,
    Projection,
    RefinedClassifier,
    Refinement,
    at_temperature,
)
from vitreous.inference.windows import SceneClassifier
from vitreous.progress import progress_bar
from vitreous.recipe import Recipe
from vitreous.tasks.candidates import (
    CANDIDATES,
    Candidate,
    chosen_candidates,
    first_of,
    refinement_for,
)
from vitreous.tasks.division import WIDEST
from vitreous.tasks.finish import fit_guide, fit_novelty_of, fit_temperature
from vitreous.tasks.labelled import LabelledScenes
from vitreous.tasks.metrics import scores
from vitreous.tasks.training import Trained, fit_system

COMPARISON = "comparison.json"  # in a run folder
SCORED = "candidates"  # folder of what is known of candidates while a run compares them
HELD_OUT_PIXELS = 5000  # of a fold that a candidate answers for, at most
BEHIND = 0.02  # OA by which a slow candidate may trail after its first fold
SLOW = 0.2  # of the budget: a candidate that takes more is slow
AHEAD = 0.005  # OA that a candidate, or an ensemble, must gain at least to take another's place
CLEARLY = 2.0  # standard errors
MOST_MEMBERS = 3  # of an ensemble

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def check(name: str, arguments: Mapping[str, Any], bands: int | None, image_size: Any) -> None:
    """Refuse arguments of a system that has none of its own.

    Raises:
        ConfigError: there are some.
    """
    if arguments:
        raise ConfigError(
            f"'{name}' has no arguments ({', '.join(arguments)}): it compares systems with their own.",
            "Omit --model-args, or name a system with --model.",
        )


@dataclass
class Scored:
    """What a candidate answered.

    Attributes:
        candidate: the candidate.
        refinement: what its probabilities were refined with, where they were.
        plain: by fold, ``(n, classes)`` probabilities of the held-out pixels.
        refined: the same after refinement; as many or none.
        seconds: that its folds took.
        behind: whether it was given up because it trailed.
    """

    candidate: Candidate
    refinement: Refinement | None
    plain: list[Floats] = field(default_factory=list)
    refined: list[Floats] = field(default_factory=list)
    seconds: float = 0.0
    behind: bool = False

    def answers(self, folds: int) -> Floats:
        """Return the probabilities of the held-out pixels of the first folds, refined where that is better."""
        return np.concatenate((self.refined if self.refines else self.plain)[:folds])

    refines: bool = False

    @property
    def finish(self) -> str:
        """What becomes of its answers, in words."""
        if self.refinement is None or not self.refines:
            return "not refined"
        return f"refined by {self.refinement.method}"


@dataclass(frozen=True)
class HeldOut:
    """The held-out pixels of a fold.

    Attributes:
        scenes: which scene each row of ``pixels`` is of.
        pixels: flat indices, by scene.
        truth: ``(n,)`` columns of the true classes.
        blocks: ``(n,)`` numbers of their blocks.
        side: of a block in pixels.
    """

    scenes: list[int]
    pixels: list[Ints]
    truth: Ints
    blocks: Ints
    side: int


def compare_and_train(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    contract: BandContract,
    folder: Path,
    console: Console,
) -> Trained:
    """Compare the candidates of a recipe, and train the best on all training pixels.

    Validation pixels of a split that was drawn for another system train too.

    What is known of a candidate is kept in the folder, so that a resumed run does not compare it again.

    Args:
        recipe: the settings.
        data: the scenes and their labels.
        splits: who trains.
        contract: the bands, with how bright the training pixels are.
        folder: of the run; ``comparison.json`` is left in it.
        console: where to tell what is being done.

    Raises:
        ConfigError: the budget is too small for a single candidate.
    """
    every = splits.without_validation()
    comparison = _Comparison(recipe, data, every, contract, folder / SCORED, console)
    found = comparison.run()
    members, temperature = comparison.best(found)
    names = " + ".join(f"{one.candidate.name} ({one.finish})" for one in members)
    console.print(f"training {names}", highlight=False)
    trained = comparison.train(members, temperature)
    write_json(folder / COMPARISON, comparison.told(found, members))
    return trained


def judged_by_folds(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    trained: Trained,
    folder: Path,
    console: Console,
) -> Postprocess | None:
    """Choose by folds of its training pixels whether the answers of an estimator are refined, and calibrate them.

    An estimator trains on validation pixels too, so that none are left to choose with.

    Args:
        recipe: the settings, of a system that the user named.
        data: the scenes and their labels.
        splits: who trains.
        trained: the estimator.
        folder: for what is made meanwhile.
        console: where to tell what was chosen.

    Returns:
        What becomes of its probabilities; None where there are too few pixels for folds.
    """
    named = Candidate(recipe.model, recipe.model, 0.0, 0.0, {"model": recipe.model})
    every, contract = splits.without_validation(), trained.classifier.contract
    return _Comparison(recipe, data, every, contract, folder / SCORED, console, [named]).judged()


def drop_answers(folder: Path) -> None:
    """Delete what an interrupted comparison would have gone on from."""
    shutil.rmtree(folder / SCORED, ignore_errors=True)


def told(folder: Path) -> dict[str, Any]:
    """Return what a run's comparison found, ``comparison.json``.

    Raises:
        VitreousError: it is missing or damaged.
    """
    found = read_json(folder / COMPARISON)
    if not isinstance(found, dict) or not isinstance(found.get("chosen"), list):
        raise CheckpointError(f"{folder / COMPARISON} is damaged.", "Start the run again.")
    return found


def title_of(folder: Path) -> str:
    """Return what the system of a run is called beside others: the candidates that it was made of.

    Raises:
        VitreousError: what the comparison found is missing or damaged.
    """
    return " + ".join(map(str, told(folder)["chosen"]))


class _Comparison:
    """A comparison of candidates on one split."""

    def __init__(
        self,
        recipe: Recipe,
        data: LabelledScenes,
        splits: Splits,
        contract: BandContract,
        folder: Path,
        console: Console,
        candidates: list[Candidate] | None = None,
    ) -> None:
        self.recipe, self.data, self.splits, self.contract = recipe, data, splits, contract
        self.folder, self.console = folder, console
        self.candidates = candidates or chosen_candidates(recipe)
        size = int(splits.params.get("patch_size", WIDEST))
        self.room = size if near_share(splits, size) < MOSTLY_NEAR else np.inf
        self.division = draw_folds(
            splits, lambda k: np.asarray(data[k].labels.values), size=size, seed=recipe.seed
        )
        self.folds = self.division.parts
        self.held_out = [self._held_out(fold) for fold in self.folds]
        self.guide = fit_guide(data, splits)
        self.skipped: dict[str, str] = {}
        self.pace = 1.0  # of this machine: seconds for one that is expected

    # -- comparing ------------------------------------------------------------------------------------------

    def run(self) -> list[Scored]:
        """Let the candidates answer, the quickest first, as far as the budget goes.

        Raises:
            ConfigError: it does not reach for one.
        """
        if not self.folds:
            self.console.print(f"[yellow]{self._too_few()}[/yellow]", highlight=False)
            return []
        rounds = len(self.folds) + 1  # the last trains on all pixels
        expected = {one.name: rounds * self._expected(one) for one in self.candidates}
        budget = self.recipe.seconds
        quickest = self.candidates[0]
        if expected[quickest.name] > budget:
            raise ConfigError(
                f"The budget of {self.recipe.budget} is too small for a single candidate: the quickest, {quickest.name}, "
                f"takes about {expected[quickest.name]:.0f} s in {len(self.folds)} folds.",
                "Give a larger --budget, or name a system with --model.",
            )
        total = min(sum(expected.values()), budget)
        what = "1 candidate" if len(self.candidates) == 1 else f"{len(self.candidates)} candidates"
        self.console.print(
            f"comparing {what} in {len(self.folds)} folds: about {_duration(total)} "
            f"(--budget {self.recipe.budget})",
            highlight=False,
        )
        if self.division.kind == "neighbours":
            self.console.print(
                "[yellow]folds of neighbouring blocks: figures are optimistic; more labels would allow folds that lie "
                "apart[/yellow]",
                highlight=False,
            )
        found: list[Scored] = []
        with progress_bar("comparing", self.console) as advance:
            for candidate in self.candidates:
                self._consider(candidate, found, expected[candidate.name])
                spent = sum(one.seconds for one in found)
                advance(round(min(spent, total)), round(total))
        return found

    def judged(self) -> Postprocess | None:
        """Return what becomes of the answers of the only candidate; None without folds."""
        if not self.folds:
            return None
        candidate = self.candidates[0]
        scored = Scored(candidate, refinement_for(candidate, self.recipe, self.room))
        for k in range(len(self.folds)):
            self._answer(scored, k)
        plain = self._oa(scored.plain)
        refined = self._oa(scored.refined) if scored.refined else plain
        scored.refines = refined > plain
        self.console.print(
            f"{len(self.folds)} folds of the training pixels: OA {plain:.1%}, refined {refined:.1%}; the map is "
            f"{'refined' if scored.refines else 'not refined'}",
            highlight=False,
        )
        after = self._after(scored, self._temperature(scored))
        return after.model_copy(update={"novelty": fit_novelty_of(self.data, self.splits)})

    def _lacking(self) -> int:
        """Return about how many more labels a comparison needs: as many as give the training pixels that are missing."""
        counts = self.splits.counts
        share = counts["train"] / sum(counts.values())
        return math.ceil(self.division.missing / share)

    def _too_few(self) -> str:
        """Say what is missing for a comparison, and what is trained instead."""
        candidate = first_of(self.candidates)
        return (
            f"too few labels to cross-validate: about {self._lacking()} more, in other places, are needed to compare "
            f"candidates; {candidate.name} ({candidate.words}) is trained without a comparison"
        )

    def _expected(self, candidate: Candidate) -> float:
        pixels = self.folds[0].counts["train"]
        return candidate.fold_seconds(pixels, len(self.contract.used))

    def _consider(self, candidate: Candidate, found: list[Scored], expected: float) -> None:
        """Let a candidate answer, unless the budget does not allow it, and add it to those that have."""
        budget = self.recipe.seconds
        left = budget - sum(one.seconds for one in found)
        rounds = len(self.folds) + 1
        least = self.pace * expected * (1 if not found else 2 / rounds)
        scored = self._kept(candidate)
        if scored is None:
            if found and least > left:
                self.skipped[candidate.name] = (
                    f"would take about {_duration(least)} of the remaining {_duration(max(left, 0))}"
                )
                return
            self.console.print(f"  {candidate.name}: {candidate.words}", highlight=False)
            refinement = refinement_for(candidate, self.recipe, self.room)
            scored = Scored(candidate, refinement)
            slow = expected * self.pace > SLOW * budget
            for k in range(len(self.folds)):
                self._answer(scored, k)
                if not found:
                    continue  # the quickest is finished in any case
                enough = len(self.held_out[0].truth) >= FEWEST_HELD_OUT
                if slow and k == 0 and enough and self._behind(scored, found):
                    scored.behind = True
                    break
                each = scored.seconds / (k + 1)
                if scored.seconds + 2 * each > left:
                    break
            self._keep(scored)
        done = len(scored.plain)
        scored.refines = bool(scored.refined) and self._oa(scored.refined) > self._oa(scored.plain)
        usual = expected * done / rounds
        if not found:
            self.pace = max(scored.seconds / usual, 0.1)
        found.append(scored)

    def _answer(self, scored: Scored, fold: int) -> None:
        """Train a candidate on a fold, and keep what it says of the held-out pixels."""
        started = time.perf_counter()
        own = scored.candidate.recipe(self.recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each fold what is said of the training
            place = self.folder / scored.candidate.name / str(fold)
            trained = fit_system(
                own, self.data, self.folds[fold], self.contract, place, resume=True, show=False
            )
            plain, refined = self._probabilities(trained.classifier, scored.refinement, fold)
        scored.plain.append(plain)
        if refined is not None:
            scored.refined.append(refined)
        scored.seconds += time.perf_counter() - started

    def _probabilities(
        self, classifier: SceneClassifier, refinement: Refinement | None, fold: int
    ) -> tuple[Floats, Floats | None]:
        """Return the probabilities of a fold's held-out pixels, and the refined ones where there is a refinement."""
        held, asked = self.held_out[fold], classifier
        if refinement is not None:
            asked = _Both(classifier, self.guide, refinement)
        found = np.concatenate(
            [
                probabilities_at(asked, self.data[k].scene, pixels, TILE)
                for k, pixels in zip(held.scenes, held.pixels, strict=True)
            ]
        )
        if refinement is None:
            return found, None
        return found[:, : classifier.num_classes], found[:, classifier.num_classes :]

    def _behind(self, scored: Scored, found: Sequence[Scored]) -> bool:
        """Tell whether a candidate trails the best of the others in the first fold."""
        own = max(self._oa(scored.plain), self._oa(scored.refined) if scored.refined else 0.0)
        return own < max(self._oa([one.answers(1)]) for one in found) - BEHIND

    def _held_out(self, fold: Splits) -> HeldOut:
        chosen = fold.some(TEST, HELD_OUT_PIXELS)
        blocks: list[Ints] = []
        side = 1
        for k, pixels in chosen:
            own = fold[k].blocks_of(pixels)
            blocks.append(own.of_pixel + (int(blocks[-1].max()) + 1 if blocks else 0))
            side = own.side
        truth = np.concatenate([self.data[k].classes_at(pixels) - 1 for k, pixels in chosen])
        scenes = [k for k, _ in chosen]
        return HeldOut(
            scenes, [pixels for _, pixels in chosen], truth, np.concatenate(blocks), side
        )

    def _truth(self, folds: int) -> Ints:
        return np.concatenate([held.truth for held in self.held_out[:folds]])

    def _oa(self, answers: Sequence[Floats]) -> float:
        """Return the overall accuracy of the answers to the first folds."""
        given = np.concatenate(list(answers))
        truth = np.concatenate([held.truth for held in self.held_out])[: len(given)]
        return float((given.argmax(1) == truth).mean())

    # -- what is kept ---------------------------------------------------------------------------------------

    def _key(self, candidate: Candidate) -> str:
        """Name everything that decides about a candidate's answers."""
        facts = [candidate.recipe(self.recipe).model_dump(), [fold.hash for fold in self.folds]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _keep(self, scored: Scored) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"plain{k}": part for k, part in enumerate(scored.plain)}
        arrays |= {f"refined{k}": part for k, part in enumerate(scored.refined)}
        said = {
            "key": self._key(scored.candidate),
            "seconds": scored.seconds,
            "behind": scored.behind,
            "folds": len(scored.plain),
        }
        path = self.folder / f"{scored.candidate.name}.npz"
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, said=np.array(json.dumps(said)), **arrays)
        shutil.rmtree(self.folder / scored.candidate.name, ignore_errors=True)

    def _kept(self, candidate: Candidate) -> Scored | None:
        """Return what an interrupted run knew of a candidate; None where it knew nothing."""
        path = self.folder / f"{candidate.name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                said = json.loads(str(arrays["said"]))
                if said["key"] != self._key(candidate):
                    return None
                parts: dict[str, Any] = {
                    kind: [
                        arrays[f"{kind}{k}"] for k in range(said["folds"]) if f"{kind}{k}" in arrays
                    ]
                    for kind in ("plain", "refined")
                }
                refinement = refinement_for(candidate, self.recipe, self.room)
                seconds, behind = float(said["seconds"]), bool(said["behind"])
                return Scored(
                    candidate, refinement, parts["plain"], parts["refined"], seconds, behind
                )
        except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile):
            return None  # damaged: it is compared again

    # -- choosing -------------------------------------------------------------------------------------------

    def best(self, found: Sequence[Scored]) -> tuple[list[Scored], float | None]:
        """Return the candidate, or the members of the ensemble, to train, and the temperature of their answers."""
        if not found:
            candidate = first_of(self.candidates)
            refinement = refinement_for(candidate, self.recipe, self.room)
            return [Scored(candidate, refinement, refines=refinement is not None)], None
        ranked = self._ranked(found)
        leader, folds = ranked[0], len(ranked[0].plain)
        whole = [one for one in ranked if len(one.plain) == folds]  # the leader first
        chosen, answers = [leader], leader.answers(folds)
        for count in range(2, min(MOST_MEMBERS, len(whole)) + 1):
            together = self._together(whole[:count])
            if self._ahead(together, answers, folds):
                chosen, answers = whole[:count], together
        return chosen, fit_temperature(answers, self._truth(folds))

    def _ranked(self, found: Sequence[Scored]) -> list[Scored]:
        """Order candidates, the best first.

        A few blocks tell little: a candidate takes the place of another that stands before it in the table only where
        it is clearly ahead.
        """
        order = list(CANDIDATES)
        known = sorted(
            (one for one in found if not one.behind),
            key=lambda one: (
                len(one.plain) < len(self.folds),  # the quickest has answered all folds
                order.index(one.candidate.name),
            ),
        )
        leader = known[0]
        for one in known[1:]:
            shared = min(len(one.plain), len(leader.plain))
            if self._ahead(one.answers(shared), leader.answers(shared), shared):
                leader = one
        count = len(leader.plain)
        others = [one for one in known if one is not leader and len(one.plain) >= count]
        return [leader, *sorted(others, key=lambda one: -self._oa([one.answers(count)]))]

    def _ahead(self, one: Floats, other: Floats, count: int) -> bool:
        """Tell whether answers to the first folds are right more often, by two standard errors over blocks."""
        truth = self._truth(count)
        gain = 1.0 * (one.argmax(1) == truth)
        gain -= other.argmax(1) == truth
        numbers = np.concatenate([held.blocks for held in self.held_out[:count]])
        by_block = np.bincount(np.unique(numbers, return_inverse=True)[1], weights=gain)
        error = np.sqrt(np.square(by_block - by_block.mean()).sum()) / len(gain)
        return bool(gain.mean() > max(CLEARLY * error, AHEAD))

    def _together(self, members: Sequence[Scored]) -> Floats:
        """Return the mean of the calibrated answers of some candidates."""
        found = []
        for one in members:
            given = one.answers(len(one.plain))
            found.append(at_temperature(given.T, self._temperature(one)).T)
        return np.asarray(np.mean(found, axis=0), dtype=np.float32)

    def _temperature(self, one: Scored) -> float:
        given = one.answers(len(one.plain))
        return fit_temperature(given, self._truth(len(one.plain))) or 1.0

    # -- training -------------------------------------------------------------------------------------------

    def train(self, members: Sequence[Scored], temperature: float | None) -> Trained:
        """Train the chosen candidates on all training pixels."""
        novelty = fit_novelty_of(self.data, self.splits)
        run = self.folder.parent
        trained = []
        for one in members:
            place = run if len(members) == 1 else self.folder / "members" / one.candidate.name
            settings = one.candidate.recipe(self.recipe)
            trained.append(
                fit_system(
                    settings, self.data, self.splits, self.contract, place, resume=True, show=False
                )
            )
        title = " + ".join(one.candidate.name for one in members)
        if len(members) == 1:
            own = self._after(members[0], temperature).model_copy(update={"novelty": novelty})
            name = members[0].candidate.changes["model"]
            return replace(trained[0], postprocess=own, name=name, title=title)
        parts = [
            Member(
                one.candidate.changes["model"],
                made.classifier,
                self._after(one, self._temperature(one)),
                made.model_args,
            )
            for one, made in zip(members, trained, strict=True)
        ]
        counts = [made.parameters for made in trained if made.parameters is not None]
        return Trained(
            Ensemble(parts),
            sum(made.seconds for made in trained),
            sum(counts) if counts else None,
            postprocess=Postprocess(guide=self.guide, novelty=novelty, temperature=temperature),
            name=self.recipe.model,
            title=title,
        )

    def _after(self, one: Scored, temperature: float | None) -> Postprocess:
        """Return what becomes of a candidate's probabilities."""
        chosen = one.refinement if one.refines else None
        plain = Postprocess(guide=self.guide, temperature=temperature)
        return plain.model_copy(update={"refine": chosen})

    # -- what is told ---------------------------------------------------------------------------------------

    def told(self, found: Sequence[Scored], members: Sequence[Scored]) -> dict[str, Any]:
        """Return the comparison as ``metrics.json`` has it."""
        names = [one.candidate.name for one in members]
        rows = [self._row(one, chosen=one.candidate.name in names) for one in found]
        rows += [
            {"name": name, "words": CANDIDATES[name].words, "skipped": why, "chosen": False}
            for name, why in self.skipped.items()
        ]
        ensemble = None
        if len(members) > 1:
            ensemble = self._figures(self._together(members), len(members[0].plain))
        settings = members[0].candidate.settled if len(members) == 1 else None
        return {
            "chosen": names,
            "settings": settings,
            "folds": len(self.folds),
            "spatial": bool(np.isfinite(self.room)),
            "optimistic": self.division.kind == "neighbours",
            "labels_missing": 0 if self.folds else self._lacking(),
            "budget": self.recipe.budget,
            "held_out": sum(len(held.truth) for held in self.held_out),
            "training": self.splits.counts["train"],
            "ensemble": ensemble,
            "rows": rows,
        }

    def _row(self, one: Scored, *, chosen: bool) -> dict[str, Any]:
        count = len(one.plain)
        return {
            "name": one.candidate.name,
            "words": one.candidate.words,
            "model": one.candidate.changes["model"],
            "refined": one.refines,
            "oa_plain": self._oa(one.plain),
            "seconds": one.seconds,
            "behind": one.behind,
            "chosen": chosen,
            **self._figures(one.answers(count), count),
        }

    def _figures(self, answers: Floats, count: int) -> dict[str, Any]:
        """Return the accuracy of answers to the first folds, with an interval that resamples blocks."""
        held = self.held_out[:count]
        ends = np.cumsum([len(one.truth) for one in held])[:-1]
        right = np.split(answers.argmax(1) == self._truth(count), ends)
        blocks = Blocks(np.concatenate([one.blocks for one in held]), held[0].side)
        measured = scores(
            self._truth(count) + 1, answers.argmax(1) + 1, self.data.class_names, blocks=blocks
        )
        kept = {name: measured[name] for name in ("oa", "oa_ci", "aa", "kappa")}
        return {**kept, "by_fold": [float(part.mean()) for part in right]}


class _Both:
    """A classifier whose probabilities stand above the same ones refined: both from one pass.

    Args:
        classifier: any scene classifier.
        guide: of the refinement.
        refinement: the filter.
    """

    def __init__(
        self, classifier: SceneClassifier, guide: Projection, refinement: Refinement
    ) -> None:
        self._classifier = classifier
        self._refined = RefinedClassifier(classifier, guide, refinement)
        self.contract, self.margin = classifier.contract, self._refined.margin
        self.padding, self.step = self._refined.padding, self._refined.step
        self.num_classes = 2 * classifier.num_classes

    def classify(self, window: Floats) -> Floats:
        """Return both, ``(2 classes, h, w)``."""
        plain = np.asarray(self._classifier.classify(window), dtype=np.float32)
        refined = self._refined.refined(window, plain)
        around = self._refined.around
        height, width = refined.shape[1:]
        inner = (slice(around, around + height), slice(around, around + width))
        return np.concatenate([plain[:, *inner], refined])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
