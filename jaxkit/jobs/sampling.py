"""Text from a trained run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkit import lexinvariant, models, validation
from jaxkit.jobs.runs import Run


def sample_run(
    run: Run,
    prompt: str = "\n",
    *,
    num_tokens: int = 400,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """Continue a prompt.

    Args:
        run: from `open_run`.
        prompt: text to start from, at least one token.
        num_tokens: tokens to add.
        temperature: 1 samples from the model, 0 takes the most probable token.
        seed: seed of the draw.

    Returns:
        The continuation, without the prompt. A model that knows no names reads the prompt under
        names, or with a token table, drawn from `seed`.

    Raises:
        ValueError: if a number is out of range, or the prompt is empty or holds a character that
            the tokenizer does not know.

    Example:
        >>> from jaxkit import datasets
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
    validation.integer("seed", seed, minimum=0)
    tokens = jnp.asarray(run.tokenizer.encode(prompt), jnp.int32)[None]
    if tokens.shape[1] == 0:
        raise ValueError("prompt must hold at least one token, got ''")
    table_key, sample_key = jax.random.split(jax.random.key(seed))
    config = run.model.config
    prompt_tokens, table, mapping = lexinvariant.anonymised(
        run.model, run.params, tokens, table_key[None], run.config.reading
    )
    if run.config.reading == "lexinvariant":
        # Drawn once, not again for every token.
        table = lexinvariant.draw_embedding(table_key[None], config.vocab_size, config.d_model)
    continuation = jax.jit(models.generate, static_argnums=(0, 3))(
        run.model, run.params, prompt_tokens, num_tokens, sample_key, temperature=temperature,
        embedding=table,
    )  # fmt: skip
    if mapping is not None:
        names = lexinvariant.invert_mapping(mapping)
        continuation = jnp.take_along_axis(names, continuation, axis=1)
    return run.tokenizer.decode(jax.device_get(continuation[0]))
