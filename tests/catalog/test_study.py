"""A reproduction chooses fairly, goes on where it was stopped, and records only what is complete."""

from types import SimpleNamespace

import pytest

from vitreous.catalog.claims import claim, paired
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import SEARCH_SEED, Study, restate
from vitreous.files import read_json

ARMS = ("ours", "theirs")


class Script:
    """A reproduction whose trainings are arithmetic, and counted."""

    def __init__(self, folder, settings=None, **kind):
        self.path = folder / "slug.py"
        self.study = Study(self.path, "a title", settings=settings or {"epochs": 3}, **kind)
        self.trained = []

    def measure(self, system, seed, data, rate):
        assert data == f"data of {seed}"
        self.trained.append((system, seed, rate))
        best = {"ours": 2, "theirs": 3}[system]
        score = 0.9 - 0.1 * abs(rate - best) + 0.01 * (seed % 7) + 0.05 * (system == "ours")
        return {"rate": rate, "validation": score, "accuracy": score}

    def run(self, rates=(1, 2, 3)):
        self.chosen = self.study.compare(ARMS, rates, lambda seed: f"data of {seed}", self.measure)
        self.study.finish(summary, claims, on="toy", remarks=remarks, share=0.25)
        return self


def summary(records):
    return table_of(records, {"rate": first("rate"), "accuracy %": percents("accuracy")})


def claims(records):
    return [claim("Ours vs theirs", paired(records, *ARMS), at_least=1.0)]


def remarks(records, share):
    return [f"Share {share:.0%}."]


def test_every_arm_chooses_from_as_many_on_a_seed_that_is_not_reported(tmp_path):
    script = Script(tmp_path, full=True).run()
    assert script.chosen == {"ours": 2, "theirs": 3}
    searched = [one for one in script.trained if one[1] == SEARCH_SEED]
    assert searched == [(arm, SEARCH_SEED, rate) for arm in ARMS for rate in (1, 2, 3)]
    reported = [one for one in script.trained if one[1] != SEARCH_SEED]
    assert reported == [(arm, seed, script.chosen[arm]) for seed in range(5) for arm in ARMS]


def test_full_result(tmp_path):
    script = Script(tmp_path, full=True).run()
    result = read_json(script.study.result)
    assert result["title"] == "slug: a title (toy)"
    assert result["command"] == "vitreous reproduce slug --full"
    assert result["rows"][0] == {
        "system": "ours",
        "seeds": 5,
        "rate": 2,
        "accuracy %": "97.00 ± 1.58",
    }
    assert result["claims"][0]["verdict"] == "holds" and result["claims"][0]["count"] == 5
    assert result["conclusion"].endswith("holds. Share 25%.")
    assert len(result["runs"]) == 10 and len(result["searched"]) == 6
    assert not script.study._unfinished.exists()


@pytest.mark.parametrize(("kind", "seeds"), [({}, 2), ({"quick": True}, 1)])
def test_others_take_fewer_seeds_and_record_nothing(tmp_path, kind, seeds):
    script = Script(tmp_path, **kind).run()
    assert {seed for _, seed, _ in script.trained} == {SEARCH_SEED, *range(seeds)}
    assert not (tmp_path / "results").exists()


class Stop(BaseException):
    """What ends a process from outside."""


@pytest.mark.parametrize("after", range(16))
def test_stopped_anywhere_it_goes_on_and_measures_nothing_twice(tmp_path, after):
    whole = Script(tmp_path / "whole", full=True).run()
    (tmp_path / "part").mkdir()
    stopped = Script(tmp_path / "part", full=True)
    measure = stopped.measure

    def measure_or_stop(*given):
        if len(stopped.trained) == after:
            raise Stop
        return measure(*given)

    stopped.measure = measure_or_stop
    with pytest.raises(Stop):
        stopped.run()
    again = Script(tmp_path / "part", full=True).run()
    assert stopped.trained + again.trained == whole.trained

    def plain(records):
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    for key in ("runs", "searched"):
        results = (read_json(script.study.result)[key] for script in (whole, again))
        first_runs, second_runs = map(plain, results)
        assert first_runs == second_runs


def test_finished_runs_are_kept_until_settings_change(tmp_path):
    Script(tmp_path, full=True).run()
    assert Script(tmp_path, full=True).run().trained == []
    assert len(Script(tmp_path, {"epochs": 4}, full=True).run().trained) == 16


def test_unfinished_runs_with_other_settings_are_dropped(tmp_path):
    old = Script(tmp_path, {"epochs": 1}, full=True).study
    old.run(lambda: {"accuracy": 0.1}, system="ours", seed=0)
    new = Script(tmp_path, full=True).study
    assert new.run(lambda: {"accuracy": 0.2}, system="ours", seed=0)["accuracy"] == 0.2
    assert [run["accuracy"] for run in read_json(new._unfinished)["runs"]] == [0.2]


def test_real_data_have_a_record_of_their_own(tmp_path):
    script = Script(tmp_path, full=True, data=tmp_path / "photos").run()
    assert script.study.result.name == "slug.photos.json"
    command = read_json(script.study.result)["command"]
    assert command == "vitreous reproduce slug --full --data photos"


def test_restating_changes_words_and_keeps_measurements(tmp_path):
    path = Script(tmp_path, full=True).run().study.result
    before = read_json(path)
    harder = SimpleNamespace(
        summary=summary,
        remarks=remarks,
        claims=lambda records: [claim("Ours", paired(records, *ARMS), at_least=99.0)],
    )
    restate(harder, path)
    after = read_json(path)
    assert after["claims"][0]["verdict"] == "does not hold"
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"claims", "conclusion"}
