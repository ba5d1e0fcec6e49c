"""SubPO: whole training runs as one compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from jaxkit import validation
from jaxkit.subrl import credit, policies
from jaxkit.subrl.environments import Params, SubmodularEnvironment
from jaxkit.subrl.rollouts import Rollout, policy_act, rollout
from jaxkit.training import TrainState

#: What is maximised: F of an episode (SubPO), or the sum of F({s}) over its visits (ModPO).
OBJECTIVES = ("submodular", "modular")


class StepMetrics(NamedTuple):
    """What a step measured, before its update.

    Mean, best, median and worst are of the true F over the batch, also under the modular objective;
    `modular` is the mean of the sum of F({s}) over visits; entropies are in nats.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    entropy: Float[Array, ""]
    mean: Float[Array, ""]
    best: Float[Array, ""]
    median: Float[Array, ""]
    worst: Float[Array, ""]
    modular: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How a gradient is estimated from episodes.

    Attributes:
        objective: `"submodular"` (F of the episode) or `"modular"` (ModPO: the sum of F({s})).
        signal: `"to_go"` (the paper's theorem), `"total"`, `"one_step"`, or `"prefix"` (what the
            published grid-world program computes; neither of the last two follows the objective).
        baseline: `"batch_mean"` over episodes at each time, `"leave_one_out"` (exactly unbiased),
            `"none"` or `"critic"`.
        discount: gamma in `[0, 1]` of `"to_go"`.
        entropy_coefficient: c >= 0; step t (from 0) adds c / (t + 1) times the entropy.
        critic: Flax module from observations to values, for `baseline="critic"`; `Critic()` if
            None. It learns the signal with the same optimizer, by least squares.
        gae_lambda: lambda in `[0, 1]` of the critic's advantage.
        clip_ratio: PPO's epsilon; None for the plain estimator.
        passes: updates on the same episodes; more than 1 needs `clip_ratio`.

    Raises:
        ValueError: if a name is unknown, a number out of range, or two values do not go together.

    Source: arXiv 2307.13372, Algorithm 1.

    Example:
        >>> Estimator(passes=2)
        Traceback (most recent call last):
        ValueError: passes must be 1 without clip_ratio, got 2
    """

    objective: str = "submodular"
    signal: str = "to_go"
    baseline: str = "batch_mean"
    discount: Any = 1.0
    entropy_coefficient: Any = 0.0
    critic: Any = None
    gae_lambda: Any = 1.0
    clip_ratio: Any = None
    passes: int = 1

    def __post_init__(self):
        validation.choice("objective", self.objective, OBJECTIVES)
        validation.choice("signal", self.signal, credit.SIGNALS)
        validation.choice("baseline", self.baseline, credit.BASELINES)
        validation.number("discount", self.discount, minimum=0, maximum=1)
        validation.number("gae_lambda", self.gae_lambda, minimum=0, maximum=1)
        validation.number("entropy_coefficient", self.entropy_coefficient, minimum=0)
        passes = validation.integer("passes", self.passes, minimum=1)
        if self.clip_ratio is not None:
            validation.number("clip_ratio", self.clip_ratio, minimum=0, open_minimum=True)
        elif passes > 1:
            raise ValueError(f"passes must be 1 without clip_ratio, got {passes}")
        if self.critic is not None and self.baseline != "critic":
            raise ValueError(
                f"critic must be None unless baseline is 'critic', got {self.critic!r}"
            )
        plain = validation.is_traced(self.gae_lambda) or self.gae_lambda == 1.0
        if self.signal != "to_go" and not plain:
            raise ValueError(
                f"gae_lambda must be 1 for signal {self.signal!r}, got {self.gae_lambda!r}"
            )

    @property
    def judge(self) -> Any:
        """The critic that learns, None without one."""
        if self.baseline != "critic":
            return None
        return policies.Critic() if self.critic is None else self.critic

    def advantages(self, params: Any, drawn: Rollout, scale: Any) -> tuple[Any, Any]:
        """Advantages and signals `[B, T]`, in units of the return scale."""
        gains = drawn.gains if self.objective == "submodular" else drawn.singles
        q = credit.SIGNALS[self.signal](drawn.first / scale, gains / scale, self.discount)
        if self.judge is not None:
            values = self.judge.apply(params["critic"], drawn.observations)
            values = jnp.where(drawn.active, values, 0)
            if self.signal != "to_go":
                return q - values, q
            return credit.generalised_advantage(
                gains / scale, values, self.discount, self.gae_lambda
            ), q
        if self.baseline == "batch_mean":
            return credit.centre_over_batch(q), q
        if self.baseline == "leave_one_out":
            return credit.leave_one_out(q), q
        return q, q

    def loss(self, params: Any, policy: Any, part: Any, bonus: Any) -> tuple[Any, credit.LossParts]:
        """Loss of (decisions, advantages, signals, old log-probabilities): of policy and critic."""
        chosen, advantage, q, old = part
        if self.clip_ratio is None:
            value, parts = credit.subpo_loss(params["policy"], policy, chosen, advantage, bonus)
        else:
            value, parts = credit.clipped_loss(
                params["policy"],
                policy,
                chosen,
                advantage,
                bonus,
                old_log_prob=old,
                clip_ratio=self.clip_ratio,
            )
        if self.judge is not None:
            error = self.judge.apply(params["critic"], chosen.observations) - q
            value = value + 0.5 * jnp.mean(jnp.where(chosen.active, error, 0) ** 2)
        return value, parts


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """A training; its methods are pure, for `jit` and for `vmap` over keys or params.

    Attributes: as the arguments of `make_training`.
    """

    environment: SubmodularEnvironment
    policy: Any
    optimizer: optax.GradientTransformation
    estimator: Estimator
    num_steps: int
    batch_size: int
    slices: int
    mesh: Mesh | None = None
    axis: str = "data"

    @property
    def _blank(self) -> Any:
        observation, _ = jax.eval_shape(self.environment.reset, jax.random.key(0))
        return jnp.zeros(observation.shape)

    def init(self, key: Key[Array, ""]) -> TrainState:
        """State before the first step: parameters under `"policy"` (and `"critic"`)."""
        policy_key, critic_key, key = jax.random.split(key, 3)
        params = {"policy": self.policy.init(policy_key, self._blank)}
        if self.estimator.judge is not None:
            params["critic"] = self.estimator.judge.init(critic_key, self._blank)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), key)

    def act(self, state: TrainState) -> Callable[[Any, Any], Any]:
        """The policy of a state, as the `act` of `rollout`."""
        return policy_act(self.policy, state.params["policy"])

    def step(
        self, state: TrainState, params: Params | None = None
    ) -> tuple[TrainState, StepMetrics]:
        """Draw B episodes and update the policy on them; the metrics are of before the update."""
        params = self.environment.default_params if params is None else params
        key = jax.random.fold_in(state.key, state.step)
        place = _placement(self.mesh, self.axis, self.batch_size)
        drawn = rollout(key, self.environment, self.act(state), self.batch_size, params, place)
        (parameters, opt_state), (loss, norm, entropy) = self._update(state, drawn, params)
        values = drawn.values
        metrics = StepMetrics(
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

    def run(
        self, key: Key[Array, ""], params: Params | None = None
    ) -> tuple[TrainState, StepMetrics]:
        """Make all steps in one `scan`; the metrics have a leading axis `[num_steps]`."""
        return jax.lax.scan(
            lambda state, _: self.step(state, params), self.init(key), None, length=self.num_steps
        )

    def _update(self, state: TrainState, drawn: Rollout, params: Params):
        estimator, policy = self.estimator, self.policy
        advantage, q = estimator.advantages(state.params, drawn, params.return_scale)
        bonus = estimator.entropy_coefficient / (state.step + 1)
        chosen, old = drawn.decisions, None
        if estimator.clip_ratio is not None:
            outputs = policy.apply(state.params["policy"], drawn.observations)
            old = jax.lax.stop_gradient(policy.log_prob(outputs, drawn.actions))
        # Steps first, so that a slice is one piece of memory; but episodes first where those are
        # split over devices, so that each decision stays where it is.
        ordered = (lambda x: jnp.swapaxes(x, 0, 1)) if self.mesh is None else (lambda x: x)
        by_step = jax.tree.map(
            lambda x: ordered(x).reshape(-1, *x.shape[2:]), (chosen, advantage, q, old)
        )
        gradient_of = optax.microbatching.microbatch(
            jax.value_and_grad(
                lambda parameters, part: estimator.loss(parameters, policy, part, bonus),
                has_aux=True,
            ),
            argnums=1,
            microbatch_size=advantage.size // self.slices if self.slices > 1 else None,
            accumulator=optax.microbatching.AccumulationType.MEAN,
        )

        def one_pass(carry, _):
            parameters, opt_state = carry
            (value, parts), gradient = gradient_of(parameters, by_step)
            updates, opt_state = self.optimizer.update(gradient, opt_state, parameters)
            parameters = optax.apply_updates(parameters, updates)
            return (parameters, opt_state), (value, optax.tree.norm(gradient), parts.entropy)

        start = (state.params, state.opt_state)
        if estimator.passes == 1:
            return one_pass(start, None)
        end, measured = jax.lax.scan(one_pass, start, None, length=estimator.passes)
        return end, jax.tree.map(lambda x: x[0], measured)


def make_training(
    environment: SubmodularEnvironment,
    policy: Any,
    optimizer: optax.GradientTransformation,
    estimator: Estimator = Estimator(),
    *,
    num_steps: int = 140,
    batch_size: int = 500,
    slices: int | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Training:
    r"""Make a training of a policy by the submodular policy gradient.

    A step rolls out B episodes, credits each action with a signal, subtracts a baseline, divides
    by the environment's `return_scale` and makes one update by the optimizer (or `passes` of them).

    Args:
        environment: where to act.
        policy: a `Policy`; one that sees `"position"` is Markovian (SubPO-M), one that sees
            `"visited"` is not (SubPO-NM).
        optimizer: any optax optimizer; the paper's program has Adam.
        estimator: how the gradient is estimated; by default, as the paper.
        num_steps: updates of `run`.
        batch_size: B, episodes a step.
        slices: over how many equal parts of the T B decisions, T = H - 1, a gradient is
            accumulated, a divisor of T B; more need less memory. By default a part is a step, or an
            equal share of its episodes of at most 256, on one CPU, so that activations stay in its
            cache, also under `vmap` over seeds; elsewhere there is one part.
        mesh: spread episodes over the axis `axis` of this mesh; parameters are on every device.
        axis: its name.

    Raises:
        TypeError: if `policy` is none.
        ValueError: if a number is out of range, the policy's outputs are not the environment's
            actions, the batch does not divide by the mesh, or the decisions do not divide by the
            slices.

    Source: arXiv 2307.13372, Algorithm 1.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> policy = subrl.CategoricalPolicy(5)
        >>> train = make_training(env, policy, optax.adam(0.01), batch_size=8, num_steps=20)
        >>> state, metrics = jax.eval_shape(train.run, jax.random.key(0))
        >>> metrics.mean.shape
        (20,)
    """
    for name, value, kind in (
        ("environment", environment, SubmodularEnvironment),
        ("optimizer", optimizer, optax.GradientTransformation),
        ("estimator", estimator, Estimator),
    ):
        validation.instance(name, value, kind, f"an instance of {kind.__name__}")
    batch_size = validation.integer("batch_size", batch_size, minimum=1)
    if estimator.baseline in ("batch_mean", "leave_one_out") and batch_size < 2:
        raise ValueError(
            f"batch_size must be >= 2 for baseline {estimator.baseline!r}, got {batch_size}"
        )
    num_steps = validation.integer("num_steps", num_steps, minimum=1)
    num_actions = environment.horizon - 1
    if slices is None:
        alone = mesh is None and jax.default_backend() == "cpu"
        slices = num_actions * _parts(batch_size) if alone else 1
    slices = validation.integer("slices", slices, minimum=1)
    if num_actions * batch_size % slices:
        raise ValueError(
            f"slices must divide the {num_actions * batch_size} decisions of a step, got {slices}"
        )
    _placement(mesh, axis, batch_size)
    training = Training(
        environment, policy, optimizer, estimator, num_steps, batch_size, slices, mesh, axis
    )
    policies.check_policy(policy, training._blank, environment)
    return training


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
