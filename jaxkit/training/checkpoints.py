"""One checkpoint: any pytree and a JSON record, whole or not there, proved by digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import inspect
import json
import math
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

#: Written last: a digest for every other file, as `sha256sum` writes and checks them.
SUMS = "SHA256SUMS"
_RECORD, _ARRAYS = "record.json", "state"
#: Numbers written at a time (128 MiB in float32): Orbax holds them twice more until they are.
_TOGETHER = 2**25

#: Orbax numbers its operations for the whole process: two at a time take each other's signals.
_ORBAX = threading.Lock()


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: steps made when it was written.
        state: the state, like what it was asked to be like.
        record: the JSON stored beside it.
    """

    step: int
    state: Any
    record: dict[str, Any]


class DamagedCheckpointError(OSError):
    """A checkpoint that was not written to its end, or whose bytes are not those written."""


class _Leaf(NamedTuple):
    """A leaf of a state: where, how large, of what type, in which part of the files, its value."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    part: int
    value: Any = None

    @classmethod
    def of(cls, path: Any, value: Any) -> _Leaf:
        name = jax.tree_util.keystr(path)
        held = value if hasattr(value, "dtype") else np.asarray(value)
        if isinstance(held, np.ndarray | np.generic) and held.dtype.kind in "OSUMm":
            raise TypeError(f"state{name} must be an array or a number, got {value!r}")
        return cls(name, str(held.dtype), tuple(held.shape), 0, held)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to store; Orbax refuses such arrays."""
        return 0 in self.shape

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def _leaves(state: PyTree) -> list[_Leaf]:
    return [_Leaf.of(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _stored(value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if jax.process_count() > 1 and isinstance(value, jax.Array):
        return value
    # A copy, because the state may be donated while it is being written; and TensorStore never
    # gives back the memory of the metrics that Orbax asks it for at each save of a `jax.Array`.
    return np.array(value)


def start_writing(
    path: pathlib.Path, state: PyTree, record: Mapping[str, Any], value: float | None = None
) -> Callable[[], None]:
    """Begin a checkpoint; the state may be donated when this returns.

    Every process calls it, and then what it returns, which may run in a thread: it waits for the
    arrays, adds record and digests and gives the checkpoint its name.
    """
    from orbax.checkpoint import v1 as ocp

    writing = path.with_name(f".{path.name}.writing")
    several = jax.process_count() > 1
    leaves = _leaves(state) if several else _in_parts(_leaves(state))
    layout = [leaf[:-1] for leaf in leaves]
    text = json.dumps({"record": dict(record), "value": value, "state": layout}, indent=1)
    if jax.process_index() == 0:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    parts: dict[int, dict[str, Any]] = {}
    for leaf in leaves:
        if not leaf.empty:
            parts.setdefault(leaf.part, {})[leaf.path] = _stored(leaf.value)

    def begin() -> Any:
        part, arrays = parts.popitem()
        return ocp.save_async(str(writing / _ARRAYS / str(part)), arrays)

    begun = None
    if several and parts:  # what other processes hold a part of is no copy, and may be donated
        _ORBAX.acquire()
        try:
            with _cause_named(path):
                begun = begin()
        finally:
            if begun is None:
                _ORBAX.release()

    def finish() -> None:
        with _cause_named(path):
            try:
                if begun is not None:
                    # Only this ends the thread and the event loop that Orbax made for the save.
                    begun.result()
                while parts:
                    with _ORBAX:
                        begin().result()
            except BaseException:
                shutil.rmtree(writing, ignore_errors=True)  # it may have filled the disk
                raise
            finally:
                if begun is not None:
                    _ORBAX.release()
            if jax.process_index() == 0:
                (writing / _RECORD).write_text(text, "utf-8")
                _seal(writing)
                writing.rename(path)
                _sync(path.parent)

    return finish


def _in_parts(leaves: list[_Leaf]) -> list[_Leaf]:
    part, size, found = 0, 0, []
    for leaf in leaves:
        count = math.prod(leaf.shape)
        if size and size + count > _TOGETHER:
            part, size = part + 1, 0
        size += count
        found.append(leaf._replace(part=part))
    return found


def _seal(folder: pathlib.Path) -> None:
    names = _files(folder, folder)
    lines = [f"{_digest(folder / name, sync=True)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), "utf-8")
    for path in (folder / SUMS, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync(path)


def _files(folder: pathlib.Path, root: pathlib.Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in folder.rglob("*") if p.is_file())


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: pathlib.Path, *, sync: bool = False) -> str:
    with path.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def prove(path: pathlib.Path) -> None:
    """Compare every byte of a checkpoint with its digests.

    Raises:
        DamagedCheckpointError: if they differ, or the write was not ended.
        FileNotFoundError: if there is no such checkpoint (any more).
        OSError: if the disk refuses.
    """
    try:
        lines = [line.partition("  ") for line in (path / SUMS).read_text("utf-8").splitlines()]
        changed = [name for digest, _, name in lines if _digest(path / name) != digest]
        # Digests themselves may be cut short.
        changed += {_RECORD, *_files(path / _ARRAYS, path)} - {name for _, _, name in lines}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no checkpoint", str(path)) from None
        if not (path / SUMS).exists():
            raise DamagedCheckpointError(f"it holds no {SUMS}: its write was interrupted") from None
        raise DamagedCheckpointError(str(error)) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # after a flip of a separator
            raise DamagedCheckpointError(f"its {SUMS} are not what was written") from None
        raise
    if changed:
        raise DamagedCheckpointError(f"{', '.join(sorted(changed))} is not what was written")


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Keep a checkpoint from being pruned while it is read; nothing is written.

    Raises:
        FileNotFoundError: if there is no such checkpoint (any more).
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: it may be pruned
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def prune(path: pathlib.Path) -> None:
    """Remove a checkpoint, unless it is being read: then it stays until the next time."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        gone = path.with_name(f".{path.name}.pruned")
        path.rename(gone)  # at once, so that a reader never meets a part of it
        shutil.rmtree(gone, ignore_errors=True)
    finally:
        os.close(handle)


class Record(NamedTuple):
    """What lies beside the arrays: a caller's JSON, a value to be best by, what the state is."""

    record: dict[str, Any]
    value: float | None
    leaves: list[_Leaf]


def read_record(path: pathlib.Path) -> Record:
    """Read what lies beside the arrays of a checkpoint."""
    found = json.loads((path / _RECORD).read_text("utf-8"))
    leaves = [_Leaf(name, dtype, tuple(shape), part) for name, dtype, shape, part in found["state"]]
    return Record(found["record"], found["value"], leaves)


def load(path: pathlib.Path, like: PyTree | Callable[[dict[str, Any]], PyTree]) -> Restored:
    """Load a checkpoint that was proved; `like` is that of `Run.restore`."""
    from orbax.checkpoint import v1 as ocp

    found = read_record(path)
    if inspect.isfunction(like):
        like = like(found.record)
    wanted = _leaves(like)
    _require_same_leaves(path, found.leaves, wanted)
    arrays, values = {}, {leaf.path: leaf.value for leaf in wanted}
    for part in {leaf.part for leaf in found.leaves if not leaf.empty}:
        stored = [leaf.path for leaf in found.leaves if leaf.part == part and not leaf.empty]
        with _ORBAX:
            abstract = {name: _abstract(values[name]) for name in stored}
            arrays |= ocp.load(str(path / _ARRAYS / str(part)), abstract)
    leaves = [
        _as_wanted(leaf, given, arrays.get(leaf.path))
        for leaf, given in zip(wanted, jax.tree.leaves(like), strict=True)
    ]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Restored(int(path.name), state, found.record)


def _abstract(value: Any) -> Any:
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(value.shape, value.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_everywhere(value.sharding))
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=_place(value.sharding))


def _place(sharding: Any) -> Any:
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _everywhere(sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return _place(sharding)


def _as_wanted(leaf: _Leaf, given: Any, loaded: Any) -> Any:
    value = leaf.value
    if not hasattr(given, "dtype"):
        return type(given)(loaded.item())
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):  # a copy that may be written to
        return np.zeros(leaf.shape, value.dtype) if leaf.empty else np.array(loaded)
    if leaf.empty:
        make = functools.partial(jnp.zeros, leaf.shape, value.dtype)
        return jax.jit(make, out_shardings=value.sharding)()
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        impls: list[Any] = []
        abstract = jax.ShapeDtypeStruct(value.shape, value.dtype)
        jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), abstract)
        wrap = functools.partial(jax.random.wrap_key_data, impl=impls[0])
        return jax.jit(wrap, out_shardings=value.sharding)(loaded)
    return loaded


def _require_same_leaves(path: pathlib.Path, stored: list[_Leaf], wanted: list[_Leaf]) -> None:
    theirs = {leaf.path: str(leaf) for leaf in stored}
    ours = {leaf.path: str(leaf) for leaf in wanted}
    differences = [
        f"{name or 'the state'} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} "
        "here"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
    if differences:
        raise ValueError(f"checkpoint {path} is of another state: {'; '.join(differences)}")


@contextlib.contextmanager
def _cause_named(path: pathlib.Path) -> Iterator[None]:
    """Orbax and TensorStore raise errors of many types for a disk that refuses: name the cause."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if (found := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
