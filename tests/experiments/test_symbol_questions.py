import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import models
from jaxkit.experiments import symbol_questions as questions

MARKS = {"arrow": (0, 1), "separator": (2,)}
SYMBOLS = range(3, 15)


def keys():
    return jax.random.split(jax.random.key(0), 1000)


@pytest.fixture(scope="module")
def lookups():
    return jax.jit(jax.vmap(lambda k: questions.lookup_task(k, SYMBOLS, **MARKS)))(keys())


@pytest.fixture(scope="module")
def permutations():
    return jax.jit(jax.vmap(lambda k: questions.permutation_task(k, SYMBOLS, **MARKS)))(keys())


def lines(tokens):
    """An independent parser: lines of `(left, right)` split at separator and arrow."""
    text = " ".join(map(str, tokens))
    return [
        tuple([int(w) for w in side.split()] for side in line.split(" 0 1 "))
        for line in text.split(" 2 ")
    ]


def test_lookup_answers_are_the_value_of_the_key_asked_for(lookups):
    positions = set()
    for tokens, answer in zip(lookups.tokens.tolist(), lookups.answer.tolist(), strict=True):
        *table, (query, value) = lines(tokens)
        entries = {left[0]: right[0] for left, right in table}
        assert len(entries) == 5
        assert value == answer == [entries[query[0]]]
        positions.add(list(entries).index(query[0]))
    assert positions == set(range(5))
    assert set(np.unique(lookups.tokens)) == set(range(15))


def test_guessing_a_value_of_the_table_is_right_about_once_in_five(lookups):
    first_values = np.asarray(lookups.tokens)[:, 3]
    share = np.mean(first_values == np.asarray(lookups.answer)[:, 0])
    # Once in five, or by equal values: 1/5 + 4/5 * 1/12.
    expected = 0.2 + 0.8 / 12
    assert share == pytest.approx(expected, abs=4 * float(np.sqrt(expected / 1000)))


def test_permutation_answers_follow_the_rule_of_the_demonstrations(permutations):
    rules = set()
    for tokens, answer in zip(
        permutations.tokens.tolist(), permutations.answer.tolist(), strict=True
    ):
        *shown, (last, output) = lines(tokens)
        found = {tuple(left.index(v) for v in right) for left, right in shown}
        assert len(shown) == 3
        assert len(found) == 1
        (rule,) = found
        assert output == answer == [last[i] for i in rule]
        assert all(len(set(left)) == 3 for left, _ in shown)
        rules.add(rule)
    assert len(rules) == 6


def test_the_mask_marks_what_can_be_worked_out(lookups, permutations):
    tokens, mask = (np.asarray(a) for a in (permutations.tokens, permutations.mask))
    masked = tokens[mask].reshape(1000, 3, 2)
    assert np.array_equal(masked[:, -1], permutations.answer)
    for line in range(3):
        start = 8 * (line + 1)
        assert np.array_equal(masked[:, line], tokens[:, start + 5 : start + 7])
    asked = np.asarray(lookups.tokens)[np.asarray(lookups.mask)]
    assert np.array_equal(asked, lookups.answer[:, 0])


def test_several_queries_ask_for_different_keys_of_one_table():
    task = questions.lookup_task(jax.random.key(0), SYMBOLS, num_pairs=4, num_queries=3, **MARKS)
    *_, first, second, third = table = lines(task.tokens.tolist())
    entries = {left[0]: right[0] for left, right in table[:4]}
    asked = [left[0] for left, _ in (first, second, third)]
    assert len(table) == 7
    assert len(set(asked)) == 3
    assert [right[0] for _, right in (first, second, third)] == [entries[k] for k in asked]
    assert np.asarray(task.tokens)[np.asarray(task.mask)].tolist() == [entries[k] for k in asked]


class Copier(models.DecoderLM):
    """Reads the table of a lookup task and answers it perfectly, whatever the symbols are."""

    def decode_step(self, cache, tokens, embedding=None):
        if tokens.shape[1] == 1:  # after the answer, anything
            return jnp.zeros((*tokens.shape, 15)), cache
        query = tokens[:, -3]
        keys, values = tokens[:, 0:25:5], tokens[:, 3:25:5]
        answer = jnp.max(jnp.where(keys == query[:, None], values, 0), axis=1)
        logits = 9.0 * jax.nn.one_hot(answer, 15)
        return jnp.broadcast_to(logits[:, None], (*tokens.shape, 15)), cache


@pytest.mark.parametrize("method", ["fixed", "relabel"])
def test_accuracy_is_one_for_a_perfect_reader(method, lookups):
    config = models.DecoderConfig(15, d_model=4, num_layers=1, num_heads=1, head_dim=4, d_ff=4)
    model = Copier(config)
    params = jax.eval_shape(model.init, jax.random.key(0), lookups.tokens[:1])
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    assert float(measure(model, params, lookups, method)) == 1.0


@pytest.mark.slow
def test_accuracy_of_an_untrained_model_is_that_of_guessing(lookups):
    config = models.DecoderConfig(15, d_model=8, num_layers=1, num_heads=1, head_dim=4, d_ff=4)
    model = models.DecoderLM(config)
    params = jax.jit(model.init)(jax.random.key(0), lookups.tokens[:1])
    assert 0 <= float(measure(model, params, lookups, "fixed")) < 0.3
    random = models.DecoderLM(dataclasses.replace(config, embedding="given"))
    inner = {k: v for k, v in params["params"].items() if k != "embedding"}
    assert 0 <= float(measure(random, {"params": inner}, lookups, "lexinvariant")) < 0.3


def measure(model, params, tasks, method):
    call = jax.jit(lambda p, t, k: questions.task_accuracy(model, p, t, k, method=method))
    return call(params, tasks, jax.random.key(1))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (questions.lookup_task, {"symbols": [3, 4]}, "at least 5 different ids, got 2"),
        (questions.lookup_task, {"symbols": [3, 3, 4, 5, 6, 7]}, "of which 5 differ"),
        (questions.lookup_task, {"num_queries": 6}, "at most num_pairs=5, got 6"),
        (questions.permutation_task, {"symbols": [3, 4]}, "at least 3 different ids"),
        (questions.permutation_task, {"num_selected": 4}, "at most length=3, got 4"),
    ],
)
def test_bad_input_is_refused(make, options, message, bad_input):
    with pytest.raises(ValueError, match=message):
        make(jax.random.key(0), **{"symbols": SYMBOLS, **MARKS, **options})
