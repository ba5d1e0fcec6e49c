"""Training a language model from a configuration to a report."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
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
    texts,
)
from jaxkit.jobs.config import FREE_FIELDS, TrainConfig
from jaxkit.schedules import recorder


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
    files = runs.RunFiles.of(config.runs, config.name)
    keep = training.Keep(
        config.keep_checkpoints,
        config.keep_every,
        "validation_loss" if config.keep_best else None,
    )
    with training.Run(files.folder, keep=keep) as run:
        _train(config, files, run)
    return files


def _train(config: TrainConfig, files: runs.RunFiles, run: training.Run) -> None:
    mesh = training.make_mesh(config.mesh)
    index, count = training.local_rows(mesh, config.batch_size)
    split = texts.load_text(config)
    stored = runs.read_description(files)
    begins = stored is None or not run.steps
    source = runs.open_run(config.init_from) if begins and config.init_from is not None else None
    tokenizer = _tokenizer(config, split.train, source or stored)
    begun = None if stored is None else stored.data.get("init_from")
    if source is not None:
        begun = f"step {source.step}, {training.fingerprint(source.params)}"
    description = runs.Description(
        config,
        tokenizer.to_config(),
        {
            "train": split.train.fingerprint,
            "validation": split.validation.fingerprint,
            "pilot": None if config.schedule_source is None else _fingerprint(config),
            "init_from": begun,
        },
    )
    # Compared before anything is planned or written: another run's folder stays as it is.
    run.identify(dataclasses.asdict(description), may_change=_may_change(stored, config, run))
    train_tokens, validation_tokens = (
        texts.encode(part, tokenizer, texts.cache_folder(config))
        for part in (split.train, split.validation)
    )
    plan = statement = None
    if config.private:
        windows = private_training.num_private_windows(train_tokens, config.sequence_length)
        plan = private_training.plan_private_training(
            config, tokenizer.vocab_size, windows, mesh, files.folder
        )
        rows = training.local_rows(mesh, plan.plan.sampling.padded_size)
        noise = private_training.noise_source(
            config.privacy, files.folder, train_tokens, fresh=stored is None and not run.steps
        )
        batches = private_training.PrivateBatches(train_tokens, plan, noise, *rows)
        statement = plan.statement(noise)
        training.say(statement)
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
    schedule = jax.jit(config.schedule_function())
    flops_per_token = models.train_flops_per_token(model.config, config.sequence_length)

    def advance(state: training.TrainState, step: int, most: int | None) -> training.Lap:
        state, measured = job.step(state, training.place_batch(next(batches), mesh))

        def rows(seconds: float | None) -> list[dict[str, Any]]:
            row = {
                "step": step + 1,
                "loss": float(measured.loss),
                "gradient_norm": float(measured.gradient_norm),
                # The update that makes step s uses the schedule at count s - 1.
                "learning_rate": float(schedule(step)),
            }
            training.require_finite(step + 1, row["loss"])
            training.require_finite(step + 1, row["gradient_norm"], "gradient norm")
            if plan is not None:
                row |= private_training.budget_row(plan.plan, step + 1, noise)
            if seconds is not None:
                row["tokens_per_second"] = config.batch_size * config.sequence_length / seconds
                used = training.model_flops_utilization(row["tokens_per_second"] * flops_per_token)
                row |= {} if used is None else {"mfu": used}
            return [row]

        return training.Lap(state, rows=rows)

    def like(record: dict[str, Any]) -> training.TrainState:
        # The recorder of gradient norms has the length of the run as it was then.
        before = dataclasses.replace(config, steps=record["steps"])
        return program.training_program(before, tokenizer.vocab_size, mesh, plan).state

    def record(step: int) -> dict[str, Any]:
        return {"steps": config.steps, "batches": dict(batches.get_state())}

    restored = run.restore(like)
    if restored is None:
        first, state = 0, training.init_state(job.init, job.optimizer, key, mesh)
        if source is not None:
            state = state._replace(params=_parameters_of(source, state.params))
            run.save(0, state, record(0))  # the source may go on, or go
    else:
        first, state = restored.step, restored.state
        state = recorder.lengthen_recorder(state, restored.record["steps"], config.steps)
        batches.set_state(restored.record["batches"])
        training.say(f"resuming {run.folder} at step {first}")
    if plan is not None and mesh.size == 1:  # the same loss is trained on any mesh
        plan.check(state.params, tokenizer.vocab_size)
    result = training.drive(
        advance,
        state,
        first_step=first,
        num_steps=config.steps,
        run=run,
        cadence=training.Cadence(
            config.checkpoint_every, config.evaluate_every, log_every=config.log_every
        ),
        evaluate=lambda step, state: {"validation_loss": score(state.params, some_batches).loss},
        record=record,
        progress=_progress(config, files, first) if jax.process_index() == 0 else None,
    )
    if not result.finished:
        training.say(
            f"stopped at step {result.step} of {config.steps}; run the same command to resume"
        )
        return
    final = score(result.state.params, validation_batches())
    # Process 0 writes the report alone, so it needs parameters that no other process holds a part
    # of; every process takes part in gathering them.
    gather = jax.jit(lambda params: params, out_shardings=training.replicated(mesh))
    params = jax.device_get(gather(result.state.params))
    if jax.process_index() == 0:
        norms = schedules.recorded_norms(result.state.opt_state)
        refinement.write_gradient_norms(files.gradient_norms, np.asarray(norms), config.steps)
        trained = runs.Run(config, tokenizer, model, params, result.step, files)
        _finish(trained, final, train_tokens, validation_tokens, statement)


def _may_change(
    stored: runs.Description | None, config: TrainConfig, run: training.Run
) -> set[str]:
    free = {f"config.{field}" for field in FREE_FIELDS}
    # Folder and text may be moved: the text is known by its fingerprint. A private run draws its
    # noise by them.
    if not config.private:
        free |= {"config.name", "config.text"}
    # A finished run may be made longer; the noise of a private one was chosen for its length.
    if stored is not None and not config.private and run.steps[-1:] == [stored.config.steps]:
        if config.steps > stored.config.steps:
            free |= {"config.steps"}
            if config.law is not None:  # which chooses anew for the new length
                free |= {"data.pilot"}
    return free


def _progress(config: TrainConfig, files: runs.RunFiles, first: int) -> training.Progress:
    shown = training.Console(config.steps, first, private_training.EPSILONS)
    if not config.tensorboard:
        return shown
    return training.EventFiles(files.folder / "tensorboard", first, config.log_every, shown)


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
    for name, text in {**summary, "report": run.report}.items():
        training.say(f"{name:16s} {text}", out=True)


def _fingerprint(config: TrainConfig) -> str:
    """What the schedule is made of: the pilot's norms, or the rates that a law chose."""
    if config.pilot is not None:
        values = refinement.read_pilot(config.pilot).norms
    else:
        values = config.schedule_function()(np.arange(config.steps))
    return hashlib.sha256(np.asarray(values, np.float64).tobytes()).hexdigest()


def _tokenizer(
    config: TrainConfig, corpus: datasets.Corpus, stored: runs.Run | runs.Description | None
) -> datasets.Tokenizer:
    """The tokenizer of the run that this one begins from, or that of its text."""
    if config.init_from is None or stored is None:
        return texts.make_tokenizer(config, corpus)
    if stored.config.tokenizer != config.tokenizer:
        raise ValueError(
            f"tokenizer must be that of the run in init_from, {stored.config.tokenizer!r}, got "
            f"{config.tokenizer!r}"
        )
    made = stored.tokenizer if isinstance(stored.tokenizer, dict) else stored.tokenizer.to_config()
    own_rule = config.unknown if made["kind"] == "characters" else None
    return texts.stored_tokenizer(made, own_rule)


def _parameters_of(source: runs.Run, params: Any) -> Any:
    """The parameters of another run, where those of this one are."""
    theirs, ours = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (source.params, params)
    )
    changed = [
        f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in sorted(theirs | ours)
        if theirs.get(name) != ours.get(name)
    ]
    if changed:
        raise ValueError(
            f"init_from: {source.files.folder} has other parameters: {'; '.join(changed)}"
        )
    return jax.tree.map(
        lambda x, like: jax.device_put(np.asarray(x), like.sharding), source.params, params
    )
