"""Own text, prompts and other runs' parameters: what fits is taken, the rest named by option."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxkit import cli, datasets, jobs, models
from jaxkit.jobs import runs, texts

HANZI = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))


def outcome(capsys, *words):
    """Exit code, output and error text of a command."""
    try:
        cli.main([str(word) for word in words])
        code = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("the quick brown fox " * 90 + "é" + "fox " * 45, "'é'"),
        ("one line\n" * 400 + "one\tline\n" * 20, "'\\t'"),
        (HANZI * 9, "400 different characters"),
    ],
)
def test_a_text_beyond_the_alphabet_is_answered_with_options_of_the_command(
    capsys, tmp_path, text, character
):
    path = tmp_path / "own.txt"
    path.write_bytes(text.encode())
    code, _, err = outcome(capsys, "train", "--text", path, "--runs", tmp_path, "--steps", 1)
    assert (code, err.count("\n")) == (2, 1)
    for expected in (character, str(path), "--unknown skip or replace", "--tokenizer byte"):
        assert expected in err


def test_unknown_is_an_option_of_characters_alone(finished_run):
    with pytest.raises(ValueError, match="unknown needs tokenizer='char'"):
        jobs.TrainConfig(unknown="skip", tokenizer="byte")
    with pytest.raises(ValueError, match="must be left out with a tokenizer that is not of char"):
        runs.texts.stored_tokenizer({"kind": "bytes"}, "skip")


def test_prompts_and_texts_with_unknown_characters(capsys, tmp_path, finished_run):
    folder = finished_run.folder
    path = tmp_path / "crlf.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog;\r\n" * 3)
    for command in (["sample", folder, "--prompt", "The\r"], ["evaluate", folder, "--text", path]):
        code, _, err = outcome(capsys, *command)
        assert (code, err.count("\n")) == (2, 1)
        assert "--unknown skip or replace" in err
    code, out, _ = outcome(capsys, "evaluate", folder, "--text", path, "--unknown", "skip")
    assert (code, out.splitlines()[0]) == (
        0, "3 characters are outside the alphabet: skipped or replaced"
    )  # fmt: skip
    assert " over 131 tokens " in out
    code, out, _ = outcome(capsys, "sample", folder, "--prompt", "The\r", "--unknown", "replace")
    assert code == 0
    assert len(out) == len("The\r\n") + 400


@pytest.fixture(scope="module")
def word_run(tmp_path_factory):
    """An untrained run whose decoder puts spaces between words."""
    path = tmp_path_factory.mktemp("words") / "words.json"
    words = {word: i for i, word in enumerate(["it", "was", "##n't", "the", "time", "[UNK]"])}
    package = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    package.normalizer = tokenizers.normalizers.Lowercase()
    package.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    package.decoder = tokenizers.decoders.WordPiece()
    package.save(str(path))
    tokenizer = datasets.JsonTokenizer(path)
    config = jobs.TrainConfig(num_layers=1, d_model=16, head_dim=4, d_ff=16)
    model = config.model(tokenizer.vocab_size)
    params = models.initializer(model)(jax.random.key(3))
    return jobs.Run(config, tokenizer, model, params, 0, runs.RunFiles.of("runs", "words"))


def test_a_continuation_is_what_the_decoder_makes_of_all_tokens(word_run):
    for seed in range(5):
        text = jobs.sample_run(word_run, "It was", num_tokens=8, temperature=1.0, seed=seed)
        assert text.startswith((" ", "n't"))
        words = ("it was" + text).replace("n't", " ##n't").split()
        assert len(words) == 2 + 8
        assert set(words) <= {"it", "was", "##n't", "the", "time", "[UNK]"}


def test_a_character_cut_into_bytes_arrives_whole():
    config, tokenizer = jobs.TrainConfig(num_layers=1), datasets.ByteTokenizer()
    model = config.model(256)
    params = jax.eval_shape(models.initializer(model), jax.random.key(0))
    run = jobs.Run(
        config, tokenizer, model, jax.tree.map(jnp.zeros_like, params), 0, runs.RunFiles.at("r")
    )
    assert jobs.sample_run(run, "é", num_tokens=1, temperature=0.0) == "\0"


def test_text_ends_before_the_stop(finished_run):
    run = jobs.open_run(finished_run.folder)
    options = {"num_tokens": 40, "temperature": 1.0, "seed": 3}
    whole = jobs.sample_run(run, "the", **options)
    for stop in (whole[7:9], whole[0], "not there"):
        assert jobs.sample_run(run, "the", stop=stop, **options) == whole.partition(stop)[0]


def test_the_likeliest_token_is_all_that_is_left(finished_run):
    run = jobs.open_run(finished_run.folder)
    greedy = jobs.sample_run(run, "the", num_tokens=9, temperature=0.0)
    few = {"top_k": 1, "top_p": 0.5}
    assert jobs.sample_run(run, "the", num_tokens=9, temperature=2.0, **few) == greedy


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop", ""], "stop must not be empty"),
        (["--top-k", "0"], "top_k must be an integer >= 1"),
        (["--top-p", "0"], r"top_p must be finite and in (0, 1]"),
        (["--top-p", "nan"], r"top_p must be finite and in (0, 1]"),
        (["--num-tokens", "0"], "num_tokens must be an integer >= 1"),
        (["--temperature", "-1"], "temperature must be finite"),
        (["--prompt", ""], "--prompt must not be empty, got ''"),
        (["--prompt", "\r", "--unknown", "skip"], "prompt must hold at least one token"),
        (["--seed", "-1"], "seed must be"),
    ],
)
def test_options_out_of_range_are_one_line(capsys, finished_run, words, message):
    code, _, err = outcome(capsys, "sample", finished_run.folder, "--prompt", "a", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.slow
def test_a_run_begins_with_the_parameters_of_another(capsys, tmp_path, finished_run, small_config):
    text = tmp_path / "own.txt"
    text.write_bytes(b"the lazy dog sleeps\r\n" * 90)
    changes = {"text": str(text), "steps": 1, "learning_rate": 0.0, "init_from": "",
               "warmup_steps": 0, "unknown": "skip"}  # fmt: skip
    with pytest.raises(ValueError, match="init_from must not be empty"):
        small_config(tmp_path, **changes)
    changes["init_from"] = str(finished_run.folder)
    files = jobs.train(small_config(tmp_path, **changes, tensorboard=True))
    assert [path.name[:19] for path in (files.folder / "tensorboard").iterdir()] == [
        "events.out.tfevents"
    ]
    ours, theirs = jobs.open_run(files.folder), jobs.open_run(finished_run.folder)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.tokenizer.characters == theirs.tokenizer.characters
    assert ours.tokenizer.unknown == "skip"
    with pytest.raises(ValueError, match=r"has other parameters: .*params/.* there, .* here"):
        jobs.train(small_config(tmp_path, **changes, name="wide", d_ff=48))
    with pytest.raises(ValueError, match="tokenizer must be that of the run in init_from, 'char'"):
        jobs.train(
            small_config(tmp_path, **changes | {"unknown": "error"}, name="b", tokenizer="byte")
        )
    with pytest.raises(ValueError, match="is not a run"):
        jobs.train(small_config(tmp_path, **changes | {"init_from": str(tmp_path)}, name="c"))


@pytest.mark.slow
def test_a_run_goes_on_from_what_it_began_with_though_its_source_goes_on(
    tmp_path, small_config, train_until_killed
):
    source = jobs.train(small_config(tmp_path, name="source", steps=2, warmup_steps=0))
    begun = {"init_from": str(source.folder), "steps": 4, "learning_rate": 0.01}
    whole = jobs.train(small_config(tmp_path, name="whole", **begun))
    cut = small_config(tmp_path, name="cut", **begun)
    train_until_killed(cut, 2)
    jobs.train(small_config(tmp_path, name="source", steps=4, warmup_steps=0))
    again = jobs.train(cut)
    ours, theirs = jobs.open_run(again.folder), jobs.open_run(whole.folder)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    shutil.rmtree(again.checkpoints)  # as if it had been killed before the first was written
    with pytest.raises(ValueError, match=r"data.init_from was 'step 2, \w+.*, is now 'step 4, "):
        jobs.train(cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, "config.stpes is no field of a TrainConfig: did you mean 'steps'?"),
        ({"d_model": None}, "config.d_model must be a whole number, got null"),
        ({"d_model": "16"}, 'config.d_model must be a whole number, got "16"'),
        ({"privacy": None}, "config.privacy must be an object, got null"),
        ({"dtype": "float16"}, 'config.dtype must be one of "float32", "bfloat16"'),
        ({"steps": 0}, "config.steps must be an integer >= 1, got 0"),
        ({"name": "../x"}, "config.name must be a plain folder name"),
    ],
)
def test_an_edited_configuration_is_one_line_with_file_line_and_field(
    capsys, tmp_path, finished_run, change, message
):
    description = json.loads(finished_run.config.read_text())
    description["config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(description, indent=2))
    code, _, err = outcome(capsys, "sample", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'config.json'}:" in err
    assert message in err


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"kind": "char"}, "tokenizer: kind must be one of"),
        ({"kind": None}, "tokenizer: kind must be one of"),
        ({"kind": "characters", "characters": 5, "unknown": "error"}, "tokenizer: a tokenizer of"),
        ([], "tokenizer must be an object, got a list"),
    ],
)
def test_an_edited_tokenizer_is_one_line(capsys, tmp_path, finished_run, tokenizer, message):
    description = json.loads(finished_run.config.read_text())
    description["tokenizer"] = tokenizer
    (tmp_path / "config.json").write_text(json.dumps(description))
    code, _, err = outcome(capsys, "evaluate", tmp_path, "--text", "none.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation_fraction": 0.0},
            r"validation_fraction must be finite and in \(0, 1\), got 0",
        ),
        (
            {"text": None, "validation_fraction": 0.5},
            "needs text: the embedded prose keeps a tenth",
        ),
    ],
)
def test_a_share_of_validation_that_cannot_be_kept_is_refused(
    small_config, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        texts.load_text(small_config(tmp_path, **changes))
