"""``vitreous doctor``: is this machine ready, and with what."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from vitreous.catalog import plugins

GIGABYTE = 1e9
LITTLE_MEMORY = 4 * GIGABYTE  # `vitreous demo` stays below it
LITTLE_DISK = 2 * GIGABYTE
FOR_DEVELOPERS = ("dev", "docs")  # nobody misses these
NEEDED_DRIVERS = ("GTiff", "COG", "ENVI", "JP2OpenJPEG")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check this installation and machine, with advice where something is wrong."""
    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print(facts)


def examine() -> dict[str, Any]:
    """Return everything that matters for running vitreous here, and advice."""
    packages = installed_packages()
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "machine": machine(),
        "packages": packages["core"],
        "extras": packages["extras"],
        "extensions": plugins.installed(),
        "raster": raster(),
        "gpus": gpus(),
    }
    facts["advice"] = advice(facts)
    return facts


def installed_packages() -> dict[str, dict[str, Any]]:
    """Return the versions of the required packages, and those of every extra, from the package's own metadata."""
    core: dict[str, str | None] = {"vitreous": _version("vitreous")}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires("vitreous") or []:
        match = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if match is None or match[0] == "vitreous":
            continue
        group = extras.setdefault(extra[1], {}) if extra else core
        group[match[0]] = _version(match[0])
    return {"core": core, "extras": extras}


def machine() -> dict[str, Any]:
    """Return cores, threads, memory and disk space (bytes)."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory": _memory(),
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "temporary_free": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def raster() -> dict[str, Any]:
    """Return GDAL's version and drivers, what rasterio bundles, and whether the driver allow-list holds."""
    import rasterio
    from rasterio.env import Env

    with Env() as env:
        drivers = env.drivers()
    bundled = Path(rasterio.__file__).parent.parent / "rasterio.libs"
    return {
        "gdal": rasterio.__gdal_version__,
        "proj": rasterio.__proj_version__,
        "geos": rasterio.__geos_version__,
        "bundled": sorted(path.name for path in bundled.glob("*.so*")),
        "drivers": {name: name in drivers for name in NEEDED_DRIVERS},
        "vrt_refused": vrt_refused(),
    }


def vrt_refused() -> bool:
    """Return whether a VRT, which could point GDAL at any file, is refused under its own and another name."""
    from vitreous.errors import SceneError
    from vitreous.scenes import open_scene

    recipe = '<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    with tempfile.TemporaryDirectory() as folder:
        for name in ("scene.vrt", "scene.tif"):
            path = Path(folder) / name
            path.write_text(recipe, encoding="utf-8")
            try:
                open_scene(path)
            except SceneError:
                continue
            return False
    return True


def gpus() -> list[str]:
    """Return the names of the GPUs that torch can use."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def advice(facts: dict[str, Any]) -> list[str]:
    """Return what to do about whatever is amiss in ``facts``."""
    here, rasters = facts["machine"], facts["raster"]
    said = []
    if here["memory"] is not None and here["memory"] < LITTLE_MEMORY:
        said.append(
            "Less than 4 GB of memory: use a small --batch-size for training and a small --window for inference."
        )
    if min(here["disk_free"], here["temporary_free"]) < LITTLE_DISK:
        said.append(
            "Less than 2 GB of disk space here or in the temporary folder: free some, or set TMPDIR."
        )
    if (
        here["threads"] is not None
        and here["threads"].isdigit()
        and int(here["threads"]) > here["cores"]
    ):
        said.append(f"OMP_NUM_THREADS is {here['threads']} on {here['cores']} cores: lower it.")
    missing = [name for name, there in rasters["drivers"].items() if not there]
    if missing:
        said.append(f"This GDAL lacks {', '.join(missing)}: install rasterio from its wheel.")
    if not rasters["vrt_refused"]:
        said.append("GDAL opened a VRT, which it must refuse: please report this.")
    if not facts["gpus"]:
        said.append("No GPU: use the small CPU variants such as lola_specvit_tiny.")
    lacking = [
        extra
        for extra, packages in facts["extras"].items()
        if extra not in FOR_DEVELOPERS and None in packages.values()
    ]
    if lacking:
        said.append(
            f"Incomplete optional extras: {', '.join(lacking)}. To install them in a checkout: pip install -e "
            f"'.[{','.join(lacking)}]'"
        )
    return said


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    """Return the memory that this process may use: the machine's, or its container's limit if that is less."""
    from vitreous.catalog.results import physical_memory

    physical = physical_memory()
    if physical is None:
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    here, rasters = facts["machine"], facts["raster"]
    memory = "unknown" if here["memory"] is None else f"{here['memory'] / GIGABYTE:.1f} GB"
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "vitreous": f"{facts['packages']['vitreous']} on Python {facts['python']}, {facts['system']}",
        "machine": f"{here['cores']} cores, {memory} memory, {here['disk_free'] / GIGABYTE:.1f} GB disk free",
        "threads": f"OMP_NUM_THREADS={here['threads']}" if here["threads"] else "default of torch",
        "GPUs": ", ".join(facts["gpus"]) or "none",
        "packages": _versions(facts["packages"]),
        **{f"extra {extra}": _versions(packages) for extra, packages in facts["extras"].items()},
        **{f"extension {name}": ", ".join(own) for name, own in facts["extensions"].items()},
        "raster": f"GDAL {rasters['gdal']}, PROJ {rasters['proj']}, GEOS {rasters['geos']}, "
        f"{len(rasters['bundled'])} bundled libraries (all with --json)",
        "safety": "VRT refused" if rasters["vrt_refused"] else "VRT NOT refused",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console()
    console.print(table, markup=False)
    for line in facts["advice"]:
        console.print(Text.assemble(("! ", "yellow"), line), highlight=False)
    if not facts["advice"]:
        console.print("[green]All checks passed.[/]")


def _versions(packages: dict[str, str | None]) -> str:
    if not any(packages.values()):
        return "not installed"
    return ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items())
