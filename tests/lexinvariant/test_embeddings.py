import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx
from jaxkit.lexinvariant import embeddings

KEY = jax.random.key(3)
draw = jax.jit(lx.draw_embedding, static_argnums=(1, 2, 3, 4))


@pytest.mark.parametrize(
    "kind", ["gaussian", "orthogonal", pytest.param("rademacher", marks=pytest.mark.slow)]
)
def test_single_rows_are_bitwise_those_of_the_whole_table(kind):
    keys = lx.sequence_keys(KEY, jnp.arange(4))
    tokens = jnp.array([[5, 0, 5], [1, 2, 3], [0, 0, 0], [8, 7, 6]])
    table = jax.jit(lx.draw_embedding, static_argnums=(1, 2, 3))(keys, 9, 16, kind)
    rows = jax.jit(lx.RandomTable.rows)(lx.RandomTable(keys, 9, 16, kind), tokens)
    assert np.array_equal(rows, np.take_along_axis(np.asarray(table), tokens[..., None], axis=1))


def test_a_sequence_draws_the_same_table_in_any_batch_and_under_vmap():
    whole = draw(lx.sequence_keys(KEY, jnp.arange(6)), 5, 8)
    order = jnp.array([4, 1, 1, 0, 5, 4])
    assert np.array_equal(whole[order], draw(lx.sequence_keys(KEY, order), 5, 8))
    single = jax.jit(jax.vmap(lambda k: lx.draw_embedding(k[None], 5, 8)[0]))(
        lx.sequence_keys(KEY, jnp.arange(6))
    )
    assert np.array_equal(whole, single)


@pytest.mark.parametrize(
    "kind", ["gaussian", "orthogonal", pytest.param("rademacher", marks=pytest.mark.slow)]
)
def test_rows_have_mean_zero_and_squared_norm_d(kind):
    table = np.asarray(draw(lx.sequence_keys(KEY, jnp.arange(200)), 12, 32, kind))
    entries = table.size
    assert abs(table.mean()) < 5 / np.sqrt(entries)
    assert np.mean(np.sum(table**2, -1)) == pytest.approx(32, abs=5 * np.sqrt(2 * 32 / 2400))
    assert not np.allclose(table[0], table[1])


def test_orthogonal_rows_are_orthogonal_and_rademacher_entries_are_signs():
    keys = lx.sequence_keys(KEY, jnp.arange(3))
    orthogonal = draw(keys, 12, 16, "orthogonal")
    gram = jnp.einsum("bvd,bwd->bvw", orthogonal, orthogonal)
    np.testing.assert_allclose(gram, np.broadcast_to(16 * np.eye(12), gram.shape), atol=1e-4)
    assert set(np.unique(draw(keys, 12, 16, "rademacher"))) == {-1.0, 1.0}


def test_bfloat16_tables_are_the_float32_ones_rounded():
    keys = lx.sequence_keys(KEY, jnp.arange(6))
    half = draw(keys, 5, 8, "gaussian", "bfloat16")
    assert np.array_equal(half, draw(keys, 5, 8).astype(jnp.bfloat16))


def test_eight_devices_draw_the_tables_of_one(devices):
    keys = lx.sequence_keys(KEY, jnp.arange(8))
    mesh = jax.sharding.Mesh(np.array(devices), "data")
    spread = jax.device_put(keys, jax.NamedSharding(mesh, jax.P("data")))
    many = draw(spread, 5, 8)
    assert len(many.sharding.device_set) == 8
    assert np.array_equal(many[:6], draw(keys[:6], 5, 8))


def test_the_number_of_random_rows_is_binomial_and_differs_by_sequence():
    mask = np.asarray(embeddings.random_rows(lx.sequence_keys(KEY, jnp.arange(400)), 50, 0.2))
    counts = mask.sum(axis=1)
    assert counts.mean() == pytest.approx(10, abs=4 * np.sqrt(8 / 400))
    assert counts.var() == pytest.approx(8, rel=0.3)
    assert len(np.unique(mask, axis=0)) > 390


def test_one_probability_a_sequence_is_respected():
    mask = embeddings.random_rows(
        lx.sequence_keys(KEY, jnp.arange(3)), 50, jnp.array([0.0, 1.0, 0.5])
    )
    counts = mask.sum(axis=1).tolist()
    assert counts[0] == 0
    assert counts[1] == 50
    assert 10 < counts[2] < 40


def test_mixing_takes_each_row_from_one_table():
    fixed = jnp.arange(40.0).reshape(5, 8)
    random = draw(lx.sequence_keys(KEY, jnp.arange(6)), 5, 8)[:2]
    mask = jnp.array([[True, False, True, False, True], [False] * 5])
    mixed = lx.mix_embedding(mask, fixed, random)
    assert np.array_equal(mixed[1], fixed)
    for v in range(5):
        assert np.array_equal(mixed[0, v], random[0, v] if v % 2 == 0 else fixed[v])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: lx.draw_embedding(k, 0, 4), ValueError, "vocab_size must be an integer >= 1"),
        (lambda k: lx.draw_embedding(k, 4, 4, "gausian"), ValueError, "did you mean 'gaussian'"),
        (lambda k: lx.draw_embedding(k, 9, 4, "orthogonal"), ValueError, "use kind='gaussian'"),
        (lambda k: lx.draw_embedding(KEY, 9, 4), ValueError, "one a sequence"),
        (lambda k: lx.draw_embedding(jnp.zeros(2), 9, 4), TypeError, "typed keys"),
        (lambda k: lx.RandomTable(k, 9, 4).rows(jnp.zeros((3, 2), int)), ValueError, r"\(3,\)"),
        (
            lambda k: embeddings.random_rows(k, 5, 1.5),
            ValueError,
            r"p must be finite and in \[0, 1\]",
        ),
        (lambda k: embeddings.random_rows(k, 5, float("nan")), ValueError, "p must be finite"),
        (
            lambda k: lx.mix_embedding(
                jnp.ones((2, 5), bool), jnp.ones((4, 3)), jnp.ones((2, 5, 3))
            ),
            ValueError,
            r"got \(2, 5\), \(4, 3\) and \(2, 5, 3\)",
        ),
        (lambda k: lx.sequence_keys(KEY, jnp.ones(2)), TypeError, "index must be integers"),
    ],
)
def test_bad_input_is_refused(call, error, message, bad_input):
    with pytest.raises(error, match=message):
        call(lx.sequence_keys(KEY, jnp.arange(2)))
