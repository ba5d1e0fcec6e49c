"""The Multi-Power Law: the whole of it, from its equation to the form that `fit` reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxkit import validation
from jaxkit.losscurves import areas, forms, laws


class MultiPowerLaw(NamedTuple):
    """Constants of the Multi-Power Law; see `multi_power_loss`.

    Attributes:
        floor: L0, nats.
        scale: A, nats x (learning rate x steps)^exponent.
        drop: B, nats per unit of learning rate removed.
        exponent: alpha.
        speed: C, how fast a drop takes effect.
        saturation: beta.
        rate_exponent: gamma.
    """

    floor: laws.Scalar
    scale: laws.Scalar
    drop: laws.Scalar
    exponent: laws.Scalar
    speed: laws.Scalar
    saturation: laws.Scalar
    rate_exponent: laws.Scalar


def delayed_drops(
    law: MultiPowerLaw,
    drops: Float[Array, " drops"],
    rates: Float[Array, " drops"],
    sums: Float[Array, " drops"],
    happened: ArrayLike,
) -> Float[Array, ""]:
    r"""Sum the learning-rate drops of the Multi-Power Law, each by how far it has taken effect.

    $$\sum_k (\eta_{k-1} - \eta_k)\, \bigl(1 - (1 + C \eta_k^{-\gamma} S_k)^{-\beta}\bigr)$$

    Source: arXiv 2503.12811.
    """
    # Selected before the power: a negative base would make the gradient of the unused branch NaN.
    since = jnp.where(happened, sums, 0.0)
    effect = -jnp.expm1(-law.saturation * jnp.log1p(law.speed * rates**-law.rate_exponent * since))
    return jnp.sum(drops * effect)


def multi_power_loss(
    law: MultiPowerLaw,
    for_s1: Float[Array, " steps"],
    for_s2: Float[Array, " steps"],
    steps: Int[ArrayLike, " n"],
) -> Float[Array, " n"]:
    r"""Evaluate the Multi-Power Law on rates that a warm-up mode was applied to, O(n x steps).

    $$L(t) = L_0 + A S_1(t)^{-\alpha} -
      B \sum_{k \le t} (\eta_{k-1} - \eta_k)\, G(\eta_k^{-\gamma} S_k(t)), \quad
      S_k(t) = \sum_{\tau=k}^t \eta_\tau, \quad G(x) = 1 - (1 + C x)^{-\beta}.$$

    Two conventions exist for the warm-up, a constant `B * peak` apart: `"linear"` counts its rises
    as negative drops (the published code that fits and evaluates), `"s2_peak"` does not (the one
    that optimises schedules). A law must be read in the mode it was fitted in.

    Source: arXiv 2503.12811.
    """
    forward, total = jnp.cumsum(for_s1), jnp.cumsum(for_s2)
    drops, before = for_s2[:-1] - for_s2[1:], total[:-1]
    index = jnp.arange(1, for_s2.shape[0])

    def at(step: jax.Array) -> jax.Array:
        fallen = delayed_drops(law, drops, for_s2[1:], total[step] - before, index <= step)
        return law.floor + law.scale * forward[step] ** -law.exponent - law.drop * fallen

    return lax.map(at, steps, batch_size=16)


def check_positive(name: str, learning_rates: ArrayLike) -> None:
    """Raise unless every rate after index 0 is positive, as the Multi-Power Law needs."""
    areas.check_schedule(name, learning_rates)
    if validation.is_traced(learning_rates):
        return
    rates = np.asarray(learning_rates)[..., 1:]
    if np.any(rates <= 0):
        index = int(np.argwhere(rates <= 0)[0][-1]) + 1
        raise ValueError(
            f"{name} must be > 0 after index 0 for the Multi-Power Law, got 0 at index {index}"
        )


class Drops(NamedTuple):
    """Falls of the learning rate of each curve, padded by falls of 0: all `[curves, drops]`.

    `sums` is the sum of rates before the fall, in units of `scale`; `rates` the rate after it, in
    units of the mean rate, whose logarithm is `log_rate`.
    """

    falls: Float[Any, "curves drops"]
    rates: Float[Any, "curves drops"]
    sums: Float[Any, "curves drops"]
    index: Int[Any, "curves drops"]
    centre: forms.Centre
    log_rate: Float[Any, ""]
    scale: Float[Any, ""]


class MultiPowerPoints(NamedTuple):
    """Features of each point of the Multi-Power Law; `total` is in units of `Drops.scale`."""

    log_time: Float[Any, " n"]
    total: Float[Any, " n"]
    curve: Int[Any, " n"]
    step: Int[Any, " n"]


def multi_power_columns(
    shape: Float[Array, " q"], points: MultiPowerPoints, shared: Drops
) -> jax.Array:
    """Columns of `floor, scale, drop`: `1, S1^-alpha, -delayed drops`."""
    exponent, speed, saturation, rate_exponent = shape
    law = MultiPowerLaw(0.0, 0.0, 0.0, exponent, speed, saturation, rate_exponent)

    def fallen(total: jax.Array, curve: jax.Array, step: jax.Array) -> jax.Array:
        happened = shared.index[curve] <= step
        sums = total - shared.sums[curve]
        return delayed_drops(law, shared.falls[curve], shared.rates[curve], sums, happened)

    delayed = jax.vmap(fallen)(points.total, points.curve, points.step)
    power = jnp.exp(-exponent * points.log_time)
    return jnp.stack([jnp.ones_like(power), power, -delayed], axis=-1)


def multi_power_law(linear: Any, shape: Any, shared: Drops) -> MultiPowerLaw:
    """Undo the centring of log S1 and the scaling of rates and sums."""
    exponent, speed, saturation, rate_exponent = shape
    scale = linear[1] * jnp.exp(exponent * shared.centre.log_time)
    speed = speed / shared.scale * jnp.exp(rate_exponent * shared.log_rate)
    return MultiPowerLaw(linear[0], scale, linear[2], exponent, speed, saturation, rate_exponent)


@dataclasses.dataclass(frozen=True)
class MultiPower:
    """The Multi-Power Law, `MultiPowerLaw`: seven constants, every rate > 0.

    Attributes:
        group: how many consecutive falls of the rate a *fit* merges into one; predictions are
            always exact. 32 changes a loss by about 1e-4 and makes the fit 32 times cheaper.

    Source: arXiv 2503.12811.

    Example:
        >>> law, rates = MultiPowerLaw(2.5, 0.5, 400.0, 0.5, 2.0, 0.6, 0.6), np.full(101, 0.01)
        >>> MultiPower(group=8).loss(law, rates, rates, np.array([99]), None).tolist()
        [3.0]
    """

    group: int = 32

    model: ClassVar[forms.Separable] = forms.Separable(
        multi_power_columns, multi_power_law, 3, polished=2, tolerance=1e-4
    )
    constants: ClassVar[type[Any]] = MultiPowerLaw
    warmup: ClassVar[areas.Warmup] = "linear"

    def __post_init__(self) -> None:
        validation.integer("group", self.group, minimum=1)

    def features(self, seen: Sequence[forms.Seen]) -> forms.Features:
        """Gather the falls of each curve, merged by groups."""
        for index, s in enumerate(seen):
            check_positive(f"curves[{index}].learning_rates", s.for_s2)
        rows = [_falls(s.for_s2, self.group) for s in seen]
        length = forms.bucket(max(len(row[0]) for row in rows))
        falls, rates, sums, index = (
            np.stack(
                [np.pad(row[i], (0, length - len(row[i])), constant_values=fill) for row in rows]
            )
            for i, fill in enumerate((0.0, 1.0, 0.0, 0))
        )
        log_rate = np.log(np.concatenate([s.for_s2[1:] for s in seen])).mean()
        log_time = np.log(np.concatenate(forms.sums(seen)))
        totals = np.concatenate([np.cumsum(s.for_s2)[s.steps] for s in seen])
        scale = totals.mean()
        shared = Drops(
            falls,
            rates / np.exp(log_rate),
            sums / scale,
            index,
            forms.Centre(log_time.mean(), np.zeros(())),
            log_rate,
            scale,
        )
        which = np.repeat(np.arange(len(seen)), [len(s.steps) for s in seen])
        steps = np.concatenate([s.steps for s in seen])
        return forms.Features(
            MultiPowerPoints(log_time - shared.centre.log_time, totals / scale, which, steps),
            shared,
        )

    def starts(self) -> Float[np.ndarray, "starts q"]:
        """A grid over the four shape constants; `speed` is in the units of the features."""
        grid = np.meshgrid([0.3, 0.5, 0.8], [10.0, 100.0, 1000.0], [0.3, 0.7], [0.3, 0.7])
        return np.stack([axis.ravel() for axis in grid], axis=-1)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(
        self, law: MultiPowerLaw, for_s1: Any, for_s2: Any, steps: Any, size: Any
    ) -> jax.Array:
        """Predict exactly, schedule by schedule."""

        def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            return multi_power_loss(law, *pair, steps)

        pair = jnp.broadcast_arrays(jnp.asarray(for_s1), jnp.asarray(for_s2))
        batch = pair[0].shape[:-1]
        flat = tuple(rates.reshape(-1, rates.shape[-1]) for rates in pair)
        return jax.lax.map(one, flat).reshape(*batch, -1)


def _falls(rates: np.ndarray, group: int) -> tuple[np.ndarray, ...]:
    """Falls of the rate, the rate after, the sum of rates before, and the index, of each fall."""
    falls, sums = rates[:-1] - rates[1:], np.cumsum(rates)
    changes = np.flatnonzero(falls) + 1
    run_start = np.flatnonzero(np.diff(changes, prepend=-1) != 1)
    lengths = np.diff(run_start, append=len(changes))
    position = np.arange(len(changes)) - np.repeat(run_start, lengths)
    starts = np.flatnonzero(position % group == 0)
    if not len(starts):
        return np.zeros(1), np.ones(1), np.zeros(1), np.zeros(1, np.int64)
    ends = np.append(starts[1:], len(changes))
    middle = changes[(starts + ends - 1) // 2]
    return np.add.reduceat(falls[changes - 1], starts), rates[middle], sums[middle - 1], middle
