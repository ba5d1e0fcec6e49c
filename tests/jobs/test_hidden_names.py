"""Runs whose tokens lose their names: the probability of losing them, and reading without names."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import cli, datasets, jobs, lexinvariant, models, training
from jaxkit.experiments import symbol_chain
from jaxkit.jobs import evaluation, runs

KEY = jax.random.key(3)
TEXT = "the lazy dog jumps over the quick brown fox "


def untrained(config):
    """The run of a configuration before its first step."""
    tokenizer = datasets.CharTokenizer("".join(sorted(set(TEXT))))
    model = config.model(tokenizer.vocab_size)
    params = nn.meta.unbox(jax.jit(models.initializer(model))(jax.random.key(1)))
    files = runs.RunFiles.at("nowhere")
    return jobs.Run(config, tokenizer, model, params, 0, files)


@pytest.fixture(scope="module")
def renaming(small_config):
    return untrained(small_config("unused", embedding="relabel", num_layers=1))


def test_annealing_raises_p_with_the_step_of_each_sequence(renaming):
    """The step is known from the sequence's index, whatever the batch it arrives in."""
    config = dataclasses.replace(renaming.config, steps=10, anneal_p=0.5, p=0.8)
    tokens = np.random.default_rng(0).integers(1, 20, (8, 13)).astype(np.int32)

    @jax.jit
    def compare(index):
        batch = {"tokens": jnp.asarray(tokens), "index": index}
        trained = config.loss(renaming.model)(renaming.params, batch, KEY)
        expected = lexinvariant.token_losses(
            renaming.model,
            renaming.params,
            batch,
            KEY,
            method="relabel",
            p=0.8 * jnp.minimum(index // 8 / 5, 1.0),
            closed=True,
        )
        return trained, expected.mean()

    values = []
    for step in (0, 2, 9):
        trained, expected = compare(8 * step + jnp.arange(8))
        assert float(trained) == pytest.approx(float(expected), abs=1e-6)
        values.append(float(trained))
    # At step 0 no name is lost, later some are.
    assert len(set(values)) == 3


def test_a_run_without_names_is_scored_under_drawn_names_and_one_with_names_as_it_is(renaming):
    corpus = datasets.Corpus.from_text(TEXT * 3, "text")
    tokens = renaming.tokenizer.encode(TEXT * 3).astype(np.int32)
    mesh, key = training.make_mesh("data=-1"), jax.random.key(renaming.config.seed)
    losses = []
    for p, method in ((None, "relabel"), (0.5, "fixed")):
        config = dataclasses.replace(renaming.config, p=p)
        batches = datasets.evaluation_batches(tokens, sequence_length=32, batch_size=8)
        score = evaluation.make_evaluator(renaming.model, mesh, key, method)
        losses.append(jobs.evaluate_run(renaming._replace(config=config), corpus).loss)
        assert losses[-1] == score(renaming.params, batches).loss
    assert losses[0] != losses[1]


def test_a_run_without_names_answers_in_the_names_of_the_prompt(renaming):
    run = renaming
    greedy = jobs.sample_run(run, "the lazy ", num_tokens=3, temperature=0.0, seed=4)
    table_key = jax.random.split(jax.random.key(4))[0][None]
    ids = run.tokenizer.encode("the lazy ").astype(np.int32)[None]
    renamed, mapping = lexinvariant.permute_tokens(
        table_key, jnp.asarray(ids), run.model.config.vocab_size
    )
    old = {int(new): name for name, new in enumerate(mapping[0])}
    read = renamed
    for _ in range(3):
        last = jax.jit(run.model.apply)(
            run.params, jnp.pad(read, ((0, 0), (0, 12 - read.shape[1])))
        )
        following = jnp.argmax(last[:, read.shape[1] - 1], axis=-1)[:, None]
        read = jnp.concatenate([read, following], axis=1)
    written = [old[int(v)] for v in read[0, ids.shape[1] :]]
    assert greedy == run.tokenizer.decode(np.array(written))


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": "relabel", "p": 1.5}, r"p must be finite and in \[0, 1\], got 1.5"),
        ({"embedding": "mixed", "p": float("nan")}, "p must be finite"),
        ({"embedding": "relabel", "anneal_p": 0.0}, r"anneal_p must be finite and in \(0, 1\]"),
        ({"p": 0.2}, "p needs embedding='relabel' or 'mixed', got p=0.2 with 'fixed'"),
        ({"embedding": "lexinvariant", "anneal_p": 0.6}, "anneal_p needs embedding='relabel'"),
        ({"embedding": "relable"}, "did you mean 'relabel'"),
    ],
)
def test_a_probability_that_makes_no_sense_is_refused(small_config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **changes)


@pytest.mark.usefixtures("bad_input")
def test_only_a_run_without_names_reads_ciphers(renaming):
    corpus = datasets.Corpus.from_text(TEXT, "text")
    named = dataclasses.replace(renaming.config, p=0.2)
    with pytest.raises(ValueError, match=r"got embedding='relabel' with p=0.2"):
        jobs.decipher_run(renaming._replace(config=named), corpus)
    with pytest.raises(ValueError, match="probe_steps must be an integer >= 1, got 0"):
        jobs.decipher_run(renaming, corpus, probe_steps=0)
    pieces = dataclasses.replace(renaming.config, tokenizer="pieces.json")
    with pytest.raises(ValueError, match=r"a cipher replaces single characters.*pieces.json"):
        jobs.decipher_run(renaming._replace(config=pieces), corpus)
    strange = datasets.Corpus.from_text("dog\N{SNOWMAN}", "text")
    with pytest.raises(ValueError, match="at position 3 is not one of"):
        jobs.decipher_run(renaming, strange)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"embedding": "relabel", "anneal_p": 0.5}, {"embedding": "mixed", "p": 0.3}],
    ids=["relabel", "mixed"],
)
def test_a_run_cut_on_one_mesh_goes_on_on_another_with_the_same_draws(
    options, small_config, tmp_path, train_until_killed
):
    def config(name, mesh):
        return small_config(tmp_path, name=name, mesh=mesh, **options)

    whole = jobs.train(config("whole", "data=8"))
    train_until_killed(config("cut", "data=2,fsdp=2,tensor=2"), step=6)
    resumed = jobs.train(config("cut", "fsdp=4,data=2"))
    for a, b in zip(
        *(jax.tree.leaves(jobs.open_run(f.folder).params) for f in (whole, resumed)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert len(jobs.sample_run(jobs.open_run(resumed.folder), "the quick ", num_tokens=5)) == 5


@pytest.mark.slow
def test_a_run_without_names_reads_a_cipher_better_the_longer_the_context(tmp_path, capsys):
    """Six symbols of a Markov chain, whose exact posterior reads nearly all after 30 of them."""
    chain = symbol_chain.language()

    def write(name, key, length):
        ids = lexinvariant.sample_markov(jax.random.key(key), chain, 1, length)[0]
        (tmp_path / name).write_text("".join("abcdef"[i] for i in ids.tolist()))
        return str(tmp_path / name)

    text, other = write("text.txt", 0, 200_000), write("other.txt", 1, 9_600)
    config = jobs.TrainConfig(
        runs=str(tmp_path),
        text=text,
        embedding="relabel",
        steps=500,
        batch_size=64,
        sequence_length=48,
        learning_rate=5e-3,
        d_model=32,
        num_layers=2,
        num_heads=2,
        head_dim=16,
        d_ff=128,
        evaluate_every=250,
        checkpoint_every=250,
    )
    run = jobs.open_run(jobs.train(config).folder)
    by_position = jobs.evaluate_run(run, datasets.load_text(other, validation_fraction=0).train)
    assert by_position.by_position[32:].mean() < by_position.by_position[:4].mean() - 0.2

    capsys.readouterr()
    cli.main(["decipher", str(run.files.folder), "--text", other, "--probe-steps", "200"])
    printed = capsys.readouterr().out
    windows = re.findall(r"([\d.]+) % of the key, ([\d.]+) % of the symbols", printed)
    precision, accuracy = np.array(windows, float).T
    assert len(windows) == 6
    assert accuracy[-1] > accuracy[0] + 10
    assert precision.mean() > 75  # guessing: 17
    ciphertext = re.search(r"ciphertext  (\w+)\nread as     (\w+)", printed)
    plain = (tmp_path / "other.txt").read_text()
    assert np.mean([a == b for a, b in zip(plain, ciphertext[2], strict=False)]) > 0.7
    assert ciphertext[1] != ciphertext[2]

    (tmp_path / "cipher.txt").write_text(ciphertext[1])
    cli.main(
        [
            "decipher",
            str(run.files.folder),
            "--text",
            str(tmp_path / "cipher.txt"),
            "--ciphertext",
            "--probe-steps",
            "200",
        ]
    )
    assert f"ciphertext  {ciphertext[1]}" in capsys.readouterr().out

    (tmp_path / "text.txt").write_text("abcdef" * 1000)
    with pytest.raises(ValueError, match="text must be what the run was trained on"):
        jobs.decipher_run(run, datasets.Corpus.from_text("abcdef" * 20, "text"))
