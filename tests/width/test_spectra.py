"""Top singular values: exact where they must be, fast and local where they should be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkit import width
from jaxkit.width import roles as roles_room
from jaxkit.width import spectra

KEY = jax.random.key(7)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def test_golden_singular_values(golden):
    for case in golden("width_scaling")["top_singular_values"]:
        # One compiled shape for all: rows and columns of zeros add only zeros to the values.
        matrix = np.asarray(case["matrix"], np.float32)
        missing = [(0, 12 - length) for length in matrix.shape[-2:]]
        matrix = jnp.asarray(np.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + missing))
        found = width.top_singular_values(matrix, key=KEY, k=case["k"])
        expected = np.asarray(case["top_singular_values"])
        error = np.abs(found - expected) / np.maximum(expected.max(-1, keepdims=True), 1e-30)
        assert error.max() < 2e-6, case["name"]


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_of_512_is_within_1e_5(seed):
    matrix = gaussian(512, 512, seed=seed)
    [found] = width.top_singular_values(jnp.asarray(matrix), key=KEY)
    assert float(found) == pytest.approx(exact(matrix)[0], rel=1e-5)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-1e3, 1e3, width=32),
    )
)
def test_few_columns_or_rows_are_exact_whatever_the_matrix(matrix):
    padded = jnp.zeros((12, 12)).at[: matrix.shape[0], : matrix.shape[1]].set(matrix)
    found = np.asarray(width.top_singular_values(padded, key=KEY, k=12))
    values = exact(matrix)
    expected = np.pad(values, (0, 12 - len(values)))
    np.testing.assert_allclose(found, expected, atol=3e-6 * expected[0] + 1e-37)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (8, 1)])
def test_rectangular_matrices_are_exact_once_the_short_side_is_spanned(shape):
    matrix = gaussian(*shape)
    found = width.top_singular_values(jnp.asarray(matrix), key=KEY, k=min(shape))
    np.testing.assert_allclose(found, exact(matrix), rtol=2e-6)


def test_closed_forms():
    u, v = gaussian(24), gaussian(24, seed=1)
    orthogonal = np.linalg.qr(gaussian(24, 24))[0]
    cases = [
        (np.diag([1.0, -5.0, 3.0, *21 * [0.0]]), [5, 3, 1]),
        (np.outer(u, v), [np.linalg.norm(u) * np.linalg.norm(v), 0]),
        (orthogonal, [1, 1, 1]),
        (np.zeros((24, 24)), [0, 0]),
    ]
    for matrix, expected in cases:
        found = width.top_singular_values(
            jnp.asarray(matrix, jnp.float32), key=KEY, k=len(expected)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_invariances_and_scale():
    matrix = gaussian(40, 40)
    rotation = np.linalg.qr(gaussian(40, 40, seed=2))[0]
    shuffled = np.random.default_rng(3).permutation(matrix)
    [expected] = width.top_singular_values(jnp.asarray(matrix), key=KEY)
    for other in (matrix.T, matrix @ rotation, rotation @ matrix, shuffled, -matrix):
        [found] = width.top_singular_values(jnp.asarray(other), key=KEY)
        assert float(found) == pytest.approx(float(expected), rel=3e-6)
    for factor in (1e-30, 1e30):  # squares of these leave float32
        [found] = width.top_singular_values(jnp.asarray(factor * matrix), key=KEY)
        assert float(found) / factor == pytest.approx(float(expected), rel=3e-6)


def test_estimates_approach_from_below_as_steps_are_added():
    matrix = gaussian(300, 300)
    found = [
        float(width.top_singular_values(jnp.asarray(matrix), key=KEY, num_iters=n)[0])
        for n in (2, 6, 18)
    ]
    assert found[0] < found[1] < found[2] <= exact(matrix)[0] * (1 + 2e-6)


def test_stack_of_layers_is_the_stack_of_results_and_bfloat16_is_read_exactly():
    stack = jnp.asarray(gaussian(2, 3, 8, 6), jnp.bfloat16)
    found = width.top_singular_values(stack, key=KEY, k=2)
    assert found.shape == (2, 3, 2)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact(stack.astype(jnp.float32))[..., :2], rtol=2e-6)


def test_scaling_unfolds_attention_kernels_and_skips_vectors():
    def shapes(d):
        return {
            "query": jax.ShapeDtypeStruct((2, d, d // 4, 4), "float32"),
            "out": jax.ShapeDtypeStruct((2, d // 4, 4, d), "float32"),
            "torch": jax.ShapeDtypeStruct((3 * d, d), "float32"),
            "embedding": jax.ShapeDtypeStruct((96, d), "float32"),
        }

    scaling = width.width_scaling(shapes(8), shapes(16), fan_in_axes={"torch": (1,)})
    params = jax.tree.map(lambda leaf: jnp.asarray(gaussian(*leaf.shape)), shapes(16))
    found = width.top_singular_values(params, key=KEY, scaling=scaling)
    assert found["embedding"] is None
    for name, rows in (("query", 16), ("out", 16)):
        folded = np.asarray(params[name]).reshape(2, rows, -1)
        np.testing.assert_allclose(found[name], exact(folded)[:, :1], rtol=2e-6)
    np.testing.assert_allclose(found["torch"], exact(params["torch"])[:1], rtol=2e-6)


def test_matrix_with_nan_gives_nan():
    matrix = jnp.asarray(gaussian(8, 8)).at[2, 3].set(jnp.nan)
    assert np.isnan(width.top_singular_values(matrix, key=KEY)).all()


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_matrix_is_never_gathered(kind, devices):
    mesh = jax.make_mesh(
        (2, 2),
        ("data", "tensor"),
        axis_types=(jax.sharding.AxisType[kind],) * 2,
        devices=devices[:4],
    )
    matrix = gaussian(256, 512)
    spec = jax.sharding.PartitionSpec("data", "tensor")
    sharded = jax.device_put(matrix, jax.sharding.NamedSharding(mesh, spec))
    program = jax.jit(lambda w: width.top_singular_values(w, key=KEY)).lower(sharded).compile()
    collectives = re.findall(r"= \w+\[([\d,]*)\]\S* (all-\w+|collective-\w+)", program.as_text())
    assert {name for _, name in collectives} == {"all-reduce"}
    largest = max(np.prod([int(n) for n in shape.split(",") if n]) for shape, _ in collectives)
    assert largest <= 512  # vectors only; a shard of the matrix has 32768 numbers
    expected = width.top_singular_values(jnp.asarray(matrix), key=KEY)
    np.testing.assert_allclose(program(sharded), expected, rtol=1e-6)
    np.testing.assert_allclose(width.top_singular_values(sharded, key=KEY), expected, rtol=1e-6)


def test_new_values_do_not_retrace(count_traces):
    counted = count_traces(lambda w, key: width.top_singular_values(w, key=key))
    estimate = jax.jit(counted)
    for seed in range(3):
        estimate(jnp.asarray(gaussian(24, 24, seed=seed)), jax.random.key(seed))
    assert counted.count == 1


def test_unfolding_a_vector_is_refused():
    with pytest.raises(ValueError, match="'b' must be a matrix"):
        spectra.unfold_kernel(jnp.ones(3), roles_room.WidthInfo("b", "vector"))


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"bias": np.ones(3)}, {}, "'bias' must have rank >= 2"),
        (np.ones(3), {}, "'params' must have rank >= 2"),
        (np.ones((3, 5)), {"k": 4}, "k must be <= 3"),
        (np.ones((3, 5)), {"k": 0}, "k must be an integer >= 1"),
        (np.ones((3, 5)), {"k": 2, "num_iters": 1}, "num_iters must be an integer >= 2"),
    ],
)
def test_bad_matrices_are_refused_by_name(params, options, message, bad_input):
    with pytest.raises(ValueError, match=message):
        width.top_singular_values(params, key=KEY, **options)
