import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import datasets, jobs
from jaxkit.jobs import evaluation


def test_the_bigram_loss_is_that_of_counting_with_witten_bell_smoothing():
    train, validation, size = np.array([0, 1, 0, 2, 0, 1, 1]), np.array([1, 0, 3, 0, 1]), 4
    single = [np.sum(train == v) for v in range(size)]
    seen = sum(count > 0 for count in single)
    losses = []
    for c, v in itertools.pairwise(validation):
        unigram = (single[v] + seen / size) / (len(train) + seen)
        successors = [b for a, b in itertools.pairwise(train) if a == c]
        different = len(set(successors))
        count = successors.count(v)
        q = (count + different * unigram) / (len(successors) + different) if different else unigram
        losses.append(-np.log(q))
    assert evaluation.bigram_loss(train, validation, size) == pytest.approx(
        np.mean(losses), rel=1e-12
    )


def test_a_large_text_is_counted_in_pieces_that_lose_no_pair():
    text = np.tile(np.array([0, 1], np.uint8), 5 << 20)
    tracemalloc.start()
    try:
        loss = evaluation.bigram_loss(text, text[:1001], 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80e6  # of int64 the text alone would be 84 MB
    pairs, uniform = 5 << 20, 1 / 2  # of 0 and 1; one pair fewer of 1 and 0
    losses = [-np.log((n + uniform) / (n + 1)) for n in (pairs, pairs - 1)]
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_run_scores_a_text_as_the_model_does_token_by_token(finished_run):
    run = jobs.open_run(finished_run.folder)
    text = "the lazy dog jumps over the quick brown fox" * 2
    result = jobs.evaluate_run(run, datasets.Corpus.from_text(text, "text"))
    ids = run.tokenizer.encode(text).astype(int)
    length, losses = run.config.sequence_length, []
    apply = jax.jit(run.model.apply)
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1]
        logits = apply(run.params, jnp.asarray(window[None, :-1]))[0]
        logits = np.array(logits, np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-logits[i, v] for i, v in enumerate(window[1:])]
    assert result.tokens == len(ids) - 1 == len(losses)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.by_position.shape == (length,)


def test_a_sample_depends_on_its_seed_alone_and_is_greedy_at_temperature_0(finished_run):
    run = jobs.open_run(finished_run.folder)
    one = jobs.sample_run(run, "the ", num_tokens=20, seed=1)
    assert one == jobs.sample_run(run, "the ", num_tokens=20, seed=1)
    assert one != jobs.sample_run(run, "the ", num_tokens=20, seed=2)
    greedy = jobs.sample_run(run, "the ", num_tokens=3, temperature=0.0)
    ids = run.tokenizer.encode("the " + greedy).astype(int)
    likeliest = np.argmax(run.model.apply(run.params, jnp.asarray(ids[None]))[0], axis=-1)
    assert likeliest[3:-1].tolist() == ids[4:].tolist()


@pytest.mark.usefixtures("bad_input")
def test_what_is_not_a_run_is_named(tmp_path, finished_run):
    with pytest.raises(ValueError, match="is not a run: it holds no config"):
        jobs.open_run(tmp_path)
    (tmp_path / "config.json").write_bytes(finished_run.config.read_bytes())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        jobs.open_run(tmp_path)
    run = jobs.open_run(finished_run.folder)
    with pytest.raises(ValueError, match="prompt must hold at least one token"):
        jobs.sample_run(run, "")
    with pytest.raises(ValueError, match="temperature must be finite"):
        jobs.sample_run(run, "the", temperature=-1.0)


def test_opening_a_run_needs_no_optimizer_memory(finished_run):
    run = jobs.open_run(finished_run.folder)
    assert run.step == 6
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.params))
