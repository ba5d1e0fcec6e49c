import jax
import numpy as np
import pytest

from jaxkit import validation

pytestmark = pytest.mark.usefixtures("bad_input")


@pytest.mark.parametrize("bad", [1.0, "3", True, None, np.float32(2)])
def test_integer_refuses_what_is_not_an_integer(bad):
    with pytest.raises(TypeError, match="steps must be an integer"):
        validation.integer("steps", bad)


def test_integer_accepts_numpy_and_jax_scalars():
    assert validation.integer("steps", np.int64(4)) == 4
    assert validation.integer("steps", jax.numpy.int32(4)) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.1, np.array([0.5, 2.0])])
def test_number_names_the_argument_and_the_bounds(bad):
    with pytest.raises(ValueError, match=r"decay must be finite and in \[0, 1\]"):
        validation.number("decay", bad, minimum=0, maximum=1)


def test_number_lets_traced_values_pass():
    assert jax.jit(lambda x: validation.number("x", x, minimum=0))(-1.0) == -1.0


def test_number_refuses_text_and_booleans():
    for bad in ("1", True):
        with pytest.raises(TypeError, match="x must be a real number"):
            validation.number("x", bad)


def test_choice_names_the_closest():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        validation.choice("shape", "cosin", ["linear", "cosine"])
