"""Windows of a scene as tasks on a Dask cluster.

Dask only schedules: every task runs the very code that runs on one machine. The classifier travels pickled over
the cluster's own connections, so a scheduler must be as trusted as this machine.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import ConfigError, SceneError, VitreousError
from vitreous.inference.windows import Job, Scored, Window

ANSWER_SECONDS = 15.0  # a scheduler that is there answers at once
WORKER_SECONDS = 60.0  # workers may still be starting
IN_FLIGHT = 2  # windows per thread of the cluster: one computed, one waiting
PICKLE_LIMIT = 2**20  # a scene that pickles larger carries its values along


@dataclass(frozen=True, slots=True)
class SceneFile:
    """How a worker opens the scene for itself."""

    path: str
    attrs: dict[str, Any]

    def open(self) -> xr.DataArray:
        """Open the file, with what the user said about its values."""
        from vitreous.scenes import open_scene

        return open_scene(self.path).assign_attrs(self.attrs)


def score_on_cluster(
    job: Job, scene: xr.DataArray, windows: list[Window], address: str, workers: int | None
) -> Generator[tuple[Window, Scored], None, None]:
    """Score ``windows`` on a cluster; the results come in any order, a bounded number at a time.

    Workers read their windows from the scene's file where they can open it like this process does; of a scene
    in memory the values are sent.

    Args:
        job: the classifier and its bands.
        scene: the scene.
        windows: where.
        address: of a scheduler, or ``local`` for a cluster on this machine.
        workers: processes of the local cluster; one per core when None.

    Raises:
        ConfigError: Dask is not installed.
        VitreousError: the cluster does not answer, or loses its workers.
    """
    try:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise ConfigError(
            "Prediction on a cluster needs Dask.", "Install it: pip install 'vitreous[scale]'."
        ) from error

    with _client(address, workers) as client:
        threads = sum(client.nthreads().values())
        sender = _Sender(client, job, scene)
        waiting = iter(windows)
        places: dict[str, Window] = {}
        results = as_completed(with_results=True, raise_errors=True)

        def submit_next() -> None:
            window = next(waiting, None)
            if window is not None:
                future = sender.submit(window)
                places[future.key] = window
                results.add(future)

        for _ in range(IN_FLIGHT * threads):
            submit_next()
        try:
            for future, scored in results:
                window = places.pop(future.key)
                del future  # its result may leave the cluster's memory
                yield window, scored
                submit_next()
        except KilledWorker as error:
            raise VitreousError(
                "The Dask workers died during the computation.",
                "They probably ran out of memory: give them more, or use a smaller --window.",
            ) from error


class _Sender:
    """Turns windows into tasks, with the scene's file or, failing that, with the values."""

    def __init__(self, client: Any, job: Job, scene: xr.DataArray) -> None:
        self.client = client
        self.job = job
        self.scene = scene
        self.remote_job = client.scatter(job, broadcast=True, hash=False)
        file = _travels_as(scene)
        self.remote_scene = (
            None if file is None else client.scatter(_Boxed(file), broadcast=True, hash=False)
        )

    def submit(self, window: Window) -> Any:
        if self.remote_scene is not None:
            return self.client.submit(
                _read_and_score, self.remote_job, self.remote_scene, window, pure=False
            )
        values = self.client.scatter(self.job.read(self.scene, window), hash=False)
        return self.client.submit(_score, self.remote_job, values, pure=False)


@dataclass(frozen=True, slots=True)
class _Boxed:
    """Keeps Dask from treating an xarray object as a collection of its own."""

    scene: xr.DataArray | SceneFile


def _read_and_score(job: Job, boxed: _Boxed, window: Window) -> Scored:
    scene = boxed.scene
    opened = scene.open() if isinstance(scene, SceneFile) else scene
    return job.score(job.read(opened, window))


def _score(job: Job, values: npt.NDArray[np.float32]) -> Scored:
    return job.score(values)


def _travels_as(scene: xr.DataArray) -> xr.DataArray | SceneFile | None:
    """Return a small object from which a worker can read the scene, or None when only the values will do."""
    from distributed.protocol.pickle import dumps

    stored = scene.variable._data
    if isinstance(stored, np.memmap):
        return _scene_file(scene, stored)
    if isinstance(stored, np.ndarray):
        return None
    return scene if len(dumps(scene)) < PICKLE_LIMIT else None


def _scene_file(scene: xr.DataArray, stored: np.memmap[Any, Any]) -> SceneFile | None:
    """Return the file behind a memory map if opening it afresh gives the same one."""
    from vitreous.scenes import open_scene

    source = str(Path(scene.attrs.get("source") or "").absolute())
    try:
        again = open_scene(source).variable._data
    except SceneError:  # it was opened with hints that are not known here
        return None
    same = isinstance(again, np.memmap) and all(
        getattr(again, name) == getattr(stored, name)
        for name in ("filename", "shape", "strides", "dtype")
    )
    return SceneFile(source, dict(scene.attrs)) if same else None


@contextmanager
def _client(address: str, workers: int | None) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    if address == "local":
        with (
            LocalCluster(
                n_workers=workers or os.cpu_count(),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # any free port, for this machine alone
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        # A client makes itself the scheduler of everything before it connects, also where it then fails to.
        with dask.config.set(scheduler=dask.config.get("scheduler", None)):
            client = Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:  # ValueError: no address at all
        client, reason = None, str(error)
        # The error's frames keep the half-made client alive. Were it collected later, while another one starts, it
        # would wait for a lock that this one holds, for ever.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
    if client is None:
        gc.collect()
        raise VitreousError(
            f"The Dask scheduler {address} does not answer: {reason}.",
            "Check that it runs, and give its address as tcp://host:port (or 'local').",
        )
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise VitreousError(
                f"The Dask cluster at {address} has no workers.",
                "Start workers with: dask worker ADDRESS.",
            ) from error
        yield client
