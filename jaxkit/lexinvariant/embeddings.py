"""Random token tables: one a sequence, each row a pure function of key and token id."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import pytrees, validation

KINDS = ("gaussian", "orthogonal", "rademacher")
Kind = Literal["gaussian", "orthogonal", "rademacher"]


def is_keys(value: Any) -> bool:
    """Whether `value` is an array of typed keys."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_keys(keys: Any, batch_size: int | None = None) -> None:
    """Require one typed key a sequence: one for the whole batch would break the method."""
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

    Raises:
        TypeError: if `index` is not an integer array.
        ValueError: if it is not flat.

    Example:
        >>> keys = sequence_keys(jax.random.key(0), jnp.array([5, 6]))
        >>> bool(keys[1] == sequence_keys(jax.random.key(0), jnp.array([6]))[0])
        True
    """
    if not jnp.issubdtype(jnp.asarray(index).dtype, jnp.integer):
        raise TypeError(f"index must be integers, got dtype {jnp.asarray(index).dtype}")
    if jnp.ndim(index) != 1:
        raise ValueError(f"index must have shape [B], got {jnp.shape(index)}")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))


@pytrees.dataclass
class RandomTable:
    r"""A fresh token table for every sequence, drawn where it is read and never stored.

    Rows have mean zero and :math:`\mathbb{E}|E_v|^2 = D`: `"gaussian"` rows are
    :math:`N(0, I_D)` (the paper's), `"rademacher"` entries are :math:`\pm 1`, `"orthogonal"` rows
    are a random orthonormal set times :math:`\sqrt{D}`, which needs ``V <= D``. A row of the first
    two is a pure function of key and id,

    .. math:: E_b[v] = \mathrm{draw}(\mathrm{fold}(\mathrm{key}_b, v))

    so that the input of a model never needs the ``[B, V, D]`` table. What `models.DecoderLM` with
    `embedding="given"` and `models.chunked_cross_entropy` take as a table.

    Attributes:
        keys: one typed key a sequence, shape ``[B]`` (see `sequence_keys`).
        vocab_size: number of rows ``V``.
        features: width ``D``.
        kind: the law of the rows.

    Example:
        >>> table = RandomTable(jax.random.split(jax.random.key(0), 1), 5, 4)
        >>> bool((table.rows(jnp.array([[3, 1]])) == table.whole()[:, [3, 1]]).all())
        True

    Source: arXiv 2305.16349 §2.3 (Gaussian); Rademacher as in arXiv 2410.17161.
    """

    keys: Key[Array, " B"]
    vocab_size: int = struct.field(pytree_node=False)
    features: int = struct.field(pytree_node=False)
    kind: Kind = struct.field(pytree_node=False, default="gaussian")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(B, V, D)``."""
        return (*self.keys.shape, self.vocab_size, self.features)  # type: ignore[return-value]

    def rows(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Rows of ids ``[B, T]``, float32; the whole table is drawn only where it is less work."""
        check_keys(self.keys, tokens.shape[0])
        if self.kind == "orthogonal" or tokens.shape[1] >= self.vocab_size:
            return jnp.take_along_axis(self.whole(), tokens[..., None], axis=1)
        return self._independent_rows(tokens)

    def whole(self) -> Float[Array, "B V D"]:
        """All rows, float32."""
        validation.integer("vocab_size", self.vocab_size, minimum=1)
        validation.integer("features", self.features, minimum=1)
        check_keys(self.keys)
        if self.kind != "orthogonal":
            ids = jnp.arange(self.vocab_size)
            return self._independent_rows(jnp.broadcast_to(ids, (len(self.keys), len(ids))))
        if self.vocab_size > self.features:
            raise ValueError(
                "kind='orthogonal' needs vocab_size <= features, got "
                f"{self.vocab_size} > {self.features}: use kind='gaussian'"
            )
        square = jax.vmap(lambda key: jax.random.orthogonal(key, self.features))(self.keys)
        return square[:, : self.vocab_size] * self.features**0.5

    def _independent_rows(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        validation.choice("kind", self.kind, KINDS)
        law = jax.random.rademacher if self.kind == "rademacher" else jax.random.normal

        def row(key: Key[Array, ""], token: Int[Array, ""]) -> Float[Array, " D"]:
            return law(jax.random.fold_in(key, token), (self.features,), jnp.float32)

        return jax.vmap(jax.vmap(row, in_axes=(None, 0)))(self.keys, tokens)


def draw_embedding(
    keys: Key[Array, " B"],
    vocab_size: int,
    features: int,
    kind: Kind = "gaussian",
    dtype: jnp.dtype | str = "float32",
) -> Float[Array, "B V D"]:
    r"""Draw a fresh token table for every sequence: the rows of a `RandomTable`, stored.

    Args:
        keys: one typed key a sequence, shape ``[B]`` (see `sequence_keys`).
        vocab_size: number of rows ``V``.
        features: width ``D``.
        kind: the law of the rows, see `RandomTable`.
        dtype: type of the result; the draw itself is float32, so that two types differ by rounding
            alone.

    Raises:
        TypeError: if `keys` are not typed keys.
        ValueError: if they are not one a sequence, `kind` is unknown, a size is not positive, or
            ``V > D`` for `"orthogonal"`.

    Example:
        >>> draw_embedding(jax.random.split(jax.random.key(0), 2), 6, 16).shape
        (2, 6, 16)

    Source: arXiv 2305.16349 §2.3.
    """
    return RandomTable(keys, vocab_size, features, kind).whole().astype(dtype)


def random_rows(
    keys: Key[Array, " B"], vocab_size: int, p: float | Float[Array, ""] | Float[Array, " B"]
) -> Bool[Array, "B V"]:
    r"""Choose, for every sequence, which rows of the table are random: ``m_v ~ Bernoulli(p)``.

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
