"""Texts and optimizers of `jaxkit train` as the papers and the users have them."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import files, jobs, training
from jaxkit.jobs import config as configs
from jaxkit.jobs import texts


def tree_of(value):
    return json.loads(json.dumps(dataclasses.asdict(value)))


def test_a_configuration_with_lists_round_trips(tmp_path):
    config = jobs.TrainConfig(corpus=configs.CorpusConfig(also=("b",), where=("a=1", "b=2")))
    assert files.typed(tree_of(config), jobs.TrainConfig) == config


@pytest.mark.parametrize("stored", [False, True])
def test_tokens_of_a_step_are_made_by_accumulation(stored):
    config = jobs.TrainConfig(batch_size=4, sequence_length=8, tokens_per_step=128)
    config = files.typed(tree_of(config), jobs.TrainConfig) if stored else config
    assert (config.batch_size, config.accumulation_steps) == (16, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "sequence_length": 8, "tokens_per_step": 100}, "a multiple of .* 32"),
        ({"batch_size": 4, "sequence_length": 8, "tokens_per_step": 64, "accumulation_steps": 2},
         "accumulation_steps must be left out"),
        ({"end_value": 1.0}, "end_value must be finite and in"),
        ({"end_value": 1e-3, "schedule": "refined:x"}, "end_value must be 0 with refined:x"),
        ({"schedule": "cosin"}, "schedule must be one of .* did you mean 'cosine'"),
        ({"algorithm": "adafctor"}, "did you mean 'adafactor'"),
        ({"algorithm": "adafactor", "base_width": 32}, "base_width is for adamw"),
        ({"dropout": 1.0}, "dropout must be finite and in"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(bad_input, options, message):
    with pytest.raises(ValueError, match=message):
        jobs.TrainConfig(**options)


def test_the_schedule_decays_to_its_floor():
    config = jobs.TrainConfig(
        steps=10, warmup_steps=0, schedule="cosine", learning_rate=0.01, end_value=0.001
    )
    schedule = config.schedule_function()
    np.testing.assert_allclose([schedule(0), schedule(10)], [0.01, 0.001], rtol=1e-5)


def test_adafactor_is_the_one_of_the_papers():
    config = jobs.TrainConfig(steps=4, warmup_steps=0, algorithm="adafactor", weight_decay=0.0)
    ours, schedule = config.optimizer(16), config.schedule_function()
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adafactor(schedule, momentum=0.9))
    params = {"query": jnp.ones((256, 128))}
    grads = {"query": jnp.linspace(-1, 1, 256 * 128).reshape(256, 128)}
    states = [ours.init(params), theirs.init(params)]
    for _ in range(2):
        mine, states[0] = ours.update(grads, states[0], params)
        yours, states[1] = theirs.update(grads, states[1], params)
    np.testing.assert_allclose(mine["query"], yours["query"], rtol=1e-5)
    assert min(leaf.size for leaf in jax.tree.leaves(states[0])) < 256  # factored


def test_decay_of_adafactor_is_decoupled_and_of_matrices_alone():
    params = {"query": jnp.ones((4, 4)), "scale": jnp.ones(4)}
    grads = jax.tree.map(jnp.zeros_like, params)
    config = jobs.TrainConfig(
        steps=4, warmup_steps=0, algorithm="adafactor", weight_decay=0.5, learning_rate=0.01
    )
    optimizer = config.optimizer(16)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["query"], -0.5 * 0.01, rtol=1e-5)
    np.testing.assert_array_equal(updates["scale"], 0)


def test_dropout_leaves_out_in_training_only(small_config, tmp_path):
    config = small_config(tmp_path, dropout=0.5, num_layers=1)
    model = config.model(8)
    batch = {"tokens": jnp.arange(2 * 9).reshape(2, 9) % 8, "index": jnp.arange(2)}
    params = jax.jit(model.init)(jax.random.key(0), batch["tokens"][:, :-1])
    loss = jax.jit(config.loss(model))
    first, again, other = (float(loss(params, batch, jax.random.key(i))) for i in (0, 0, 1))
    assert first == again != other
    plain = dataclasses.replace(config, dropout=0.0)
    scored = jax.jit(plain.loss(plain.model(8)))(params, batch, jax.random.key(1))
    logits = jax.jit(model.apply)(params, batch["tokens"][:, :-1])  # no key: nothing is left out
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
    assert float(losses.mean()) == pytest.approx(float(scored), rel=1e-5)


@pytest.fixture
def rows_config(small_config, tmp_path):
    """Two rows of JSON lines, compressed, one of which is wanted, and a held-out file."""
    rows = [{"text": f"{word} jumps over the lazy dog\r\n" * 20, "set": word} for word in "ab"]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "held.txt").write_bytes(b"\xef\xbb\xbf" + b"a jumps over the lazy dog\r\n" * 20)
    return small_config(
        tmp_path / "runs",
        text=str(tmp_path / "*.gz"),
        corpus=configs.CorpusConfig(held_out=str(tmp_path / "held.txt"), where=("set=a",)),
    )


@pytest.fixture
def packed_config(small_config, tmp_path):
    tokens = np.tile(np.arange(50, dtype=np.uint16), 40)
    tokens.tofile(tmp_path / "train.bin")
    return small_config(tmp_path / "runs", text=str(tmp_path / "train.bin"), tokenizer="ids:50")


def test_json_lines_and_a_held_out_file_are_one_text_each(rows_config, tmp_path):
    split = texts.load_text(rows_config)
    assert split.train.text() == split.validation.text() == "a jumps over the lazy dog\n" * 20
    tokenizer = texts.make_tokenizer(rows_config, split.train)
    tokens = texts.encode(split.validation, tokenizer, texts.cache_folder(rows_config))
    assert tokenizer.decode(tokens) == split.validation.text()
    assert {path.suffix for path in (tmp_path / "runs" / ".cache").iterdir()} == {".npy"}


def test_packed_tokens_are_split_and_named(packed_config):
    split = texts.load_text(packed_config)
    tokenizer = texts.make_tokenizer(packed_config, split.train)
    train, validation = (texts.encode(part, tokenizer) for part in (split.train, split.validation))
    assert (len(train), len(validation), int(train[3])) == (1800, 200, 3)
    assert split.train.fingerprint != split.validation.fingerprint
    for tokenizer, message in (
        ("char", "tokenizer must be ids:VOCAB_SIZE or a tokenizers JSON"),
        ("ids:49", "ids below vocab_size=49, got 49"),
        ("ids:x", "tokenizer must be ids:VOCAB_SIZE, got 'ids:x'"),
    ):
        with pytest.raises(ValueError, match=message):
            texts.load_text(dataclasses.replace(packed_config, tokenizer=tokenizer))
    with pytest.raises(ValueError, match="validation part has 20 tokens, at least 33 are needed"):
        texts.load_text(dataclasses.replace(packed_config, validation_fraction=0.01))


@pytest.mark.slow
def test_runs_on_rows_and_on_packed_tokens(rows_config, packed_config):
    run = jobs.train(dataclasses.replace(rows_config, name="rows"))
    assert len(training.read_metrics(run.metrics)) == rows_config.steps
    run = jobs.train(packed_config)
    sampled = jobs.sample_run(jobs.open_run(run.folder), "3 4 5", num_tokens=4)
    assert len(sampled.split()) == 4
    assert all(int(word) < 50 for word in sampled.split())
