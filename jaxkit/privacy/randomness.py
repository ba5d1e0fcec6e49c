"""Where the randomness of a private run comes from: a secret that nothing published derives."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import pathlib
import secrets
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxkit import validation

_BYTES = 32
#: By file, the source that this process opened last: earlier ones give out no more keys.
_OPEN: weakref.WeakValueDictionary[pathlib.Path, NoiseSource] = weakref.WeakValueDictionary()


class NoiseSource:
    """Keys for the noise and the batches of private runs, from a secret of the operating system.

    The key of a step is a hash (HMAC-SHA-256) of the secret, of what it is for, of what is run and
    of the step. So no two purposes, plans or steps share a draw, and one key tells nothing about
    another. A key is given out once, and steps go up: two runs of equal plans cannot share noise.
    Only a run that goes on after an interruption draws its steps again, with `stored`. The secret
    is in no configuration, state, checkpoint or log; printing the source shows a fingerprint.

    Args:
        secret: 32 bytes; `from_os`, `stored` and `public` make them.
        is_secret: whether nobody else can know them; only who made them at random can say so.

    Raises:
        ValueError: if there are not 32 bytes.
        TypeError: if they are none.

    Example:
        >>> source = NoiseSource.from_os()
        >>> bool(source.key("noise", "run", 0) == source.key("noise", "run", 1))
        False
        >>> source.key("noise", "run", 0)
        Traceback (most recent call last):
        ValueError: step must be above 1, the last whose noise was given out, got 0: ...
    """

    def __init__(self, secret: bytes, *, is_secret: bool = False):
        if not isinstance(secret, bytes):
            raise TypeError(f"secret must be bytes, got a {type(secret).__name__}")
        if len(secret) != _BYTES:
            raise ValueError(f"secret must have {_BYTES} bytes, got {len(secret)}")
        self._secret: bytes | None = secret
        self._unlock: Any = lambda: None
        self.is_secret, self._last = is_secret, dict[tuple[str, str], int]()

    @classmethod
    def from_os(cls) -> NoiseSource:
        """A fresh secret, which is lost with the process."""
        return cls(_shared(secrets.token_bytes(_BYTES)), is_secret=True)

    @classmethod
    def stored(cls, path: str | pathlib.Path, *, data: PyTree, fresh: bool) -> NoiseSource:
        """A secret in a file that only its owner can read.

        One source draws from a file: a source that this process opened before gives out no more
        keys, and another process is refused.

        Args:
            path: the file.
            data: tree of arrays, or a hash of them, that the run is about. Its secret serves no
                others: the difference of what is released from two would have no noise.
            fresh: whether a run begins, and makes its secret; or the same run goes on, and needs
                the old one.

        Raises:
            FileNotFoundError: if a run that goes on has lost its secret.
            PermissionError: if others may read the file.
            BlockingIOError: if another process draws from it.
            ValueError: if the run began on other data, or there are none.
        """
        path, secret, locked = pathlib.Path(path).resolve(), bytes(_BYTES), None
        if jax.process_index() == 0:
            earlier, told = _OPEN.pop(path, None), _hash(data)
            if earlier is not None:
                earlier._secret = None
                earlier._unlock()
            if fresh:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                secret = secrets.token_bytes(_BYTES)
                with os.fdopen(
                    os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
                ) as f:
                    f.write(secret + told)
            else:
                if not path.exists():
                    raise FileNotFoundError(
                        f"{path} is gone: steps since the last checkpoint would be released again "
                        "with other noise, which the plan does not account for; begin a new run"
                    )
                if path.stat().st_mode & 0o077:
                    raise PermissionError(f"{path} must be readable by its owner alone (chmod 600)")
                content = path.read_bytes()
                if len(content) != 2 * _BYTES:  # cut short it could be guessed
                    raise OSError(f"{path} must hold {2 * _BYTES} bytes, got {len(content)}")
                secret, begun = content[:_BYTES], content[_BYTES:]
                if begun != told:
                    raise ValueError(
                        f"data must be those of the run that {path} belongs to: with others the "
                        "same noise would hide nothing; begin a new run"
                    )
            locked = _locked(path)
        source = cls(_shared(secret), is_secret=True)
        if locked is not None:
            source._unlock, _OPEN[path] = weakref.finalize(source, os.close, locked), source
        return source

    @classmethod
    def public(cls, seed: int) -> NoiseSource:
        """Randomness that anyone can recompute, for tests and demonstrations: no privacy."""
        return cls(hashlib.sha256(f"public {validation.integer('seed', seed)}".encode()).digest())

    @property
    def fingerprint(self) -> str:
        """Eight digits that tell two secrets apart and nothing else."""
        return self._digest("fingerprint").hex()[:8]

    def key(self, purpose: str, run: str, step: int) -> Key[Array, ""]:
        """The key of one step of a run.

        Args:
            purpose: `"noise"`, `"batches"`, `"cohort"`, ...
            run: what is run: the fingerprint of its plan and data.
            step: its number, above that of the last key of this purpose and run.

        Raises:
            ValueError: if the key, or that of a later step, was given out before.
        """
        data = jnp.asarray(self.key_data(purpose, run, step))
        return jax.random.wrap_key_data(data, impl="threefry2x32")

    def key_data(self, purpose: str, run: str, step: int) -> np.ndarray:
        """The numbers of `key`, uint32 ``[2]``, to be passed into a compiled step."""
        number = validation.integer("step", step, minimum=0)
        last = self._last.get((purpose, run), -1)
        if number <= last:
            raise ValueError(
                f"step must be above {last}, the last whose {purpose} was given out, got {number}: "
                "drawn twice it would hide nothing; another run needs a source of its own, and one "
                "that was interrupted goes on with NoiseSource.stored"
            )
        self._last[purpose, run] = number
        digest = self._digest(f"{purpose}\0{run}\0{number}")
        return np.frombuffer(digest[:8], np.uint32).copy()

    def _digest(self, text: str) -> bytes:
        if self._secret is None:
            raise ValueError("this source has ended: its file was opened again by a later one")
        return hmac.new(self._secret, text.encode(), hashlib.sha256).digest()

    def __repr__(self) -> str:
        kind = "operating system" if self.is_secret else "a public seed"
        return f"NoiseSource({kind}, fingerprint {self.fingerprint})"

    def __reduce__(self) -> Any:
        raise TypeError("a NoiseSource is not stored with other things: keep its file")


def _locked(path: pathlib.Path) -> int:
    """The file's descriptor: no other process can lock it until it is closed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(f"another process draws from {path}: two would share noise") from None
    return handle


def _hash(data: PyTree) -> bytes:
    leaves, structure = jax.tree.flatten(data)
    if not leaves:
        raise ValueError(f"data must hold at least one array, got {data!r}")
    found = hashlib.sha256(str(structure).encode())
    for leaf in map(np.asarray, leaves):
        found.update(f"{leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return found.digest()


def _shared(secret: bytes) -> bytes:
    """The secret of process 0."""
    if jax.process_count() == 1:
        return secret
    from jax.experimental import multihost_utils

    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(secret, np.uint8))))
