"""Vectors of the official modules (float64), in float64 to 1e-9 and in float32 to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models
from jaxkit.continual import (
    adapters,
    batches,
    descriptors,
    forward_pass,
    sema_programs,
    sema_task,
)

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@pytest.fixture(params=["float64"])
def precision(request):
    """Run in one precision, float64 unless a test asks for both."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


both = pytest.mark.parametrize(
    "precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True
)


def close(found, expected, precision):
    bound = TOLERANCE[precision]
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


def test_adapter_has_biases_and_no_scale(sema_golden, official, precision):
    case = sema_golden["adapter_forward"]
    adapter = official.arrays(official.adapter(case["params"], ""), precision)
    close(adapters.functional_adapter(adapter, jnp.asarray(case["x"])), case["y"], precision)


def test_descriptor_reads_pooled_tokens(sema_golden, official, precision):
    case = sema_golden["rd_forward"]
    descriptor = official.arrays(official.descriptor(case["params"], ""), precision)
    pooled = jnp.asarray(case["x"]).mean(1)
    close(pooled, case["pooled"], precision)
    found = descriptors.representation_error(descriptor, pooled)
    close(found, case["loss_per_sample"], precision)


def test_records_drop_what_does_not_fit_and_then_forget_the_oldest(sema_golden, precision):
    case = sema_golden["records"]
    records = descriptors.empty_records(case["max_len"])
    record = jax.jit(descriptors.record_errors)
    for step in case["steps"]:
        padded = np.zeros(6)
        padded[: len(step["values"])] = step["values"]
        records = record(records, jnp.asarray(padded), len(step["values"]))
        assert int(records.count) == step["length"]
        close(records.values[: step["length"]], step["buffer"], precision)
        mean, deviation = descriptors.record_statistics(records)
        close(mean, step["mean"], precision)
        if step["std"] is not None:
            close(deviation, step["std"], precision)


def test_z_scores_are_zero_until_three_errors_are_on_record(sema_golden, official, precision):
    case = sema_golden["z_score"]
    query = jnp.asarray(case["query"])
    history = official.arrays(official.records([case["history"]], 1), precision)
    records = jax.tree.map(lambda leaf: leaf[0], history)
    close(jnp.abs(descriptors.z_scores(records, query)), case["abs_z"], precision)
    two = records._replace(count=jnp.asarray(2))
    close(jnp.abs(descriptors.z_scores(two, query)), case["abs_z_with_two_records"], precision)


def _layer(case, official, precision, *, garbage=0.0, capacity=4):
    params = case["params"]
    router = adapters.Router(np.full((8, capacity), garbage), np.full(capacity, garbage))
    rows = params["router.weight"] + params["new_router.weight"]
    router.kernel[:, :3] = np.transpose(rows)
    router.bias[:3] = params["router.bias"] + params["new_router.bias"]
    stack = official.stacked(
        [official.adapter(params, f"adapters.{k}.functional.") for k in range(3)], capacity
    )
    describing = official.stacked(
        [official.descriptor(params, f"adapters.{k}.rd.") for k in range(3)], capacity
    )
    return official.arrays((router, stack, describing), precision)


def test_mixture_weighs_samples_by_their_pooled_tokens(sema_golden, official, precision):
    case = sema_golden["layer_mixture"]
    router, stack, describing = _layer(case, official, precision)
    x = jnp.asarray(case["x"])
    active = jnp.arange(4) < 3
    weights = adapters.router_weights(router, x.mean(1), active)
    close(weights[:, :3], case["router_weights"], precision)
    assert np.all(weights[:, 3] == 0)
    mixed = adapters.mixture_of_adapters(stack, x, weights)
    close(mixed, case["func_out"], precision)
    close(mixed, case["func_out_after_router_merge"], precision)
    errors = jax.vmap(descriptors.representation_error, (0, None))(describing, x.mean(1))
    close(errors[:3], case["rd_loss_per_adapter_per_sample"], precision)


def test_block_grows_where_every_descriptor_is_surprised(sema_golden, official, precision):
    golden = sema_golden["expansion_decision"]
    _, _, describing = _layer(sema_golden["layer_mixture"], official, precision)
    records = official.arrays(official.records(golden["history"], 4), precision)
    active = jnp.arange(4) < 3
    config = continual.SEMAConfig(
        models.VisionTransformer(), 10, expand_from=0, expand_to=0, threshold=golden["threshold"]
    )

    @jax.jit
    def score(x):
        errors = jax.vmap(descriptors.representation_error, (0, None))(describing, x.mean(1))
        z = jax.vmap(descriptors.z_scores)(records, errors)
        return z, descriptors.shift_score(z, active, len(x))

    for case in golden["cases"]:
        z, found = score(jnp.asarray(case["x"]))
        close(jnp.abs(z[:3]), case["abs_z"], precision)
        close(found, case["score"], precision)
        assert (sema_task.growing_block(config, [float(found)], ()) is not None) == case["added"]


@both
def test_transformer_with_adapters_matches(sema_golden, official, precision):
    golden = sema_golden["sema_vit_forward"]
    config, backbone, state = official.state(golden, garbage=np.nan)
    backbone, state = official.arrays((backbone, state), precision)
    images = jnp.asarray(golden["x_nchw"]).transpose(0, 2, 3, 1)

    @jax.jit
    def run(backbone, state, images):
        tokens = forward_pass.frozen_prefix(config, backbone, state, images)
        whole = continual.adapted_forward(config, backbone, state, images)
        rest = continual.adapted_forward(config, backbone, state, tokens, from_tokens=True)
        return whole.features, rest.features

    whole, rest = run(backbone, state, images)
    close(whole, golden["features"], precision)
    close(rest, golden["features"], precision)
    close(forward_pass.class_logits(state.params.head, whole), golden["logits"], precision)


def test_local_cross_entropy_moves_only_the_logits_of_the_task(sema_golden, precision):
    case = sema_golden["local_cross_entropy"]
    classes = jnp.arange(case["total_classes"]) >= case["known_classes"]
    labels = jnp.asarray(case["labels"])

    def loss(logits):
        return jnp.mean(sema_programs.local_cross_entropy(logits, labels, classes))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(case["logits"]))
    close(value, case["loss"], precision)
    close(gradient, case["grad_logits"], precision)
    assert np.all(gradient[:, ~classes] == 0)
    close(gradient.sum(1), np.zeros(3), precision)


@pytest.mark.parametrize(
    ("precision", "source"),
    [("float32", "images"), pytest.param("float64", "images", marks=pytest.mark.slow),
     pytest.param("float64", "images_above", marks=pytest.mark.slow)],
    indirect=["precision"],
)  # fmt: skip
def test_training_trace_of_both_phases(sema_golden, official, precision, source):
    """With gradients through all blocks, and with none below the first block that grows."""
    golden, trace = sema_golden["sema_vit_forward"], sema_golden["training_trace"]
    config, backbone, state = official.state(golden, garbage=np.nan)
    block, slot = 1, golden["n_adapters"][2]
    new, params = trace["new_params_init"], state.params
    fresh = official.adapter(new, "new_adapter.functional.")
    descriptor = official.descriptor(new, "new_adapter.rd.")
    for stack, part in ((params.adapters, fresh), (state.descriptors, descriptor)):
        for leaf, value in zip(stack, part, strict=True):
            leaf[block, slot] = value
    params.router.kernel[block, :, slot] = new["new_router.weight"][0]
    params.router.bias[block, slot] = new["new_router.bias"][0]
    state.num_active[block] += 1
    backbone, before = official.arrays((backbone, state), precision)
    slots = np.zeros((2, 3), bool)
    slots[block, slot] = True
    grown = slots.any(1)
    images = np.asarray(trace["x_nchw"]).transpose(0, 1, 3, 4, 2)
    classes = np.arange(6) >= trace["known_classes"]

    def steps(rate):
        return batches.StepBatches(
            images.astype(precision), np.asarray(trace["labels"], np.int32),
            np.full(3, 4, np.int32), np.full(3, rate, precision), np.arange(3, dtype=np.int32),
            np.int32(3),
        )  # fmt: skip

    key = jax.random.key(0)
    learning, losses = sema_programs.train_steps(
        config, source, backbone, sema_programs.begin_phase(config, before),
        sema_programs.Trainable(np.asarray(False), grown), classes, steps(0.05), key,
    )  # fmt: skip
    close(losses, trace["func_losses"], precision)
    trained = learning.sema
    expected = trace["after_func"]
    want = official.adapter(expected, "new_adapter.functional.")
    for leaf, value in zip(trained.params.adapters, want, strict=True):
        close(leaf[block, slot], value, precision)
    close(trained.params.router.kernel[block, :, slot], expected["new_router.weight"][0], precision)
    close(trained.params.router.bias[block, slot], expected["new_router.bias"][0], precision)
    close(trained.params.head.kernel.T, expected["fc.weight"], precision)
    close(trained.params.head.bias, expected["fc.bias"], precision)
    _check_record(trained.records, (block, slot), trace["record_after_func"], precision)
    _assert_frozen(before, trained, slots)

    learning, losses = sema_programs.describe_steps(
        config,
        "images",
        backbone,
        sema_programs.begin_phase(config, trained),
        grown,
        steps(0.1),
        key,
    )
    close(losses, trace["rd_losses"], precision)
    described = learning.sema
    want = official.descriptor(trace["after_rd"], "new_adapter.rd.")
    for leaf, value in zip(described.descriptors, want, strict=True):
        close(leaf[block, slot], value, precision)
    _check_record(described.records, (block, slot), trace["record_after_rd"], precision)
    _assert_frozen(trained, described, slots)
    jax.tree.map(np.testing.assert_array_equal, trained.params, described.params)


def _check_record(records, place, expected, precision):
    record = jax.tree.map(lambda leaf: leaf[place], records)
    mean, deviation = descriptors.record_statistics(record)
    assert int(record.count) == expected["length"]
    close(mean, expected["mean"], precision)
    close(deviation, expected["std"], precision)


def _assert_frozen(before, after, slots):
    """Everything but the marked slots and the head is equal to the bit."""
    for old, new in zip(before.params.single, after.params.single, strict=True):
        np.testing.assert_array_equal(old, new)
    stacks = [(before.params.adapters, after.params.adapters),
              (before.descriptors, after.descriptors), (before.records, after.records)]  # fmt: skip
    for old, new in stacks:
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(np.asarray(a)[~slots], np.asarray(b)[~slots])
    old, new = before.params.router, after.params.router
    still = np.broadcast_to(~slots[:, None], old.kernel.shape)
    np.testing.assert_array_equal(np.asarray(old.kernel)[still], np.asarray(new.kernel)[still])
    np.testing.assert_array_equal(np.asarray(old.bias)[~slots], np.asarray(new.bias)[~slots])


def test_learning_rates_fall_by_pass(sema_golden):
    for name, expected in sema_golden["cosine_lr_per_epoch"]["values"].items():
        rate, epochs = name.split("_")
        found = batches.cosine_rates(float(rate), int(epochs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_stream_metrics_match_the_papers_equations(sema_golden):
    case = sema_golden["metrics"]
    accuracy = np.asarray(case["acc"])
    np.testing.assert_allclose(
        continual.stage_accuracies(accuracy), case["average_accuracy_per_stage"], atol=1e-12
    )
    assert continual.average_incremental_accuracy(accuracy) == pytest.approx(
        case["average_incremental_accuracy"], abs=1e-12
    )
    assert continual.forgetting(accuracy) == pytest.approx(case["forgetting"], abs=1e-12)


def test_parameter_counts_match_the_papers_table(sema_golden):
    tasks = {"cifar100": (100, 10), "imagenet_r": (200, 20), "imagenet_a": (200, 20),
             "vtab": (50, 5)}  # fmt: skip
    for name, expected in sema_golden["expand_by_task_param_counts"]["values"].items():
        classes, count = tasks[name]
        config = continual.SEMAConfig(models.VisionTransformer(), classes)
        found = continual.parameter_counts(config, 3 * (count - 1)).inference
        assert found == expected["formula"]
        assert round(found / 1e6, 3) == expected["paper_M"]
