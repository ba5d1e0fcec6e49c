"""The folder of a run as a value: one writer, any number of readers, an identity, checkpoints."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxkit import files, validation
from jaxkit.training import checkpoints, identities
from jaxkit.training import mesh as meshes
from jaxkit.training import metrics as measuring
from jaxkit.training import progress as showing
from jaxkit.training.checkpoints import Restored

_IDENTITY, _CHECKPOINTS, _LOCK = "config.json", "checkpoints", ".lock"


class Keep(NamedTuple):
    """Which checkpoints stay.

    Attributes:
        latest: this many of the newest.
        every: those of steps divisible by this, if given.
        best: the one with the least value of this number among its step's evaluation, if given.
    """

    latest: int = 2
    every: int | None = None
    best: str | None = None


class Run:
    """A run's folder, claimed for writing while a `with` block lasts.

    Args:
        folder: the run's; made if missing.
        keep: which checkpoints stay.
        report: called with a line of text when a checkpoint is damaged.

    Raises:
        OSError: if another process holds the folder, or the disk refuses.
        ValueError: if a number of `keep` is not positive, or the folder's name is empty.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Run(folder) as run:
        ...         run.identify({"seed": 0})
        ...         run.save(3, {"w": jnp.ones(2)}, {"position": 7})
        ...     with Run(folder) as run:
        ...         run.identify({"seed": 0})
        ...         restored = run.restore({"w": jnp.zeros(2)})
        >>> restored.step, restored.state["w"].tolist(), restored.record
        (3, [1.0, 1.0], {'position': 7})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: Keep = Keep(),  # noqa: B008 - a constant
        report: Callable[[str], None] = showing.say,
    ):
        if not os.fspath(folder):
            raise ValueError("folder must name a folder ('.' is the current one), got ''")
        validation.integer("keep.latest", keep.latest, minimum=1)
        if keep.every is not None:
            validation.integer("keep.every", keep.every, minimum=1)
        self.folder = pathlib.Path(folder)
        self._checkpoints = (self.folder / _CHECKPOINTS).resolve()
        self._keep, self._report = keep, report
        self._identified = False
        self._to_store: dict[str, Any] | None = None
        self._open = contextlib.ExitStack()
        self._saving: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Run:
        main = jax.process_index() == 0
        if meshes.any_process(main and not self._claim()):
            self._open.close()
            raise OSError(
                f"{self.folder} is being written by another process, or by a run that is open here"
            )
        self._writer = self._open.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        if main and self._checkpoints.is_dir():
            for leftover in self._checkpoints.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        self._values: dict[int, float | None] = {}
        for step in self.steps if main and self._keep.best else ():
            with contextlib.suppress(OSError, ValueError, KeyError):  # `restore` will say it
                self._values[step] = checkpoints.read_record(self._checkpoints / str(step)).value
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._open:
            if kind is None:
                if self._identified:
                    self._store_identity()
                self.wait()
            elif self._saving is not None:
                concurrent.futures.wait([self._saving])

    def _claim(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(
                f"{self.folder} must be a folder, and it or one that is to hold it is a file"
            ) from None
        handle = self._open.enter_context((self.folder / _LOCK).open("w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @property
    def identity(self) -> dict[str, Any] | None:
        """What `identify` was told, now or in an earlier process; None in a new folder."""
        return read_identity(self.folder) if self._to_store is None else self._to_store

    def identify(self, identity: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
        """Say which run this is: compared with what the folder holds, stored by the first write.

        A start that fails before it writes anything leaves the folder as it was.

        Args:
            identity: JSON that two starts of one run share: configuration, fingerprints of data and
                tokenizer, key. A `"program"` from `program_fingerprint` is compared under one
                version of JAX only.
            may_change: fields that may differ, such as `"config.mesh"`; the new value is stored.

        Raises:
            ValueError: if it differs in another field, all of which are named, or if there are
                checkpoints of a run that nothing describes.
        """
        new, old = identities.as_json(identity), self.identity
        if old is None and self.steps:
            raise ValueError(
                f"{self.folder} holds checkpoints but no {_IDENTITY} that says whose: put it "
                f"back, or remove {self._checkpoints.name} to begin anew"
            )
        found = {} if old is None else identities.differences(old, new)
        fatal = {name: text for name, text in found.items() if name not in may_change}
        # Every process compares before the first one writes.
        if meshes.any_process(bool(fatal)):
            identities.require_same(self.folder, fatal)
        self._to_store, self._identified = new, True

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return _steps(self._checkpoints)

    def restore(self, like: PyTree | Callable[[dict[str, Any]], PyTree]) -> Restored | None:
        """Load the newest checkpoint, so that the run goes on from it.

        A checkpoint whose bytes are not those written, or whose write was interrupted, is reported
        and set aside as `damaged-STEP`, and the one before it is taken. Every other error leaves
        all of them where they are.

        Args:
            like: arrays, or `jax.ShapeDtypeStruct` with shardings, of the same shapes and types as
                the state; shardings say where the arrays go, so that a run can move to another
                mesh. Or a function from the record to them.

        Returns:
            Step, state and record; None if the run is new.

        Raises:
            ValueError: if the state stored has other leaves.
            OSError: if all checkpoints are damaged, or the disk refuses.
        """
        self._require_identity()
        self.wait()
        step = _from_first(self._newest_whole)
        if step >= 0:
            return checkpoints.load(self._checkpoints / str(step), like)
        if any(self._checkpoints.glob("damaged-*")):
            raise OSError(
                f"{self.folder} holds damaged checkpoints only: remove {_CHECKPOINTS}/damaged-* to "
                "begin the run anew"
            )
        return None

    def _newest_whole(self) -> int:
        for step in reversed(self.steps):
            path = self._checkpoints / str(step)
            try:
                checkpoints.prove(path)
            except checkpoints.DamagedCheckpointError as error:
                aside = _free_name(path.with_name(f"damaged-{step}"))
                self._report(f"checkpoint {path} is damaged ({error}); it is now {aside.name}")
                path.rename(aside)
                self._values.pop(step, None)
            else:
                return step
        return -1

    def save(
        self,
        step: int,
        state: PyTree,
        record: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to write a checkpoint and return; the state may be donated afterwards.

        A step that has a checkpoint already is left as it is.

        Args:
            step: steps made.
            state: any pytree of arrays and numbers.
            record: JSON that belongs to this step.
            evaluation: what was measured at this step, by which the best is kept.

        Raises:
            OSError: if an earlier save failed.
        """
        self._store_identity()
        self.wait()
        if _from_first(lambda: step in self.steps):
            return
        value = None if evaluation is None else evaluation.get(self._keep.best or "")
        path = self._checkpoints / str(step)
        finish = checkpoints.start_writing(path, state, record or {}, value)
        self._saving = self._writer.submit(self._finish, finish, step, value)

    def _finish(self, finish: Callable[[], None], step: int, value: float | None) -> None:
        finish()
        if jax.process_index() == 0:
            self._values[step] = value
            self._prune()

    def _prune(self) -> None:
        steps, (latest, every, best) = self.steps, self._keep
        kept = {*steps[-latest:], *(step for step in steps if every and step % every == 0)}
        valued = {s: v for s, v in self._values.items() if best and v is not None and v == v}
        if valued:
            kept.add(min(valued, key=lambda step: (valued[step], -step)))
        for step in set(steps) - kept:
            checkpoints.prune(self._checkpoints / str(step))

    def wait(self) -> None:
        """Wait until the save in flight is on disk.

        Raises:
            OSError: if it failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def log(self, name: str, after: int) -> measuring.MetricsLog:
        """Open `NAME.jsonl` to append rows; rows of later steps are forgotten.

        Args:
            name: of the log.
            after: the step that the run goes on from.
        """
        self._store_identity()
        return measuring.MetricsLog(self.folder / f"{name}.jsonl", after)

    def _require_identity(self) -> None:
        if not self._identified:
            raise RuntimeError("call identify first: a folder must not mix two runs")

    def _store_identity(self) -> None:
        self._require_identity()
        if self._to_store is not None and jax.process_index() == 0:
            text = json.dumps(self._to_store, indent=2) + "\n"
            files.write_atomically(self.folder / _IDENTITY, text)
        self._to_store = None


def read_identity(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read which run a folder holds; nothing is written.

    Args:
        folder: the run's.

    Returns:
        What `Run.identify` was given; None if there is no run.

    Raises:
        ValueError: if the file is damaged.

    Example:
        >>> read_identity("no/such/run") is None
        True
    """
    path = pathlib.Path(folder) / _IDENTITY
    try:
        return files.json_object(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_run(
    folder: str | os.PathLike[str],
    like: PyTree | Callable[[dict[str, Any]], PyTree],
    *,
    step: int | None = None,
    identity: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = showing.say,
) -> Restored:
    """Load a checkpoint of a run that may be training: nothing is written, renamed or locked.

    Args:
        folder: the run's.
        like: as for `Run.restore`.
        step: which; by default the newest whole one, also while older ones are pruned.
        identity: what the run must be, as for `Run.identify`; None for any.
        report: called with a line of text for each damaged checkpoint that was passed over.

    Raises:
        ValueError: if there is none, the state stored has other leaves, or the run is another; all
            differences are named.
        OSError: if all are damaged, or the disk refuses.

    Example:
        >>> try:
        ...     read_run("no/such/run", {})
        ... except ValueError as error:
        ...     print(error)
        no/such/run has no checkpoint yet
    """
    place = pathlib.Path(folder).resolve() / _CHECKPOINTS
    stored = read_identity(folder)
    if identity is not None and stored is not None:
        asked = identities.as_json(identity)
        identities.require_same(folder, identities.differences(stored, asked))
    damaged: set[int] = set()
    while True:
        found = [s for s in _steps(place) if s not in damaged and step in (None, s)]
        if not found:
            break
        path = place / str(found[-1])
        try:
            with checkpoints.held(path):
                checkpoints.prove(path)
                return checkpoints.load(path, like)
        except checkpoints.DamagedCheckpointError as error:
            report(f"checkpoint {path} is damaged ({error})")
            damaged.add(found[-1])
        except Exception:
            # Pruned under us: there is a newer one. All else is what it says.
            if path.is_dir():
                raise
    if damaged:
        raise OSError(f"none of the checkpoints of {folder} is whole")
    raise ValueError(f"{folder} has no checkpoint {'yet' if step is None else step}")


def _steps(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    names = (name for name in os.listdir(folder) if re.fullmatch("0|[1-9][0-9]*", name))
    return sorted(int(name) for name in names if (folder / name).is_dir())


def _free_name(path: pathlib.Path) -> pathlib.Path:
    names = itertools.chain([path.name], (f"{path.name}.{n}" for n in itertools.count(2)))
    return next(free for free in map(path.with_name, names) if not free.exists())


def _from_first(ask: Callable[[], int]) -> int:
    """What process 0 finds, told to all."""
    if jax.process_count() == 1:
        return ask()
    from jax.experimental import multihost_utils

    found = np.asarray(ask() if jax.process_index() == 0 else 0, np.int32)
    return int(multihost_utils.broadcast_one_to_all(found))
