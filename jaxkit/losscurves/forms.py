"""The forms a law can take, behind one protocol that `fit` and `predict` read.

Each form is a frozen dataclass of the numbers that are chosen, not fitted. Its law is separable:
`loss = columns(shape) @ linear`, with `linear` and `shape` constants all >= 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, Int

from jaxkit import validation
from jaxkit.losscurves import areas, laws


class Separable(NamedTuple):
    """The pure functions of a law: `loss = columns(shape) @ linear`. Hashable, static under `jit`.

    Attributes:
        columns: `(shape [q], points, shared) -> [n, p]`.
        law: `(linear [p], shape [q], shared) -> law`, which undoes the centring of the features;
            the law's fields are the linear constants, then the shape constants.
        num_linear: p.
        polished: of the starts, how many go on to the nonlinear solver.
        tolerance: of that solver, relative and absolute, on log constants and objective.
    """

    columns: Callable[[Any, Any, Any], jax.Array]
    law: Callable[[Any, Any, Any], Any]
    num_linear: int
    polished: int = 4
    tolerance: float = 1e-10


class Features(NamedTuple):
    """What a form reads of the schedules, gathered once before a fit.

    Attributes:
        points: pytree of arrays whose leading axis is the points of all curves.
        shared: pytree of arrays without that axis.
    """

    points: Any
    shared: Any


@runtime_checkable
class Form(Protocol):
    """What `fit` and `predict` need to know of a law.

    Attributes:
        model: the pure functions of the law.
        constants: names of the constants, linear ones first.
        warmup: the warm-up mode the law's authors use.

    Example:
        >>> compared: list[Form] = [Annealing(decay=0.99), StepPower()]
        >>> [form.model.num_linear for form in compared]  # constants that enter linearly
        [3, 2]
    """

    model: ClassVar[Separable]
    constants: ClassVar[type[Any]]
    warmup: ClassVar[areas.Warmup]

    def features(self, seen: Sequence[Seen]) -> Features:
        """Gather what the columns read, in float64."""
        ...

    def starts(self) -> Float[np.ndarray, "starts q"]:
        """Give shape constants to start from, in the units of the features."""
        ...

    def loss(self, law: Any, for_s1: Any, for_s2: Any, steps: Any, size: Any) -> jax.Array:
        """Predict the loss; see `jaxkit.losscurves.predict`."""
        ...


class Seen(NamedTuple):
    """One curve as a form sees it: rates for S1 and S2 after the warm-up mode, and its points."""

    for_s1: Float[np.ndarray, " steps"]
    for_s2: Float[np.ndarray, " steps"]
    steps: Int[np.ndarray, " n"]
    model_size: float | None


class PowerPoints(NamedTuple):
    """Features of the laws with a power of one time: `log_time` is centred."""

    log_time: Float[Any, " n"]
    annealing: Float[Any, " n"]
    log_size: Float[Any, " n"]


class Centre(NamedTuple):
    """What was subtracted from the logarithms of time and size."""

    log_time: Float[Any, ""]
    log_size: Float[Any, ""]


def _columns(shape: Float[Array, " q"], points: PowerPoints, *more: jax.Array) -> jax.Array:
    power = jnp.exp(-shape[0] * points.log_time)
    return jnp.stack([jnp.ones_like(power), power, *more], axis=-1)


def _law(kind: type[Any], linear: Any, shape: Any, shared: Centre) -> Any:
    """Undo the centring of log time in the scale, the second of the linear constants."""
    return kind(linear[0], linear[1] * jnp.exp(shape[0] * shared.log_time), *linear[2:], *shape)


def power_columns(shape: Any, points: PowerPoints, shared: Any) -> jax.Array:
    """Columns of `floor, scale`: `1, x^-alpha`."""
    return _columns(shape, points)


def annealing_columns(shape: Any, points: PowerPoints, shared: Any) -> jax.Array:
    """Columns of `floor, scale, annealing`: `1, S1^-alpha, -S2`."""
    return _columns(shape, points, -points.annealing)


def size_columns(shape: Any, points: PowerPoints, shared: Any) -> jax.Array:
    """Columns of `floor, scale, size_scale, annealing`."""
    size = jnp.exp(-shape[1] * points.log_size)
    return _columns(shape, points, size, -jnp.exp(shape[2] * points.log_size) * points.annealing)


power_law = functools.partial(_law, laws.PowerLaw)
annealing_law = functools.partial(_law, laws.AnnealingLaw)


def size_law(linear: Any, shape: Any, shared: Centre) -> laws.SizeLaw:
    """Undo the centring of log S1 and log size."""
    found: laws.SizeLaw = _law(laws.SizeLaw, linear, shape, shared)
    return found._replace(
        size_scale=found.size_scale * jnp.exp(shape[1] * shared.log_size),
        annealing=found.annealing * jnp.exp(-shape[2] * shared.log_size),
    )


def host_annealing(for_s2: np.ndarray, decay: float) -> np.ndarray:
    """S2 in float64 on the host: the same recursion as `annealing_areas`, without a compilation."""
    return np.asarray(scipy.signal.lfilter([1.0], [1.0, -decay], for_s2[0] - for_s2))


def sums(seen: Sequence[Seen]) -> list[np.ndarray]:
    """S1 at the points of each curve, in float64."""
    return [np.cumsum(s.for_s1)[s.steps] for s in seen]


def _power_features(
    seen: Sequence[Seen], times: Sequence[np.ndarray], decay: float | None = None
) -> Features:
    """Centred logarithms of times and sizes, and S2 where there is a decay."""
    log_time = np.log(np.concatenate(times))
    log_size = np.log(np.concatenate([np.full(len(s.steps), s.model_size or 1.0) for s in seen]))
    annealing = np.zeros(len(log_time))
    if decay is not None:
        annealing = np.concatenate([host_annealing(s.for_s2, decay)[s.steps] for s in seen])
    centre = Centre(log_time.mean(), log_size.mean())
    return Features(
        PowerPoints(log_time - centre.log_time, annealing, log_size - centre.log_size), centre
    )


@dataclasses.dataclass(frozen=True)
class Annealing:
    """The annealing law, `laws.AnnealingLaw`, with a fixed decay of the annealing momentum.

    Attributes:
        decay: lambda in [0, 1), per optimizer step; `profile_decay` compares values. A run with
            another batch size or horizon needs another one. 0 is annealing without delay, the
            initial guess of the Multi-Power Law's code.

    Source: arXiv 2408.11029.

    Example:
        >>> law, rates = laws.AnnealingLaw(2.0, 12.0, 0.5, 1.0), np.array([4.0, 4.0, 2.0, 2.0])
        >>> Annealing(decay=0.5).loss(law, rates, rates, np.array([1, 3]), None).tolist()
        [3.5, 1.5]
    """

    decay: float = 0.999

    model: ClassVar[Separable] = Separable(annealing_columns, annealing_law, 3)
    constants: ClassVar[type[Any]] = laws.AnnealingLaw
    warmup: ClassVar[areas.Warmup] = "peak"

    def __post_init__(self) -> None:
        validation.number("decay", self.decay, minimum=0, maximum=1, open_maximum=True)

    def features(self, seen: Sequence[Seen]) -> Features:
        """Gather centred log S1 and S2."""
        return _power_features(seen, sums(seen), self.decay)

    def starts(self) -> Float[np.ndarray, "starts q"]:
        """64 exponents."""
        return np.geomspace(0.02, 4.0, 64)[:, None]

    def loss(
        self, law: laws.AnnealingLaw, for_s1: Any, for_s2: Any, steps: Any, size: Any
    ) -> jax.Array:
        """Predict by areas."""
        last = np.shape(for_s2)[-1] - 1
        if not validation.is_traced(steps) and np.array_equal(steps, [last]):
            annealing = areas.final_areas(for_s2, self.decay).annealing[..., None]
            forward = jnp.sum(jnp.asarray(for_s1), axis=-1, keepdims=True)
            return laws.annealing_loss(law, areas.AnnealingAreas(forward, annealing))
        annealing = areas.annealing_areas(for_s2, self.decay).annealing
        at = areas.AnnealingAreas(jnp.cumsum(jnp.asarray(for_s1), axis=-1), annealing)
        return laws.annealing_loss(law, at)[..., steps]


@dataclasses.dataclass(frozen=True)
class RateSumPower:
    """Baseline: a power law in the sum of learning rates (the annealing law with C = 0).

    Example:
        >>> law, rates = laws.PowerLaw(2.0, 12.0, 1.0), np.array([4.0, 4.0, 2.0, 2.0])
        >>> RateSumPower().loss(law, rates, rates, np.array([1, 3]), None).tolist()
        [3.5, 3.0]
    """

    model: ClassVar[Separable] = Separable(power_columns, power_law, 2)
    constants: ClassVar[type[Any]] = laws.PowerLaw
    warmup: ClassVar[areas.Warmup] = "peak"

    def features(self, seen: Sequence[Seen]) -> Features:
        """Gather centred log S1."""
        return _power_features(seen, sums(seen))

    def starts(self) -> Float[np.ndarray, "starts q"]:
        """64 exponents."""
        return np.geomspace(0.02, 4.0, 64)[:, None]

    def loss(
        self, law: laws.PowerLaw, for_s1: Any, for_s2: Any, steps: Any, size: Any
    ) -> jax.Array:
        """Predict from the sum of rates."""
        time = jnp.cumsum(jnp.asarray(for_s1), axis=-1)[..., steps]
        return law.floor + law.scale * time**-law.exponent


class StepPower(RateSumPower):
    """Baseline: a power law in the step, blind to the schedule (Chinchilla at one model size).

    Example:
        >>> law, rates = laws.PowerLaw(2.0, 12.0, 1.0), np.array([4.0, 4.0, 2.0, 2.0])
        >>> StepPower().loss(law, rates, rates, np.array([1, 3]), None).tolist()
        [14.0, 6.0]
    """

    def features(self, seen: Sequence[Seen]) -> Features:
        """Gather the centred log step."""
        return _power_features(seen, [s.steps.astype(np.float64) for s in seen])

    def loss(
        self, law: laws.PowerLaw, for_s1: Any, for_s2: Any, steps: Any, size: Any
    ) -> jax.Array:
        """Predict from the step."""
        rates = jnp.asarray(for_s1)
        time = jnp.arange(rates.shape[-1], dtype=rates.dtype)[steps]
        loss = law.floor + law.scale * time**-law.exponent
        return loss + jnp.zeros((*rates.shape[:-1], 1), loss.dtype)


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The annealing law over several model sizes, `laws.SizeLaw`; needs at least three.

    Attributes:
        decay: lambda, as for `Annealing`.

    Source: arXiv 2408.11029 (extension to model size).

    Example:
        >>> law = laws.SizeLaw(1.0, 12.0, 4.0, 0.125, 1.0, 0.5, annealing_exponent=0.5)
        >>> rates = np.array([4.0, 4.0, 2.0, 2.0])
        >>> ModelSize(decay=0.5).loss(law, rates, rates, np.array([1, 3]), size=16.0).tolist()
        [3.5, 1.5]
    """

    decay: float = 0.999

    model: ClassVar[Separable] = Separable(size_columns, size_law, 4)
    constants: ClassVar[type[Any]] = laws.SizeLaw
    warmup: ClassVar[areas.Warmup] = "peak"

    def __post_init__(self) -> None:
        validation.number("decay", self.decay, minimum=0, maximum=1, open_maximum=True)

    def features(self, seen: Sequence[Seen]) -> Features:
        """Gather centred log S1, S2 and centred log size."""
        sizes = {s.model_size for s in seen}
        if None in sizes or len(sizes) < 3:
            found = sorted(size for size in sizes if size is not None)
            raise ValueError(
                "curves must have model_size, of at least 3 different sizes (two do not tell how "
                f"annealing grows with size), got {found}"
            )
        return _power_features(seen, sums(seen), self.decay)

    def starts(self) -> Float[np.ndarray, "starts q"]:
        """A grid over the three exponents."""
        grid = np.meshgrid(np.geomspace(0.1, 1.6, 6), [0.05, 0.2, 0.5], [0.02, 0.1, 0.3])
        return np.stack([axis.ravel() for axis in grid], axis=-1)

    def loss(self, law: laws.SizeLaw, for_s1: Any, for_s2: Any, steps: Any, size: Any) -> jax.Array:
        """Predict one model size."""
        if size is None:
            raise ValueError("model_size must be given to predict by the model-size law")
        floor = law.floor + law.size_scale * size**-law.size_exponent
        annealing = law.annealing * size**law.annealing_exponent
        at_size = laws.AnnealingLaw(floor, law.scale, annealing, law.exponent)
        return Annealing(self.decay).loss(at_size, for_s1, for_s2, steps, None)


def bucket(count: int) -> int:
    """Round a length up to a power of two >= 512, so that most fits share one compilation."""
    return max(512, 1 << (count - 1).bit_length())
