"""What repeated noisy measurements tell of a Gaussian field, with a state of the episode's size."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxkit import pytrees, submodular, validation

Items = Any


class MeasurementState(NamedTuple):
    """The places measured and the inverse of the lower Cholesky factor of `K_tau + ridge I`.

    The inverse is the identity where unused.
    """

    inverse: Float[Array, "s s"]
    places: Int[Array, " s"]
    size: Int[Array, ""]
    value: Float[Array, ""]


@pytrees.dataclass
class Measurements:
    """`1/2 logdet(K_tau + ridge I) + offset |tau|`; make it with `measurements`."""

    kernel: Float[Array, "n n"]
    ridge: Float[Array, ""]
    offset: Float[Array, ""]
    max_size: int = flax.struct.field(pytree_node=False)
    monotone: bool = flax.struct.field(pytree_node=False)

    @property
    def num_items(self) -> int:
        return self.kernel.shape[0]

    def init(self) -> MeasurementState:
        return MeasurementState(
            jnp.eye(self.max_size),
            jnp.zeros(self.max_size, jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
        )

    def _projection(self, state: MeasurementState, place: Any) -> tuple[Any, Any]:
        """The new row of the Cholesky factor and the squared pivot at its end."""
        used = jnp.arange(self.max_size) < state.size
        covariance = jnp.where(used, self.kernel[state.places, place], 0)
        row = jnp.matmul(state.inverse, covariance, precision="highest")
        pivot = self.kernel[place, place] + self.ridge - jnp.sum(row**2)
        # K - row row^T is positive semi-definite, so a smaller pivot can only be rounding.
        return row, jnp.maximum(pivot, self.ridge)

    def gains(self, state: MeasurementState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of one more measurement at all places or at `candidates`."""
        places = jnp.arange(self.num_items) if candidates is None else jnp.asarray(candidates)
        flat = jax.vmap(lambda place: self._projection(state, place)[1])(places.reshape(-1))
        return (0.5 * jnp.log(flat) + self.offset).reshape(places.shape)

    def add(self, state: MeasurementState, element: Items) -> MeasurementState:
        """State after one more measurement; unchanged where the state is full."""
        row, pivot = self._projection(state, element)
        root = jnp.sqrt(pivot)
        # L' = [[L, 0], [row, root]] has the inverse [[W, 0], [-row W / root, 1 / root]].
        last = -jnp.matmul(row, state.inverse, precision="highest") / root
        last = jnp.where(jnp.arange(self.max_size) < state.size, last, 0)
        last = last.at[state.size].set(1 / root, mode="drop")
        room = state.size < self.max_size
        gain = jnp.where(room, 0.5 * jnp.log(pivot) + self.offset, 0)
        return MeasurementState(
            state.inverse.at[state.size].set(last, mode="drop"),
            state.places.at[state.size].set(jnp.asarray(element, jnp.int32), mode="drop"),
            state.size + room,
            state.value + gain,
        )

    def value(self, state: MeasurementState) -> Float[Array, ""]:
        return state.value


def measurements(
    kernel: ArrayLike,
    noise_variance: Any = 1e-3,
    *,
    max_size: int,
    offset: Any = None,
) -> Measurements:
    r"""Make $F(\tau) = \frac12 \log\det(I + K_\tau/\sigma^2)$, nats, where each visit measures.

    The ground set is of *visits*: a second measurement at a place tells less than the first, but
    not nothing, because it has noise of its own. Where repeats should count once, use
    `submodular.information_gain`, whose state is larger. A gain costs `max_size^2` operations.

    Args:
        kernel: K, `[n, n]`, covariance of the field at the places, symmetric, positive
            semi-definite.
        noise_variance: sigma^2 > 0 of one measurement, in units of K. Below 1e-5 of K, float32
            loses digits of repeated measurements.
        max_size: most measurements of an episode, its horizon H.
        offset: added a measurement in place of $-\frac12\log\sigma^2$; the published program has
            noise 1e-6 and offset 9.965784, which mixes a natural and a binary logarithm.

    Returns:
        A function with the methods of `submodular.SetFunction`; monotone unless `offset` is given.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if K is not square, symmetric, finite and positive semi-definite (to 1e-4 of its
            largest eigenvalue), or the noise not positive.

    Source: arXiv 2307.13372, Bayesian experiment design; Krause, Singh and Guestrin, JMLR 2008.

    Example:
        >>> f = measurements(jnp.eye(2), 1.0, max_size=3)
        >>> once = jax.jit(f.add)(f.init(), 0)
        >>> [round(float(g), 4) for g in jax.jit(f.gains)(once)]  # ln(3/2)/2, ln(2)/2
        [0.2027, 0.3466]
    """
    validation.integer("max_size", max_size, minimum=1)
    validation.number("noise_variance", noise_variance, minimum=0, open_minimum=True)
    matrix = submodular.log_det(kernel, max_size=1).kernel
    noise = jnp.asarray(noise_variance, jnp.float32)
    if offset is not None:
        validation.number("offset", offset)
    each = -0.5 * jnp.log(noise) if offset is None else jnp.asarray(offset, jnp.float32)
    return Measurements(matrix, noise, each, max_size, offset is None)


#: Noise of the published program, for `measurements`.
OFFICIAL_NOISE = 1e-6
#: Offset of the published program: -log2(1e-3) added to natural logarithms.
OFFICIAL_OFFSET = -math.log2(1e-3)
