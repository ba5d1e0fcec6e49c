"""SubPO beside PyTorch: the published program's structure, and two faster rewrites of it.

All four do the same arithmetic: episodes of the same world, the same network, gains to go less the
mean of the batch, one step of Adam. The first peer is what the paper's authors published and users
run; the rewrites show how much of the difference is Python's and how much remains without it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import timing

from jaxkit import subrl
from jaxkit.experiments.evidence import Table

_ROWS, _HORIZON, _BATCH, _START, _RATE = 30, 40, 500, 34, 1e-3
EPOCHS, _TORCH_EPOCHS = 20, 2


class TorchSubPO:
    """SubPO-M in PyTorch: raw (state, time), 64-32 tanh, gains to go, mean of the batch, Adam.

    `style` says how episodes are drawn: `"published"` as the official program (next states from a
    dense table of probabilities, F of every prefix anew in Python), `"loops"` with a Python set for
    each episode that grows, `"tensors"` without a loop over episodes.
    """

    def __init__(self, weights: np.ndarray, *, style: str, seed: int = 0):
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.torch, self.style = torch, style
        self.policy = torch.nn.Sequential(
            torch.nn.Linear(2, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, 32),
            torch.nn.Tanh(),
            torch.nn.Linear(32, 5),
        )
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=_RATE)
        moves = subrl.grids.grid_moves((_ROWS, _ROWS))
        cover = subrl.grids.grid_blocks((_ROWS, _ROWS))
        self.scale = 2 * (_HORIZON + 1)
        self.weights, self.cover = weights.tolist(), cover
        n = len(moves)
        self.moves = torch.tensor(moves, dtype=torch.long)
        padded = np.full((n, 4), n)
        for state, cells in enumerate(cover):
            padded[state, : len(cells)] = cells
        self.cells = torch.tensor(padded)
        self.padded_weights = torch.tensor(np.append(weights, 0), dtype=torch.float32)
        if style == "published":
            # Next state first, as there: a gather then strides over the whole table.
            self.probabilities = torch.zeros(n, n, 5)
            self.probabilities[self.moves, torch.arange(n)[:, None], torch.arange(5)[None]] = 1

    def epoch(self) -> float:
        """Roll out, update, and return the mean F of the batch."""
        torch = self.torch
        state = torch.full((_BATCH,), _START)
        begin = self._begin(state)
        inputs, actions, gains = [], [], []
        for h in range(_HORIZON - 1):
            observation = torch.stack([state.float(), torch.full((_BATCH,), float(h))], dim=1)
            with torch.no_grad():
                logits = self.policy(observation)
            action = torch.distributions.Categorical(logits=logits).sample()
            state = self._move(state, action)
            inputs.append(observation)
            actions.append(action)
            gains.append(self._gain(state))
        gained = torch.stack(gains, dim=1)
        to_go = gained.flip(1).cumsum(1).flip(1) / self.scale
        advantage = to_go - to_go.mean(0)
        logits = self.policy(torch.stack(inputs, dim=1))
        log_prob = torch.distributions.Categorical(logits=logits).log_prob(
            torch.stack(actions, dim=1)
        )
        loss = -(log_prob * advantage).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float((begin + gained.sum(1)).mean())

    def _begin(self, state):
        self.covered = [set() for _ in range(_BATCH)]
        self.paths, self.values = [[] for _ in range(_BATCH)], [0.0] * _BATCH
        self.mask = self.torch.ones(_BATCH, len(self.padded_weights))
        return self._gain(state)

    def _move(self, state, action):
        if self.style == "published":
            return self.probabilities[:, state, action].argmax(0)
        return self.moves[state, action]

    def _gain(self, state):
        return {"published": self._anew, "loops": self._grown, "tensors": self._masked}[self.style](
            state
        )

    def _anew(self, state):
        gains = []
        for episode, place in enumerate(state.tolist()):
            self.paths[episode].append(place)
            cells = set().union(*(self.cover[visited] for visited in self.paths[episode]))
            value = sum(self.weights[cell] for cell in cells)
            gains.append(value - self.values[episode])
            self.values[episode] = value
        return self.torch.tensor(gains, dtype=self.torch.float32)

    def _grown(self, state):
        gains = []
        for covered, place in zip(self.covered, state.tolist(), strict=True):
            new = set(self.cover[place]) - covered
            gains.append(sum(self.weights[cell] for cell in new))
            covered |= new
        return self.torch.tensor(gains, dtype=self.torch.float32)

    def _masked(self, state):
        cells = self.cells[state]
        gain = (self.padded_weights[cells] * self.mask.gather(1, cells)).sum(1)
        self.mask.scatter_(1, cells, 0.0)
        return gain


def make_training(weights: np.ndarray, batch_size: int = _BATCH) -> subrl.Training:
    world = subrl.coverage_world(
        (_ROWS, _ROWS),
        weights,
        horizon=_HORIZON,
        start=_START,
        features="official_position",
    )
    return subrl.make_training(
        world,
        subrl.CategoricalPolicy(5),
        optax.adam(_RATE),
        batch_size=batch_size,
        num_steps=EPOCHS,
    )


def peers(rounds: int = 5) -> Table:
    """Time an epoch of 500 x 39 steps and one Adam step, interleaved, after warm-up."""
    weights = np.asarray(subrl.gp_weights(jax.random.key(0)))
    training = make_training(weights)
    begin = time.perf_counter()
    compiled = jax.jit(training.run).lower(jax.random.key(0)).compile()
    compile_time = time.perf_counter() - begin
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "jaxkit": (lambda: compiled(jax.random.key(0)), EPOCHS)
    }
    try:
        import torch
    except ImportError as error:
        raise ImportError("this benchmark needs torch: pip install 'jaxkit[benchmark]'") from error
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    styles = {
        "PyTorch as published: F of each prefix anew in Python, dense transitions": "published",
        "PyTorch rewritten: one growing Python set an episode, table of moves": "loops",
        "PyTorch rewritten: masks in tensors, no loop over episodes": "tensors",
    }
    for name, style in styles.items():
        program = TorchSubPO(weights, style=style)

        def several(program=program):
            return [program.epoch() for _ in range(_TORCH_EPOCHS)]

        calls[name] = (several, _TORCH_EPOCHS)
    times = timing.interleaved({name: call for name, (call, _) in calls.items()}, rounds)
    measured = {name: times[name] / epochs for name, (_, epochs) in calls.items()}
    ours = measured["jaxkit"]
    steps = _BATCH * (_HORIZON - 1)
    return Table(
        f"SubPO-M, GP map, B 500, H 40, one thread, warm (compiling took {compile_time:.1f} s)",
        ("program", "ms an epoch, median (range)", "time / jaxkit", "steps a second"),
        [
            (
                name,
                timing.spread(1e3 * values),
                timing.spread(values / ours),
                f"{steps / np.median(values):,.0f}",
            )
            for name, values in measured.items()
        ],
    )


def seeds(batch_size: int, rounds: int = 5, num_seeds: int = 16) -> Table:
    """Time seeds under `vmap` beside one seed."""
    training = make_training(np.asarray(subrl.gp_weights(jax.random.key(0))), batch_size)
    one_key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), num_seeds)
    one = jax.jit(training.run).lower(one_key).compile()
    many = jax.jit(jax.vmap(training.run)).lower(keys).compile()
    calls = {"1 seed": lambda: one(one_key), f"{num_seeds} seeds, vmapped": lambda: many(keys)}
    times = timing.interleaved(calls, rounds)
    base, batch = (values / EPOCHS for values in times.values())
    return Table(
        f"{num_seeds} seeds in one program beside one, B {batch_size}, one thread, warm",
        ("", "ms an epoch, median (range)", "time / one seed"),
        [
            ("1 seed", timing.spread(1e3 * base), "1"),
            (
                f"{num_seeds} seeds, vmapped",
                timing.spread(1e3 * batch),
                timing.spread(batch / base),
            ),
        ],
    )


def ant(num_steps: int = 250, seeds: tuple[int, ...] = (0, 1, 2)) -> Table:
    """Train Brax's Ant on its map, beside uniformly random actions; about 10 minutes a seed.

    What differs from the published program: Brax's spring engine instead of Isaac Gym; 100 actions
    an episode instead of 400; 64 episodes a step instead of 15, with PPO's clipped loss and 4
    passes; 250 steps instead of 20 001; Adam at 3e-3 with clipped gradients instead of 1e-2.
    """
    world = subrl.ant_world("spring", horizon=101)
    training = subrl.make_training(
        world,
        subrl.GaussianPolicy(8, initial_log_std=0.0),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3)),
        subrl.Estimator(
            baseline="critic", discount=0.99, gae_lambda=0.95, clip_ratio=0.2, passes=4
        ),
        num_steps=num_steps,
        batch_size=64,
        slices=1,
    )

    def shake(key, observations):
        return jax.random.uniform(key, (len(observations), 8), minval=-1, maxval=1)

    step = jax.jit(training.step)
    shaken = jax.jit(lambda key: subrl.rollout(key, world, shake, 64).values.mean())
    rows, ends = [], []
    for seed in seeds:
        state, curve = jax.jit(training.init)(jax.random.key(seed)), []
        for _ in range(num_steps):
            state, metrics = step(state)
            curve.append(float(metrics.mean))
        ends.append((curve[-1], float(shaken(jax.random.key(1000 + seed)))))
        shown = ", ".join(f"{value:.1f}" for value in curve[:: max(num_steps // 5, 1)])
        rows.append((seed, f"{ends[-1][0]:.2f}", f"{ends[-1][1]:.2f}", shown))
    gaps = np.array([trained - random for trained, random in ends])
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    rows.append(("gap, standard error", f"{gaps.mean():.2f}", f"{error:.2f}", ""))
    return Table(
        "Ant: mean F of an episode, a tenth of the cells marked",
        ("seed", "SubPO", "random actions", "SubPO every fifth of the steps"),
        rows,
    )


def run() -> list[Table]:
    """Measure peers and seeds, on one core."""
    return [peers(), seeds(50), seeds(_BATCH)]
