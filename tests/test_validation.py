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


def test_choice_finds_the_closest_in_another_case():
    with pytest.raises(ValueError, match="got 'REX': did you mean 'rex'"):
        validation.choice("profile", "REX", ["linear", "rex"])


def test_a_long_array_names_its_first_bad_entry_alone():
    values = np.ones((3, 5))
    values[1, 2:] = -4
    with pytest.raises(ValueError, match=r"in \[0, inf\), got -4 at \[1, 2\]$"):
        validation.number("costs", values, minimum=0)


def test_a_class_in_place_of_an_instance_is_named():
    with pytest.raises(TypeError, match="x must be a number, got the class int itself"):
        validation.instance("x", int, int, "a number")
