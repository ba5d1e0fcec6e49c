import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import datasets, models
from jaxkit import lexinvariant as lx
from jaxkit.lexinvariant import deciphering

pytestmark = pytest.mark.slow

TOKENIZER = datasets.CharTokenizer("abcdefgh ")
CONFIG = models.DecoderConfig(
    10, d_model=16, num_layers=1, num_heads=2, head_dim=8, d_ff=16, recency_heads=True
)
TEXT = "abc def abc dgh ab abc abc def " * 8
KEY = jax.random.key(0)


MODEL = models.DecoderLM(CONFIG)


@functools.cache
def trained():
    params = jax.jit(models.initializer(MODEL))(jax.random.key(1))
    probe, probe_params = lx.train_probe(
        MODEL,
        params,
        TOKENIZER.encode(TEXT),
        key=jax.random.key(2),
        num_steps=60,
        sequence_length=24,
        batch_size=8,
        learning_rate=3e-2,
    )
    return params, probe, probe_params


def read(text, **options):
    params, probe, probe_params = trained()
    return lx.decipher(
        MODEL,
        params,
        TOKENIZER,
        text,
        probe=probe,
        probe_params=probe_params,
        key=KEY,
        context_length=24,
        num_windows=3,
        **options,
    )


def test_training_a_probe_lowers_its_loss_and_leaves_the_language_model_alone():
    """On an untrained decoder the probe can learn how frequent symbols are, and does."""
    params, probe, probe_params = trained()
    before = jax.tree.map(np.array, params)
    loss = jax.jit(deciphering.probe_loss(MODEL, probe))
    tokens = jnp.asarray(np.resize(TOKENIZER.encode(TEXT), (8, 25)).astype(np.int32))
    batch = {"tokens": tokens, "index": jnp.arange(8)}
    shares = np.bincount(np.asarray(tokens)[:, :-1].ravel(), minlength=10) / (8 * 24)
    entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-9)))
    assert float(loss(probe_params, params, batch, KEY)) < entropy + 0.1 < np.log(10)
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_the_answer_does_not_depend_on_the_names_of_the_symbols():
    """With random rows in place of names, a relabelled text is another draw of the same law."""
    params, probe, probe_params = trained()
    tokens = jnp.asarray(TOKENIZER.encode(TEXT)[:24].astype(np.int32))[None]
    keys = lx.sequence_keys(KEY, jnp.arange(1))
    table = lx.draw_embedding(keys, 10, 16)
    rename = jnp.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    hidden = jax.jit(functools.partial(MODEL.apply, params, method="hidden_states"))
    moved = table[:, jnp.argsort(rename)]
    plain, renamed = hidden(tokens, table), hidden(rename[tokens], moved)
    assert np.array_equal(probe.apply(probe_params, plain), probe.apply(probe_params, renamed))


def test_a_text_is_enciphered_with_a_permutation_of_its_letters():
    found = read(TEXT)
    assert sorted(found.true_key) == sorted(found.true_key.values()) == sorted("abcdefgh")
    assert "".join(found.true_key.get(c, c) for c in found.ciphertext) == TEXT
    assert found.ciphertext != TEXT
    last = found.windows[-1]
    right = [last.key[c] == p for c, p in found.true_key.items() if c in last.key]
    assert last.precision == pytest.approx(np.mean(right))
    assert len(found.plaintext) == len(TEXT)
    pairs = set(zip(found.ciphertext, found.plaintext, strict=True))
    # The text is read by one key, which is one-to-one.
    assert len(pairs) == len({c for c, _ in pairs}) == len({p for _, p in pairs})


def test_a_ciphertext_given_is_read_without_a_verdict():
    found = read(TEXT, encipher=False)
    assert found.ciphertext == TEXT
    assert found.true_key is None
    assert all(w.precision is None and w.accuracy is None for w in found.windows)


@pytest.mark.parametrize(
    ("text", "message"),
    [("ab", "num_windows=3 tokens in a context, got 2"), ("   ", "two lower-case letters")],
)
def test_a_text_that_cannot_be_read_is_refused(text, message, bad_input):
    with pytest.raises(ValueError, match=message):
        read(text)
