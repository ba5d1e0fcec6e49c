"""Checkpoints of a run: written in the background, whole or not at all, the last few kept."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from jaxkit import validation
from jaxkit.training import step as steps

_LOGGER = logging.getLogger(__name__)


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        record: what was stored beside it (the configuration, the position in the data).

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> state = steps.TrainState(jnp.array(3), {"w": jnp.ones(2)}, (), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(state, {"position": 7})
        ...     checkpoints.wait()
        ...     restored = checkpoints.restore(state)
        >>> int(restored.state.step), restored.record
        (3, {'position': 7})
    """

    state: steps.TrainState
    record: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Use it as a context manager: leaving the block waits for the save in flight.

    Args:
        folder: where they are; made if missing.
        keep: how many of the latest to keep.
        report: called with a line of text when something was wrong but could be mended.

    Raises:
        ValueError: if `keep` is not positive.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> state = steps.TrainState(jnp.array(3), {"w": jnp.ones(2)}, (), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(state, {"position": 3})
        ...     checkpoints.wait()
        ...     checkpoints.restore(state).record
        {'position': 3}
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        report: Callable[[str], None] = _LOGGER.warning,
    ):
        validation.integer("keep", keep, minimum=1)
        self.folder = pathlib.Path(folder).resolve()
        self._report = report
        latest: Any = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.folder), preservation_policy=latest, cleanup_tmp_directories=True
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: steps.TrainState, record: Mapping[str, Any]) -> None:
        """Start writing a checkpoint and return at once; the state may be donated afterwards.

        A step that has a checkpoint already is left as it is.

        Args:
            state: the training state.
            record: JSON-able facts that belong to this step.

        Raises:
            OSError: if an earlier save failed, for want of space, say.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            return
        with _as_os_error(self.folder):
            # Without `force`, a policy of orbax decides whether to save at all.
            self._checkpointer.save_checkpointables_async(
                step, {"state": state._asdict()}, force=True, custom_metadata=dict(record)
            )

    def wait(self) -> None:
        """Wait until the save in flight is on disk.

        Raises:
            OSError: if it failed.
        """
        with _as_os_error(self.folder):
            self._checkpointer.wait()

    def restore(self, like: steps.TrainState) -> Restored | None:
        """Load the latest whole checkpoint onto the devices of `like`.

        A checkpoint that cannot be read is reported, set aside (renamed `damaged-STEP`) and the
        one before it is tried.

        Args:
            like: a state of the same shapes; its shardings say where the arrays go, so that a run
                can move to another mesh.

        Returns:
            The state and its record, or None if there is no checkpoint.

        Raises:
            OSError: if there are checkpoints and none can be read.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        found = sorted(self.steps, reverse=True)
        for step in found:
            try:
                loaded = self._checkpointer.load_checkpointables(
                    step, {"state": abstract._asdict()}
                )
                metadata = self._checkpointer.checkpointables_metadata(step)
                record: Any = metadata.custom_metadata
                if record is None:
                    raise ValueError("its record is missing")
                return Restored(steps.TrainState(**loaded["state"]), record)
            except Exception as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
                self._report(f"checkpoint {step} in {self.folder} cannot be read ({reason[:200]})")
                self._set_aside(step)
        if found:
            raise OSError(f"none of the {len(found)} checkpoints in {self.folder} can be read")
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            damaged = self.folder / f"damaged-{step}"
            (self.folder / str(step)).rename(damaged)
        self._checkpointer.reload()


@contextlib.contextmanager
def _as_os_error(folder: pathlib.Path) -> Iterator[None]:
    # Orbax and its storage layer raise errors of many types for a disk that refuses.
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if any(sign in str(error) for sign in ("No space", "RESOURCE_EXHAUSTED", "ENOSPC")):
            raise OSError(28, "no space left for a checkpoint", str(folder)) from error
        raise
