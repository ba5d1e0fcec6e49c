"""Convolutions as XLA has fast CPU code for them: the same values, whatever holds them."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import federated, models
from jaxkit.convolutions import channels_last

ORDER = ("NHWC", "HWIO", "NHWC")
FAST = re.compile(r"lhs_spec=\(0, 3, 1, 2\), rhs_spec=\(3, 2, 0, 1\), out_spec=\(0, 3, 1, 2\)")


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def gradient_of(**options):
    """Both gradients of a convolution, under a function that is not linear."""
    return jax.grad(
        lambda kernel, images: jnp.sin(
            jax.lax.conv_general_dilated(images, kernel, **options)
        ).sum(),
        (0, 1),
    )


def close(found, expected, case=""):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=str(case))


#: Shapes of images and kernel, and options where not the usual ones.
CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    ((2, 8, 7, 3), (3, 3, 3, 4), {"dimension_numbers": ORDER}),
    ((2, 8, 7, 3), (3, 2, 3, 4), {"dimension_numbers": ORDER, "window_strides": (2, 3)}),
    ((2, 3, 8, 7), (4, 3, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    ((8, 3, 7, 2), (3, 4, 3, 3), {"dimension_numbers": ("HCWN", "IOHW", "CNHW")}),
    ((2, 8, 7, 4), (3, 3, 2, 6), {"dimension_numbers": ORDER, "feature_group_count": 2}),
    ((2, 9, 9, 3), (3, 3, 3, 4), {"dimension_numbers": ORDER, "rhs_dilation": (2, 3)}),
    ((2, 5, 5, 3), (3, 3, 3, 4), {"dimension_numbers": ORDER, "lhs_dilation": (2, 1)}),
    # Kernels larger than the image.
    ((3, 2, 2, 5), (3, 3, 5, 4), {"dimension_numbers": ORDER}),
    ((3, 1, 1, 5), (3, 3, 5, 4), {"dimension_numbers": ORDER, "window_strides": (2, 2)}),
    ((3, 2, 4, 5), (3, 3, 5, 4), {"dimension_numbers": ORDER, "window_strides": (2, 1)}),
    ((3, 2, 3, 5), (3, 2, 5, 4), {"dimension_numbers": ORDER, "rhs_dilation": (2, 3)}),
    ((3, 2, 2, 5), (3, 3, 5, 4), {"dimension_numbers": ORDER, "lhs_dilation": (1, 3)}),
    ((3, 2, 2, 4), (3, 3, 2, 4), {"dimension_numbers": ORDER, "feature_group_count": 2}),
    # Sequences and volumes.
    *(
        ((2, 3, *(size,) * space), (4, 3, *(3,) * space), {"window_strides": (2,) * space})
        for space in (1, 3)
        for size in (2, 5)
    ),
]


def test_gradients_are_those_of_the_function():
    def gradients(wrap):
        found = []
        for images, kernel, options in CASES:
            space = len(images) - 2
            edges = [(2, 3), (1, 2), (1, 1)][:space]
            options = {"window_strides": (1,) * space, "padding": edges, **options}
            found.append(wrap(gradient_of(**options))(draw(*kernel), draw(*images, seed=1)))
        return found

    found, expected = (
        jax.jit(gradients, static_argnums=0)(f) for f in (channels_last, lambda f: f)
    )
    for case, *pair in zip(CASES, found, expected, strict=True):
        close(*pair, case)


def test_narrow_types_and_precision_are_kept():
    gradient = gradient_of(
        window_strides=(1, 1), padding="SAME", dimension_numbers=ORDER, precision="highest"
    )
    for size in (2, 6):
        given = draw(3, 3, 3, 4), draw(2, size, size, 3, seed=1)
        given = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given)
        found = jax.jit(channels_last(gradient))(*given)
        for a, b in zip(found, jax.jit(gradient)(*given), strict=True):
            assert a.dtype == jnp.bfloat16
            np.testing.assert_allclose(
                np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.05, atol=0.05
            )
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(channels_last(gradient))(*given))


LARGEST = (-np.inf, jax.lax.max)
#: Shape, window, strides and padding.
POOLINGS: list[tuple[tuple[int, ...], ...]] = [
    ((2, 9, 8, 3), (1, 3, 3, 1), (1, 2, 2, 1), (0, 1, 1, 0)),
    ((2, 9, 8, 3), (1, 2, 2, 1), (1, 2, 2, 1), (0, 0, 0, 0)),
    ((2, 7, 8, 3), (1, 3, 2, 1), (1, 1, 3, 1), (0, 2, 0, 0)),
    ((5, 4, 6), (2, 1, 3), (1, 1, 2), (1, 0, 0)),
    ((7,), (3,), (2,), (1,)),
    ((2, 6, 6, 3), (1, 1, 1, 1), (1, 2, 2, 1), (0, 0, 0, 0)),
    ((1, 40, 2), (1, 35, 1), (1, 1, 1), (0, 0, 0)),
    ((2, 5), (1, 3), (1, 2), (0, 1)),  # of the smallest entry
]


def test_the_gradient_of_pooling_goes_to_the_first_largest_entry():
    def gradients(wrap):
        found = []
        for shape, window, strides, edges in POOLINGS:
            values = jnp.round(2 * draw(*shape))  # most windows hold their largest entry twice

            def loss(x, window=window, strides=strides, edges=edges):
                given = window, strides, [(edge, edge) for edge in edges]
                worst, find = (np.inf, jax.lax.min) if x.shape == (2, 5) else LARGEST
                best = jax.lax.reduce_window(x, worst, find, *given)
                return jnp.vdot(draw(*best.shape, seed=1), best**2)

            found += [wrap(jax.grad(loss))(values)]
        found += [wrap(jax.vmap(jax.grad(loss)))(jnp.stack([values, -values]))]  # of the last
        return found

    found, expected = (
        jax.jit(gradients, static_argnums=0)(f) for f in (channels_last, lambda f: f)
    )
    for case, *pair in zip([*POOLINGS, "batched"], found, expected, strict=True):
        close(*pair, case)


def test_pooling_in_narrow_types():
    def loss(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3,), (1,), "VALID").sum()

    values = jnp.asarray([3.0, 1, 3, 3, 1, 0, 5], jnp.bfloat16)
    gradient = jax.jit(channels_last(jax.grad(loss)))
    assert "select_and_scatter" not in gradient.lower(values).as_text()
    found = gradient(values)
    assert found.dtype == jnp.bfloat16
    assert found.tolist() == [1, 0, 2, 1, 0, 0, 1]


def looped(loss):
    """A loss in a scan, a branch, a checkpoint, an inner program and a rule of its own."""

    @jax.custom_vjp
    def own(kernel, images):
        return loss(kernel, images)

    own.defvjp(lambda k, x: (own(k, x), (k, x)), lambda r, g: jax.vjp(loss, *r)[1](g))

    def total(kernel, images):
        def body(carry, image):
            here = jax.checkpoint(loss)(kernel, image) + jax.jit(own)(kernel, image)
            there = jax.lax.cond(carry > 0, lambda: loss(kernel, 2 * image), lambda: 0.0)
            return carry + here + there, here

        return jax.lax.scan(body, 0.0, images)[0]

    return total


def convolved(kernel, images):
    return jnp.sin(
        jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=ORDER)
    ).sum()


def test_convolutions_inside_other_programs_are_found():
    gradient = jax.grad(looped(convolved), (0, 1))
    given = draw(3, 3, 2, 4), draw(3, 2, 6, 6, 2, seed=1)
    text = str(jax.make_jaxpr(channels_last(gradient))(*given))
    plain = str(jax.make_jaxpr(gradient)(*given))
    count = text.count("lhs_spec")
    assert len(FAST.findall(text)) == count == plain.count("lhs_spec") > len(FAST.findall(plain))
    close(jax.jit(channels_last(gradient))(*given), jax.jit(gradient)(*given))


@pytest.mark.parametrize("size", [2, 6])
def test_batched_over_both_operands_and_differentiated_again(size):
    gradient = jax.grad(convolved)
    kernels, images = draw(3, 3, 3, 2, 4), draw(3, 2, size, size, 2, seed=1)
    each = jax.jit(jax.vmap(channels_last(gradient)))(kernels, images)
    close(each, jax.jit(jax.vmap(gradient))(kernels, images))

    def squared(function, kernel):
        return (function(kernel, images[0]) ** 2).sum()

    twice = [jax.grad(functools.partial(squared, f)) for f in (channels_last(gradient), gradient)]
    close(*(jax.jit(f)(kernels[0]) for f in twice))


def test_a_function_without_convolutions_keeps_its_program():
    def loss(params, key):
        noise = jax.random.normal(key, (3,))
        return {"loss": (params["w"] @ noise) ** 2, "none": None}

    given = {"w": draw(3)}, jax.random.key(1)
    plain, same = (jax.make_jaxpr(f)(*given).pretty_print() for f in (loss, channels_last(loss)))
    assert plain == same
    assert channels_last(loss)(*given)["none"] is None


def test_values_of_an_outer_trace_may_be_closed_over():
    images = draw(2, 6, 6, 2, seed=1)

    def step(kernel, image):
        gradient = channels_last(jax.grad(lambda k: convolved(k, image)))
        return kernel - 0.1 * gradient(kernel), None

    found, _ = jax.lax.scan(step, draw(3, 3, 2, 4), images[:, None])
    kernel = draw(3, 3, 2, 4)
    for image in images:
        kernel -= 0.1 * jax.grad(convolved)(kernel, image[None])
    close(found, kernel)


def test_a_client_trains_by_them():
    model = models.LeNet(3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]

    def loss_fn(params, batch, key):
        return jnp.mean(model.apply({"params": params}, batch["x"])[:, 0] ** 2)

    data = federated.stack_clients({"x": np.ones((2, 4, 16, 16, 1), np.float32)})
    training = federated.LocalTraining(loss_fn, batch_size=2, num_epochs=2)
    method = federated.fedspeed()
    sampler, client_map = federated.uniform_sampler(2, 1), federated.vmap_clients(1)
    text = str(
        jax.make_jaxpr(
            lambda state: federated.federated_round(
                method, training, state, data, sampler, client_map
            )[0]
        )(federated.init_state(method, params, 2, jax.random.key(0)))
    )
    assert len(FAST.findall(text)) == text.count("lhs_spec") > 0
