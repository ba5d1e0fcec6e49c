"""Profiles: the shape of a schedule, as a function of progress z = t/T in [0, 1].

A profile is 1 where the schedule is at its peak. Each one broadcasts over z, is differentiable in
z and takes only arithmetic parameters, so that `vmap` may sweep them. Near the end of a long run
1 - t/T has lost its digits, so every profile also takes what remains, r = (T - t)/T.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """A function of progress z in [0, 1] to a multiplier of the peak, of the same shape.

    Attributes:
        value: (z, 1 - z) to the multiplier; both are given so that neither end loses digits.
        corners: increasing points inside (0, 1) between which the multiplier is constant; without
            any it is read at every update.

    Example:
        >>> square = Profile(lambda z, r: r**2)
        >>> float(square(0.5))
        0.25
    """

    value: Callable[[Array, Array], Any]
    corners: tuple[float, ...] = ()

    def __call__(self, z: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """Return the multiplier at progress `z`."""
        z = jnp.asarray(z)
        return self.value(z, 1 - z)


def constant() -> Profile:
    """No decay: rho(z) = 1."""
    return Profile(lambda z, r: jnp.ones_like(r))


def linear() -> Profile:
    """Worst-case optimal for the last iterate (arXiv 2310.07831 §2): rho(z) = 1 - z."""
    return Profile(lambda z, r: r)


def polynomial(power: Any = 2.0) -> Profile:
    """Power of what remains (arXiv 2310.07831, stand-ins for refined schedules): (1 - z)^power."""
    validation.number("power", power, minimum=0, open_minimum=True)
    return Profile(lambda z, r: r**power)


def cosine() -> Profile:
    """Half a cosine (arXiv 2107.04197 §4.1): (1 + cos(pi z))/2, read as sin^2(pi (1 - z)/2)."""
    return Profile(lambda z, r: _half_cosine(r))


def exponential(rate: Any = -3.0) -> Profile:
    """Exponential decay (arXiv 2107.04197 §4.1): exp(rate z), which ends at exp(rate)."""
    validation.number("rate", rate)
    return Profile(lambda z, r: jnp.exp(rate * z))


def rex(d: Any = 0.5) -> Profile:
    """REX (arXiv 2107.04197 §4.2, eq. 1; d = 1/2): (1 - z) / ((1 - d) + d (1 - z)).

    d = 0 is linear, and 0.9 what several trainers ship under the name of REX.
    """
    d = validation.number("d", d, minimum=0, maximum=1, open_maximum=True)
    return Profile(lambda z, r: r / ((1 - d) + d * r))


def step(boundaries: Sequence[float] = (0.5, 0.75), factor: Any = 0.1) -> Profile:
    """Times `factor` at each boundary (arXiv 2107.04197 §4.1, "50-75")."""
    validation.number("factor", factor, minimum=0, maximum=1)
    points = increasing_fractions("boundaries", boundaries)

    def value(z, r):
        multiplier = jnp.ones_like(r)
        for point in points:
            multiplier = jnp.where(z >= point, multiplier * factor, multiplier)
        return multiplier

    return Profile(value, points)


def onecycle(min_ratio: Any = 0.1) -> Profile:
    """Up from `min_ratio` to 1 at half time and back (arXiv 2107.04197 §4.1), no third phase."""
    low = validation.number("min_ratio", min_ratio, minimum=0, maximum=1)
    return Profile(lambda z, r: low + (1 - low) * 2 * jnp.minimum(z, r))


def delayed(delay: Any = 0.5) -> Profile:
    """At 1 until `delay`, then linear to 0 (arXiv 2107.04197 §4.2)."""
    delay = validation.number("delay", delay, minimum=0, maximum=1, open_maximum=True)
    return Profile(lambda z, r: jnp.clip(r / (1 - delay), 0.0, 1.0))


def wsd(cooldown: Any = 0.2, shape: str = "linear", ratio: Any = 0.1) -> Profile:
    """At 1 until the last fraction `cooldown`, then down (arXiv 2405.18392 §3).

    With u the share of the cool-down that is over, `shape` is `"linear"` (1 - u), `"sqrt"`
    (1 - sqrt(u)), `"cosine"`, `"sqrtcube"` ((1 - u)^1.5), or `"exponential"`, which alone ends at
    `ratio` instead of 0 (ratio^u).
    """
    validation.number("cooldown", cooldown, minimum=0, maximum=1, open_minimum=True)
    validation.choice("shape", shape, COOLDOWNS)
    validation.number("ratio", ratio, minimum=0, maximum=1, open_minimum=True)
    fall = COOLDOWNS[shape]
    return Profile(lambda z, r: fall(_like(r).clip(r / cooldown, 0.0, 1.0), ratio))


def _half_cosine(r: Any) -> Any:
    return _like(r).sin(np.pi / 2 * r) ** 2


def _like(r: Any) -> Any:
    # Tables for a law are made on the host in float64, of lengths that would compile one by one.
    return np if isinstance(r, np.ndarray) else jnp


#: How a cool-down falls, as a function of the share of it that is left (and of the last ratio).
COOLDOWNS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda left, ratio: left,
    "sqrt": lambda left, ratio: left / (1 + (1 - left) ** 0.5),
    "cosine": lambda left, ratio: _half_cosine(left),
    "sqrtcube": lambda left, ratio: left**1.5,
    "exponential": lambda left, ratio: ratio ** (1 - left),
}

#: Makers of profiles by name; their arguments are the options of a schedule of that name.
PROFILES: dict[str, Callable[..., Profile]] = {
    "rex": rex,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
    "onecycle": onecycle,
    "step": step,
    "exponential": exponential,
    "polynomial": polynomial,
    "delayed": delayed,
    "constant": constant,
}


def profile_by_name(name: str, **options: Any) -> Profile:
    r"""Make a profile from its name and its options, all checked here.

    | name | multiplier at progress z | options |
    |---|---|---|
    | `rex` | $(1-z)/((1-d)+d(1-z))$ | `d` 0.5; 0 is linear, 0.9 what several trainers call REX |
    | `linear` | $1-z$ | |
    | `cosine` | $(1+\cos \pi z)/2$ | |
    | `wsd` | 1, then down over the last part | `cooldown` 0.2, `shape` linear, `ratio` 0.1 |
    | `onecycle` | up from `min_ratio` to 1 at half time and back | `min_ratio` 0.1 |
    | `step` | times `factor` at each boundary | `boundaries` (0.5, 0.75), `factor` 0.1 |
    | `exponential` | $\exp(\text{rate}\, z)$ | `rate` -3 |
    | `polynomial` | $(1-z)^{\text{power}}$ | `power` 2 |
    | `delayed` | 1 until `delay`, then linear | `delay` 0.5 |
    | `constant` | 1 | |

    The `shape` of a cool-down is `linear`, `sqrt`, `cosine`, `sqrtcube` or `exponential`; only the
    last one ends at `ratio`, the others at 0.

    Args:
        name: one of `PROFILES`.
        **options: of that profile; numbers may be traced.

    Raises:
        TypeError: if the profile has no such option.
        ValueError: if there is no such profile, naming those that exist, or a value is out of
            range.

    Source: arXiv 2107.04197 §4; arXiv 2310.07831 §2; arXiv 2405.18392 §3 (`wsd`).

    Example:
        >>> round(float(profile_by_name("rex", d=0.9)(0.5)), 6)
        0.909091
    """
    maker = PROFILES[validation.choice("profile", name, PROFILES)]
    known = list(inspect.signature(maker).parameters)
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise TypeError(f"profile {name!r} has no option {option!r}: {has}")
    return maker(**options)


def increasing_fractions(name: str, points: Sequence[float]) -> tuple[float, ...]:
    """Return points of progress, which must be strictly increasing and inside (0, 1)."""
    for point in points:
        validation.number(name, point, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    fractions = tuple(float(point) for point in points)
    if any(b <= a for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"{name} must increase strictly, got {tuple(points)!r}")
    return fractions
