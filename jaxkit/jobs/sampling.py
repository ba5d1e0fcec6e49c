"""Text from a trained run."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import datasets, lexinvariant, models, validation
from jaxkit.jobs import texts
from jaxkit.jobs.runs import Run


def usual_prompt(tokenizer: datasets.Tokenizer) -> str:
    r"""A newline, or the first character of an alphabet that has none.

    Example:
        >>> usual_prompt(datasets.CharTokenizer("ba")), usual_prompt(datasets.ByteTokenizer())
        ('a', '\n')
    """
    alphabet = getattr(tokenizer, "characters", "\n")
    return "\n" if "\n" in alphabet else alphabet[0]


def sample_run(
    run: Run,
    prompt: str = "\n",
    *,
    num_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> str:
    """Continue a prompt.

    Args:
        run: from `open_run`.
        prompt: text to start from, at least one token.
        num_tokens: tokens to add.
        temperature: 1 samples from the model, 0 takes the most probable token.
        top_k: draw among this many of the most probable tokens.
        top_p: draw among the most probable tokens that have this probability together.
        stop: the continuation ends before this text.
        seed: seed of the draw.

    Returns:
        What `decode` gives of prompt and continuation together, without the prompt. A model that
        knows no names reads the prompt under names, or with a token table, drawn from `seed`.

    Raises:
        ValueError: if a number is out of range, or the prompt is empty or holds a character that
            the tokenizer does not know.

    Example:
        >>> from jaxkit.jobs import runs
        >>> config, tokenizer = runs.TrainConfig(num_layers=1), datasets.CharTokenizer("ab")
        >>> model = config.model(tokenizer.vocab_size)
        >>> params = jax.eval_shape(models.initializer(model), jax.random.key(0))
        >>> params = jax.tree.map(jnp.zeros_like, params)  # all equally likely
        >>> run = Run(config, tokenizer, model, params, 0, runs.RunFiles.of("runs", "new"))
        >>> len(sample_run(run, "ab", num_tokens=3))
        3
    """
    validation.integer("num_tokens", num_tokens, minimum=1)
    validation.number("temperature", temperature, minimum=0)
    validation.seed("seed", seed)
    if top_k is not None:
        validation.integer("top_k", top_k, minimum=1)
    if top_p is not None:
        validation.number("top_p", top_p, minimum=0, maximum=1, open_minimum=True)
    if stop == "":
        raise ValueError("stop must not be empty, got ''")
    tokens = jnp.asarray(texts.encode(prompt, run.tokenizer), jnp.int32)[None]
    if tokens.shape[1] == 0:
        raise ValueError(f"prompt must hold at least one token, got {prompt!r}")
    table_key, sample_key = jax.random.split(jax.random.key(seed))
    config = run.model.config
    prompt_tokens, table, mapping = lexinvariant.anonymised(
        run.model, run.params, tokens, table_key[None], run.config.reading
    )
    if run.config.reading == "lexinvariant":
        # Drawn once, not again for every token.
        table = lexinvariant.draw_embedding(table_key[None], config.vocab_size, config.d_model)
    continuation = jax.jit(models.generate, static_argnums=(0, 3), static_argnames="top_k")(
        run.model, run.params, prompt_tokens, num_tokens, sample_key, temperature=temperature,
        top_k=top_k, top_p=top_p, embedding=table,
    )  # fmt: skip
    if mapping is not None:
        continuation = jnp.take_along_axis(jnp.argsort(mapping), continuation, axis=1)
    whole = np.concatenate([jax.device_get(tokens[0]), jax.device_get(continuation[0])])
    # Decoders join tokens by rules of their own (spaces, bytes of a character), so all at once.
    text, start = run.tokenizer.decode(whole), run.tokenizer.decode(whole[: tokens.shape[1]])
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, start, strict=False))
    text = text[sum(1 for _ in shared) :]
    return text if stop is None else text.partition(stop)[0]
