"""Rules: the exponents, the multipliers they give and the table that shows them."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import width

positive = st.floats(0.01, 100, allow_nan=False)


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, "float32")


def at_multiplier(base, target, rule, **options):
    return width.width_scaling({"w": shape(base, base)}, {"w": shape(target, target)}, rule=rule)


@pytest.mark.parametrize("rule", ["robust", "mup_fixed", "mup_independent"])
def test_golden_multipliers_of_every_rule(golden, rule):
    data = golden("width_scaling")
    cases = [c for part in ("width_multipliers", "role_inference_with_delta") for c in data[part]]
    cases = [case for case in cases if rule in case]
    base, target, delta = (
        {case["name"]: shape(*case.get(f"{kind}_shape", case["target_shape"])) for case in cases}
        for kind in ("base", "target", "delta")
    )
    scaling = width.width_scaling(base, target, delta=delta, rule=rule)
    for case in cases:
        expected = case[rule]
        name = case["name"]
        assert scaling.learning_rate[name] == pytest.approx(expected["lr_mult"], rel=1e-12)
        assert scaling.weight_decay[name] == pytest.approx(expected["weight_decay_mult"], rel=1e-12)
        assert scaling.role[name] == case["role"]


def test_golden_higher_rank_multipliers(golden):
    for case in golden("width_scaling")["higher_rank_kernels"]:
        axes = case["fan_in_axes"]
        scaling = width.width_scaling(
            {"w": shape(*case["base_shape"])},
            {"w": shape(*case["target_shape"])},
            fan_in_axes={"w": axes} if axes else None,
        )
        expected = case["robust"]
        assert scaling.learning_rate["w"] == pytest.approx(expected["lr_mult"], rel=1e-12)
        assert scaling.weight_decay["w"] == pytest.approx(expected["weight_decay_mult"], rel=1e-12)


def test_golden_weight_decay_exponents(golden):
    for case in golden("width_scaling")["weight_decay_exponent"]:
        found = width.weight_decay_exponent(
            case["learning_rate_exponent"], case["singular_value_exponent"]
        )
        assert found == pytest.approx(case["weight_decay_exponent"], abs=1e-12)


def test_standard_rule_changes_nothing():
    scaling = at_multiplier(64, 512, "standard")
    assert (scaling.learning_rate["w"], scaling.weight_decay["w"]) == (1.0, 1.0)


@given(st.integers(1, 500), st.integers(1, 500))
def test_robust_multipliers_are_monotone_and_their_product_falls_as_root_m(narrow, extra):
    base = 64
    small, large = (
        at_multiplier(base, d, "robust") for d in (base + narrow, base + narrow + extra)
    )
    assert large.learning_rate["w"] < small.learning_rate["w"]
    assert large.weight_decay["w"] > small.weight_decay["w"]
    m = large.info["w"].width_mult
    product = large.learning_rate["w"] * large.weight_decay["w"]
    assert product == pytest.approx(m**-0.5, rel=1e-12)


@given(st.integers(1, 60), st.integers(1, 60), positive)
def test_rules_differ_only_by_a_relabelled_weight_decay(base, extra, decay):
    scalings = {name: at_multiplier(base, base + extra, name) for name in width.RULES}
    m = scalings["robust"].info["w"].width_mult

    def trained(name, base_decay):
        return scalings[name].learning_rate["w"], scalings[name].weight_decay["w"] * base_decay

    assert trained("robust", decay) == pytest.approx(trained("mup_fixed", decay * m**0.5))
    assert trained("robust", decay) == pytest.approx(trained("mup_independent", decay / m**0.5))


@given(st.floats(-2, 2), st.floats(0.3, 1.2), st.floats(1.1, 64))
def test_the_derived_exponent_makes_the_top_singular_value_independent_of_width(p, a, m):
    rule = width.WidthRule(p, width.weight_decay_exponent(p, a))
    ratio = width.predicted_singular_value_ratio(m, rule=rule, singular_value_exponent=a)
    assert ratio == pytest.approx(1, rel=1e-12)


def test_fan_chooses_the_side_that_counts():
    base, target = {"w": shape(64, 192)}, {"w": shape(256, 1536)}
    by_input = width.width_scaling(base, target, fan="in")
    by_output = width.width_scaling(base, target, fan="out")
    assert (by_input.learning_rate["w"], by_output.learning_rate["w"]) == (1 / 4, 1 / 8)
    assert by_output.init_std["w"] == by_input.init_std["w"] == 0.5  # always fan-in


def test_vectors_decay_only_if_the_rule_says_so():
    base, target = {"w": shape(2, 2), "b": shape(2)}, {"w": shape(4, 4), "b": shape(4)}
    rule = width.WidthRule(vector_weight_decay=0.5)
    assert width.width_scaling(base, target, rule=rule).weight_decay["b"] == 0.5
    assert width.width_scaling(base, target).weight_decay["b"] == 0.0


def test_integer_leaves_never_decay():
    def tree(d):
        return {"w": shape(d, d), "count": jax.ShapeDtypeStruct((), "int32")}

    scaling = width.width_scaling(tree(2), tree(4), rule="standard")
    assert scaling.weight_decay["count"] == 0.0


def test_table_shows_what_each_parameter_trains_with():
    base = {"down": shape(256, 64), "gain": shape(64)}
    target = {"down": shape(1024, 256), "gain": shape(256)}
    table = width.width_report(
        width.width_scaling(base, target), learning_rate=0.02, weight_decay=0.1
    )
    rows = [line.split() for line in table.splitlines()[1:]]
    assert rows == [
        ["down", "matrix", "0", "1", "4", "0.005", "0.2", "0.001", "in", "before", "out"],
        ["gain", "vector", "4", "0.02", "0", "0", "grows", "along", "0", "alone"],
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: at_multiplier(2, 4, "robst"), "did you mean 'robust'"),
        (
            lambda: width.WidthRule(learning_rate_exponent=float("nan")),
            "learning_rate_exponent must be finite",
        ),
        (lambda: width.WidthRule(weight_decay_exponent=float("inf")), "weight_decay_exponent"),
        (lambda: width.WidthRule(vector_weight_decay=-0.1), "vector_weight_decay"),
        (lambda: width.weight_decay_exponent(float("nan")), "learning_rate_exponent"),
        (lambda: width.weight_decay_exponent(-1.0, float("inf")), "singular_value_exponent"),
        (lambda: width.width_report(at_multiplier(2, 4, "robust"), learning_rate=-1.0), "learning"),
        (
            lambda: width.width_scaling({"w": shape(2, 2)}, {"w": shape(4, 4)}, fan="inn"),
            "fan must be one of 'in', 'out'",
        ),
    ],
)
def test_bad_rules_are_refused_by_name(call, message, bad_input):
    with pytest.raises(ValueError, match=message):
        call()
