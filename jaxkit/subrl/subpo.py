"""SubPO: whole training runs as one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from jaxkit import validation
from jaxkit.subrl import credit, losses, policies
from jaxkit.subrl.environments import Params, SubmodularEnvironment
from jaxkit.subrl.rollouts import Rollout, policy_act, rollout
from jaxkit.training import TrainState

#: What is maximised: F of an episode (SubPO), or the sum of F({s}) over its visits (ModPO).
OBJECTIVES = ("submodular", "modular")


class EpochMetrics(NamedTuple):
    """What an epoch measured, before its update.

    Attributes:
        loss: the loss.
        gradient_norm: global l2 norm of its gradient.
        entropy: mean entropy of the policy, nats.
        mean: mean of the true F over the batch, also under the modular objective.
        best: its maximum.
        median: its median.
        worst: its minimum.
        modular: mean of the sum of F({s}) over visits.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> policy, optimizer = subrl.CategoricalPolicy(5), optax.adam(0.01)
        >>> train = make_training(env, policy, optimizer, batch_size=8, epochs=20)
        >>> _, metrics = jax.eval_shape(train.run, jax.random.key(0))
        >>> metrics.best.shape
        (20,)
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    entropy: Float[Array, ""]
    mean: Float[Array, ""]
    best: Float[Array, ""]
    median: Float[Array, ""]
    worst: Float[Array, ""]
    modular: Float[Array, ""]


class Training(NamedTuple):
    """Pure functions of a training; all work under `jit`, and under `vmap` over keys or params.

    Attributes:
        init: `init(key) -> TrainState`.
        epoch: `epoch(state, params=None) -> (state, EpochMetrics)`, one update.
        run: `run(key, params=None) -> (state, EpochMetrics [epochs])`, all of them in one `scan`.
        act: `act(state) -> act` of `rollout`.
        epochs: number of updates of `run`.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> policy, optimizer = subrl.CategoricalPolicy(5), optax.adam(0.01)
        >>> train = make_training(env, policy, optimizer, batch_size=8, epochs=20)
        >>> state = jax.eval_shape(train.init, jax.random.key(0))
        >>> jax.eval_shape(train.epoch, state)[1].loss.shape, train.epochs
        ((), 20)
    """

    init: Callable[..., TrainState]
    epoch: Callable[..., tuple[TrainState, EpochMetrics]]
    run: Callable[..., tuple[TrainState, EpochMetrics]]
    act: Callable[[TrainState], Callable[[Any, Any], Any]]
    epochs: int


def make_training(
    environment: SubmodularEnvironment,
    policy: Any,
    optimizer: optax.GradientTransformation,
    *,
    objective: str = "submodular",
    signal: str = "to_go",
    baseline: str = "batch_mean",
    batch_size: int = 500,
    epochs: int = 140,
    discount: Any = 1.0,
    entropy_coefficient: Any = 0.0,
    critic: Any = None,
    gae_lambda: Any = 1.0,
    clip_ratio: Any = None,
    passes: int = 1,
    slices: int | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Training:
    r"""Make a training of a policy by the submodular policy gradient.

    An epoch rolls out B episodes, credits each action with a signal, subtracts a baseline, divides
    by the environment's `return_scale` and makes one step of the optimizer (or `passes` of them).

    Args:
        environment: where to act.
        policy: a `Policy`; one that sees `"position"` is Markovian (SubPO-M), one that sees
            `"visited"` is not (SubPO-NM).
        optimizer: any optax optimizer; the paper's program has Adam.
        objective: `"submodular"` (F of the episode) or `"modular"` (ModPO: the sum of F({s})).
        signal: `"to_go"` (the paper's theorem), `"total"`, `"one_step"`, or `"prefix"` (what the
            published grid-world program computes; neither of the last two follows the objective).
        baseline: `"batch_mean"` over episodes at each time, `"leave_one_out"` (exactly unbiased),
            `"none"` or `"critic"`.
        batch_size: B, episodes an epoch.
        epochs: updates of `run`.
        discount: gamma in `[0, 1]` of `"to_go"`.
        entropy_coefficient: c >= 0; epoch t (from 0) adds c / (t + 1) times the entropy.
        critic: Flax module from observations to values, for `baseline="critic"`; `Critic()` if
            None. It learns the signal with the same optimizer, by least squares.
        gae_lambda: lambda in `[0, 1]` of the critic's advantage.
        clip_ratio: PPO's epsilon; None for the plain estimator.
        passes: updates on the same episodes; more than 1 needs `clip_ratio`.
        slices: over how many equal parts of the T B decisions, T = H - 1, a gradient is
            accumulated, a divisor of T B; more need less memory. By default a part is a step, or an
            equal share of its episodes of at most 256, on one CPU, so that activations stay in its
            cache, also under `vmap` over seeds; elsewhere there is one part.
        mesh: spread episodes over the axis `axis` of this mesh; parameters are on every device.
        axis: its name.

    Returns:
        The training.

    Raises:
        TypeError: if `policy` is none.
        ValueError: if a name is unknown, a number out of range, the policy's outputs are not the
            environment's actions, the batch does not divide by the mesh, or the decisions do
            not divide by the slices.

    Source: arXiv 2307.13372, Algorithm 1.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> policy = subrl.CategoricalPolicy(5)
        >>> train = make_training(env, policy, optax.adam(0.01), batch_size=8, epochs=20)
        >>> state, metrics = jax.eval_shape(train.run, jax.random.key(0))
        >>> metrics.mean.shape
        (20,)
    """
    validation.choice("objective", objective, OBJECTIVES)
    validation.choice("signal", signal, credit.SIGNALS)
    validation.choice("baseline", baseline, credit.BASELINES)
    minimum = 2 if baseline in ("batch_mean", "leave_one_out") else 1
    batch_size = validation.integer("batch_size", batch_size, minimum=1)
    if batch_size < minimum:
        raise ValueError(f"batch_size must be >= 2 for baseline {baseline!r}, got {batch_size}")
    epochs = validation.integer("epochs", epochs, minimum=1)
    passes = validation.integer("passes", passes, minimum=1)
    validation.number("discount", discount, minimum=0, maximum=1)
    validation.number("gae_lambda", gae_lambda, minimum=0, maximum=1)
    validation.number("entropy_coefficient", entropy_coefficient, minimum=0)
    if clip_ratio is not None:
        validation.number("clip_ratio", clip_ratio, minimum=0, open_minimum=True)
    elif passes > 1:
        raise ValueError(f"passes must be 1 without clip_ratio, got {passes}")
    if critic is not None and baseline != "critic":
        raise ValueError(f"critic must be None unless baseline is 'critic', got {critic!r}")
    if signal != "to_go" and not validation.is_traced(gae_lambda) and gae_lambda != 1.0:
        raise ValueError(f"gae_lambda must be 1 for signal {signal!r}, got {gae_lambda!r}")
    num_steps = environment.horizon - 1
    if slices is None:
        alone = mesh is None and jax.default_backend() == "cpu"
        slices = num_steps * _parts(batch_size) if alone else 1
    slices = validation.integer("slices", slices, minimum=1)
    if num_steps * batch_size % slices:
        raise ValueError(
            f"slices must divide the {num_steps * batch_size} decisions of an epoch, got {slices}"
        )
    observation, _ = jax.eval_shape(environment.reset, jax.random.key(0))
    blank = jnp.zeros(observation.shape)
    policies.check_policy(policy, blank, environment)
    judge: Any = (critic or policies.Critic()) if baseline == "critic" else None
    constrain = _placement(mesh, axis, batch_size)

    def init(key: Key[Array, ""]) -> TrainState:
        policy_key, critic_key, key = jax.random.split(key, 3)
        params = {"policy": policy.init(policy_key, blank)}
        if judge is not None:
            params["critic"] = judge.init(critic_key, blank)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)

    def act(state: TrainState):
        return policy_act(policy, state.params["policy"])

    def advantages(params: Any, drawn: Rollout, scale: Any) -> tuple[Any, Any]:
        """Advantages and signals `[B, T]`, in units of the return scale."""
        gains = drawn.gains if objective == "submodular" else drawn.singles
        q = credit.SIGNALS[signal](drawn.first / scale, gains / scale, discount)
        if judge is not None:
            values = jnp.where(drawn.active, judge.apply(params["critic"], drawn.observations), 0)
            if signal != "to_go":
                return q - values, q
            return credit.generalised_advantage(gains / scale, values, discount, gae_lambda), q
        if baseline == "batch_mean":
            return credit.centre_over_batch(q), q
        if baseline == "leave_one_out":
            return credit.leave_one_out(q), q
        return q, q

    def update(state: TrainState, drawn: Rollout, params: Params):
        advantage, q = advantages(state.params, drawn, params.return_scale)
        bonus = entropy_coefficient / (state.step + 1)
        chosen, old = drawn.decisions, None
        if clip_ratio is not None:
            outputs = policy.apply(state.params["policy"], drawn.observations)
            old = jax.lax.stop_gradient(policy.log_prob(outputs, drawn.actions))
        # Steps first, so that a slice is one piece of memory; but episodes first where those are
        # split over devices, so that each decision stays where it is.
        ordered = (lambda x: jnp.swapaxes(x, 0, 1)) if mesh is None else (lambda x: x)
        by_step = jax.tree.map(
            lambda x: ordered(x).reshape(-1, *x.shape[2:]), (chosen, advantage, q, old)
        )

        def objective_of(parameters, part):
            chosen, advantage, q, old = part
            if clip_ratio is None:
                value, parts = losses.subpo_loss(
                    parameters["policy"], policy, chosen, advantage, bonus
                )
            else:
                value, parts = losses.clipped_loss(
                    parameters["policy"],
                    policy,
                    chosen,
                    advantage,
                    bonus,
                    old_log_prob=old,
                    clip_ratio=clip_ratio,
                )
            if judge is not None:
                error = judge.apply(parameters["critic"], chosen.observations) - q
                value = value + 0.5 * jnp.mean(jnp.where(chosen.active, error, 0) ** 2)
            return value, parts

        gradient_of = optax.microbatching.microbatch(
            jax.value_and_grad(objective_of, has_aux=True),
            argnums=1,
            microbatch_size=num_steps * batch_size // slices if slices > 1 else None,
            accumulator=optax.microbatching.AccumulationType.MEAN,
        )

        def one_pass(carry, _):
            parameters, opt_state = carry
            (value, parts), gradient = gradient_of(parameters, by_step)
            updates, opt_state = optimizer.update(gradient, opt_state, parameters)
            parameters = optax.apply_updates(parameters, updates)
            return (parameters, opt_state), (value, optax.tree.norm(gradient), parts.entropy)

        start = (state.params, state.opt_state)
        if passes == 1:
            return one_pass(start, None)
        end, measured = jax.lax.scan(one_pass, start, None, length=passes)
        return end, jax.tree.map(lambda x: x[0], measured)

    def epoch(state: TrainState, params: Params | None = None):
        params = environment.default_params if params is None else params
        key = jax.random.fold_in(state.key, state.step)
        drawn = rollout(key, environment, act(state), batch_size, params, constrain)
        (parameters, opt_state), (loss, norm, entropy) = update(state, drawn, params)
        values = drawn.values
        metrics = EpochMetrics(
            loss,
            norm,
            entropy,
            values.mean(),
            values.max(),
            jnp.median(values),
            values.min(),
            drawn.modular_values.mean(),
        )
        return TrainState(state.step + 1, parameters, opt_state, state.key), metrics

    def run(key: Key[Array, ""], params: Params | None = None):
        return jax.lax.scan(lambda state, _: epoch(state, params), init(key), None, length=epochs)

    return Training(init, epoch, run, act, epochs)


def subpo_optimizer(learning_rate: Any) -> optax.GradientTransformation:
    """Make the optimizer of the paper's program: Adam with its usual constants.

    Args:
        learning_rate: > 0, or a schedule.

    Returns:
        The optimizer.

    Raises:
        ValueError: if a rate is not positive.

    Example:
        >>> subpo_optimizer(-1.0)
        Traceback (most recent call last):
        ValueError: learning_rate must be finite and in (0, inf), got -1.0
    """
    if not callable(learning_rate):
        validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    rate: Any = learning_rate
    return optax.adam(rate)


def _parts(batch_size: int, most: int = 256) -> int:
    """The smallest divisor of the batch that leaves parts of at most `most` episodes."""
    return next(
        n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size <= n * most
    )


def _placement(mesh: Mesh | None, axis: str, batch_size: int) -> Callable[[Any], Any]:
    """A function that spreads the leading axis of all arrays over the mesh."""
    if mesh is None:
        return lambda tree: tree
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of {mesh.axis_names}, got {axis!r}")
    if batch_size % mesh.shape[axis]:
        raise ValueError(
            f"batch_size must divide by the {mesh.shape[axis]} devices of axis {axis!r}, got "
            f"{batch_size}"
        )
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    sharding = NamedSharding(automatic, P(axis))
    return lambda tree: jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree
    )
