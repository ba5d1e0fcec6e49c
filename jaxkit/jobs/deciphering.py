"""Reading substitution ciphers with a trained run."""

from __future__ import annotations

import jax

from jaxkit import datasets, lexinvariant, validation
from jaxkit.jobs import runs, texts

#: Characters of the text read that are shown.
SHOWN = 400


def decipher_run(
    run: runs.Run,
    corpus: datasets.Corpus,
    *,
    encipher: bool = True,
    probe_steps: int = 400,
    seed: int = 0,
) -> lexinvariant.Decipherment:
    """Recover the key of a cipher from how a run's model uses its symbols.

    A probe is trained on the run's own training text, where no cipher is needed; the model stays
    as it is.

    Args:
        run: from `open_run`, trained with `embedding="lexinvariant"` or `"relabel"`.
        corpus: the text.
        encipher: whether to encipher the lower-case letters of the text first, with a random key;
            otherwise it is taken as ciphertext.
        probe_steps: updates of the probe.
        seed: seed of the key and of the probe.

    Raises:
        ValueError: if the run knows names or reads more than characters, its training text is not
            what it was, or the text is too short or holds a character that the tokenizer does not
            know.
        OSError: if the training text cannot be read.

    Example:
        >>> from jaxkit import models
        >>> config, tokenizer = runs.TrainConfig(num_layers=1), datasets.CharTokenizer("ab")
        >>> model = config.model(tokenizer.vocab_size)
        >>> params = jax.eval_shape(models.initializer(model), jax.random.key(0))
        >>> run = runs.Run(config, tokenizer, model, params, 0, runs.RunFiles.of("runs", "new"))
        >>> try:
        ...     decipher_run(run, datasets.Corpus.from_text("abba", "ciphertext"))
        ... except ValueError as error:
        ...     print(str(error).partition(":")[0])
        run must be one that reads hidden names
    """
    validation.integer("probe_steps", probe_steps, minimum=1)
    validation.seed("seed", seed)
    config = run.config
    if config.reading not in ("lexinvariant", "relabel"):
        raise ValueError(
            "run must be one that reads hidden names: trained with embedding='lexinvariant' or "
            f"'relabel' and p=1, got embedding={config.embedding!r} with p={config.p!r}"
        )
    if config.tokenizer not in ("char", "byte"):
        raise ValueError(
            "run must have the tokenizer 'char' or 'byte': a cipher replaces single characters, "
            f"got {config.tokenizer!r}"
        )
    text = corpus.text()
    texts.encode(
        text, run.tokenizer
    )  # an unknown character is better met before the probe is trained
    learned = texts.load_text(config).train
    description = runs.read_description(run.files)
    if description is None or description.data.get("train") != learned.fingerprint:
        raise ValueError(
            f"text must be what the run was trained on, got another in {config.text or 'the prose'}"
        )
    probe_key, cipher_key = jax.random.split(jax.random.key(seed))
    probe, probe_params = lexinvariant.train_probe(
        run.model,
        run.params,
        datasets.tokenize(learned, run.tokenizer),
        key=probe_key,
        num_steps=probe_steps,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
    )
    return lexinvariant.decipher(
        run.model,
        run.params,
        run.tokenizer,
        text,
        probe=probe,
        probe_params=probe_params,
        key=cipher_key,
        encipher=encipher,
        context_length=config.sequence_length,
    )


def decipherment_text(found: lexinvariant.Decipherment) -> str:
    """What was read, to print: the key by context length, then the beginning of the text."""
    # Without the truth every symbol may be enciphered.
    symbols = sorted(found.true_key or set().union(*(w.key for w in found.windows)))
    lines = [f"{'positions':19s}cipher  {_printable(symbols)}"]
    if found.true_key is not None:
        truth = [found.true_key[symbol] for symbol in symbols]
        lines.append(f"{'':19s}truth   {_printable(truth)}")
    for window in found.windows:
        # A blank where a symbol did not occur, so had no vote.
        read = [window.key.get(symbol, " ") for symbol in symbols]
        line = f"{window.start + 1:5d} to {window.stop:5d}     key     {_printable(read)}"
        if window.precision is not None and window.accuracy is not None:
            line += f"  {100 * window.precision:.1f} % of the key"
            line += f", {100 * window.accuracy:.1f} % of the symbols"
        lines.append(line)
    lines += [
        "",
        f"ciphertext  {_shown(found.ciphertext)}",
        f"read as     {_shown(found.plaintext)}",
    ]
    return "\n".join(lines)


def _printable(symbols: list[str]) -> str:
    return "".join(s if s.isprintable() else "\N{MIDDLE DOT}" for s in symbols)


def _shown(text: str) -> str:
    return " ".join(text[:SHOWN].split())
