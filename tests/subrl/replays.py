"""Episodes with given actions, and all episodes of a tiny world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import subrl


def replay(env, actions):
    """A `Rollout` of given actions `[B, T]`, through the environment's own steps."""
    f = env.default_params.set_function
    alone = f.gains(f.init())

    def episode(actions):
        observation, state = env.reset(jax.random.key(0))

        def step(carry, action):
            observation, state = carry
            taken = env.step_env(jax.random.key(0), state, action)
            record = (observation, taken.reward, taken.info["element"])
            return (taken.observation, taken.state), record

        _, (seen, gains, later) = jax.lax.scan(step, (observation, state), actions)
        elements = jnp.concatenate([state.position[None], later])
        return seen, gains, elements

    seen, gains, elements = jax.jit(jax.vmap(episode))(jnp.asarray(actions))
    return subrl.Rollout(
        seen,
        jnp.asarray(actions),
        gains,
        alone[elements[:, 1:]],
        alone[elements[:, 0]],
        elements,
        jnp.ones(gains.shape, bool),
    )


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
    executed = replay(sure, moves)
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

        def estimate(credit):
            advantages = credit * weight[:, None]
            return jax.grad(lambda p: -subrl.subpo_loss(p, policy, episodes, advantages)[0])(params)

        stacked = jnp.stack([credit(episodes) for credit in credits.values()])
        return jax.vmap(estimate)(stacked)["params"]["logits"]

    return dict(
        zip(credits, np.asarray(gradients(params, episodes, jnp.asarray(chance))), strict=True)
    )
