"""The tables of kinds and tasks: whole, true to the code, and the only place that lists them."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vitreous
from vitreous.catalog.kinds import KINDS
from vitreous.catalog.lookup import load
from vitreous.catalog.registry import cards, check_task, kind_of, list_models, system_module
from vitreous.catalog.tasks import TASKS, TaskModule, module_of
from vitreous.errors import ConfigError
from vitreous.recipe import Settings

SOURCE = Path(vitreous.__file__).parent
TABLES = {SOURCE / "catalog" / "kinds.py", SOURCE / "catalog" / "tasks.py"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_is_what_its_row_says(kind):
    systems = [entry for entry in cards() if entry.kind == kind.name]
    assert systems
    if kind.base:
        assert inspect.isclass(load(kind.base))
    if kind.checks:
        assert all(callable(check) for check in load(kind.checks))
    if kind.verify:
        assert callable(load(kind.verify))
    assert not kind.buildable or (kind.base and kind.checks and kind.verify)
    for entry in systems:
        module = system_module(entry.slug)
        if (
            kind.base or kind.advice
        ):  # else it is a card alone: something that is no system of its own
            assert hasattr(module, "build" if kind.base else "install") or hasattr(module, "loss")
        if kind.buildable:
            parameters = inspect.signature(module.build).parameters
            needed = {n for n, p in parameters.items() if p.default is p.empty}
            assert needed <= {"bands", *kind.sizes} <= set(parameters), entry.slug


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_what_its_row_says(task):
    recipe = load(task.recipe)
    assert issubclass(recipe, Settings)
    assert recipe.__name__
    for path in (task.report, task.shown):
        assert callable(load(path))
    assert {*task.kinds, *task.baselines} <= set(KINDS)
    assert set(task.starts_from) <= set(TASKS) - {task.name}
    assert any(entry.kind in task.kinds and task.serves(entry.tasks) for entry in cards())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_module_of_a_task_offers_what_all_do(task):
    module = module_of(task)
    wanted = {"train", "load_run"} | ({"evaluate"} if task.figure else set())
    wanted |= {"apply"} if task.product else set()
    assert wanted == {n for n in ("train", "load_run", "evaluate", "apply") if hasattr(module, n)}
    for name in wanted:
        own = list(inspect.signature(getattr(module, name)).parameters.values())
        shared = list(inspect.signature(getattr(TaskModule, name)).parameters.values())[1:]
        shared = [p for p in shared if p.kind is not p.VAR_KEYWORD]
        for mine, theirs in zip(own, shared, strict=False):
            assert (mine.name, mine.kind, mine.default) == (
                theirs.name,
                theirs.kind,
                theirs.default,
            )
        for option in own[len(shared) :]:
            assert option.kind is option.KEYWORD_ONLY and option.default is not option.empty


def test_the_tables_load_nothing():
    code = (
        "import sys; from vitreous.catalog.tasks import tasks; from vitreous.catalog.kinds import KINDS; tasks();"
        "assert not {'torch', 'numpy', 'xarray', 'typer'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def names_compared(path: Path) -> set[str]:
    """Return the names of kinds and tasks that a file compares something with."""
    names = set(KINDS) | set(TASKS)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            words = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            about = ast.unparse(node)
            if any(sign in about for sign in ("kind", "task", "TASK")):
                found |= names & {word for word in words if isinstance(word, str)}
    return found


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(SOURCE.rglob("*.py")) if p not in TABLES],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_nothing_asks_for_a_kind_or_task_by_name(path):
    # About methods alone.
    allowed = {
        "_apply.py": {"method"},
        "_freeze.py": {"method"},
        "methods.py": {"method"},
    }
    assert names_compared(path) <= allowed.get(path.name, set())


@pytest.mark.parametrize(
    ("name", "task", "baseline", "problem", "fix"),
    [
        ("hsdt_test", "classify", False, "which does not classify", "vitreous restore"),
        ("low_rank", "classify", True, "which does not classify", "vitreous restore"),
        ("lora", "classify", False, "is a method, which does not classify", "--adapt"),
        ("vit_test", "restore", False, "an architecture, which does not restore", "vitreous train"),
        ("hsdt_test", "restore", True, "needs training", "low_rank"),
        ("vit_test", "pretrain", False, "does not support pre-training", "satmae_pp"),
        ("svm", "pretrain", False, "does not support pre-training", "vitreous train"),
    ],
)
def test_what_a_task_does_not_train_is_refused_in_words(name, task, baseline, problem, fix):
    with pytest.raises(ConfigError) as caught:
        check_task(name, task, baseline=baseline)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_every_system_is_trained_by_a_task_or_applied_to_one_that_is():
    for entry in cards():
        trained = [t for t in TASKS.values() if entry.kind in t.kinds and t.name in entry.tasks]
        assert trained or kind_of(entry.slug).advice


def test_kinds_select():
    every = {name for kind in KINDS for name in list_models(kind=kind)}
    assert every == set(list_models())
