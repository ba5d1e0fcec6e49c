import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx
from jaxkit import models
from jaxkit.models import readout

HIDDEN = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 16)), jnp.float32)
TARGETS = jnp.array([[0, 3, 10, 7, 2], [9, 9, 1, 4, 10]])


def random_table(rows=2, kind="gaussian"):
    return lx.RandomTable(lx.sequence_keys(jax.random.key(0), jnp.arange(rows)), 11, 16, kind)


def whole(hidden, table):
    scores = readout.scores(hidden, table)
    picked = jnp.take_along_axis(scores, TARGETS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - picked


def compare(found, expected, x):
    def both(function):
        losses, pullback = jax.vjp(function, x)
        return losses, pullback(jnp.cos(losses))[0]

    results = jax.jit(lambda: (both(found), both(expected)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *results)


@pytest.mark.parametrize(
    ("chunk_size", "kind"),
    [
        (4, "gaussian"),
        (11, "rademacher"),
        pytest.param(1, "gaussian", marks=pytest.mark.slow),
        pytest.param(20, "gaussian", marks=pytest.mark.slow),
    ],
)
def test_pieces_give_the_loss_and_gradient_of_the_whole_vocabulary(chunk_size, kind):
    random = random_table(kind=kind)
    table = random.whole()

    def pieces(hidden):
        return models.chunked_cross_entropy(hidden, TARGETS, random, chunk_size)

    compare(pieces, lambda hidden: whole(hidden, table), HIDDEN)


def test_pieces_of_a_shared_table_give_its_gradient():
    table = jax.random.normal(jax.random.key(2), (11, 16))

    def pieces(table):
        return models.chunked_cross_entropy(HIDDEN, TARGETS, table, 4)

    compare(pieces, lambda table: whole(HIDDEN, table), table)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lexinvariant", "relabel"])
def test_a_vocabulary_of_32000_trains_without_a_table_or_logits_per_sequence(method):
    batch, length, width, vocab = 4, 32, 64, 32_000
    config = models.DecoderConfig(
        vocab,
        d_model=width,
        num_layers=1,
        num_heads=2,
        head_dim=32,
        d_ff=64,
        embedding="given" if method == "lexinvariant" else "fixed",
    )
    model = models.DecoderLM(config)
    tokens = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)
    data = {"tokens": tokens, "index": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda k: models.initializer(model)(k), key)

    def peak(**options):
        loss = lx.next_token_loss(model, method=method, **options)
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, data, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()

    tables = 4 * batch * vocab * width
    used, program = peak(chunk_size=500)
    for shape in (f"[{batch},{vocab},{width}]", f"[{batch},{length},{vocab}]"):
        assert shape not in program
    # The learned table and its gradient are V x D; the tables of the sequences are B times that.
    assert used < tables
    at_once, program = peak()
    assert used < at_once / 2
    assert f"[{batch},{length},{vocab}]" in program


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "chunk_size must be an integer >= 1"),
        ({"embedding": lambda: np.ones((11, 15))}, ValueError, r"shape \[V, 16\].*got \(11, 15\)"),
        ({"targets": TARGETS[:, 1:]}, ValueError, "targets must be .* like hidden, got"),
        ({"embedding": lambda: random_table(1)}, ValueError, r"got \(1, 11, 16\)"),
    ],
)
def test_bad_input_is_refused(options, error, message, bad_input):
    call = {
        "hidden": HIDDEN,
        "targets": TARGETS,
        "embedding": random_table,
        "chunk_size": 4,
        **options,
    }
    with pytest.raises(error, match=message):
        models.chunked_cross_entropy(**{**call, "embedding": call["embedding"]()})
