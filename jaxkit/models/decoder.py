"""The decoder-only language model: a pre-norm transformer, its token table an argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from jaxkit import training, validation
from jaxkit.models import decoder_blocks, products, readout
from jaxkit.models.decoder_config import DecoderConfig

F = TypeVar("F", bound=Callable[..., Any])


def on_automatic_axes(method: F) -> F:
    """Let a method of a module run where the mesh has explicit axes, see `automatic_axes`."""

    @functools.wraps(method)
    def run(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        known = self.scope is not None
        mesh = training.explicit_mesh(self.variables, arguments, options) if known else None
        if mesh is None:
            return method(self, *arguments, **options)
        if self.is_initializing():
            # Whole on every device, so that nothing is ambiguous; parameters are placed later.
            whole = NamedSharding(mesh, PartitionSpec())
            arguments, options = jax.tree.map(
                lambda x: jax.sharding.reshard(x, whole), (arguments, options)
            )
            return method(self, *arguments, **options)
        module, variables = self.unbind()

        def apply(variables: Any, arguments: Any, options: Any) -> Any:
            return module.apply(variables, *arguments, **options, method=method)

        return training.automatic_axes(apply)(variables, arguments, options)

    return run  # type: ignore[return-value]


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far.

    Attributes:
        keys: ``[L, B, S, J, K]``, J the heads of keys and values.
        values: ``[L, B, S, J, K]``.
        position: number of tokens read, int32 scalar.
    """

    keys: Float[Array, "L B S J K"]
    values: Float[Array, "L B S J K"]
    position: Int[Array, ""]


def empty_cache(config: DecoderConfig, batch_size: int, length: int) -> KeyValueCache:
    """Make the cache that `DecoderLM.decode_step` starts from.

    Args:
        config: the model's configuration.
        batch_size: number of sequences ``B``.
        length: number of tokens ``S`` it can hold, prompt included.

    Example:
        >>> empty_cache(DecoderConfig(vocab_size=8), 2, 16).keys.shape
        (4, 2, 16, 4, 32)
    """
    shape = (config.num_layers, batch_size, length, config.kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return KeyValueCache(zeros, zeros, jnp.zeros((), jnp.int32))


#: A token table for all sequences, one a sequence, or one a sequence computed where it is read.
AnyTable = Float[Array, "V D"] | Float[Array, "B V D"] | readout.TokenTable


class DecoderLM(nn.Module):
    r"""Decoder-only language model whose token table may come from outside.

    .. math::
        x^0_t = g \odot E[\mathrm{tok}_t] + c, \qquad
        \mathrm{logits}_{t,v} = \langle \mathrm{norm}(x^L_t), E[v] \rangle / \sqrt{D}

    with pre-RMSNorm blocks between. `E` is the learned table (`embedding="fixed"`) or what is given
    with the call (`embedding="given"`): an array, ``[V, D]`` for all sequences or ``[B, V, D]``, or
    a `TokenTable`. The module itself has no randomness, so that prefill, decoding and probes see
    the same table.

    Example:
        >>> model = DecoderLM(DecoderConfig(vocab_size=8, d_model=16, num_layers=1))
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        >>> jax.eval_shape(model.apply, variables, tokens).shape
        (1, 3, 8)

    Source: arXiv 2305.16349 §2.3 eqs. 4-6 and appendix B (scale and bias of the embedding).
    """

    config: DecoderConfig

    def setup(self):
        """Declare the parameters."""
        c = self.config
        rows = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        if c.embedding == "fixed":
            self.embedding: Any = self.param("embedding", rows, (c.vocab_size, c.d_model))
        if not c.tied_readout:
            self.unembedding: Any = self.param("unembedding", rows, (c.vocab_size, c.d_model))
        if c.embedding_affine:
            ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
            self.embedding_scale: Any = self.param("embedding_scale", ones, (c.d_model,))
            self.embedding_bias: Any = self.param("embedding_bias", zeros, (c.d_model,))
        if c.position == "t5" and c.share_relative_bias:
            self.relative_bias = decoder_blocks.relative_bias(self, c)
        block = (
            nn.remat(decoder_blocks.Block, prevent_cse=False) if c.remat else decoder_blocks.Block
        )
        scan: Any = nn.scan
        self.layers: Any = scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            unroll=c.num_layers if c.unroll_layers else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = decoder_blocks.RMSNorm(c.norm_epsilon)

    @on_automatic_axes
    def __call__(
        self, tokens: Int[Array, "B T"], embedding: AnyTable | None = None
    ) -> Float[Array, "B T V"]:
        """Next-token logits at every position.

        Args:
            tokens: token ids ``[B, T]`` in ``[0, V)``; `validate_tokens` checks concrete ones.
            embedding: token table ``[V, D]`` or ``[B, V, D]``, or a `TokenTable`; the learned table
                if None.

        Returns:
            Float32 logits ``[B, T, V]``.

        Raises:
            TypeError: if tokens are not integers.
            ValueError: if a shape is wrong, a concrete token id is out of range, the context is
                longer than `config.max_length`, or no table comes with a model that has none.
        """
        return self.readout(self.hidden_states(tokens, embedding), embedding)

    @on_automatic_axes
    def hidden_states(
        self, tokens: Int[Array, "B T"], embedding: AnyTable | None = None
    ) -> Float[Array, "B T D"]:
        """What `readout` reads: the residual stream after the final norm, ``[B, T, D]``."""
        return self._run(tokens, embedding, None)[0]

    @on_automatic_axes
    def readout(
        self, hidden: Float[Array, "B T D"], embedding: AnyTable | None = None
    ) -> Float[Array, "B T V"]:
        """Score hidden states against every row of the table: ``<h, E[v]> / sqrt(D)``, float32.

        A `TokenTable` is computed again in the backward pass instead of being stored.
        """
        table = self.readout_table() if embedding is None else self._table(embedding, len(hidden))
        if isinstance(table, readout.TokenTable):
            return jax.checkpoint(lambda h, t: readout.scores(h, t.whole()))(hidden, table)
        return readout.scores(hidden, table)

    def token_table(self) -> Float[Array, "V D"]:
        """The learned table that tokens are read from, of models with `embedding="fixed"`."""
        return self._table(None, 0)

    def readout_table(self) -> Float[Array, "V D"]:
        """The learned table that `readout` scores against."""
        return self._table(None, 0) if self.config.tied_readout else self.unembedding

    @on_automatic_axes
    def decode_step(
        self, cache: KeyValueCache, tokens: Int[Array, "B T"], embedding: AnyTable | None = None
    ) -> tuple[Float[Array, "B T V"], KeyValueCache]:
        """Read `tokens` after those in `cache` (a prompt, or one token at a time).

        Args:
            cache: what was read before, from `empty_cache` or an earlier call.
            tokens: the next token ids ``[B, T]``.
            embedding: the same table as in the earlier calls.

        Returns:
            Logits ``[B, T, V]`` and the cache with the tokens added.

        Raises:
            ValueError: if the cache is too short. Under `jit`, where the number of tokens already
                read is unknown, only a call longer than the whole cache is noticed.
        """
        read = 0 if validation.is_traced(cache.position) else int(cache.position)
        if read + tokens.shape[1] > cache.keys.shape[2]:
            raise ValueError(
                f"cache holds {cache.keys.shape[2]} tokens, got {tokens.shape[1]} more after {read}"
            )
        hidden, extended = self._run(tokens, embedding, cache)
        return self.readout(hidden, embedding), extended

    def _run(self, tokens: Array, embedding: Any, cache: Any) -> tuple[Array, Any]:
        c: DecoderConfig = self.config
        if not hasattr(tokens, "dtype"):
            raise TypeError(f"tokens must be an array, got a {type(tokens).__name__}")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape [B, T] with T >= 1, got {tokens.shape}")
        if c.max_length is not None and tokens.shape[1] > c.max_length:
            raise ValueError(
                f"tokens must be at most max_length={c.max_length} long, got {tokens.shape[1]}"
            )
        if not validation.is_traced(tokens):
            validate_tokens(tokens, c.vocab_size)
        rows = self._rows(tokens, self._table(embedding, tokens.shape[0]))
        if c.embedding_affine:
            rows = rows * self.embedding_scale + self.embedding_bias
        x = training.constrain(rows.astype(c.dtype), "batch", None, None)
        shared = c.position == "t5" and c.share_relative_bias
        keys_values = None if cache is None else (cache.keys, cache.values)
        position: Any = 0 if cache is None else cache.position
        x, keys_values = self.layers(
            x, keys_values, position, self.relative_bias if shared else None
        )
        if cache is not None:
            cache = KeyValueCache(keys_values[0], keys_values[1], position + tokens.shape[1])
        return self.final_norm(x) * self.config.readout_multiplier, cache

    def _rows(self, tokens: Array, table: Any) -> Float[Array, "B T D"]:
        if isinstance(table, readout.TokenTable):
            return table.rows(tokens)
        if table.ndim == 2:
            return products.read_rows(table, tokens)
        return jnp.take_along_axis(table, tokens[..., None], axis=1)

    def _table(self, embedding: Any, batch_size: int) -> Any:
        c: DecoderConfig = self.config
        if embedding is None:
            if c.embedding != "fixed":
                raise ValueError(
                    "embedding must be given to a model with config.embedding='given': an array, "
                    "or a table that is computed where it is read, such as lexinvariant.RandomTable"
                )
            return self.embedding
        rows = (c.vocab_size, c.d_model)
        if embedding.shape not in (rows, (batch_size, *rows)):
            raise ValueError(
                f"embedding must have shape {rows} or {(batch_size, *rows)}, got {embedding.shape}"
            )
        return embedding


def validate_tokens(tokens: Any, vocab_size: int) -> None:
    """Check token ids; under `jit` an id out of range would be clamped in silence.

    Concrete ids are checked at once, on the host. Traced ones are checked when the program runs,
    if it is transformed by `jax.experimental.checkify.checkify`, and not at all otherwise.

    Args:
        tokens: integer array of any shape.
        vocab_size: number of ids ``V``.

    Raises:
        TypeError: if tokens are not integers.
        ValueError: if an id is outside ``[0, V)``, naming the first such position.

    Example:
        >>> validate_tokens(np.array([[0, 9]]), 8)
        Traceback (most recent call last):
        ValueError: tokens must be in [0, 8), got 9 at position (0, 1)
    """
    tokens = tokens if hasattr(tokens, "dtype") else np.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    if validation.is_traced(tokens):
        inside = jnp.all((tokens >= 0) & (tokens < vocab_size))
        checkify.debug_check(inside, f"tokens must be in [0, {vocab_size})")
        return
    tokens = np.asarray(tokens)
    outside = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        where = tuple(int(i) for i in outside[0])
        raise ValueError(
            f"tokens must be in [0, {vocab_size}), got {tokens[where]} at position {where}"
        )


def initializer(model: DecoderLM) -> Callable[[Key[Array, ""]], Any]:
    """Make `init(key)`, to the model's variables with their sharding metadata.

    Example:
        >>> model = DecoderLM(DecoderConfig(vocab_size=8, d_model=16))
        >>> jax.eval_shape(initializer(model), jax.random.key(0))["params"]["embedding"].value.shape
        (8, 16)
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    table = None
    if model.config.embedding == "given":
        table = jnp.zeros((model.config.vocab_size, model.config.d_model))
    return lambda key: model.init(key, tokens, table)
