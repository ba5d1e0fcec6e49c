"""Private optimizers: noise on a sum of clipped gradients, then any optax optimizer."""

from __future__ import annotations

from typing import Any

import optax
from jaxtyping import Array, Key

from jaxkit import validation
from jaxkit.privacy import clipping, noise


def dp_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: Any,
    noise_multiplier: Any,
    expected_batch_size: Any,
    key: Key[Array, ""],
    momentum: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""DP-SGD on sums of clipped gradients: :math:`w \leftarrow w - \eta (s + z C \xi) / B`.

    Args:
        learning_rate: eta, a number or schedule.
        clip_norm: C that the sums were clipped with.
        noise_multiplier: z >= 0, from `calibrate_dp_sgd`.
        expected_batch_size: B, a constant: never the number of examples drawn.
        key: typed key for this run alone.
        momentum: of SGD, none by default.
        nesterov: whether the momentum is Nesterov's.

    Returns:
        An optax optimizer whose updates are `BoundedSum.total`.

    Raises:
        ValueError: if a number is not allowed.

    Source: Abadi et al. 2016, Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> optimizer = dp_sgd(
        ...     0.1, clip_norm=1.0, noise_multiplier=0.0, expected_batch_size=2,
        ...     key=jax.random.key(0),
        ... )
        >>> optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))[0].round(3).tolist()
        [-0.05000000074505806]
    """
    return optax.chain(
        noise.privatize_sum(clip_norm, noise_multiplier, expected_batch_size, key),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def dp_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: Any,
    noise_multiplier: Any,
    expected_batch_size: Any,
    key: Key[Array, ""],
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> optax.GradientTransformation:
    """DP-Adam(W): the private mean gradient of `dp_sgd` through Adam, which is post-processing.

    Args:
        learning_rate: a number or schedule.
        clip_norm: C that the sums were clipped with.
        noise_multiplier: z >= 0, from `calibrate_dp_sgd`.
        expected_batch_size: B, a constant.
        key: typed key for this run alone.
        b1: decay of the mean.
        b2: decay of the square; noise adds (zC/B)^2 to it.
        eps: of Adam.
        weight_decay: decoupled; does not touch the data and needs no noise.

    Returns:
        An optax optimizer whose updates are `BoundedSum.total`.

    Raises:
        ValueError: if a number is not allowed.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> optimizer = dp_adam(
        ...     0.1, clip_norm=1.0, noise_multiplier=0.0, expected_batch_size=2,
        ...     key=jax.random.key(0),
        ... )
        >>> params = jnp.zeros(1)
        >>> optimizer.update(jnp.ones(1), optimizer.init(params), params)[0].round(3).tolist()
        [-0.10000000149011612]
    """
    return optax.chain(
        noise.privatize_sum(clip_norm, noise_multiplier, expected_batch_size, key),
        optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay),
    )


def dp_ftrl(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: Any,
    noise_multiplier: Any,
    expected_batch_size: Any,
    steps_per_tree: int,
    key: Key[Array, ""],
    momentum: Any = None,
) -> optax.GradientTransformation:
    r"""DP-FTRL: SGD whose noise is that of a binary tree over the updates of each epoch.

    Needs no random batches: each example may take part in one update of each tree, in any order
    that does not depend on the data. Account for it with `dp_ftrl_mechanism`.

    Args:
        learning_rate: a constant for the paper's algorithm; a schedule is post-processing too.
        clip_norm: C that the sums were clipped with.
        noise_multiplier: z: standard deviation of a node is z C.
        expected_batch_size: B, a constant.
        steps_per_tree: updates in an epoch.
        key: typed key for this run alone.
        momentum: of SGD, none by default.

    Returns:
        An optax optimizer whose updates are `BoundedSum.total`.

    Raises:
        ValueError: if a number is not allowed.

    Source: Kairouz et al. 2021, arXiv 2103.00039 Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> optimizer = dp_ftrl(
        ...     0.1, clip_norm=1.0, noise_multiplier=0.0, expected_batch_size=2,
        ...     steps_per_tree=8, key=jax.random.key(0),
        ... )
        >>> optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))[0].round(3).tolist()
        [-0.05000000074505806]
    """
    clipping.check_clip_norm(clip_norm, "flat")
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    validation.number("expected_batch_size", expected_batch_size, minimum=0, open_minimum=True)
    return optax.chain(
        noise.add_tree_noise(noise_multiplier * clip_norm, steps_per_tree, key),
        optax.scale(1 / expected_batch_size),
        optax.sgd(learning_rate, momentum),
    )
