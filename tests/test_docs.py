"""The documentation is made from what the code and the records say, opens offline, and speaks the field's English."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import rasterio
from PIL import Image

import vitreous
from vitreous.catalog.registry import cards, list_models

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HAND_WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
# Turns of phrase that no user of remote sensing or vision would write, each as a pattern.
IDIOMS = [
    r"\bin use\b",
    r"\bby turns\b",
    r"\bthe house\b",
    r"\bshall\b",
    r"\bheld (up )?(to|against)\b",
    r"(?<!there )\b(is|are) no (?!longer\b|more\b|less\b)[a-z]",
    r"\bpixels that choose\b",
    r"\bground it has not seen\b",
    r"\bwhat is undone\b",
    r"\btimes as fast\b",
    r"\bthe claim demands\b",
    r"\bgo(es)? on (with|where|after)\b",
    r"\bmakes? no sense\b",
    r"\bof another kind\b",
    r"\bnext to no\b",
    r"\bsay [a-z_]+=",
    r"\bfetch it again\b",
    r"\bis there already\b",
    r"\bleave [a-z_' ]+ out\b",
]


@pytest.fixture(scope="module")
def docs():
    """Give the scripts in docs/ as modules."""
    sys.path.insert(0, str(DOCS))
    try:
        names = (
            "benchmark_plots",
            "costs",
            "generate",
            "pictures",
            "plots",
            "records",
            "system_pages",
        )
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(DOCS))


def test_generated_files_are_up_to_date():
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_system_has_a_page_and_a_row(docs):
    index = (DOCS / "systems.md").read_text(encoding="utf-8")
    for card in cards():
        page = (DOCS / "systems" / f"{card.slug}.md").read_text(encoding="utf-8")
        assert card.summary in page
        assert card.when in page
        assert f"[{card.slug}](systems/{card.slug}.md)" in index
        for name in card.variants:
            assert (f"`{name}`" in page) is not name.endswith("_test"), name


@pytest.mark.parametrize("name", ["vit_tiny", "lola_specvit_tiny", "hsdt_c4", "swin_tiny"])
def test_recorded_costs_are_those_of_the_networks(docs, name):
    card, shape = docs["costs"].networks()[name]
    assert docs["costs"].count(name, card, shape) == docs["costs"].recorded()[name]


def test_every_network_is_counted_once(docs):
    trained = {*list_models(kind="model"), *list_models(kind="restorer")}
    assert set(docs["costs"].recorded()) == {name for name in trained if not name.endswith("_test")}
    assert docs["costs"].stale() == []


def test_changed_arguments_ask_for_a_new_count(docs, monkeypatch):
    recorded = json.loads(json.dumps(docs["costs"].recorded()))
    recorded["vit_tiny"]["of"] = "other"
    monkeypatch.setattr(docs["costs"], "recorded", lambda: recorded)
    assert docs["costs"].stale() == ["vit_tiny"]
    assert docs["generate"].main(check=True) == 1


def _record(docs, name="net", data="", **content):
    whole = {"title": "net: what was asked (digits)", "command": "c", "machine": "m", "date": "d"}
    return docs["records"].Record(name, data, {**whole, "rows": [], "conclusion": "", **content})


CLAIM = {
    "text": "A over B",
    "effect": 3.5,
    "low": 1.2,
    "high": 5.8,
    "required": 1.0,
    "at_least": True,
    "unit": "points",
    "verdict": "holds",
}


def test_a_claim_is_drawn_with_effect_interval_and_requirement(docs):
    svg = _record(docs, claims=[CLAIM]).plot()
    for words in ("A over B", "+3.50 points", "+1.20 to +5.80", "at least +1.00", ">holds<"):
        assert words in svg
    places = dict(re.findall(r'class="(required|holds line)" x1="([\d.]+)"', svg))
    ends = re.search(r'class="holds line" x1="([\d.]+)" x2="([\d.]+)"', svg)
    dot = float(re.search(r'cx="([\d.]+)"', svg)[1])
    assert float(places["required"]) < float(ends[1]) < dot < float(ends[2])


def test_a_claim_without_an_interval_is_drawn_without_one(docs):
    bound = {**CLAIM, "low": None, "high": None, "at_least": False, "unit": "times"}
    svg = _record(docs, claims=[bound]).plot()
    assert "95 %" not in svg
    assert "at most 1.00" in svg
    assert "3.50 times" in svg


def test_an_effect_of_which_nothing_is_claimed_is_drawn_alone(docs):
    reported = {**CLAIM, "required": None, "verdict": None, "digits": 1, "signed": True}
    record = _record(docs, claims=[reported, CLAIM])
    assert "+1.2 to +5.8" in record.plot()
    assert record.plot().count('class="required"') == 1
    assert record.verdicts() == "1 holds"


def test_without_claims_the_arms_are_drawn_with_t_intervals(docs):
    rows = [
        {"system": "A", "seeds": 3, "parameters": 10, "accuracy %": "90.00 ± 1.00"},
        {"system": "B", "seeds": 1, "parameters": 10, "accuracy %": "80.00"},
    ]
    svg = _record(docs, rows=rows).plot()
    assert "90.0 ± 2.5" in svg  # 4.303 / sqrt(3) = 2.48
    assert ">80.0<" in svg
    assert _record(docs, rows=[{"system": "A"}]).plot() is None


def test_toy_data_are_called_so_and_real_data_come_first(docs, monkeypatch, tmp_path):
    def write(name, title):
        content = {"title": title, "rows": [], "conclusion": "", "command": "", "machine": ""}
        (tmp_path / name).write_text(json.dumps({**content, "date": ""}))

    write("net.json", "net: what was asked (digits)")
    write("net.cifar10.json", "net: what was asked (cifar10)")
    write("toy.json", "toy: why not (toy: digits on texture)")
    write("other.json", "other: more (Indian Pines)")
    monkeypatch.setattr(docs["records"], "REPRODUCTIONS", tmp_path)
    titles = [record.title for record in docs["records"].reproductions("net")]
    assert titles == ["What was asked (cifar10)", "Toy data: what was asked (digits)"]
    assert docs["records"].reproductions("other")[0].title == "More (Indian Pines)"
    assert docs["records"].reproductions("toy")[0].title == "Toy data: why not (digits on texture)"


def test_verdicts_are_counted(docs):
    claims = [CLAIM, {**CLAIM, "verdict": "not decided"}, CLAIM]
    assert _record(docs, claims=claims).verdicts() == "2 hold, 1 not decided"
    words = "It is ahead: holds. It is faster: does not hold."
    assert _record(docs, conclusion=words).verdicts() == "1 holds, 1 does not hold"


def test_benchmarks_are_drawn_by_what_they_recorded(docs):
    plots = docs["benchmark_plots"]
    row = {"architecture": "vit", "fixed OA %": "70.00 ± 1.00", "blocks OA %": "40.00 ± 5.00"}
    both = plots.leaderboard(_record(docs, "leaderboard", rows=[{**row, "seeds": 5}]))
    assert both.count(">vit<") == 1  # a row
    assert ">70.0 / 40.0<" in both
    for name, draw in plots.PLOTS.items():  # other columns: no plot rather than an error
        for function in draw.values():
            assert function(_record(docs, name, rows=[{"other": 1}])) is None
    for record in docs["records"].benchmarks():
        assert set(plots.drawn(record)) == set(plots.PLOTS.get(record.name, {}))


def test_pictures_are_small_and_have_a_maker(docs):
    pictures = {path.name: path.stat().st_size for path in (DOCS / "pictures").iterdir()}
    assert set(pictures) == set(docs["pictures"].MAKERS)
    assert max(pictures.values()) <= docs["pictures"].LARGEST == 150_000
    plots = [path.stat().st_size for path in (DOCS / "figures").iterdir()]
    assert max(plots) < 30_000


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_the_picture_of_scene_and_map_is_drawn_from_a_run(docs, tmp_path):
    _, labels, _ = vitreous.load_sample("indian_pines")
    height, width = labels.shape
    form = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "map.tif", "w", **form) as raster:
        raster.write(labels.values.astype("uint8"), 1)
    names = labels.attrs["class_names"]
    classes = [
        {"value": number, "name": name, "color": "#336699"} for number, name in enumerate(names, 1)
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"classes": classes}))
    docs["pictures"].scene_and_map(tmp_path, tmp_path / "drawn.webp")
    with Image.open(tmp_path / "drawn.webp") as picture:
        assert picture.width > 2 * picture.height
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_pictures_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img [^>]*src=\"([^\"]+)\"", text)
    for target in (one or other for one, other in shown):
        assert (page.parent / target).is_file(), target


def test_first_screens_show_pictures():
    for page in (ROOT / "README.md", DOCS / "index.md"):
        top = "\n".join(page.read_text(encoding="utf-8").splitlines()[:15])
        assert "scene-and-map.webp" in top
        assert "```" not in top


def test_readme_tables_are_narrow():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 30
    for row in rows:
        assert row.count(" | ") == 1, row
        assert len(row) < 300, row


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_commands_need_no_sideways_scrolling(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= 80, line


def _texts_of_sources():
    """Give every text in the code but docstrings and comments: options, errors, warnings, cards, reports, conclusions."""
    for folder in ("src", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, words in _literals(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{path.relative_to(ROOT)}:{line}", words


def _literals(node):
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Expr(value=ast.Constant()):  # a docstring
                continue
            case ast.Constant(value=str(words)):
                yield child.lineno, words
            case ast.JoinedStr(values=parts):
                yield (
                    child.lineno,
                    "".join(p.value if isinstance(p, ast.Constant) else "X" for p in parts),
                )
            case _:
                yield from _literals(child)


def test_notes_stand_under_a_heading(docs):
    for card in cards():
        for note in card.notes:
            assert note.partition(": ")[0] in docs["system_pages"].NOTE_HEADINGS, (card.slug, note)


def test_texts_and_pages_have_no_idioms_of_their_own():
    found = [
        f"{where}: {match[0]}"
        for where, words in [
            *_texts_of_sources(),
            *((page.name, _hand_written(page)) for page in HAND_WRITTEN),
        ]
        for pattern in IDIOMS
        for match in re.finditer(pattern, words, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def _hand_written(page):
    """Return a page without what is made from settings and records, whose texts have tests of their own."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"<!-- generated: \w+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)


class _Resources(HTMLParser):
    """Collects what a browser loads to show a page; links that a reader may follow are not loaded."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "link" and named.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(named.get("href"))
        if tag in ("script", "img", "iframe", "source", "embed", "object"):
            self.found += [named.get("src"), named.get("data"), named.get("srcset")]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="the site needs the extra 'docs'")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted(site.rglob("*.html"))
    assert len(built) > len(cards())
    for page in built:
        resources = _Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        elsewhere = [r for r in resources.found if r and re.match(r"(https?:)?//", r)]
        assert not elsewhere, f"{page.name}: {elsewhere}"
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]+)\)", sheet.read_text("utf-8"))
        assert not loaded, f"{sheet.name}: {loaded}"
    shutil.rmtree(site)


def test_own_scripts_load_nothing_from_elsewhere():
    for asset in (DOCS / "assets").iterdir():
        assert "://" not in asset.read_text(encoding="utf-8"), asset.name
