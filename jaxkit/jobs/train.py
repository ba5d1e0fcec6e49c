"""Training a language model from a configuration to a report."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkit import datasets, models, schedules, training
from jaxkit.jobs import (
    evaluation,
    private_training,
    program,
    refinement,
    report,
    runs,
    sampling,
)
from jaxkit.jobs.config import TrainConfig, config_differences


def train(config: TrainConfig) -> runs.RunFiles:
    """Make the run of a configuration, or resume it where its last checkpoint stands.

    Args:
        config: what to train.

    Returns:
        Where the run's files are; `report.html` is written when the run is complete.

    Raises:
        ValueError: if the text, the mesh or the sizes do not fit, or a run of this name has another
            configuration or other data.
        OSError: if the disk refuses, or another process writes this run.
        NonFiniteLossError: if the loss diverges.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train(TrainConfig(text="no/such/text", runs=folder))
        Traceback (most recent call last):
        ValueError: no/such/text does not exist
    """
    training.keep_freed_memory()
    run = runs.RunFiles.of(config.runs, config.name)
    if jax.process_index() == 0:
        with runs.exclusive(run.folder):
            return _train(config, run)
    return _train(config, run)


def _train(config: TrainConfig, run: runs.RunFiles) -> runs.RunFiles:
    mesh = training.make_mesh(config.mesh)
    index, count = training.local_rows(mesh, config.batch_size)
    split = load_text(config)
    stored = runs.read_description(run)
    tokenizer = make_tokenizer(config, split.train)
    description = runs.Description(
        config,
        tokenizer.to_config(),
        {
            "train": split.train.fingerprint,
            "validation": split.validation.fingerprint,
            "pilot": None if config.pilot is None else _fingerprint(config.pilot),
        },
    )
    _require_same_run(run, stored, description)
    train_tokens = datasets.tokenize(split.train, tokenizer)
    validation_tokens = datasets.tokenize(split.validation, tokenizer)
    plan = None
    if config.private:
        windows = private_training.num_private_windows(train_tokens, config.sequence_length)
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        plan = private_training.plan_private_training(config, windows, multiple=parts)
        rows = training.local_rows(mesh, plan.sampling.padded_size)
        batches = private_training.PrivateBatches(train_tokens, plan, *rows)
        _say(plan.statement())
    else:
        batches = datasets.token_batches(
            train_tokens,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            seed=config.seed,
            process_index=index,
            process_count=count,
        )
    validation_batches = functools.partial(
        datasets.evaluation_batches,
        validation_tokens,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        process_index=index,
        process_count=count,
    )
    some_batches = validation_batches(max_windows=config.evaluation_windows)

    job = program.training_program(config, tokenizer.vocab_size, mesh, plan)
    model, key = job.model, jax.random.key(config.seed)
    score = evaluation.make_evaluator(model, mesh, jax.random.fold_in(key, 1), config.reading)
    main = jax.process_index() == 0
    if main:
        runs.write_description(run, description)

    with training.Checkpoints(
        run.checkpoints, keep=config.keep_checkpoints, report=_say
    ) as checkpoints:
        restored = checkpoints.restore(job.state)
        if restored is None:
            state = training.init_state(job.init, job.optimizer, key, mesh)
        else:
            state = restored.state
            batches.set_state(restored.record["batches"])
            _say(f"resuming {run.folder} at step {int(state.step)}")
        first = int(state.step)
        schedule = jax.jit(config.schedule_function())
        with (
            training.MetricsLog(run.metrics, first) as log,
            training.MetricsLog(run.evaluations, first) as evaluation_log,
        ):

            def evaluate(step: int, params: Any) -> Mapping[str, float]:
                loss = score(params, some_batches).loss
                if main:
                    evaluation_log.write({"step": step, "validation_loss": loss})
                return {"validation_loss": loss}

            def facts(step: int) -> dict[str, float]:
                # The update that makes step s used the schedule at count s - 1.
                found = {"learning_rate": float(schedule(step - 1))}
                return found | ({"epsilon": plan.spent(step)} if plan else {})

            result = training.fit(
                job.step,
                state,
                batches,
                mesh=mesh,
                cadence=training.Cadence(
                    config.steps,
                    checkpoint_every=config.checkpoint_every,
                    evaluate_every=config.evaluate_every,
                    log_every=config.log_every,
                ),
                log=log if main else None,
                checkpoints=checkpoints,
                record={"data": description.data},
                evaluate=evaluate,
                facts=facts,
                tokens_per_step=config.batch_size * config.sequence_length,
                flops_per_token=models.train_flops_per_token(model.config, config.sequence_length),
                progress=training.Console(config.steps, first, ("epsilon",)) if main else None,
            )
    step = int(result.state.step)
    if not result.finished:
        _say(f"stopped at step {step} of {config.steps}; run the same command to resume")
        return run
    final = score(result.state.params, validation_batches())
    # Process 0 writes the report alone, so it needs parameters that no other process holds a part
    # of; every process takes part in gathering them.
    gather = jax.jit(lambda params: params, out_shardings=training.replicated(mesh))
    params = jax.device_get(gather(result.state.params))
    if main:
        norms = schedules.recorded_norms(result.state.opt_state)
        refinement.write_gradient_norms(run.gradient_norms, np.asarray(norms), config.steps)
        trained = runs.Run(config, tokenizer, model, params, step, run)
        statement = None if plan is None else plan.statement()
        _finish(trained, final, train_tokens, validation_tokens, statement)
    return run


def _finish(
    trained: runs.Run,
    final: evaluation.Evaluation,
    train_tokens: np.ndarray,
    validation_tokens: np.ndarray,
    statement: str | None,
) -> None:
    run, tokenizer = trained.files, trained.tokenizer
    metrics = training.read_metrics(run.metrics)
    speeds = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    baseline = None
    summary = {
        "validation loss": f"{final.loss:.4f} nats per token "
        f"(perplexity {np.exp(final.loss):.2f}, {final.tokens:,} tokens)"
    }
    if tokenizer.vocab_size <= 1024:
        baseline = evaluation.bigram_loss(train_tokens, validation_tokens, tokenizer.vocab_size)
        summary["bigram model"] = (
            f"{baseline:.4f} nats per token, {baseline - final.loss:.2f} above the model"
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    summary["parameters"] = f"{parameters:,}"
    if speeds:
        summary["speed"] = f"{np.median(speeds):,.0f} tokens/s (median step)"
    if statement is not None:
        summary["privacy"] = statement
    prompt = tokenizer.decode(validation_tokens[: trained.config.sequence_length // 2])
    sample = sampling.sample_run(trained, prompt, num_tokens=400)
    report.write_report(
        run,
        config=dataclasses.asdict(trained.config),
        summary=summary,
        metrics=metrics,
        evaluations=training.read_metrics(run.evaluations),
        by_position=final.by_position,
        baseline=baseline,
        sample=prompt + "\N{VERTICAL LINE}" + sample,
    )
    for name, text in summary.items():
        print(f"{name:16s} {text}")
    print(f"{'report':16s} {run.report}")


def load_text(config: TrainConfig) -> datasets.TextSplit:
    """The text that a configuration names."""
    shortest = config.sequence_length + 1
    if config.text is None:
        return datasets.embedded_prose()
    return datasets.load_text(
        pathlib.Path(config.text),
        validation_fraction=config.validation_fraction,
        minimum_length=shortest,
    )


def _fingerprint(pilot: str) -> str:
    norms = np.asarray(refinement.read_pilot(pilot).norms, np.float64)
    return hashlib.sha256(norms.tobytes()).hexdigest()


def make_tokenizer(config: TrainConfig, corpus: datasets.Corpus) -> datasets.Tokenizer:
    """The tokenizer that a configuration names, of its training text."""
    if config.tokenizer == "byte":
        return datasets.ByteTokenizer()
    if config.tokenizer == "char":
        return datasets.CharTokenizer.from_corpus(corpus)
    return datasets.JsonTokenizer(config.tokenizer)


def _require_same_run(
    run: runs.RunFiles, stored: runs.Description | None, description: runs.Description
) -> None:
    if stored is None:
        return
    differences = config_differences(
        *(dataclasses.asdict(each.config) for each in (stored, description))
    )
    differences += [
        f"the {name} data is another"
        for name, fingerprint in description.data.items()
        if stored.data.get(name) != fingerprint
    ]
    if differences:
        raise ValueError(
            f"{run.folder} holds a run with another configuration ({'; '.join(differences)}): "
            "give the old values to resume it, or another --name for a new run"
        )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
