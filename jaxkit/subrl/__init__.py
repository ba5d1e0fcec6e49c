"""Submodular reinforcement learning: policies for rewards with diminishing returns.

How to choose: make a world (`two_rooms_world`, `coverage_world` with `gp_weights`,
`density_weights` or a map of your own, `item_world`, `design_world`, `car_world`,
`point_mass_world`, `ant_world`; or `named_world`; or your own dynamics and any set function of
`jaxkit.submodular` by `make_environment`), a policy (`CategoricalPolicy`, `GaussianPolicy`,
`TabularPolicy`, or any Flax module with their methods) and `make_training(world, policy,
optax.adam(...))`. Its `run` is a whole training in one program, to `jit` and to `vmap` over seeds
or over params of the world; `fit` runs it in chunks with progress, metrics and checkpoints.
`features="position"` makes a Markovian policy (SubPO-M): start there; `"visited"` adds memory
(SubPO-NM), needed where what to do depends on what has been done (two rooms). `objective="modular"`
is the additive baseline ModPO. The default credit, `"to_go"` with the mean of the batch as
baseline, follows the gradient of the objective; `"one_step"` and `"prefix"` (what the published
grid-world program computes) do not. Compare with `greedy_plan`, `beam_plan`, `modular_plan` and, on
tiny worlds, `exhaustive_plan`, `expectimax_value` and `exact_value`, which `jax.grad`
differentiates exactly.
Sharp edges: the horizon H counts *states*, so an episode has H - 1 actions, and s_0 is in the set;
covered squares lie to the lower right of a state; raw state numbers as features (`"official_..."`)
saturate a network and are there to compare; in `design_world` a second visit is a second
measurement and earns something; the mean of the batch contains the sample itself, a bias of 1/B
(`"leave_one_out"` has none); nothing can tell in general that a set function is submodular: ask
`submodular.check_submodular`. The room's set functions follow `submodular.SetFunction`.
"""

from jaxkit.intervals import mean_interval
from jaxkit.subrl.ant import ant_world
from jaxkit.subrl.bandits import (
    bandit_objective,
    bandit_optimum,
    frank_wolfe,
    projected_gradient,
)
from jaxkit.subrl.car import (
    CarDynamics,
    CarParams,
    CarState,
    car_derivative,
    car_step,
    car_world,
    track_curvature,
)
from jaxkit.subrl.cells import CellCoverage, cell_coverage, item_collection
from jaxkit.subrl.credit import (
    BASELINES,
    SIGNALS,
    centre_over_batch,
    generalised_advantage,
    leave_one_out,
    prefix_value,
    reward_to_go,
    total_value,
)
from jaxkit.subrl.curvatures import curvature, modular_guarantee
from jaxkit.subrl.environments import (
    Dynamics,
    Params,
    State,
    Step,
    SubmodularEnvironment,
    make_environment,
)
from jaxkit.subrl.features import FEATURES
from jaxkit.subrl.fields import (
    bimodal_weights,
    density_weights,
    gp_weights,
    grid_points,
    matern52,
    posterior_covariance,
    random_groups,
    random_posterior,
)
from jaxkit.subrl.figures import draw_curves, draw_paths, paths_figure
from jaxkit.subrl.fitting import Fitted, fit
from jaxkit.subrl.grids import MOVES, grid_blocks, grid_dynamics, grid_moves, two_rooms
from jaxkit.subrl.information import (
    OFFICIAL_NOISE,
    OFFICIAL_OFFSET,
    Measurements,
    measurements,
)
from jaxkit.subrl.losses import LossParts, clipped_loss, subpo_loss
from jaxkit.subrl.occupancy import OccupancyDynamics, occupancy_world, point_mass_world
from jaxkit.subrl.planning import (
    ModularPlan,
    Plan,
    beam_plan,
    follow,
    follow_policy,
    greedy_plan,
    modular_plan,
)
from jaxkit.subrl.policies import (
    CategoricalPolicy,
    Critic,
    Gaussian,
    GaussianPolicy,
    Policy,
    TabularPolicy,
)
from jaxkit.subrl.rollouts import Decisions, Rollout, policy_act, rollout
from jaxkit.subrl.subpo import OBJECTIVES, EpochMetrics, Training, make_training, subpo_optimizer
from jaxkit.subrl.tables import Move, TableDynamics, matrix_dynamics, table_dynamics
from jaxkit.subrl.trees import (
    MoveTree,
    exact_value,
    exhaustive_plan,
    expectimax_value,
    move_tree,
    tabular_probabilities,
)
from jaxkit.subrl.worlds import (
    WORLDS,
    coverage_world,
    design_world,
    grid_world,
    item_world,
    named_world,
    two_rooms_world,
)

__all__ = [
    "BASELINES",
    "FEATURES",
    "MOVES",
    "OBJECTIVES",
    "OFFICIAL_NOISE",
    "OFFICIAL_OFFSET",
    "SIGNALS",
    "WORLDS",
    "CarDynamics",
    "CarParams",
    "CarState",
    "CategoricalPolicy",
    "CellCoverage",
    "Critic",
    "Decisions",
    "Dynamics",
    "EpochMetrics",
    "Fitted",
    "Gaussian",
    "GaussianPolicy",
    "LossParts",
    "Measurements",
    "ModularPlan",
    "Move",
    "MoveTree",
    "OccupancyDynamics",
    "Params",
    "Plan",
    "Policy",
    "Rollout",
    "State",
    "Step",
    "SubmodularEnvironment",
    "TableDynamics",
    "TabularPolicy",
    "Training",
    "ant_world",
    "bandit_objective",
    "bandit_optimum",
    "beam_plan",
    "bimodal_weights",
    "car_derivative",
    "car_step",
    "car_world",
    "cell_coverage",
    "centre_over_batch",
    "clipped_loss",
    "coverage_world",
    "curvature",
    "density_weights",
    "design_world",
    "draw_curves",
    "draw_paths",
    "exact_value",
    "exhaustive_plan",
    "expectimax_value",
    "fit",
    "follow",
    "follow_policy",
    "frank_wolfe",
    "generalised_advantage",
    "gp_weights",
    "greedy_plan",
    "grid_blocks",
    "grid_dynamics",
    "grid_moves",
    "grid_points",
    "grid_world",
    "item_collection",
    "item_world",
    "leave_one_out",
    "make_environment",
    "make_training",
    "matern52",
    "matrix_dynamics",
    "mean_interval",
    "measurements",
    "modular_guarantee",
    "modular_plan",
    "move_tree",
    "named_world",
    "occupancy_world",
    "paths_figure",
    "point_mass_world",
    "policy_act",
    "posterior_covariance",
    "prefix_value",
    "projected_gradient",
    "random_groups",
    "random_posterior",
    "reward_to_go",
    "rollout",
    "subpo_loss",
    "subpo_optimizer",
    "table_dynamics",
    "tabular_probabilities",
    "total_value",
    "track_curvature",
    "two_rooms",
    "two_rooms_world",
]
