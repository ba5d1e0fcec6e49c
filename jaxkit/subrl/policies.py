"""Policies as Flax modules: a distribution over actions for each observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation

Activation = Callable[[jax.Array], jax.Array]


@runtime_checkable
class Policy(Protocol):
    """A Flax module whose outputs describe a distribution over actions.

    `init` and `apply` are those of Linen; the other three methods are pure functions of outputs and
    read no parameters.
    """

    def init(self, key: Any, observation: Any) -> Any:
        """Draw parameters."""
        ...

    def apply(self, params: Any, observation: Any) -> Any:
        """Outputs for observations of any leading shape."""
        ...

    def sample(self, key: Any, outputs: Any) -> Any:
        """Draw one action for each output."""
        ...

    def log_prob(self, outputs: Any, actions: Any) -> Any:
        """Log-probability (or density) of actions."""
        ...

    def entropy(self, outputs: Any) -> Any:
        """Entropy of each distribution, in nats."""
        ...


def torch_dense(features: int, fan_in: int, name: str) -> nn.Dense:
    """A dense layer, all uniform in +-1/sqrt(fan_in), as PyTorch's default."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name)


def _hidden(x: Any, sizes: Sequence[int], activation: Activation) -> Any:
    for layer, size in enumerate(sizes):
        x = activation(torch_dense(size, x.shape[-1], f"hidden_{layer}")(x))
    return x


def chosen_log_prob(logits: Float[Array, "*b A"], actions: Any) -> Float[Array, "*b"]:
    """Log-probability of one action a distribution."""
    logs = _log_softmax_first(logits)
    numbers = jnp.arange(len(logs)).reshape((-1,) + (1,) * (logs.ndim - 1))
    # A sum with a one-hot mask: its gradient is dense, where a gather's would be a slow scatter.
    return jnp.where(numbers == jnp.asarray(actions), logs, 0).sum(0)


def _log_softmax_first(logits: Any) -> Any:
    """Log-probabilities `[A, *b]`."""
    # Actions are few and episodes many: with actions first, CPUs work on whole vectors.
    return jax.nn.log_softmax(jnp.moveaxis(logits, -1, 0), axis=0)


def sampled_action(key: Key[Array, ""], logits: Float[Array, "*b A"]) -> Int[Array, "*b"]:
    """Draw one action from each categorical distribution."""
    # One uniform number an action; `jax.random.categorical` would draw one for each candidate.
    ends = jnp.cumsum(jax.nn.softmax(jnp.moveaxis(logits, -1, 0), axis=0), axis=0)
    drawn = jax.random.uniform(key, logits.shape[:-1]) * ends[-1]
    return (drawn >= ends[:-1]).sum(0, dtype=jnp.int32)


def logits_entropy(logits: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """Entropy of categorical distributions, nats."""
    logs = _log_softmax_first(logits)
    return -jnp.where(logs > -jnp.inf, jnp.exp(logs) * logs, 0).sum(0)


class CategoricalPolicy(nn.Module):
    r"""Logits of a discrete policy, by tanh layers of 64 and 32 as in the paper's program.

    Attributes:
        num_actions: A.
        hidden: sizes of the hidden layers.
        activation: their activation.

    Source: the official grid worlds of arXiv 2307.13372.
    """

    num_actions: int
    hidden: Sequence[int] = (64, 32)
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, observation: Float[Array, "*b o"]) -> Float[Array, "*b A"]:
        """Logits `[*b, A]`."""
        x = _hidden(observation, self.hidden, self.activation)
        return torch_dense(self.num_actions, x.shape[-1], "logits")(x)

    @nn.nowrap
    def from_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters out of weights by name, as of another program.

        Args:
            weights: `(W [inputs, outputs], b [outputs])` of the layers `"hidden_0"`, ... and
                `"logits"`; transpose those of PyTorch.

        Raises:
            ValueError: if a layer is missing or unknown, a shape does not fit, or a number is not
                finite.
        """
        sizes = {f"hidden_{i}": size for i, size in enumerate(self.hidden)}
        sizes["logits"] = self.num_actions
        if set(weights) != set(sizes):
            raise ValueError(f"weights must be of the layers {list(sizes)}, got {list(weights)}")
        if alone := [name for name, pair in weights.items() if len(pair) != 2]:
            raise ValueError(f"weights of {alone[0]} must be a kernel and a bias, got one array")
        params, inputs = {}, np.shape(weights[next(iter(sizes))][0])[:1]
        for name, size in sizes.items():
            kernel, bias = (jnp.asarray(array, jnp.float32) for array in weights[name])
            for array in (kernel, bias):
                validation.number(f"weights of {name}", array)
            if kernel.shape != (*inputs, size) or bias.shape != (size,):
                raise ValueError(
                    f"weights of {name} must have shapes {(*inputs, size)} and {(size,)}, got "
                    f"{kernel.shape} and {bias.shape}"
                )
            params[name], inputs = {"kernel": kernel, "bias": bias}, (size,)
        return {"params": params}

    sample = staticmethod(sampled_action)
    log_prob = staticmethod(chosen_log_prob)
    entropy = staticmethod(logits_entropy)


class TabularPolicy(nn.Module):
    """One logit for each time, state and action: `features="official_position"`.

    Attributes:
        num_actions: A.
        num_states: n.
        horizon: H; an episode has H - 1 actions.

    Source: arXiv 2307.13372, tabular policies.

    Example:
        >>> policy = TabularPolicy(5, 9, 4)
        >>> params = policy.init(jax.random.key(0), jnp.zeros(2))
        >>> params["params"]["logits"].shape
        (3, 9, 5)
    """

    num_actions: int
    num_states: int
    horizon: int

    @nn.compact
    def __call__(self, observation: Float[Array, "*b 2"]) -> Float[Array, "*b A"]:
        """Logits `[*b, A]` of (state, time)."""
        shape = (self.horizon - 1, self.num_states, self.num_actions)
        logits: Any = self.param("logits", nn.initializers.zeros, shape)
        state, time = observation[..., 0].astype(int), observation[..., 1].astype(int)
        return logits[jnp.minimum(time, self.horizon - 2), state]

    sample = staticmethod(sampled_action)
    log_prob = staticmethod(chosen_log_prob)
    entropy = staticmethod(logits_entropy)


class Gaussian(NamedTuple):
    """Outputs of a Gaussian policy: mean and logarithm of the standard deviation."""

    mean: Float[Array, "*b a"]
    log_std: Float[Array, "*b a"]


class GaussianPolicy(nn.Module):
    r"""A diagonal Gaussian: tanh mean of a ReLU network, one learned log std for each action.

    Attributes:
        action_size: length of an action vector.
        hidden: sizes of the hidden layers.
        initial_log_std: where the log std starts; the paper's program has 0.1.

    Source: the official car and Ant programs of arXiv 2307.13372.

    Example:
        >>> policy = GaussianPolicy(2, hidden=(8,))
        >>> key, observations = jax.random.key(0), jnp.zeros((7, 3))
        >>> jax.eval_shape(policy.init_with_output, key, observations)[0].mean.shape
        (7, 2)
    """

    action_size: int
    hidden: Sequence[int] = (128, 128)
    initial_log_std: float = 0.1

    @nn.compact
    def __call__(self, observation: Float[Array, "*b o"]) -> Gaussian:
        """Mean and log std `[*b, a]`."""
        x = _hidden(observation, self.hidden, nn.relu)
        mean = nn.tanh(torch_dense(self.action_size, x.shape[-1], "mean")(x))
        start = nn.initializers.constant(self.initial_log_std)
        log_std: Any = self.param("log_std", start, (self.action_size,))
        return Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    @nn.nowrap
    def sample(self, key: Key[Array, ""], outputs: Gaussian) -> Float[Array, "*b a"]:
        """Draw actions `[*b, a]`."""
        noise = jax.random.normal(key, outputs.mean.shape)
        return outputs.mean + jnp.exp(outputs.log_std) * noise

    @nn.nowrap
    def log_prob(self, outputs: Gaussian, actions: Any) -> Float[Array, "*b"]:
        """Log-densities `[*b]`."""
        z = (actions - outputs.mean) * jnp.exp(-outputs.log_std)
        return -(0.5 * z**2 + outputs.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    @nn.nowrap
    def entropy(self, outputs: Gaussian) -> Float[Array, "*b"]:
        """Differential entropies `[*b]`, nats."""
        return (outputs.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class Critic(nn.Module):
    """An estimate of the gains to come, for `baseline="critic"`.

    Attributes:
        hidden: sizes of the hidden layers.

    Source: the official car and Ant programs of arXiv 2307.13372.

    Example:
        >>> critic = Critic((8,))
        >>> jax.eval_shape(critic.init_with_output, jax.random.key(0), jnp.zeros((7, 3)))[0].shape
        (7,)
    """

    hidden: Sequence[int] = (64, 32)

    @nn.compact
    def __call__(self, observation: Float[Array, "*b o"]) -> Float[Array, "*b"]:
        """Values `[*b]`, in units of the return scale."""
        x = _hidden(observation, self.hidden, nn.tanh)
        return torch_dense(1, x.shape[-1], "value")(x)[..., 0]


def check_policy(policy: Any, observation: Any, environment: Any) -> None:
    """Raise unless a policy's outputs fit an environment's actions."""
    validation.instance("policy", policy, Policy, "an object with the methods of Policy")

    if isinstance(policy, TabularPolicy):
        has = (environment.features, environment.num_items, environment.horizon)
        if has != (needs := ("official_position", policy.num_states, policy.horizon)):
            raise ValueError(
                "policy of a table must have the features, states and horizon of the environment, "
                f"{has}, got {needs}"
            )

    def act(key):
        outputs: Any = policy.apply(policy.init(key, observation), observation)
        return outputs, policy.sample(key, outputs)

    outputs, action = jax.eval_shape(act, jax.random.key(0))
    if environment.num_actions is None:
        if action.shape != (environment.action_size,):
            raise ValueError(
                "policy must draw vectors of the environment's action_size "
                f"{environment.action_size}, got shape {action.shape}"
            )
        return
    width = outputs.shape[-1] if hasattr(outputs, "shape") and outputs.ndim else None
    if action.shape != () or width != environment.num_actions:
        raise ValueError(
            f"policy must have outputs for the {environment.num_actions} actions of the "
            f"environment, got {width}"
        )
