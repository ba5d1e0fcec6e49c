"""Reading ciphers in context: a probe on a frozen language model, and what it says of a text."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key

from jaxkit import datasets, models, validation
from jaxkit.lexinvariant import ciphers, embeddings, objective

_CONTEXTS_AT_ONCE = 64


class DecipherProbe(nn.Module):
    r"""Two-layer MLP that tells from a hidden state which symbol the current one really is.

    .. math:: \mathrm{logits}_t = \mathrm{MLP}(h_t)\, E'^\top

    with a learned, stable table :math:`E'`, unlike the one the language model reads.

    Attributes:
        vocab_size: number of symbols ``V``.
        features: hidden width of the MLP and of its output.

    Example:
        >>> probe = DecipherProbe(vocab_size=5, features=8)
        >>> hidden = jnp.ones((1, 3, 4))
        >>> jax.eval_shape(probe.init_with_output, jax.random.key(0), hidden)[0].shape
        (1, 3, 5)

    Source: arXiv 2305.16349 §3.3 (width and activation are not stated there).
    """

    vocab_size: int
    features: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Score each symbol at each position."""
        x = nn.Dense(self.features)(jax.nn.relu(nn.Dense(self.features)(hidden)))
        return nn.Dense(self.vocab_size, use_bias=False)(x)


def probe_loss(
    model: models.DecoderLM, probe: DecipherProbe
) -> Callable[[Any, Any, objective.Batch, Key[Array, ""]], Float[Array, ""]]:
    """Make the loss of a probe: cross-entropy of the current symbol under hidden names.

    Returns:
        `loss(probe_params, params, batch, key)`, in nats a token; differentiate by the first
        argument only. No cipher is needed: names are hidden anew in each sequence.

    Source: arXiv 2305.16349 §3.3.
    """

    def loss(
        probe_params: Any, params: Any, batch: objective.Batch, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        tokens = batch["tokens"][:, :-1]
        keys = embeddings.sequence_keys(key, batch["index"])
        logits = _probe_logits(model, params, probe, probe_params, tokens, keys)
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens))

    return loss


def _probe_logits(model, params, probe, probe_params, tokens, keys) -> Float[Array, "B T V"]:
    method = "lexinvariant" if model.config.embedding == "given" else "relabel"
    hidden_tokens, table, _ = objective.anonymised(model, params, tokens, keys, method)
    states: Any = model.apply(params, hidden_tokens, table, method="hidden_states")
    return probe.apply(probe_params, states.astype(jnp.float32))


def train_probe(
    model: models.DecoderLM,
    params: Any,
    tokens: Integer[np.ndarray, " tokens"],
    *,
    key: Key[Array, ""],
    num_steps: int,
    sequence_length: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    features: int | None = None,
) -> tuple[DecipherProbe, Any]:
    """Train a probe on the text that the language model was trained on.

    Args:
        model: the language model; its parameters stay as they are.
        params: its variables.
        tokens: training text as ids, ``[tokens]``.
        key: typed key.
        num_steps: updates (the paper makes 10,000).
        sequence_length: tokens a window, best that of the model's own training.
        batch_size: windows an update.
        learning_rate: peak learning rate of Adam, falling to 0 as a cosine.
        features: width of the probe; None for the model's.

    Raises:
        ValueError: if a size is not positive, an id is out of range, or the text is shorter than a
            window.

    Example:
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=8, num_layers=1))
        >>> text = np.arange(64) % 8
        >>> params = jax.jit(models.initializer(model))(jax.random.key(0))
        >>> probe, probe_params = train_probe(
        ...     model, params, text, key=jax.random.key(1), num_steps=1, sequence_length=8)

    Source: arXiv 2305.16349 §3.3.
    """
    validation.integer("num_steps", num_steps, minimum=1)
    models.validate_tokens(np.asarray(tokens), model.config.vocab_size)
    probe = DecipherProbe(model.config.vocab_size, features or model.config.d_model)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    gradient = jax.grad(probe_loss(model, probe))
    batches = datasets.token_batches(
        tokens, sequence_length=sequence_length, batch_size=batch_size, seed=0
    )

    @jax.jit
    def step(probe_params, opt_state, params, batch, key):
        updates, opt_state = optimizer.update(
            gradient(probe_params, params, batch, key), opt_state, probe_params
        )
        return optax.apply_updates(probe_params, updates), opt_state

    init_key, step_key = jax.random.split(key)
    blank = jnp.zeros((1, 1, model.config.d_model))
    probe_params = jax.jit(probe.init)(init_key, blank)
    opt_state = optimizer.init(probe_params)
    for number in range(num_steps):
        batch = {name: jnp.asarray(rows) for name, rows in next(batches).items()}
        probe_params, opt_state = step(
            probe_params, opt_state, params, batch, jax.random.fold_in(step_key, number)
        )
    return probe, probe_params


def decipher_log_probs(
    model: models.DecoderLM,
    params: Any,
    probe: DecipherProbe,
    probe_params: Any,
    tokens: Int[Array, "B T"],
    keys: Key[Array, " B"],
) -> Float[Array, "B T V"]:
    r"""What each symbol of a ciphertext means: :math:`\log P(\pi^{-1}(x_t) = u \mid x_{\le t})`.

    Args:
        model: the language model.
        params: its variables.
        probe: the probe.
        probe_params: its variables.
        tokens: cipher (or plain) ids ``[B, T]``; the answer does not depend on their names.
        keys: one typed key a sequence, ``[B]``.

    Returns:
        Log-probabilities over plain ids ``[B, T, V]``.

    Example:
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=8, num_layers=1))
        >>> tokens, probe = jnp.zeros((1, 3), int), DecipherProbe(8, 16)
        >>> params = jax.eval_shape(models.initializer(model), jax.random.key(0))
        >>> probe_params = jax.eval_shape(probe.init, jax.random.key(1), jnp.ones((1, 1, 128)))
        >>> keys = jax.random.split(jax.random.key(2), 1)
        >>> read = lambda p, q: decipher_log_probs(model, p, probe, q, tokens, keys)
        >>> jax.eval_shape(read, params, probe_params).shape
        (1, 3, 8)

    Source: arXiv 2305.16349 §3.3.
    """
    return jax.nn.log_softmax(_probe_logits(model, params, probe, probe_params, tokens, keys))


@dataclasses.dataclass(frozen=True)
class DecipheredWindow:
    """A key recovered from one range of context positions.

    Attributes:
        start: first position.
        stop: position after the last.
        key: plain character of each cipher character seen there.
        precision: share of its entries that are right; None if the true key is not known.
        accuracy: share of positions read right; None if the plain text is not known.
    """

    start: int
    stop: int
    key: dict[str, str]
    precision: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Decipherment:
    """What a model makes of a ciphertext.

    Attributes:
        ciphertext: the text as the model saw it.
        plaintext: the ciphertext read with the one-to-one key of all positions together.
        windows: keys by context length, shortest first.
        true_key: plain character of each cipher character, if the text was enciphered here.
    """

    ciphertext: str
    plaintext: str
    windows: tuple[DecipheredWindow, ...]
    true_key: dict[str, str] | None


def decipher(
    model: models.DecoderLM,
    params: Any,
    tokenizer: datasets.Tokenizer,
    text: str,
    *,
    probe: DecipherProbe,
    probe_params: Any,
    key: Key[Array, ""],
    encipher: bool = True,
    context_length: int = 192,
    num_windows: int = 6,
) -> Decipherment:
    """Recover the key of a substitution cipher from how its symbols are used.

    The text is cut into contexts of `context_length` tokens, each read on its own. What the probe
    says at positions of equal context length, over all contexts, is added up, and the one-to-one
    key of largest total is taken (`cipher_key_assignment`).

    Args:
        model: the language model, trained lexinvariantly.
        params: its variables.
        tokenizer: of characters or bytes.
        text: plain text to encipher first, or ciphertext.
        probe: from `train_probe`.
        probe_params: its variables.
        key: typed key, of the cipher and of the hidden names.
        encipher: whether to encipher the lower-case letters of `text` with a random permutation
            among themselves; otherwise `text` is taken as ciphertext.
        context_length: tokens of a context, at most what the model was trained on.
        num_windows: ranges of positions, each with its own key.

    Returns:
        The keys by context length, and the text read with the key of all of them together.

    Raises:
        ValueError: if the text has fewer tokens than windows, a number is not positive, or there
            is nothing to encipher.

    Example:
        >>> tokenizer = datasets.CharTokenizer("ab ")
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=4, num_layers=1))
        >>> params = jax.jit(models.initializer(model))(jax.random.key(0))
        >>> probe = DecipherProbe(4, 8)  # in earnest, from train_probe
        >>> probe_params = jax.jit(probe.init)(jax.random.key(1), jnp.ones((1, 1, 128)))
        >>> found = decipher(model, params, tokenizer, "a ab ba b", probe=probe,
        ...     probe_params=probe_params, key=jax.random.key(2), context_length=4, num_windows=2)
        >>> [(w.start, w.stop) for w in found.windows]
        [(0, 2), (2, 4)]

    Source: arXiv 2305.16349 §3.3.
    """
    validation.integer("context_length", context_length, minimum=1)
    validation.integer("num_windows", num_windows, minimum=1)
    plain = tokenizer.encode(text).astype(np.int32)
    length = min(context_length, len(plain))
    if length < num_windows:
        raise ValueError(
            f"text must have at least num_windows={num_windows} tokens in a context, got {length}"
        )
    cipher_key, table_key = jax.random.split(key)
    vocab_size = model.config.vocab_size
    names = [tokenizer.decode(np.array([v])) for v in range(tokenizer.vocab_size)]
    mapping, letters = np.arange(vocab_size), np.unique(plain)
    if encipher:
        letters = np.array([v for v in letters if names[v].isascii() and names[v].islower()])
        if len(letters) < 2:
            raise ValueError("text must have at least two lower-case letters to encipher")
        mapping = np.asarray(ciphers.random_cipher(cipher_key, vocab_size, letters))
    cipher = mapping[plain].astype(np.int32)
    count = len(plain) // length
    rows = jnp.asarray(cipher[: count * length].reshape(count, length))
    keys = embeddings.sequence_keys(table_key, jnp.arange(count))

    bounds = tuple(np.linspace(0, length, num_windows + 1).astype(int).tolist())
    # A long text a few contexts at a time: their scores [B, T, V] would not fit at once.
    found = []
    for start in range(0, count, _CONTEXTS_AT_ONCE):
        some = slice(start, start + _CONTEXTS_AT_ONCE)
        found.append(
            jax.device_get(
                _read(model, probe, bounds, params, probe_params, rows[some], keys[some])
            )
        )
    guesses = np.concatenate([part[0] for part in found])
    totals = np.stack([part[1] for part in found]).sum(axis=0, dtype=np.float64)
    seen_ids = np.any([part[2] for part in found], axis=0)

    windows = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        seen, guess = np.asarray(rows)[:, start:stop], guesses[:, start:stop]
        entries = _assigned(totals[number], seen_ids[number])
        precision = ciphers.key_precision(
            jnp.asarray(entries), jnp.asarray(mapping), jnp.asarray(letters)
        )
        truth = plain[: count * length].reshape(count, length)[:, start:stop]
        windows.append(
            DecipheredWindow(
                start,
                stop,
                {names[c]: names[entries[c]] for c in np.unique(seen)},
                float(precision) if encipher else None,
                float(np.mean(guess == truth)) if encipher else None,
            )
        )
    entries = _assigned(totals.sum(axis=0), seen_ids.any(axis=0))
    complete = np.where(entries >= 0, entries, np.arange(vocab_size))
    return Decipherment(
        tokenizer.decode(cipher),
        tokenizer.decode(complete[cipher]),
        tuple(windows),
        {names[mapping[v]]: names[v] for v in letters} if encipher else None,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(model, probe, bounds, params, probe_params, rows, keys):
    """Guesses ``[B, T]``, and for each window what `ciphers.evidence` gathers over the contexts."""
    log_probs = decipher_log_probs(model, params, probe, probe_params, rows, keys)
    vocab_size = model.config.vocab_size
    parts = [
        ciphers.evidence(rows[:, a:b].ravel(), log_probs[:, a:b].reshape(-1, vocab_size))
        for a, b in itertools.pairwise(bounds)
    ]
    totals, seen = (jnp.stack(part) for part in zip(*parts, strict=True))
    return log_probs.argmax(axis=-1), totals, seen


_assign = jax.jit(ciphers.assigned_key)


def _assigned(totals: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The one-to-one key of float64 sums over many contexts, rounded only here."""
    return np.asarray(_assign(jnp.asarray(totals, jnp.float32), jnp.asarray(seen)))
