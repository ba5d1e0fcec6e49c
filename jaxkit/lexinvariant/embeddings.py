"""Random token tables: one a sequence, each row a pure function of key and token id."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import validation

KINDS = ("gaussian", "orthogonal", "rademacher")
Kind = Literal["gaussian", "orthogonal", "rademacher"]


def is_keys(value: Any) -> bool:
    """Whether `value` is an array of typed keys.

    Example:
        >>> is_keys(jax.random.key(0)), is_keys(jnp.ones(2))
        (True, False)
    """
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_keys(keys: Any, batch_size: int | None = None) -> None:
    """Require one typed key a sequence: one for the whole batch would break the method.

    Raises:
        TypeError: if `keys` are not typed keys.
        ValueError: if they do not have shape ``[B]``.

    Example:
        >>> check_keys(jax.random.split(jax.random.key(0), 2), 3)
        Traceback (most recent call last):
        ValueError: keys must have shape (3,), one a sequence (see sequence_keys), got (2,)
    """
    if not is_keys(keys):
        raise TypeError(
            "keys must be typed keys of shape [B], one a sequence (see sequence_keys), got "
            f"dtype {getattr(keys, 'dtype', type(keys).__name__)}"
        )
    if keys.ndim != 1 or batch_size not in (None, keys.shape[0]):
        expected = "[B]" if batch_size is None else (batch_size,)
        raise ValueError(
            f"keys must have shape {expected}, one a sequence (see sequence_keys), got {keys.shape}"
        )


def sequence_keys(key: Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
    """Derive one key a sequence from its global index.

    Args:
        key: a typed key, the same for the whole batch (usually one a step).
        index: global index of each sequence, so that a sequence draws the same table whatever the
            batch layout, the number of devices or the point of resumption.

    Returns:
        Keys of shape ``[B]``.

    Raises:
        TypeError: if `index` is not an integer array.

    Example:
        >>> keys = sequence_keys(jax.random.key(0), jnp.array([5, 6]))
        >>> bool(keys[1] == sequence_keys(jax.random.key(0), jnp.array([6]))[0])
        True
    """
    if not jnp.issubdtype(jnp.asarray(index).dtype, jnp.integer):
        raise TypeError(f"index must be integers, got dtype {jnp.asarray(index).dtype}")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))


def embedding_rows(
    keys: Key[Array, " B"],
    tokens: Int[Array, "B T"],
    features: int,
    kind: Literal["gaussian", "rademacher"] = "gaussian",
) -> Float[Array, "B T D"]:
    r"""Draw only the rows of given ids: bit for bit those of `draw_embedding`.

    .. math:: E_b[v] = \mathrm{draw}(\mathrm{fold}(\mathrm{key}_b, v))

    with `jax.random.fold_in`, so that the input of a model never needs the ``[B, V, D]`` table.

    Args:
        keys: one typed key a sequence, shape ``[B]``.
        tokens: ids ``[B, T]``.
        features: width ``D``.
        kind: the law of the rows; orthogonal rows depend on each other and cannot be drawn alone.

    Returns:
        Float32 rows ``[B, T, D]``.

    Raises:
        TypeError: if `keys` are not typed keys.
        ValueError: if `kind` is not a law of independent rows, or the keys are not one a sequence.

    Example:
        >>> keys, tokens = jax.random.split(jax.random.key(0), 1), jnp.array([[3, 1]])
        >>> table = draw_embedding(keys, 5, 4)
        >>> bool((embedding_rows(keys, tokens, 4) == table[:, tokens[0]]).all())
        True
    """
    validation.integer("features", features, minimum=1)
    validation.choice("kind", kind, ("gaussian", "rademacher"))
    check_keys(keys, tokens.shape[0])

    def row(key: Key[Array, ""], token: Int[Array, ""]) -> Float[Array, " D"]:
        key = jax.random.fold_in(key, token)
        if kind == "rademacher":
            return jax.random.rademacher(key, (features,), jnp.float32)
        return jax.random.normal(key, (features,), jnp.float32)

    return jax.vmap(jax.vmap(row, in_axes=(None, 0)))(keys, tokens)


def draw_embedding(
    keys: Key[Array, " B"],
    vocab_size: int,
    features: int,
    kind: Kind = "gaussian",
    dtype: jnp.dtype | str = "float32",
) -> Float[Array, "B V D"]:
    r"""Draw a fresh token table for every sequence.

    Rows have mean zero and :math:`\mathbb{E}|E_v|^2 = D`: `"gaussian"` rows are
    :math:`N(0, I_D)` (the paper's), `"rademacher"` entries are :math:`\pm 1`, `"orthogonal"` rows
    are a random orthonormal set times :math:`\sqrt{D}`, which needs ``V <= D``.

    Args:
        keys: one typed key a sequence, shape ``[B]`` (see `sequence_keys`).
        vocab_size: number of rows ``V``.
        features: width ``D``.
        kind: the law of the rows.
        dtype: type of the result; the draw itself is float32, so that two types differ by rounding
            alone.

    Returns:
        Tables ``[B, V, D]``.

    Raises:
        TypeError: if `keys` are not typed keys.
        ValueError: if they are not one a sequence, `kind` is unknown, a size is not positive, or
            ``V > D`` for `"orthogonal"`.

    Example:
        >>> draw_embedding(jax.random.split(jax.random.key(0), 2), 6, 16).shape
        (2, 6, 16)

    Source: arXiv 2305.16349 §2.3 (Gaussian); Rademacher as in arXiv 2410.17161.
    """
    validation.integer("vocab_size", vocab_size, minimum=1)
    validation.integer("features", features, minimum=1)
    validation.choice("kind", kind, KINDS)
    check_keys(keys)
    if kind == "orthogonal":
        if vocab_size > features:
            raise ValueError(
                f"kind='orthogonal' needs vocab_size <= features, got {vocab_size} > {features}: "
                "use kind='gaussian'"
            )
        square = jax.vmap(lambda key: jax.random.orthogonal(key, features))(keys)
        return (square[:, :vocab_size] * features**0.5).astype(dtype)
    ids = jnp.broadcast_to(jnp.arange(vocab_size), (keys.shape[0], vocab_size))
    return embedding_rows(keys, ids, features, kind).astype(dtype)


def random_rows(
    keys: Key[Array, " B"], vocab_size: int, p: float | Float[Array, ""] | Float[Array, " B"]
) -> Bool[Array, "B V"]:
    r"""Choose, for every sequence, which rows of the table are random: ``m_v ~ Bernoulli(p)``.

    Args:
        keys: one typed key a sequence, shape ``[B]``.
        vocab_size: number of rows ``V``.
        p: probability that a row is random, in [0, 1]; a scalar or one a sequence; may be traced.

    Returns:
        The mask ``[B, V]``.

    Raises:
        TypeError: if `keys` are not typed keys.
        ValueError: if `p` is outside [0, 1], or the keys are not one a sequence.

    Example:
        >>> int(random_rows(jax.random.split(jax.random.key(0), 3), 5, 1.0).sum())
        15

    Source: arXiv 2305.16349 §3.6 and appendix G.
    """
    check_keys(keys)
    validation.number("p", p, minimum=0, maximum=1)
    chance = jnp.broadcast_to(jnp.asarray(p, jnp.float32), keys.shape)
    return jax.vmap(lambda key, q: jax.random.uniform(key, (vocab_size,)) < q)(keys, chance)


def mix_embedding(
    mask: Bool[Array, "B V"], fixed: Float[Array, "V D"], random: Float[Array, "B V D"]
) -> Float[Array, "B V D"]:
    r"""Table with some rows random and the others learned: ``m E_random + (1 - m) E_fixed``.

    Args:
        mask: rows to take from `random`, ``[B, V]`` (see `random_rows`).
        fixed: the learned table ``[V, D]``.
        random: one random table a sequence, ``[B, V, D]``.

    Returns:
        Tables ``[B, V, D]``, for input and readout alike.

    Raises:
        ValueError: if the shapes do not fit together.

    Example:
        >>> mask = jnp.array([[True, False]])
        >>> mix_embedding(mask, jnp.zeros((2, 1)), jnp.ones((1, 2, 1)))[0, :, 0].tolist()
        [1.0, 0.0]

    Source: arXiv 2305.16349 appendix G, which found that the network tells the two kinds of rows
    apart by their norm; relabelling (`permute_tokens`) does not have this weakness.
    """
    if random.shape != (*mask.shape, fixed.shape[-1]) or fixed.shape[0] != mask.shape[-1]:
        raise ValueError(
            "mask, fixed and random must have shapes [B, V], [V, D] and [B, V, D], got "
            f"{mask.shape}, {fixed.shape} and {random.shape}"
        )
    return jnp.where(mask[..., None], random, fixed)
