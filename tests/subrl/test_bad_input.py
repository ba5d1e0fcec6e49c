"""Every faulty argument is refused where it enters, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import submodular, subrl
from jaxkit.subrl import cells, tables

pytestmark = pytest.mark.usefixtures("bad_input")


def _world(**options):
    return subrl.coverage_world((3, 3), **{"horizon": 4, "start": 0, **options})


def _training(policy=None, **options):
    plain = {name: options.pop(name) for name in ("batch_size", "slices") if name in options}
    estimator = subrl.Estimator(**options)
    return subrl.make_training(_world(), policy or _Right(), optax.sgd(0.1), estimator, **plain)


class _Right:
    """A policy without parameters, so that these tests compile nothing."""

    width = 5

    def init(self, key, observation):
        return {}

    def apply(self, params, observation):
        return jnp.zeros((*observation.shape[:-1], self.width))

    def sample(self, key, outputs):
        return jnp.ones(outputs.shape[:-1], int)

    def log_prob(self, outputs, actions):
        return jnp.zeros(outputs.shape[:-1])

    def entropy(self, outputs):
        return jnp.zeros(outputs.shape[:-1])


class _Narrow(_Right):
    width = 4


WEIGHTS = np.ones(9)
CASES = {
    "horizon": (lambda: _world(horizon=1), r"horizon must be an integer >= 2, got 1"),
    "start outside": (lambda: _world(start=9), r"start must be one of the states 0 .. 8, got 9"),
    "start in wall": (
        lambda: subrl.two_rooms_world(start=4),
        r"start must be a free cell, got 4 in the wall at row 0, column 4",
    ),
    "weights length": (lambda: _world(weights=np.ones(8)), r"the 9 cells of shape \(3, 3\), got"),
    "weights sign": (lambda: _world(weights=-WEIGHTS), r"weights must be finite and in \[0"),
    "weights nan": (lambda: _world(weights=np.nan * WEIGHTS), r"weights must be finite"),
    "block": (lambda: _world(block=0), r"block must be an integer >= 1, got 0"),
    "slip": (lambda: _world(slip=1.5), r"slip must be finite and in \[0, 1\], got 1.5"),
    "features": (lambda: _world(features="visted"), r"did you mean 'visited'"),
    "shape": (lambda: subrl.coverage_world((3, 0)), r"shape must be an integer >= 1, got 0"),
    "caps sign": (
        lambda: cells.item_collection([(0,)], jnp.array([-1.0]), 3),
        r"caps must be finite and in \[0",
    ),
    "caps count": (
        lambda: cells.item_collection([(0,), (1,)], jnp.array([1.0]), 3),
        r"caps must be one number for each of the 2 groups, got shape \(1,\)",
    ),
    "items outside": (
        lambda: cells.item_collection([(0,), (3,)], jnp.ones(2), 3),
        r"groups must hold states 0 .. 2, got 3 in group 1",
    ),
    "items shared": (
        lambda: cells.item_collection([(0,), (0,)], jnp.ones(2), 3),
        r"disjoint unless shared=True, got state 0 in groups 0 and 1",
    ),
    "covariance shape": (
        lambda: subrl.design_world(np.eye(3), (2, 2), start=0),
        r"covariance must be \[n, n\] with n = 4 cells, got shape \(3, 3\)",
    ),
    "covariance symmetry": (
        lambda: subrl.measurements(np.array([[1.0, 0.5], [0.0, 1.0]]), max_size=2),
        r"kernel must be symmetric, got entries that differ from the transpose by 0.5",
    ),
    "covariance psd": (
        lambda: subrl.measurements(np.array([[1.0, 2.0], [2.0, 1.0]]), max_size=2),
        r"kernel must be positive semi-definite, got smallest eigenvalue -1",
    ),
    "noise": (
        lambda: subrl.measurements(np.eye(2), 0.0, max_size=2),
        r"noise_variance must be finite and in \(0, inf\), got 0.0",
    ),
    "table entry": (
        lambda: subrl.table_dynamics([[0, 2], [1, 0]]),
        r"next_state must hold states 0 .. 1, got 2 at state 0, action 1",
    ),
    "action": (
        lambda: _world().step_env(jax.random.key(0), None, 5),
        r"action must be in 0 .. 4, got 5",
    ),
    "set function items": (
        lambda: subrl.grid_world((3, 3), submodular.modular(jnp.ones(4)), start=0),
        r"set_function must have one item for each of the 9 states, got 4",
    ),
    "exhaustive": (
        lambda: subrl.exhaustive_plan(_world(horizon=40)),
        r"5\^39 = \d+ sequences, more than limit = 200000",
    ),
    "greedy with slip": (
        lambda: subrl.greedy_plan(_world(slip=0.1)),
        r"environment must have moves by a table without slip for greedy_plan",
    ),
    "batch": (lambda: _training(batch_size=0), r"batch_size must be an integer >= 1, got 0"),
    "batch of one": (
        lambda: _training(batch_size=1),
        r"batch_size must be >= 2 for baseline 'batch_mean', got 1",
    ),
    "slices": (
        lambda: _training(slices=10_007),
        r"slices must divide the \d+ decisions of a step, got 10007",
    ),
    "signal": (lambda: _training(signal="togo"), r"signal must be .* did you mean 'to_go'"),
    "baseline": (lambda: _training(baseline="mean"), r"baseline must be one of 'batch_mean'"),
    "objective": (lambda: _training(objective="modlar"), r"did you mean 'modular'"),
    "discount": (lambda: _training(discount=1.1), r"discount must be finite and in \[0, 1\]"),
    "passes": (lambda: _training(passes=2), r"passes must be 1 without clip_ratio, got 2"),
    "width": (
        lambda: _training(policy=_Narrow()),
        r"policy must have outputs for the 5 actions of the environment, got 4",
    ),
    "world": (lambda: subrl.named_world("two-room"), r"did you mean 'two-rooms'"),
    "track": (lambda: subrl.car_world(half_width=2.0), r"half_width must be below the smallest"),
    "bins": (lambda: subrl.car_world(num_bins=500), r"num_bins must leave parts of at least"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_faulty_argument_is_named(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_policy_or_set_function_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"policy must be an object .* of Policy, got int"):
        _training(policy=3)
    dynamics, numbers = subrl.table_dynamics([[0]])
    with pytest.raises(TypeError, match="set_function must have the methods of"):
        subrl.make_environment(dynamics, numbers, lambda s: 0, horizon=2)


class _Line:
    """Dynamics that a user wrote, complete."""

    num_actions, action_size, terminates = 2, None, False

    def start(self, key, params):
        return jnp.zeros((), jnp.int32)

    def move(self, key, position, action, params):
        return tables.Move(position + action, jnp.zeros(()), jnp.zeros((), bool))

    def element(self, position, params):
        return position

    def features(self, position, params):
        return position[None].astype(jnp.float32)


def test_dynamics_of_a_user_are_checked_when_a_world_is_made():
    def world(**changes):
        changed = type("Changed", (_Line,), changes)
        return subrl.make_environment(changed(), (), submodular.modular(jnp.ones(9)), horizon=4)

    assert subrl.replay(world(), [[1, 1, 0]]).values.tolist() == [3.0]
    with pytest.raises(ValueError, match=r"no num_states and no expect and no start"):
        subrl.modular_plan(world())
    narrow = {"num_states": 9, "expect": lambda self, values, params: jnp.zeros((3, 2))}
    with pytest.raises(ValueError, match=r"got no start"):
        subrl.modular_plan(world(**narrow))
    _, numbers = subrl.table_dynamics(np.zeros((9, 2), int))
    f = submodular.modular(jnp.ones(9))
    with pytest.raises(ValueError, match=r"expect must give shape \(9, 2\), got \(3, 2\)"):
        subrl.modular_plan(
            subrl.make_environment(type("Narrow", (_Line,), narrow)(), numbers, f, horizon=4)
        )
    half = type("Half", (), {"num_actions": 2, "start": _Line.start, "move": _Line.move})
    with pytest.raises(TypeError, match="Half has no action_size, terminates, element, features"):
        subrl.make_environment(half(), (), submodular.modular(jnp.ones(9)), horizon=4)
    with pytest.raises(ValueError, match="either num_actions or action_size"):
        world(action_size=3)
    with pytest.raises(TypeError, match="one step of Changed fails"):
        world(move=lambda self, key, position, action, params: position)
    with pytest.raises(TypeError, match="shapes and types of the start"):
        world(start=lambda self, key, params: jnp.zeros((), jnp.int8))
    with pytest.raises(TypeError, match="element must be one integer, got int32 of shape"):
        world(element=lambda self, position, params: position[None])
    with pytest.raises(ValueError, match="num_actions of the dynamics must be an integer >= 1"):
        world(num_actions=0)


def test_dynamics_that_break_their_word_give_nan_and_never_another_items_gain():
    def value(**changes):
        changed = type("Changed", (_Line,), changes)
        f = submodular.modular(jnp.ones(3))
        world = subrl.make_environment(changed(), (), f, horizon=4)
        return float(subrl.replay(world, [[1, 1, 0]]).values[0])

    ended = tables.Move(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    assert value() == 3.0
    assert np.isnan(value(element=lambda self, position, params: position + 1))
    assert np.isnan(value(element=lambda self, position, params: position + 9))
    assert np.isnan(value(element=lambda self, position, params: position - 1))
    assert np.isnan(value(move=lambda self, *_: ended))
    assert value(terminates=True, element=lambda self, position, params: position - 1) == 2.0


def test_an_episode_that_starts_outside_the_items_has_earned_nothing():
    class Outside(_Line):
        terminates = True

        def element(self, position, params):
            return position - 1

    f = submodular.modular(jnp.ones(5))
    world = subrl.make_environment(Outside(), (), f, horizon=4, features="visited")
    played = subrl.replay(world, [[0, 0, 0], [1, 1, 0]])
    assert played.first.tolist() == [0.0, 0.0]
    assert played.values.tolist() == [0.0, 2.0]
    assert played.modular_values.tolist() == [0.0, 3.0]
    assert not played.observations[0, :, 2:].any()


def test_a_neighbours_environment_without_a_part_is_refused():
    with pytest.raises(TypeError, match="got no reset_env, step_env, num_actions"):
        subrl.gymnax_world(object(), submodular.modular(jnp.ones(3)), lambda state: state)


@pytest.mark.parametrize(
    ("features", "num_states", "horizon"),
    [("position", 9, 4), ("official_position", 4, 4), ("official_position", 9, 3)],
)
def test_a_table_of_another_world_is_refused(features, num_states, horizon):
    policy = subrl.TabularPolicy(5, num_states, horizon)
    with pytest.raises(ValueError, match="must have the features, states and horizon"):
        subrl.make_training(_world(features=features), policy, optax.sgd(0.1))


def test_given_actions_and_weights_that_do_not_fit_are_named():
    for actions, message in (
        ([[1, 2]], r"actions must have shape \[B, 3\], got \(1, 2\)"),
        ([[1, 2, 5]], "actions must be in 0 .. 4, got 5"),
        ([[1.0, 2.0, 3.0]], "actions must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            subrl.replay(_world(), actions)
    policy = subrl.CategoricalPolicy(5, hidden=(3,))
    with pytest.raises(ValueError, match="weights must be of the layers"):
        policy.from_weights({"logits": (jnp.ones((3, 5)), jnp.ones(5))})
    with pytest.raises(ValueError, match="weights of logits must have shapes"):
        policy.from_weights(
            {
                "hidden_0": (jnp.ones((2, 3)), jnp.ones(3)),
                "logits": (jnp.ones((4, 5)), jnp.ones(5)),
            }
        )
    for logits, message in (
        (jnp.ones((3, 5)), "weights of logits must be a kernel and a bias"),
        ((jnp.full((3, 5), jnp.nan), jnp.ones(5)), "weights of logits must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.from_weights({"hidden_0": (jnp.ones((2, 3)), jnp.ones(3)), "logits": logits})


def test_shared_items_are_allowed_if_said_so():
    f = cells.item_collection([(0, 1), (0,)], jnp.ones(2), 2, shared=True)
    assert f.gains(f.init()).tolist() == [2.0, 1.0]


def test_what_make_training_cannot_use_is_refused_by_name():
    world, policy, sgd = _world(), _Right(), optax.sgd(0.1)
    for name, arguments in (
        ("environment", ("two-rooms", policy, sgd)),
        ("optimizer", (world, policy, "adam")),
        ("estimator", (world, policy, sgd, "modular")),
        ("policy", (world, subrl.CategoricalPolicy, sgd)),
    ):
        with pytest.raises(TypeError, match=f"{name} must be an .*, got"):
            subrl.make_training(*arguments)
    with pytest.raises(TypeError, match="environment must be a world, got str"):
        subrl.greedy_plan("two-rooms")
    with pytest.raises(ValueError, match=r"weights must be a vector, .* got shape \(3, 3\)"):
        _world(weights=np.ones((3, 3)))
    with pytest.raises(ValueError, match="next_state must be an array, got rows of different"):
        subrl.table_dynamics([[0, 1], [0]])
