"""All episodes of a tiny world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import subrl
from jaxkit.subrl import credit


def all_episodes(env):
    """Every sequence of moves as a `Rollout`, every choice of actions, and P(moves | choice).

    Returns:
        The rollout of N episodes whose `actions` are the *chosen* ones, and the chance `[N]` that
        these choices are executed as these moves.
    """
    params = env.default_params.dynamics
    outcomes = np.asarray(env.dynamics.outcomes(params))
    steps = env.horizon - 1
    moves = np.array(list(itertools.product(range(env.num_actions), repeat=steps)))
    sure = subrl.grid_world(
        env.shape,
        env.default_params.set_function,
        horizon=env.horizon,
        start=int(params.start),
        features=env.features,
    )
    executed = subrl.replay(sure, moves)
    if not env.dynamics.slips:
        return executed, np.ones(len(moves))
    index, choice = np.divmod(np.arange(len(moves) ** 2), len(moves))
    chosen = moves[choice]
    chance = outcomes[chosen, moves[index]].prod(1)
    episodes = jax.tree.map(lambda x: x[index], executed)
    return episodes._replace(actions=jnp.asarray(chosen)), chance


def expected_estimates(env, policy, params, credits):
    """Expectation of the estimator, summed over steps, by enumeration.

    Args:
        env: a tiny world.
        policy: its policy.
        params: its parameters.
        credits: by name, functions from a rollout to credits `[N, T]`.

    Returns:
        By name, the expected gradient for the logits.
    """
    episodes, chance = all_episodes(env)

    @jax.jit
    def gradients(params, episodes, chance):
        log_prob = policy.log_prob(policy.apply(params, episodes.observations), episodes.actions)
        weight = jnp.exp(log_prob.sum(1)) * chance * log_prob.size

        def estimate(signal):
            advantages = signal * weight[:, None]
            return jax.grad(lambda p: -credit.subpo_loss(p, policy, episodes, advantages)[0])(
                params
            )

        stacked = jnp.stack([signal(episodes) for signal in credits.values()])
        return jax.vmap(estimate)(stacked)["params"]["logits"]

    return dict(
        zip(credits, np.asarray(gradients(params, episodes, jnp.asarray(chance))), strict=True)
    )
