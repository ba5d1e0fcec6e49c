import dataclasses
import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from jaxkit import lexinvariant as lx
from jaxkit import models

FIXED = models.DecoderConfig(
    vocab_size=6, d_model=16, num_layers=1, num_heads=2, head_dim=8, d_ff=16, num_buckets=8
)
LEXINVARIANT = dataclasses.replace(FIXED, embedding="given")
BATCH = {
    "tokens": jnp.asarray(np.random.default_rng(1).integers(0, 6, (4, 9), np.int32)),
    "index": jnp.array([10, 11, 12, 13]),
}
KEY = jax.random.key(7)


@functools.cache
def model_and_params(config):
    model = models.DecoderLM(config)
    table = None if config.embedding == "fixed" else jnp.zeros((6, 16))
    init = jax.jit(lambda k: nn.meta.unbox(model.init(k, BATCH["tokens"], table)))
    return model, init(jax.random.key(0))


@functools.cache
def losses(config, **options):
    model, _ = model_and_params(config)
    return jax.jit(
        lambda params, batch, key, p: lx.token_losses(model, params, batch, key, p=p, **options)
    )


def evaluate(config, batch=BATCH, key=KEY, p=1.0, **options):
    return losses(config, **options)(model_and_params(config)[1], batch, key, p)


@pytest.mark.parametrize("method", ["relabel", "mixed"])
def test_probability_zero_is_the_standard_model_exactly(method):
    standard = evaluate(FIXED)
    assert np.array_equal(evaluate(FIXED, p=0.0, method=method), standard)


def test_mixing_with_probability_one_is_the_gaussian_model():
    _, params = model_and_params(FIXED)
    keys = lx.sequence_keys(KEY, BATCH["index"])
    row_keys = jax.vmap(lambda k: jax.random.split(k)[0])(keys)
    model = models.DecoderLM(LEXINVARIANT)
    inner = {k: v for k, v in params["params"].items() if k != "embedding"}
    logits = jax.jit(model.apply)(
        {"params": inner}, BATCH["tokens"][:, :-1], lx.RandomTable(row_keys, 6, 16)
    )
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, BATCH["tokens"][:, 1:]
    )
    np.testing.assert_allclose(evaluate(FIXED, method="mixed"), expected, atol=1e-6)


def test_relabelling_is_the_standard_model_on_renamed_text():
    renamed, _ = lx.permute_tokens(lx.sequence_keys(KEY, BATCH["index"]), BATCH["tokens"], 6)
    expected = evaluate(FIXED, {**BATCH, "tokens": renamed})
    np.testing.assert_allclose(evaluate(FIXED, method="relabel"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        pytest.param(LEXINVARIANT, "lexinvariant", marks=pytest.mark.slow),
        pytest.param(FIXED, "relabel", marks=pytest.mark.slow),
    ],
)
def test_scoring_by_pieces_gives_the_losses_of_scoring_at_once(config, method):
    at_once = evaluate(config, method=method)
    np.testing.assert_allclose(evaluate(config, method=method, chunk_size=4), at_once, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "method"), [(LEXINVARIANT, "lexinvariant"), (FIXED, "relabel"), (FIXED, "mixed")]
)
def test_losses_depend_on_the_global_index_not_on_the_batch(config, method):
    whole = evaluate(config, p=0.5, method=method)
    order = jnp.array([2, 0, 0, 3])
    part = {name: rows[order] for name, rows in BATCH.items()}
    np.testing.assert_allclose(
        evaluate(config, part, p=0.5, method=method), whole[order], atol=1e-6
    )


def test_equal_sequences_in_a_batch_get_different_tables():
    batch = {**BATCH, "tokens": jnp.broadcast_to(BATCH["tokens"][:1], (4, 9))}
    found = np.asarray(evaluate(LEXINVARIANT, batch, method="lexinvariant"))
    assert len(np.unique(found.round(4), axis=0)) == 4


EITHER = [
    (LEXINVARIANT, "lexinvariant"),
    pytest.param(FIXED, "relabel", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("config", "method"), EITHER)
def test_renaming_changes_single_draws_but_not_the_mean_probability(config, method):
    count = 4000
    rename = jnp.array([3, 5, 0, 1, 2, 4])
    text = BATCH["tokens"][0, :5]

    def probabilities(tokens):
        batch = {
            "tokens": jnp.broadcast_to(tokens, (count, 5)),
            "index": jnp.arange(count),
        }
        return np.exp(-np.asarray(evaluate(config, batch, method=method)).sum(axis=1))

    plain, renamed = probabilities(text), probabilities(rename[text])
    assert not np.allclose(plain, renamed)
    error = np.sqrt((plain.var() + renamed.var()) / count)
    assert abs(plain.mean() - renamed.mean()) < 4 * error


@pytest.mark.parametrize(("config", "method"), EITHER)
def test_symbols_not_seen_yet_are_equally_likely(config, method):
    count = 4000
    means, errors = [], []
    for following in (0, 1, 2, 4, 5):
        batch = {
            "tokens": jnp.broadcast_to(jnp.array([3, following, 0, 0, 0]), (count, 5)),
            "index": jnp.arange(count),
        }
        p = np.exp(-np.asarray(evaluate(config, batch, method=method))[:, 0])
        means.append(p.mean())
        errors.append(p.var() / count)
    means, errors = np.array(means), np.sqrt(errors)
    assert np.all(np.abs(means - means.mean()) < 4 * errors)


def test_a_schedule_of_p_follows_the_global_index_of_each_sequence():
    model, params = model_and_params(FIXED)
    loss = lx.next_token_loss(
        model, method="relabel", p=lambda step: jnp.minimum(1.0, step / 5), batch_size=4
    )
    # Sequences 10 and 11 belong to step 2, 12 and 13 to step 3.
    chances = jnp.array([0.4, 0.4, 0.6, 0.6])
    expected = jnp.mean(evaluate(FIXED, p=chances, method="relabel"))
    assert float(jax.jit(loss)(params, BATCH, KEY)) == pytest.approx(float(expected), abs=1e-6)


def test_p_may_be_swept_with_vmap():
    model, params = model_and_params(FIXED)

    def loss(p):
        return lx.next_token_loss(model, method="relabel", p=p)(params, BATCH, KEY)

    swept = jax.jit(jax.vmap(loss))(jnp.array([0.0, 1.0]))
    alone = [float(jnp.mean(evaluate(FIXED, p=p, method="relabel"))) for p in (0.0, 1.0)]
    np.testing.assert_allclose(swept, alone, atol=1e-6)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences_in_scale_bias_and_positions():
    model, params = model_and_params(LEXINVARIANT)
    loss = lx.next_token_loss(model)
    gradient = jax.jit(jax.grad(loss))(params, BATCH, KEY)["params"]
    value = jax.jit(loss)
    rng = np.random.default_rng(0)
    for path in (("embedding_scale",), ("embedding_bias",), ("layers", "relative_bias")):
        leaf = functools.reduce(lambda tree, name: tree[name], path, params["params"])
        slope = functools.reduce(lambda tree, name: tree[name], path, gradient)
        direction = jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)

        def moved(step, path=path, direction=direction):
            return jax.tree_util.tree_map_with_path(
                lambda where, x: (
                    x + step * direction if [k.key for k in where[1:]] == list(path) else x
                ),
                params,
            )

        numeric = (value(moved(0.01), BATCH, KEY) - value(moved(-0.01), BATCH, KEY)) / 0.02
        assert float(numeric) == pytest.approx(float(jnp.vdot(slope, direction)), abs=2e-3)


@hypothesis.given(seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=5)
def test_the_log_mean_over_draws_is_never_below_the_mean(seed):
    model, params = model_and_params(LEXINVARIANT)
    estimate = several_draws(model)(params, BATCH, jax.random.key(seed))
    assert estimate.draws.shape == (3, 4)
    assert np.all(estimate.log_prob >= np.mean(estimate.draws, axis=0) - 1e-5)
    assert np.all(estimate.log_prob <= np.max(estimate.draws, axis=0) + 1e-5)


@functools.cache
def several_draws(model):
    return jax.jit(
        lambda params, batch, key: lx.lexinvariant_log_prob(model, params, batch, key, 3)
    )


def test_draws_are_independent_evaluations_of_the_loss():
    model, params = model_and_params(LEXINVARIANT)
    estimate = several_draws(model)(params, BATCH, KEY)
    for draw in range(3):
        key = jax.random.fold_in(KEY, draw)
        alone = -evaluate(LEXINVARIANT, key=key, method="lexinvariant").sum(axis=1)
        np.testing.assert_allclose(estimate.draws[draw], alone, atol=1e-4)
    mean = np.exp(np.asarray(estimate.draws, np.float64)).mean(axis=0)
    np.testing.assert_allclose(estimate.log_prob, np.log(mean), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (FIXED, {"method": "lexinvariant"}, "config.embedding='given', got 'fixed'"),
        (LEXINVARIANT, {"method": "relabel"}, "config.embedding='fixed', got 'given'"),
        (FIXED, {"method": "relable"}, "did you mean 'relabel'"),
        (FIXED, {"method": "relabel", "p": -0.1}, "p must be finite"),
        (FIXED, {"method": "mixed", "chunk_size": 2}, "chunk_size must be None"),
    ],
)
def test_bad_input_is_refused(config, options, message, bad_input):
    model, params = model_and_params(config)
    with pytest.raises(ValueError, match=message):
        lx.token_losses(model, params, BATCH, KEY, **options)
    with pytest.raises(ValueError, match=message):
        lx.next_token_loss(model, **options)(params, BATCH, KEY)


@pytest.mark.parametrize("batch", [BATCH["tokens"], {"tokens": BATCH["tokens"]}])
def test_a_batch_without_tokens_or_index_is_refused(batch, bad_input):
    with pytest.raises(ValueError, match="batch must hold 'tokens' and 'index', got"):
        lx.next_token_loss(models.DecoderLM(FIXED))({}, batch, KEY)


@pytest.mark.parametrize("p", [0.5, lx.relabelling_schedule(10)])
@pytest.mark.parametrize(("config", "name"), [(FIXED, "fixed"), (LEXINVARIANT, "lexinvariant")])
def test_a_probability_that_the_method_does_not_read_is_refused(config, name, p, bad_input):
    with pytest.raises(ValueError, match=f"p needs method='relabel' or 'mixed', .*'{name}'"):
        lx.next_token_loss(models.DecoderLM(config), p=p, batch_size=2)
    if not callable(p):
        model, params = model_and_params(config)
        with pytest.raises(ValueError, match=f"p needs method='relabel' or 'mixed', .*'{name}'"):
            lx.token_losses(model, params, BATCH, KEY, p=p)


def test_a_schedule_needs_the_batch_size(bad_input):
    with pytest.raises(ValueError, match="batch_size must be given"):
        lx.next_token_loss(models.DecoderLM(FIXED), p=lx.relabelling_schedule(10))


@pytest.mark.parametrize("draws", [0, -1])
def test_at_least_one_draw_is_needed(draws, bad_input):
    model, params = model_and_params(LEXINVARIANT)
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1"):
        lx.lexinvariant_log_prob(model, params, BATCH, KEY, draws)
