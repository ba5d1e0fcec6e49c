"""Train a policy on a submodular world, compare it with planners, draw its paths."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich import table as tables

from jaxkit import intervals, plotting, subrl, training, validation
from jaxkit.jobs import options
from jaxkit.subrl import planning


class SubrlFiles(NamedTuple):
    """What `train_world` wrote and found.

    Attributes:
        metrics: a line of JSON a step, means over the seeds.
        curves: figure of F by step.
        paths: figure of episodes on the map, None where the world is no grid.
        values: F by name: trained policy, planners and bounds.
        table: the same to print.
    """

    metrics: pathlib.Path
    curves: pathlib.Path
    paths: pathlib.Path | None
    values: Mapping[str, float]
    table: tables.Table

    def show(self) -> None:
        """Print the table and where the files are."""
        training.terminal().print(self.table)
        print(*filter(None, (self.curves, self.paths, self.metrics)), sep="\n")


def known_values(world: subrl.SubmodularEnvironment, *, beam_width: int = 1000) -> dict[str, float]:
    """What planners reach that know the world; without slip, and with the optimum where short."""
    if getattr(world.dynamics, "num_states", None) is None or world.dynamics.slips:
        return {}
    modular = subrl.modular_plan(world)
    values = {
        "planner of the additive reward": float(
            planning.follow_policy(world, modular.policy).value
        ),
        "greedy planner": float(subrl.greedy_plan(world).value),
        f"beam search, width {beam_width}": float(subrl.beam_plan(world, beam_width).value),
    }
    if world.horizon <= 7:
        values["optimum, by enumeration"] = float(subrl.exhaustive_plan(world).value)
    return values


def train_world(
    env: Literal[
        "two-rooms", "coverage", "bimodal", "gp", "density", "items", "design"
    ] = "two-rooms",
    memory: bool = True,
    objective: Literal["submodular", "modular"] = "submodular",
    signal: Literal["to_go", "one_step", "prefix"] = "to_go",
    horizon: int = 40,
    slip: float = 0.0,
    num_steps: int = 140,
    batch_size: int = 500,
    learning_rate: float = 0.005,
    entropy_coefficient: float = 0.0,
    seeds: int = 3,
    seed: int = 0,
    out: options.Path = "subrl",
    progress: tyro.conf.Suppress[training.Progress | None] = None,
) -> SubrlFiles | None:
    """Train a policy whose reward has diminishing returns; run it again to resume.

    Args:
        env: the world.
        memory: the policy sees what it has visited.
        objective: submodular is SubPO; modular is ModPO, which adds rewards up.
        signal: what an action is credited with.
        horizon: states of an episode.
        slip: chance that an action is replaced by a random one.
        num_steps: updates.
        batch_size: episodes an update.
        learning_rate: of Adam.
        entropy_coefficient: weight of the entropy bonus at the first update.
        seeds: independent trainings, run together.
        seed: of everything random, the world too.
        out: folder to write to.
        progress: where to show it; a bar on the terminal by default.

    Returns:
        The files, and what was reached beside planners that know the world; None if the run was
        told to stop.
    """
    validation.choice("env", env, subrl.WORLDS)
    validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.seed("seed", seed)
    world_key, train_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    features = "visited" if memory else "position"
    world = subrl.named_world(env, world_key, horizon=horizon, slip=slip, features=features)
    run = subrl.make_training(
        world,
        subrl.CategoricalPolicy(5),
        optax.adam(learning_rate),
        subrl.Estimator(objective, signal, "batch_mean", entropy_coefficient=entropy_coefficient),
        batch_size=batch_size,
        num_steps=num_steps,
    )
    # Everything that shapes a run is in its folder's name, so that options never mix.
    options = f"{env}-{features}-{objective}-{signal}-batch_mean-h{horizon}-p{slip:g}-s{seeds}"
    numbers = f"b{batch_size}-lr{learning_rate:g}-c{entropy_coefficient:g}-{seed}"
    folder = pathlib.Path(out) / f"{options}-{numbers}"
    fitted = subrl.fit(
        run,
        train_key,
        num_seeds=seeds,
        chunk=10,
        progress=progress or training.Console(num_steps, extra=("mean", "best")),
        folder=folder,
    )
    made = fitted.metrics.mean.shape[1]
    if made < num_steps:
        training.say(f"stopped at step {made} of {num_steps}; run the same command to resume")
        return None
    known = known_values(world)
    method = "SubPO" if objective == "submodular" else "ModPO"
    curves, panel = plotting.axes(width=6.5, height=3.8)
    subrl.draw_curves(panel, {method: fitted.metrics.mean}, known, title=f"{method} on {env}")
    paths = None
    if world.shape is not None:
        paths = plotting.save(
            _paths(world, run, fitted, draw_key, method, bool(known)), folder / "paths.png"
        )
    last = np.asarray(fitted.metrics.mean)[:, -1]
    best = np.asarray(fitted.metrics.best)[:, -1]
    values = {method: float(last.mean()), f"{method}, best episode": float(best.max()), **known}
    return SubrlFiles(
        folder / "metrics.jsonl",
        plotting.save(curves, folder / "curves.png"),
        paths,
        values,
        _table(f"F of an episode on {env}, {num_steps} steps", values, last),
    )


def _paths(
    world: subrl.SubmodularEnvironment,
    run: subrl.Training,
    fitted: Any,
    key: jax.Array,
    method: str,
    sure: bool,
) -> Any:
    """Episodes of the first seed, beside the planners' where moves are sure."""
    policy = jax.tree.map(lambda x: x[0], fitted.state.params)
    act = run.act(fitted.state._replace(params=policy))
    drawn = jax.jit(lambda key: subrl.rollout(key, world, act, 5))(key)
    shown = {method: np.asarray(drawn.elements)}
    if sure:
        shown["greedy planner"] = np.asarray(subrl.greedy_plan(world).states)[None]
        shown["beam search"] = np.asarray(subrl.beam_plan(world, 1000).states)[None]
    return subrl.paths_figure(world, shown)


def _table(title: str, values: Mapping[str, float], last: np.ndarray) -> tables.Table:
    shown = tables.Table("", "F", "95 % interval over seeds", title=title, title_justify="left")
    for index, (name, value) in enumerate(values.items()):
        interval = ""
        if index == 0 and len(last) > 1:
            interval = "{:.2f} to {:.2f}".format(*intervals.mean_interval(last))
        shown.add_row(name, f"{value:.2f}", interval)
    return shown
