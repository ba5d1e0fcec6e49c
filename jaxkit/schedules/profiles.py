"""Profiles: the shape of a schedule, as a function of progress z = t/T in [0, 1].

A profile is 1 where the schedule is at its peak. Each one broadcasts over z, is differentiable in
z and takes only arithmetic parameters, so that `vmap` may sweep them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation

#: Progress in [0, 1] to a multiplier of the peak value, of the same shape.
Profile = Callable[[Array], Array]

COOLDOWN_SHAPES = ("linear", "sqrt", "cosine")


def linear_profile(z: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """Decay linearly: rho(z) = 1 - z.

    Args:
        z: progress in [0, 1].

    Returns:
        The multiplier, of the shape of `z`.

    Source: arXiv 2310.07831 §2 (worst-case optimal); 2107.04197 §4.1.

    Example:
        >>> float(linear_profile(0.25))
        0.75
    """
    return 1 - jnp.asarray(z)


def polynomial_profile(
    z: Float[ArrayLike, "*batch"], power: Float[ArrayLike, ""] = 2.0
) -> Float[Array, "*batch"]:
    """Decay as a power of what remains: rho(z) = (1 - z)^power.

    Args:
        z: progress in [0, 1].
        power: exponent, > 0; 1 is linear decay.

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if `power` is not positive.

    Source: the stand-ins of arXiv 2310.07831 for refined schedules.

    Example:
        >>> float(polynomial_profile(0.5, 2.0))
        0.25
    """
    return (1 - jnp.asarray(z)) ** validation.number("power", power, minimum=0, open_minimum=True)


def cosine_profile(z: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """Decay along half a cosine: rho(z) = (1 + cos(pi z)) / 2.

    Args:
        z: progress in [0, 1].

    Returns:
        The multiplier, of the shape of `z`.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> round(float(cosine_profile(0.25)), 6)
        0.853553
    """
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(z)))


def exponential_profile(
    z: Float[ArrayLike, "*batch"], rate: Float[ArrayLike, ""] = -3.0
) -> Float[Array, "*batch"]:
    """Decay exponentially: rho(z) = exp(rate z), which ends at exp(rate), not at 0.

    Args:
        z: progress in [0, 1].
        rate: exponent at z = 1; the paper's is -3.

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if `rate` is not finite.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> round(float(exponential_profile(1.0)), 6)
        0.049787
    """
    return jnp.power(jnp.exp(validation.number("rate", rate)), jnp.asarray(z))


def rex_profile(
    z: Float[ArrayLike, "*batch"], d: Float[ArrayLike, ""] = 0.5
) -> Float[Array, "*batch"]:
    """Decay reflected-exponentially: rho_d(z) = (1 - z) / ((1 - d) + d (1 - z)).

    Args:
        z: progress in [0, 1].
        d: how long the rate stays high, in [0, 1): 0 is linear, 1/2 the paper's REX, and 0.9 what
            several trainers ship under the name of REX.

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if `d` is outside [0, 1).

    Source: arXiv 2107.04197 §4.2, eq. 1 (d = 1/2).

    Example:
        >>> [round(float(rex_profile(z)), 6) for z in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.857143, 0.666667, 0.0]
    """
    return rex_of_remaining(1 - jnp.asarray(z), d)


def rex_of_remaining(
    r: Float[ArrayLike, "*batch"], d: Float[ArrayLike, ""] = 0.5
) -> Float[Array, "*batch"]:
    """REX from the remaining fraction: rho = r / ((1 - d) + d r).

    Near the end of a long run r = (T - t)/T keeps the digits that 1 - t/T has already lost.

    Args:
        r: remaining fraction in [0, 1].
        d: as in `rex_profile`.

    Returns:
        The multiplier, of the shape of `r`.

    Raises:
        ValueError: if `d` is outside [0, 1).

    Source: arXiv 2107.04197 §4.2, eq. 1.

    Example:
        >>> float(rex_of_remaining(0.0))
        0.0
    """
    d = validation.number("d", d, minimum=0, maximum=1, open_maximum=True)
    r = jnp.asarray(r)
    return r / ((1 - d) + d * r)


def step_profile(
    z: Float[ArrayLike, "*batch"],
    boundaries: Sequence[float] = (0.5, 0.75),
    factor: Float[ArrayLike, ""] = 0.1,
) -> Float[Array, "*batch"]:
    """Multiply by `factor` at each boundary: rho(z) = factor^(number of boundaries <= z).

    Args:
        z: progress in [0, 1].
        boundaries: increasing points inside (0, 1).
        factor: multiplier applied at each of them, in [0, 1].

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if boundaries are outside (0, 1) or not increasing, or `factor` outside [0, 1].

    Source: arXiv 2107.04197 §4.1 ("50-75").

    Example:
        >>> [round(float(step_profile(z)), 6) for z in (0.0, 0.5, 0.75)]
        [1.0, 0.1, 0.01]
    """
    factor = validation.number("factor", factor, minimum=0, maximum=1)
    boundaries = increasing_fractions("boundaries", boundaries)
    z = jnp.asarray(z)
    value = jnp.ones_like(z)
    for boundary in boundaries:
        value = jnp.where(z >= boundary, value * factor, value)
    return value


def delayed_profile(profile: Profile, delay: Float[ArrayLike, ""]) -> Profile:
    """Hold 1 until `delay`, then run the whole of `profile` in what remains.

    rho(z) = profile(max(z - delay, 0) / (1 - delay)).

    Args:
        profile: the profile to delay.
        delay: fraction of the budget spent at the peak, in [0, 1).

    Returns:
        The delayed profile.

    Raises:
        ValueError: if `delay` is outside [0, 1).

    Source: arXiv 2107.04197 §4.2 (delayed linear).

    Example:
        >>> [float(delayed_profile(linear_profile, 0.5)(z)) for z in (0.25, 0.75)]
        [1.0, 0.5]
    """
    delay = validation.number("delay", delay, minimum=0, maximum=1, open_maximum=True)

    def delayed(z):
        return profile(jnp.clip((jnp.asarray(z) - delay) / (1 - delay), 0.0, 1.0))

    return delayed


def onecycle_profile(
    z: Float[ArrayLike, "*batch"], min_ratio: Float[ArrayLike, ""] = 0.1
) -> Float[Array, "*batch"]:
    """Rise linearly from `min_ratio` to 1 at z = 1/2, then fall back as it rose.

    rho(z) = m + (1 - m) (1 - |2 z - 1|), m = `min_ratio`; no final annihilation phase, unlike the
    one-cycle schedules of most libraries.

    Args:
        z: progress in [0, 1].
        min_ratio: smallest over largest value, in [0, 1].

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if `min_ratio` is outside [0, 1].

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> [round(float(onecycle_profile(z)), 6) for z in (0.0, 0.25, 0.5, 1.0)]
        [0.1, 0.55, 1.0, 0.1]
    """
    low = validation.number("min_ratio", min_ratio, minimum=0, maximum=1)
    return low + (1 - low) * (1 - jnp.abs(2 * jnp.asarray(z) - 1))


def wsd_profile(
    z: Float[ArrayLike, "*batch"], cooldown: Float[ArrayLike, ""] = 0.2, shape: str = "linear"
) -> Float[Array, "*batch"]:
    """Stay at 1, then cool down to 0 over the last part: the S and D of warm-up-stable-decay.

    With u = max(z - (1 - c), 0) / c: 1 - u, 1 - sqrt(u) or (1 + cos(pi u))/2.

    Args:
        z: progress in [0, 1].
        cooldown: c, the fraction of the budget that cools down, in (0, 1].
        shape: `"linear"`, `"sqrt"` or `"cosine"`.

    Returns:
        The multiplier, of the shape of `z`.

    Raises:
        ValueError: if `cooldown` is outside (0, 1] or `shape` unknown.

    Source: arXiv 2405.18392 §3 (cool-down shapes).

    Example:
        >>> [round(float(wsd_profile(z)), 6) for z in (0.5, 0.9, 1.0)]
        [1.0, 0.5, 0.0]
    """
    cooldown = validation.number("cooldown", cooldown, minimum=0, maximum=1, open_minimum=True)
    validation.choice("shape", shape, COOLDOWN_SHAPES)
    left = jnp.clip((1 - jnp.asarray(z)) / cooldown, 0.0, 1.0)
    if shape == "linear":
        return left
    if shape == "sqrt":
        return 1 - jnp.sqrt(1 - left)
    return cosine_profile(1 - left)


#: Profiles by name.
PROFILES: dict[str, Profile] = {
    "linear": linear_profile,
    "polynomial": polynomial_profile,
    "cosine": cosine_profile,
    "exponential": exponential_profile,
    "step": step_profile,
    "rex": rex_profile,
    "onecycle": onecycle_profile,
    "wsd": wsd_profile,
    "delayed": delayed_profile(linear_profile, 0.5),
}


def profile_by_name(name: str, **options: object) -> Profile:
    """Look a profile up by name, with its options bound.

    Args:
        name: one of `PROFILES`.
        **options: arguments of that profile after z.

    Returns:
        The profile as a function of z alone.

    Raises:
        ValueError: if there is no such profile, naming those that exist.

    Example:
        >>> round(float(profile_by_name("rex", d=0.9)(0.5)), 6)
        0.909091
    """
    profile = PROFILES[validation.choice("profile", name, PROFILES)]
    return functools.partial(profile, **options) if options else profile


def increasing_fractions(name: str, points: Sequence[float]) -> tuple[float, ...]:
    """Check points of progress: strictly increasing and inside (0, 1).

    Args:
        name: name of the argument, for the message.
        points: the points.

    Returns:
        The points as Python floats.

    Raises:
        TypeError: if a point is not a real number.
        ValueError: if one lies outside (0, 1) or they do not increase.

    Example:
        >>> increasing_fractions("boundaries", [0.5, 0.75])
        (0.5, 0.75)
    """
    for point in points:
        validation.number(name, point, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    fractions = tuple(float(point) for point in points)
    if any(b <= a for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"{name} must increase strictly, got {tuple(points)!r}")
    return fractions
