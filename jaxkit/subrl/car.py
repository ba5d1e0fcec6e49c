"""A small race car on a closed track: the reward is the length of track covered."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import submodular, validation
from jaxkit.subrl.environments import SubmodularEnvironment, make_environment
from jaxkit.subrl.tables import Move

_MASS, _INERTIA, _FRONT, _REAR = 0.041, 27.8e-6, 0.029, 0.033
_STEP, _SUBSTEPS = 0.03, 2
#: Pacejka (B, C, D) of the tyres.
_FRONT_TYRE, _REAR_TYRE = (2.579, 1.2, 0.2016), (2.8210, 1.2691, 0.20844)


class CarParams(NamedTuple):
    """The track: L and half width in metres, and how much the curvature varies, a factor."""

    length: Float[Array, ""]
    half_width: Float[Array, ""]
    bend: Float[Array, ""]


class CarState(NamedTuple):
    """Where the car is, relative to the centre line.

    Attributes:
        progress: s along the centre line, metres.
        offset: d to its left, metres.
        heading: mu relative to it, radians.
        forward: v_x, metres a second.
        lateral: v_y, metres a second.
        yaw_rate: r, radians a second.
    """

    progress: Float[Array, ""]
    offset: Float[Array, ""]
    heading: Float[Array, ""]
    forward: Float[Array, ""]
    lateral: Float[Array, ""]
    yaw_rate: Float[Array, ""]


def track_curvature(progress: Any, track: CarParams) -> Float[Array, "*b"]:
    r"""Compute $\kappa(s) = \frac{2\pi}{L} (1 + b \sin(4\pi s / L))$, 1/metres: a closed oval."""
    turn = 2 * jnp.pi / track.length
    return turn * (1 + track.bend * jnp.sin(2 * turn * progress))


def _lateral_force(tyre: tuple[float, float, float], slip: Any) -> Any:
    b, c, d = tyre
    return d * jnp.sin(c * jnp.arctan(b * slip))


def car_derivative(state: CarState, duty: Any, steering: Any, track: CarParams) -> CarState:
    """Time derivative of the car: a dynamic bicycle with Pacejka tyres, kinematic when slow.

    Between 0.3 and 0.5 m/s the two are blended linearly. The kinematic part drives lateral speed
    and yaw rate to their no-slip values within one time step. `duty` of the motor is in `[-1, 1]`,
    `steering` the angle of the front wheels in radians.

    Source: Liniger, Domahidi and Morari, arXiv 1711.07300, §2; constants of the official program.
    """
    s, d, mu, v_x, v_y, r = state
    balance = (0.051891 + 0.000348 * v_x**2) / (0.287 - 0.054527 * v_x)
    duty = jnp.where(v_x < 0.1, jnp.maximum(duty, balance), duty)
    force = 0.287 * duty - 0.054527 * v_x * duty - 0.000348 * v_x**2 - 0.051891
    kappa = track_curvature(s, track)

    front_slip = steering - jnp.arctan((_FRONT * r + v_y) / (v_x + 1e-5))
    rear_slip = jnp.arctan((_REAR * r - v_y) / (v_x + 1e-5))
    front = _lateral_force(_FRONT_TYRE, front_slip)
    rear = _lateral_force(_REAR_TYRE, rear_slip)
    along = (v_x * jnp.cos(mu) - v_y * jnp.sin(mu)) / (1 - kappa * d)
    dynamic = CarState(
        along,
        v_x * jnp.sin(mu) + v_y * jnp.cos(mu),
        r - kappa * along,
        (force - front * jnp.sin(steering) + _MASS * v_y * r) / _MASS,
        (rear + front * jnp.cos(steering) - _MASS * v_x * r) / _MASS,
        (_FRONT * front * jnp.cos(steering) - _REAR * rear) / _INERTIA,
    )

    beta = jnp.arctan(_REAR * jnp.tan(steering) / (_FRONT + _REAR))
    along = v_x * jnp.cos(mu + beta) / (1 - kappa * d)
    yaw_rate = v_x * jnp.sin(beta) / _REAR
    kinematic = CarState(
        along,
        v_x * jnp.sin(mu + beta),
        yaw_rate - kappa * along,
        force / _MASS,
        (v_x * jnp.tan(beta) - v_y) / _STEP,
        (yaw_rate - r) / _STEP,
    )
    blend = jnp.clip((v_x - 0.3) / 0.2, 0, 1)
    return jax.tree.map(lambda a, b: blend * a + (1 - blend) * b, dynamic, kinematic)


def car_step(state: CarState, duty: Any, steering: Any, track: CarParams) -> CarState:
    """Drive for 0.03 s by the classical Runge-Kutta method.

    In two halves: around 0.5 m/s the yaw of this light car is too stiff for one step of it.
    """
    h = _STEP / _SUBSTEPS

    def slope(at):
        return car_derivative(at, duty, steering, track)

    def moved(at, by, scale):
        return jax.tree.map(lambda x, dx: x + scale * dx, at, by)

    def substep(at, _):
        k1 = slope(at)
        k2 = slope(moved(at, k1, h / 2))
        k3 = slope(moved(at, k2, h / 2))
        k4 = slope(moved(at, k3, h))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
        return moved(at, mean, h), None

    return jax.lax.scan(substep, state, None, length=_SUBSTEPS)[0]


@dataclasses.dataclass(frozen=True)
class CarDynamics:
    """Accelerations of the car on its track."""

    num_bins: int
    num_actions: None = None
    action_size: int = 2
    terminates: bool = True

    def start(self, key: Key[Array, ""], params: CarParams) -> CarState:
        """At rest, half the time 0.1 m to the left and half to the right of the line."""
        side = jnp.where(jax.random.bernoulli(key), 0.1, -0.1).astype(float)
        # Each a number of its own: one in two places could not be donated.
        return CarState(jnp.zeros(()), side, *[jnp.zeros(()) for _ in range(4)])

    def move(self, key: Key[Array, ""], position: Any, action: Any, params: CarParams) -> Move:
        """Drive; costs 0.01, 1 off the track, and earns 1 after a lap."""
        duty, steering = jnp.clip(action, -1, 1)
        after = car_step(position, duty, steering, params)
        off = jnp.abs(after.offset) > params.half_width
        lap = after.progress >= params.length
        bonus = -0.01 - jnp.where(off, 1.0, 0.0) + jnp.where(lap & ~off, 1.0, 0.0)
        return Move(after, bonus, off | lap)

    def element(self, position: Any, params: CarParams) -> Int[Array, ""]:
        """The part of the track, -1 off it."""
        share = position.progress / params.length
        part = jnp.floor((share % 1) * self.num_bins).astype(jnp.int32)
        on = jnp.abs(position.offset) <= params.half_width
        return jnp.where(on, jnp.clip(part, 0, self.num_bins - 1), -1)

    def features(self, position: Any, params: CarParams) -> Float[Array, " 7"]:
        """Place on the lap as an angle, offset, heading and speeds, each of order 1."""
        angle = 2 * jnp.pi * position.progress / params.length
        scaled = (
            position.offset / params.half_width,
            position.heading,
            position.forward / 2,
            position.lateral,
            position.yaw_rate / 10,
        )
        return jnp.stack([jnp.sin(angle), jnp.cos(angle), *scaled])


def car_world(
    *,
    length: float = 16.41,
    half_width: float = 0.2,
    bend: float = 0.8,
    num_bins: int = 128,
    horizon: int = 200,
    features: str = "position",
) -> SubmodularEnvironment:
    r"""Make a closed track on which each part counts once, in metres.

    Waiting or driving back and forth earns nothing new, which an additive reward would pay for.

    Args:
        length: L of the centre line, metres; the paper's track (ORCA) has 16.41.
        half_width: of the track, metres.
        bend: how much the curvature varies, in `[0, 1]`; `half_width` times the largest curvature
            must stay below 1.
        num_bins: parts of the track; a car at full speed (4.2 m/s) must not jump over one, so a
            part must be longer than 0.126 m.
        horizon: H >= 2, states of an episode, 0.03 s apart.
        features: `"position"` or `"visited"`.

    Returns:
        The environment; actions are (duty, steering), clipped to `[-1, 1]`.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv 2307.13372, car racing, with an oval in place of the stored track.

    Example:
        >>> env = car_world(horizon=10)
        >>> jax.eval_shape(env.reset, jax.random.key(0))[0].shape
        (8,)
    """
    validation.number("length", length, minimum=0, open_minimum=True)
    validation.number("half_width", half_width, minimum=0, open_minimum=True)
    validation.number("bend", bend, minimum=0, maximum=1)
    num_bins = validation.integer("num_bins", num_bins, minimum=1)
    sharpest = 2 * math.pi / length * (1 + bend)
    if half_width * sharpest >= 1:
        raise ValueError(
            f"half_width must be below the smallest radius {1 / sharpest:.3g} m, got {half_width}"
        )
    if length / num_bins < 0.126:
        raise ValueError(
            f"num_bins must leave parts of at least 0.126 m, got {num_bins} for {length} m"
        )
    params = CarParams(*(jnp.asarray(x, jnp.float32) for x in (length, half_width, bend)))
    return make_environment(
        CarDynamics(num_bins),
        params,
        submodular.modular(jnp.full(num_bins, length / num_bins)),
        horizon=horizon,
        features=features,
        return_scale=length,
    )
