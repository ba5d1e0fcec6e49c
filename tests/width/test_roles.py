"""Roles and width multipliers from shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import models, width
from jaxkit.width import paths
from jaxkit.width import roles as roles_room


def shape(*lengths, dtype="float32"):
    return jax.ShapeDtypeStruct(lengths, dtype)


def decoder_shapes(d, heads, head_dim, layers=3, vocab=96):
    """Parameter shapes of a pre-norm decoder with scanned layers and one tied embedding."""
    stack = {
        "attention_norm": {"scale": shape(layers, d)},
        **{name: shape(layers, d, heads, head_dim) for name in ("query", "key", "value")},
        "out": shape(layers, heads, head_dim, d),
        "relative_bias": shape(layers, heads, 32),
        "mlp_norm": {"scale": shape(layers, d)},
        "up": shape(layers, d, 4 * d),
        "gate": shape(layers, d, 4 * d),
        "down": shape(layers, 4 * d, d),
    }
    table = {
        "embedding": shape(vocab, d),
        "embedding_scale": shape(d),
        "embedding_bias": shape(d),
    }
    return {"params": {**table, "layers": stack, "final_norm": {"scale": shape(d)}}}


def test_every_golden_shape_gets_its_role_and_multiplier(golden):
    data = golden("width_scaling")
    cases = data["width_multipliers"] + data["role_inference_with_delta"]
    base = {case["name"]: shape(*case["base_shape"]) for case in cases}
    target = {case["name"]: shape(*case["target_shape"]) for case in cases}
    delta = {case["name"]: shape(*case.get("delta_shape", case["target_shape"])) for case in cases}
    roles = roles_room.infer_width_roles(base, target, delta=delta)
    for case in cases:
        assert roles[case["name"]].role == case["role"], case["name"]
        assert roles[case["name"]].width_mult == pytest.approx(case["width_mult"], rel=1e-12)


@pytest.mark.parametrize("explicit", [True, False])
def test_golden_kernels_of_higher_rank_have_the_stated_input_axes(golden, explicit):
    # Three width axes, or an axis between two, need the axes or the name of a projection.
    names = {
        "attention_out_heads_scaled": "out",
        "query_heads_and_head_dim_scaled": "query",
        "attention_out_heads_and_head_dim_scaled": "out",
    }
    for case in golden("width_scaling")["higher_rank_kernels"]:
        name = names.get(case["name"], "kernel")
        axes = {name: case["fan_in_axes"]} if explicit and case["fan_in_axes"] else None
        roles = roles_room.infer_width_roles(
            {name: shape(*case["base_shape"])},
            {name: shape(*case["target_shape"])},
            fan_in_axes=axes,
        )
        assert roles[name].role == case["role"]
        assert roles[name].width_mult == pytest.approx(case["width_mult"], rel=1e-12)
        if case["role"] == "matrix":
            assert roles[name].fan_in_axes == tuple(case["fan_in_axes"])


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 16), (1, 64), (2, 32)])
def test_decoder_matrices_are_the_projections_and_nothing_else(heads, head_dim):
    scaled = decoder_shapes(256, *(4 * heads, head_dim) if heads != 2 else (4, 64))
    info = roles_room.infer_width_roles(decoder_shapes(64, heads, head_dim), scaled)
    roles = {path: leaf.role for path, leaf in paths.named_leaves(info).items()}
    matrices = {path.split("/")[-1] for path, role in roles.items() if role == "matrix"}
    assert matrices == {"query", "key", "value", "out", "up", "gate", "down"}
    assert all(leaf.width_mult == 4 for leaf in jax.tree.leaves(info) if leaf.role == "matrix")
    assert roles["params/embedding"] == roles["params/layers/mlp_norm/scale"] == "vector"
    layers = info["params"]["layers"]
    assert layers["out"].fan_in_axes == (1, 2)
    assert layers["out"].fan_out_axes == (3,)
    assert layers["query"].fan_in_axes == (1,)
    assert layers["query"].fan_out_axes == (2, 3)


class Attention(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(self.features // 4, qkv_features=self.features)(x)


class WideAttention(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(
            self.features // 8, qkv_features=self.features * self.features // 32
        )(x)


@pytest.mark.parametrize("module", [Attention, WideAttention])
def test_flax_attention_biases_are_vectors_even_where_heads_and_head_dim_both_grow(module):
    def params(d):
        return jax.eval_shape(module(d).init, jax.random.key(0), jnp.ones((1, 3, d)))

    info = roles_room.infer_width_roles(params(32), params(64))
    for path, leaf in paths.named_leaves(info).items():
        assert leaf.role == ("vector" if path.endswith("bias") else "matrix"), path


class Partitioned(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(5)(nn.Dense(self.features, kernel_init=init)(x))


def test_boxes_containers_and_abstract_leaves_make_no_difference():
    def params(d, evaluate=jax.eval_shape):
        return evaluate(Partitioned(d).init, jax.random.key(0), jnp.ones((1, d)))

    abstract = roles_room.infer_width_roles(params(8), params(16))
    variants = [
        (nn.meta.unbox(params(8)), params(16)),
        (freeze(nn.meta.unbox(params(8))), nn.meta.unbox(params(16))),
        (params(8), params(16, lambda f, *args: f(*args))),
    ]
    for base, target in variants:
        info = roles_room.infer_width_roles(base, target)
        assert paths.named_leaves(info) == paths.named_leaves(abstract)
        assert jax.tree.structure(info) == jax.tree.structure(target)


def test_nnx_state_has_the_roles_of_the_same_linen_tree():
    def state(d):
        model = nnx.eval_shape(
            lambda: nnx.List(
                [nnx.Linear(7, d, rngs=nnx.Rngs(0)), nnx.Linear(d, d, rngs=nnx.Rngs(0))]
            )
        )
        return nnx.state(model, nnx.Param)

    info = paths.named_leaves(roles_room.infer_width_roles(state(4), state(12)))
    assert {path: leaf.role for path, leaf in info.items()} == {
        "0/bias": "vector",
        "0/kernel": "vector",
        "1/bias": "vector",
        "1/kernel": "matrix",
    }
    assert info["1/kernel"].width_mult == 3


@given(st.lists(st.integers(1, 40), min_size=3, max_size=3), st.integers(1, 5))
def test_multipliers_compose_and_invert(widths, d_ff):
    def multiplier(a, b):
        other = max(a, b) + 1
        trees = [{"w": shape(d * d_ff, d)} for d in (a, b, other)]
        return roles_room.infer_width_roles(trees[0], trees[1], delta=trees[2])["w"].width_mult

    a, b, c = widths
    assert multiplier(a, c) == pytest.approx(multiplier(a, b) * multiplier(b, c), rel=1e-12)
    assert multiplier(b, a) == pytest.approx(1 / multiplier(a, b), rel=1e-12)


def test_delta_alone_says_which_axes_are_width():
    base, target = (
        {"e": shape(96, 8), "w": shape(2, 8, 8)},
        {"e": shape(64, 8), "w": shape(4, 8, 8)},
    )
    delta = {"e": shape(96, 16), "w": shape(2, 16, 16)}
    info = roles_room.infer_width_roles(base, target, delta=delta)
    assert (info["e"].role, info["e"].width_mult) == ("vector", 1.0)
    assert (info["w"].role, info["w"].width_mult) == ("matrix", 1.0)


def test_narrower_target_has_a_multiplier_below_one():
    info = roles_room.infer_width_roles({"w": shape(64, 64)}, {"w": shape(16, 16)})
    assert info["w"].width_mult == 0.25


def test_override_wins_over_the_shapes():
    base = {"a": {"w": shape(8, 8)}, "b": {"w": shape(8, 5)}}
    target = {"a": {"w": shape(16, 16)}, "b": {"w": shape(16, 5)}}
    info = roles_room.infer_width_roles(base, target, overrides={"a/*": "vector", "b/*": "matrix"})
    assert info["a"]["w"].role == "vector"
    assert (info["b"]["w"].role, info["b"]["w"].width_mult) == ("matrix", 2.0)
    assert (info["b"]["w"].fan_in_axes, info["b"]["w"].fan_out_axes) == ((0,), (1,))


def test_overrides_alone_are_enough_at_the_base_width():
    base = {"w": shape(8, 8), "bias": shape(8)}
    info = roles_room.infer_width_roles(base, base, overrides={"w": "matrix"})
    assert (info["w"].role, info["w"].width_mult) == ("matrix", 1.0)
    assert info["bias"].role == "scalar"


def test_explicit_axes_serve_another_layout():
    base, target = {"w": shape(24, 8)}, {"w": shape(96, 16)}  # (out, in)
    info = roles_room.infer_width_roles(base, target, fan_in_axes={"w": (-1,)})
    assert (info["w"].width_mult, info["w"].fan_out_mult) == (2.0, 4.0)
    assert (info["w"].fan_in_axes, info["w"].fan_out_axes) == ((1,), (0,))


def test_integer_key_none_and_masked_leaves_are_not_trained():
    def tree(d):
        return {
            "w": jnp.ones((d, d)),
            "count": jnp.zeros((d, d), jnp.int32),
            "key": jax.random.key(0),
            "frozen": None,
            "masked": optax.MaskedNode(),
        }

    info = paths.named_leaves(roles_room.infer_width_roles(tree(2), tree(4)))
    assert {path: leaf.role for path, leaf in info.items()} == {
        "w": "matrix",
        "count": "scalar",
        "key": "scalar",
    }


@pytest.mark.parametrize(
    ("base", "target", "options", "message"),
    [
        ({"w": (4, 4)}, {"w": (4, 4)}, {}, "pass delta"),
        ({"w": (4, 4)}, {"w": (8, 8)}, {"delta": {"w": (4, 4)}}, "delta has the same shapes"),
        ({"w": (4, 4)}, {"w": (4, 4)}, {"overrides": {"w": "vector"}}, "pass delta"),
        ({"w": (4, 4)}, {"w": (8, 8), "b": (8,)}, {}, "'b' is in target but not in base"),
        ({"w": (4, 4), "b": (4,)}, {"w": (8, 8)}, {}, "'b' is in base but not in target"),
        ({"w": (4, 4)}, {"w": (8, 8)}, {"delta": {"v": (4, 4)}}, "'w' is in target but not in del"),
        ({"w": (4, 4)}, {"w": (2, 8, 8)}, {}, "differ in rank at 'w'"),
        ({"w": (4, 0)}, {"w": (8, 8)}, {}, "'w' has an empty axis"),
        ({"w": (4, 2, 2)}, {"w": (8, 4, 4)}, {}, r"pass fan_in_axes=\{'w'"),
        ({"w": (4, 4)}, {"w": (8, 8)}, {"fan_in_axes": {"w": (2,)}}, "axes of a rank-2 array"),
        ({"up": (4, 4)}, {"up": (8, 8)}, {"fan_in_axes": {"uq": (0,)}}, "did you mean 'up'"),
        ({"up": (4, 4)}, {"up": (8, 8)}, {"overrides": {"uq": "matrix"}}, "pattern 'uq'"),
        ({"up": (4, 4)}, {"up": (8, 8)}, {"overrides": {"up": "matrx"}}, "did you mean 'matrix'"),
    ],
)
def test_bad_trees_are_refused_by_name(base, target, options, message, bad_input):
    def tree(shapes):
        return {name: shape(*lengths) for name, lengths in shapes.items()}

    if "delta" in options:
        options = {**options, "delta": tree(options["delta"])}
    with pytest.raises(ValueError, match=message):
        roles_room.infer_width_roles(tree(base), tree(target), **options)


def test_numpy_leaves_are_read_like_jax_arrays():
    info = roles_room.infer_width_roles({"w": np.ones((2, 2))}, {"w": np.ones((6, 6))})
    assert info["w"].width_mult == 3


@pytest.mark.parametrize("last", [2, 4])
def test_an_axis_between_two_that_grow_is_asked_for_and_not_guessed(last):
    base, target = ({"fused": shape(d, 2, last * d)} for d in (32, 128))
    with pytest.raises(ValueError, match=r"pass fan_in_axes=\{'fused'"):
        width.width_scaling(base, target)
    told = width.width_scaling(base, target, fan_in_axes={"fused": (0,)})
    assert told.info["fused"].fan_in_axes == (0,)
    kernel = np.random.default_rng(0).normal(size=(128, 2, last * 128)).astype(np.float32)
    found = width.top_singular_values({"fused": kernel}, key=jax.random.key(0), scaling=told)
    exact = np.linalg.svd(kernel.reshape(128, -1), compute_uv=False)[0]
    assert float(found["fused"][0]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"w": np.ones((4, 4)), "act": jax.nn.relu}, TypeError, "base .* at 'act'.*equinox.filter"),
        ({"w": np.ones((4, 4)), "rate": 0.5}, TypeError, r"base .* got 0\.5 at 'rate'"),
        ({}, ValueError, r"base must hold parameters, got a tree without leaves: \{\}"),
    ],
)
def test_what_is_no_parameter_is_named(bad_input, tree, error, message):
    with pytest.raises(error, match=message):
        width.width_scaling(tree, tree)


def _equinox_layers(d):
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    model = eqx.filter_eval_shape(
        lambda: [eqx.nn.Linear(8, d, key=key), eqx.nn.Linear(d, 4 * d, key=key)]
    )
    return eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def _nnx_layers(d):
    def model():
        rngs = nnx.Rngs(0)
        return nnx.List([nnx.Linear(8, d, rngs=rngs), nnx.Linear(d, 4 * d, rngs=rngs)])

    return nnx.state(nnx.eval_shape(model), nnx.Param)


def _haiku_layers(d):
    hk = pytest.importorskip("haiku")
    model = hk.transform(lambda x: hk.nets.MLP([d, 4 * d])(x))
    return jax.eval_shape(model.init, jax.random.key(0), shape(1, 8))


@pytest.mark.parametrize(
    ("layers", "name", "fan_in"),
    [(_equinox_layers, "weight", 1), (_nnx_layers, "kernel", 0), (_haiku_layers, "w", 0)],
)
def test_trees_of_other_libraries_have_the_roles_of_their_layers(layers, name, fan_in):
    info = paths.named_leaves(width.width_scaling(layers(16), layers(64)).info)
    roles = {path: leaf.role for path, leaf in info.items()}
    (matrix,) = [path for path, role in roles.items() if role == "matrix"]
    assert matrix.split("/")[-1] == name, roles
    assert sorted(roles.values()) == ["matrix", "vector", "vector", "vector"]
    assert info[matrix].fan_in_axes == (fan_in,)


def test_the_models_of_the_toolkit_have_roles_without_a_word():
    def llama(d):
        model = models.DecoderLM(
            models.DecoderConfig(
                64, d_model=d, num_layers=2, num_heads=d // 8, num_kv_heads=d // 16, head_dim=8,
                d_ff=3 * d, position="rope", activation="silu", gated_mlp=True, tied_readout=False,
                embedding_affine=False,
            )
        )  # fmt: skip
        return nn.meta.unbox(jax.eval_shape(models.initializer(model), jax.random.key(0)))

    def vit(d):
        model = models.VisionTransformer(
            image_size=8, patch_size=4, width=d, depth=2, num_heads=d // 8, mlp_dim=4 * d,
            num_classes=5,
        )  # fmt: skip
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
        return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)

    for make in (llama, vit):
        scaling = width.width_scaling(make(16), make(64), delta=make(32))
        matrices = {
            info.path.rsplit("/", 1)[0 if make is vit else -1].rsplit("/", 1)[-1]: info
            for info in jax.tree.leaves(scaling.info)
            if info.role == "matrix"
        }
        assert all(info.width_mult == 4 for info in matrices.values()), matrices
        if make is llama:
            assert set(matrices) == {"query", "key", "value", "out", "gate", "up", "down"}
        report = width.width_report(scaling)
        assert len(report.splitlines()) == 1 + len(jax.tree.leaves(scaling.info))
