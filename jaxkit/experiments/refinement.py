"""Linear decay and refined schedules in miniature: a convex problem and a rough character model.

Paper: arXiv 2310.07831. (1) On a convex noisy problem the last iterate of linear decay is better
than that of a constant rate, averaged or not. (2) On a character model whose weights start four
times too large, the gradient norms of one pilot run are enough to find a warm-up nobody asked for.
(3) Where norms are flat, or a problem forgets its early noise, refinement brings nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxkit import intervals, plotting, schedules
from jaxkit.experiments import character_mlp, last_iterate, rex
from jaxkit.experiments.evidence import Evidence, Table, Verdict, claim, gathered, paired

STEPS, CONVEX_STEPS = 400, 2000
MIN_ADVANTAGE = 0.03
#: Weights start this many times too large, except the embedding.
ROUGH = 4.0


def momentum_sgd(learning_rate: Array, momentum: Array) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum."""
    return optax.sgd(learning_rate, momentum=momentum)


def run(*, quick: bool = False, seed: int = 0) -> Evidence:
    """Measure linear decay and refinement where theory expects them to help, and where not.

    Args:
        quick: the character model alone, with fewer peaks.
        seed: base of the seeds.
    """
    parts = [_rough_start(quick, seed)]
    if not quick:
        parts += [_smooth_start(seed), _convex(seed)]
    return gathered("Schedules refined from gradient norms", *parts)


def _curves(steps: int, **refined: Array) -> dict[str, Array]:
    """Rate over peak of each update, by schedule."""
    made = {
        name: schedules.schedule_from_profile(name.lower(), 1.0, steps)
        for name in ("linear", "cosine", "REX")
    }
    made |= {name: schedules.schedule_from_values(v, steps) for name, v in refined.items()}
    made["warm-up + linear"] = schedules.schedule_from_profile(
        "linear", 1.0, steps, warmup_steps=steps // 5
    )
    return {name: schedule(jnp.arange(steps)) for name, schedule in made.items()}


def _tuned(curves: Mapping[str, Array], peaks: np.ndarray, keys: Array, make, scale: float):
    shapes = jnp.stack(list(curves.values()))
    grid = character_mlp.grid_losses(
        keys,
        jnp.asarray(peaks, jnp.float32),
        shapes,
        jnp.full(shapes.shape, 0.9),
        make_optimizer=make,
        scale=scale,
    )
    return character_mlp.tune(list(curves), peaks, grid)


def _pilot(peaks: np.ndarray, keys: Array, make, scale: float) -> dict[str, Array]:
    """Record both norms of the best linear run of one seed, which is not judged again."""
    linear = _curves(STEPS)["linear"]
    tuned = _tuned({"linear": linear}, peaks, keys[:1], make, scale)
    momenta = jnp.full(STEPS, 0.9)
    return {
        norm: character_mlp.train(
            keys[0], tuned.peaks["linear"] * linear, momenta, make, scale, record=norm
        )[1]
        for norm in ("l2", "l1")
    }


def _refined(norms: Mapping[str, Array]) -> dict[str, Array]:
    return {f"refined {k}": schedules.refine_schedule(v, norm=k) for k, v in norms.items()}


def _gap(tuned: character_mlp.Tuned, name: str) -> np.ndarray:
    """By how much a schedule is better than linear decay, `[seeds]`."""
    return tuned.losses["linear"] - tuned.losses[name]


def _rough_start(quick: bool, seed: int):
    peaks = 0.012 * 2.0 ** (np.arange(1, 5) if quick else np.arange(7))
    pilot_key, key = jax.random.split(jax.random.key(seed))
    norms = _pilot(peaks, jax.random.split(pilot_key, 1), momentum_sgd, ROUGH)
    curves = _curves(STEPS, **_refined(norms))
    tuned = _tuned(curves, peaks, jax.random.split(key, 8), momentum_sgd, ROUGH)

    gap = _gap(tuned, "refined l1")
    ratio = tuned.peaks["refined l1"] / tuned.peaks["linear"]
    top = float(np.argmax(np.asarray(curves["refined l1"]))) / STEPS
    claims = [
        claim(
            "a schedule refined from one pilot run (l1) is better than linear decay by >= "
            f"{MIN_ADVANTAGE} nats",
            "refinement improves on linear decay, most on text models",
            f"better by {gap.mean():+.3f} nats over {len(gap)} paired seeds",
            gap.mean() >= MIN_ADVANTAGE and intervals.mean_interval(gap)[0] > 0,
            gap,
        ),
        claim(
            "refinement finds a warm-up by itself",
            "warm-up appears where the norms are large at the start",
            f"the refined schedule (l1) peaks after {100 * top:.0f} % of the run",
            top >= 0.02,
        ),
        claim(
            "the refined schedule tolerates a larger peak than linear decay",
            "the base rate is tuned again, usually larger",
            f"best peak {ratio:.2g} times that of linear decay",
            ratio > 1,
            absent="null result",
        ),
    ]
    tables = [_table(f"Rough start, momentum SGD, {STEPS} updates", tuned)]
    return claims, tables, {"refined_character": _figure(norms, curves, tuned)}


def _smooth_start(seed: int):
    """With a sane start and Adam the norms are flat, so there is nothing to refine."""
    peaks = 2e-3 * 3 ** (np.arange(1, 6) / 2)
    pilot_key, key = jax.random.split(jax.random.key(seed + 1))
    norms = _pilot(peaks, jax.random.split(pilot_key, 1), rex.adam, 1.0)
    curves = _curves(STEPS, **_refined(norms))
    tuned = _tuned(curves, peaks, jax.random.split(key, 8), rex.adam, 1.0)
    gap = _gap(tuned, "refined l1")
    found = claim(
        "with a sane start and Adam, refinement (l1) still improves on linear decay",
        "neutral or slightly worse on some problems",
        f"better by {gap.mean():+.3f} nats; predicted bound {_gain(norms['l2']):.2f}x better",
        intervals.mean_interval(gap)[0] > 0,
        gap,
        absent="null result",
    )
    return [found], [_table(f"Sane start, Adam, {STEPS} updates", tuned)], {}


def _gain(norms: Array) -> float:
    return float(schedules.refinement_gain(schedules.smooth_norms(norms)))


def _error(losses: np.ndarray) -> float:
    return losses.std(ddof=1) / len(losses) ** 0.5


def _table(title: str, tuned: character_mlp.Tuned) -> Table:
    rows = [
        [
            name,
            f"{losses.mean():.3f} +- {_error(losses):.3f}",
            paired(_gap(tuned, name)),
            f"{tuned.peaks[name]:.4f}{' (edge)' if name in tuned.edge else ''}",
        ]
        for name, losses in tuned.losses.items()
    ]
    columns = ["schedule", "validation loss (nats, s.e.)", "better than linear (95 %)", "best peak"]
    return Table(title, columns, rows)


def _figure(norms: Mapping[str, Array], curves: Mapping[str, Array], tuned: character_mlp.Tuned):
    figure, (left, middle, right) = plotting.axes(1, 3, width=4.2, height=3.4)
    fraction = np.arange(STEPS) / STEPS
    left.plot(fraction, norms["l1"], color=plotting.COLORS[7], linewidth=0.6)
    left.plot(fraction, schedules.smooth_norms(norms["l1"]), color=plotting.COLORS[0])
    left.set_yscale("log")
    left.set(xlabel="fraction of the run", ylabel="gradient norm (l1)")
    left.set_title("one pilot run", loc="left")
    shown = ("linear", "refined l2", "refined l1", "warm-up + linear")
    drawn = {name: (fraction, np.asarray(curves[name])) for name in shown}
    plotting.lines(middle, drawn, xlabel="fraction of the run", ylabel="learning rate / peak")
    names = sorted(tuned.losses, key=lambda n: -tuned.losses[n].mean())
    means = [tuned.losses[n].mean() for n in names]
    errors = [_error(tuned.losses[n]) for n in names]
    right.errorbar(means, range(len(names)), xerr=errors, fmt="o", color=plotting.COLORS[0])
    right.set_yticks(range(len(names)), names)
    right.set(xlabel="validation loss (nats, +- s.e.)")
    return figure


def _convex(seed: int):
    """Excess loss of the last iterate, each schedule at the peak that other seeds chose."""
    a, b, minimum = last_iterate.problem(seed)
    i = jnp.arange(CONVEX_STEPS)
    z = i / CONVEX_STEPS
    curves = {
        "constant": jnp.ones(CONVEX_STEPS),
        "step": schedules.schedule_from_profile("step", 1.0, CONVEX_STEPS)(i),
        "1/t": 1 / (1 + i),
        "1/sqrt(t)": (1 + i) ** -0.5,
        **{k: v for k, v in _curves(CONVEX_STEPS).items() if k != "warm-up + linear"},
        "(1 - z)^2": schedules.profile_by_name("polynomial")(z),
        "exp(-3 z)": schedules.profile_by_name("exponential")(z),
        "WSD 20 %": schedules.profile_by_name("wsd")(z),
    }
    flat, ramp = jnp.ones(CONVEX_STEPS, jnp.int32), 1 + 15 * i // (CONVEX_STEPS - 1)
    losses, norms = _convex_losses(curves, flat, 1, a, b, minimum, seed)
    ramped, ramped_norms = _convex_losses(
        {"linear": curves["linear"]}, ramp, 16, a, b, minimum, seed
    )
    for found, noted, batches, largest in (
        (losses, norms, flat, 1),
        (ramped, ramped_norms, ramp, 16),
    ):
        refined = {"refined": schedules.refine_schedule(noted)}
        found |= _convex_losses(refined, batches, largest, a, b, minimum, seed)[0]

    rows = [
        [name, f"{v.mean():.5f} +- {_error(v):.5f}"]
        for name, v in [*losses.items(), *((f"{k}, batch 1 to 16", v) for k, v in ramped.items())]
    ]
    table = Table(
        f"Least absolute deviations, {CONVEX_STEPS} updates: excess loss of the last iterate",
        ["schedule", "f - f* (s.e., 40 fresh seeds)"],
        rows,
    )
    even = f"equal when norms are flat: predicted bound {_gain(norms):.3f} times better"
    steep = f"under a batch ramp, predicted bound {_gain(ramped_norms):.2f} times better"
    judged: tuple[tuple[str, str, dict[str, np.ndarray], Verdict, str], ...] = (
        ("linear", "constant", losses, "not shown", "constant rates are far from optimal"),
        ("linear", "mean of constant", losses, "not shown", "the last iterate needs no averaging"),
        ("refined", "linear", losses, "null result", even),
        ("refined", "linear", ramped, "null result", steep),
    )
    claims = []
    for name, other, found, absent, paper in judged:
        gap = found[other] - found[name]
        growing = ", batch growing 1 to 16" if found is ramped else ""
        claims.append(
            claim(
                f"least absolute deviations{growing}: {name} better than {other}",
                paper,
                f"excess loss {found[name].mean():.5f} against {found[other].mean():.5f}",
                intervals.mean_interval(gap)[0] > 0,
                gap,
                absent=absent,
            )
        )
    return claims, [table], {}


def _convex_losses(curves, batches, largest_batch, a, b, minimum, seed):
    """Tune peaks on 20 seeds, judge on 40 others; also return the norms of one linear run."""
    shapes = jnp.stack(list(curves.values()))
    tuning, judging = jax.random.split(jax.random.key(seed + 2))
    peaks = 2.0 ** np.arange(-10, 8)
    grid = jnp.broadcast_to(jnp.asarray(peaks, jnp.float32), (len(curves), len(peaks)))
    rest = (shapes, batches, a, b, minimum)
    options = {"largest_batch": largest_batch}
    tried, _ = last_iterate.excess_losses(jax.random.split(tuning, 20), grid, *rest, **options)
    best = np.asarray(tried).mean(axis=-1).argmin(axis=-1)  # [last or mean, schedules]
    chosen = jnp.asarray(peaks[best.T], jnp.float32)
    found, norms = last_iterate.excess_losses(
        jax.random.split(judging, 40), chosen, *rest, **options
    )
    found = np.asarray(found, np.float64)
    losses = {name: found[0, i, 0] for i, name in enumerate(curves)}
    if "constant" in curves:
        losses["mean of constant"] = found[1, list(curves).index("constant"), 1]
    pilot = list(curves).index("linear") if "linear" in curves else 0
    return losses, norms[pilot, 0, 0]
