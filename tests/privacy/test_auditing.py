"""Audits: the correct algorithm passes, each planted fault is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import privacy
from jaxkit.privacy import noise

STEPS, PHASE, RUNS = 12, 4, 3000
CLAIM = {
    "anchor": 4.0, "variation": 6.0, "clip": 1.0, "smoothness": 0.25, "period": STEPS, "every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def audit():
    """Audit SpiderBoost on 5 rows, the first of which comes and goes, in one compiled program.

    The canary's gradient is long (norm about 5) and changes fast, so that clips matter.
    """
    x = jnp.array([[6.0, 8.0], [0.6, 0.8], [-0.8, 0.6], [0.3, -0.4], [0.1, 0.9]])
    data = x, jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])
    canary = jnp.array([True, False, False, False, False])
    five = privacy.full_batches(5)

    def planned(real):
        return privacy.spiderboost(
            privacy.glm_clipped_grad_sum(privacy.logistic_loss, real["clip"]),
            five,
            five,
            num_steps=STEPS,
            phase_length=PHASE,
            difference_clip=real["smoothness"],
            # Noise as claimed, unless a fault makes it smaller.
            noise_multipliers=(
                real["anchor"] / real["clip"],
                real["variation"] * 0.25 / real["smoothness"],
            ),
            delta=1e-5,
            draw_normals=lambda key, index, like: noise.gaussian_draw(
                key, (index // real["every"]) % real["period"], like
            ),
        )

    claim = planned(CLAIM)

    @jax.jit
    def scores(real, keys):
        def score(present, key):
            return privacy.spiderboost_scores(
                planned(real), jnp.zeros(2), data, canary, present, key, learning_rate=0.02,
                claim=claim,
            )  # fmt: skip

        present = jnp.arange(2 * RUNS) >= RUNS
        return jax.vmap(score)(present, keys)

    def run(**faults):
        drawn, noises = scores(CLAIM | faults, jax.random.split(jax.random.key(0), 2 * RUNS))
        verdict = privacy.audit_llr(drawn[:RUNS], drawn[RUNS:], claim.mechanism.gaussian)
        return verdict, privacy.audit_noise(np.moveaxis(noises, 0, 1)[:, :200])

    return run


def test_the_correct_algorithm_passes_and_uses_most_of_its_allowance(audit):
    result, fresh = audit()
    assert result.passed
    assert fresh.passed
    # The canary's clips bind, so the attack is nearly as strong as the claim allows.
    assert result.claimed * 0.7 < result.measured < result.claimed * 1.2


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"anchor": 2.0, "variation": 3.0}, id="halved noise"),
        pytest.param({"clip": 5.0}, id="missing clip"),
        pytest.param({"smoothness": 10.0}, id="missing difference clip"),
        pytest.param({"anchor": 4.0 / PHASE**0.5}, id="sqrt(T)/(q n) in sigma_1"),
    ],
)
def test_planted_faults_are_flagged(audit, faults):
    result, _ = audit(**faults)
    assert not result.passed
    assert result.lower > result.claimed


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"period": 1}, id="the same in every step"),
        pytest.param({"period": PHASE}, id="the same in every phase"),
        pytest.param({"every": PHASE}, id="one draw for a phase"),
        pytest.param({"variation": 3.0}, id="halved on variations"),
    ],
)
def test_noise_that_the_estimator_uses_again_is_flagged_by_its_residuals(audit, faults):
    assert not audit(**faults)[1].passed


def test_halved_noise_quadruples_the_separation(audit):
    ratio = audit(anchor=2.0, variation=3.0)[0].measured / audit()[0].measured
    assert 3.2 < ratio < 4.8


def test_audit_of_scores_without_noise_needs_no_statistics():
    apart = privacy.audit_llr(np.zeros(30), np.ones(30), 1.0)
    assert not apart.passed
    together = privacy.audit_llr(np.zeros(30), np.zeros(30), 1.0)
    assert together.passed


def test_scores_take_parameters_of_a_narrow_type():
    two, gradient = (
        privacy.full_batches(2), privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0),
    )  # fmt: skip
    plan = privacy.spiderboost(
        gradient, two, two, num_steps=3, phase_length=2, difference_clip=0.25,
        noise_multipliers=(1.0, 1.0), delta=1e-5,
    )  # fmt: skip
    data = jnp.ones((2, 1), jnp.bfloat16), jnp.ones(2, jnp.bfloat16)

    def scores(key):
        first = jnp.array([True, False])
        return privacy.spiderboost_scores(
            plan, jnp.zeros(1, jnp.bfloat16), data, first, True, key, learning_rate=0.1
        )

    assert jax.eval_shape(scores, jax.random.key(0))[1].dtype == jnp.float32


FRESH = {"a": (40,), "b": (40,), "c": (3, 20)}


def draws(source, run, steps=range(12), **shapes):
    """Noise of a run as `privatize_sum` draws it, each step from a key of the source."""
    like = {name: jnp.zeros(shape) for name, shape in (shapes or FRESH).items()}
    taken = [noise.gaussian_draw(source.key("noise", run, step), 0, like) for step in steps]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *taken)


def test_noise_of_the_library_is_fresh_over_steps_runs_and_resumes(tmp_path):
    secret = {"path": tmp_path / "noise.secret", "data": np.zeros(3)}
    source = privacy.NoiseSource.stored(**secret, fresh=True)
    parts = [draws(source, "one", range(6)), draws(source, "two")]
    resumed = privacy.NoiseSource.stored(**secret, fresh=False)
    parts.append(draws(resumed, "one", range(6, 12)))
    parts.append(draws(privacy.NoiseSource.from_os(), "one"))
    audit = privacy.audit_noise(jax.tree.map(lambda *x: np.concatenate(x), *parts))
    assert audit.passed, audit
    tree = noise.privatize_tree_sum(1.0, 1, 4, jax.random.key(0))
    assert tree.init(None)._fields == ("step",)


def mixed(shared, fresh, weight):
    return jax.tree.map(lambda s, f: np.sqrt(weight) * s + np.sqrt(1 - weight) * f, shared, fresh)


def each(change):
    return lambda x, y: jax.tree.map(change, x)


REUSED = {
    "the same in every step": each(lambda a: np.repeat(a[:1], 12, 0)),
    "the same in every third step": each(lambda a: a[np.arange(12) % 3]),
    "one step again after a resume": each(lambda a: a[[*range(11), 3]]),
    "one key for equal arrays": lambda x, y: x | {"b": x["a"]},
    "one key for arrays of other shapes": lambda x, y: x | {"c": np.append(x["a"], y["a"], 1)},
    "one draw twice in an array": lambda x, y: x | {"c": np.append(x["a"], x["a"], 1)},
    "an array's in another's next step": lambda x, y: x | {"b": np.roll(x["a"], 1, 0)},
    "the end of a longer array": lambda x, y: x | {"a": x["c"].reshape(12, 60)[:, -40:]},
    "half the noise": each(lambda a: a / 2),
    "noise twice": each(lambda a: a * 2**0.5),
    "none": each(lambda a: a * 0),
    "none on one array": lambda x, y: x | {"a": x["a"] * 0},
    "none in one step": each(lambda a: a * (np.arange(12) != 5).reshape(12, *(1,) * (a.ndim - 1))),
    "negated in the next step": each(
        lambda a: np.stack([a[t // 2 * 2] * (-1) ** t for t in range(12)])
    ),
    "half shared by all steps": lambda x, y: mixed(jax.tree.map(lambda a: a[:1], y), x, 0.5),
}


@pytest.fixture(scope="module")
def sound_and_other():
    return [draws(privacy.NoiseSource.public(seed), "run") for seed in (0, 1)]


@pytest.mark.parametrize("fault", REUSED)
def test_noise_that_is_used_again_or_too_small_is_flagged(sound_and_other, fault):
    sound, other = sound_and_other
    assert privacy.audit_noise(sound).passed
    assert not privacy.audit_noise(REUSED[fault](sound, other)).passed


def test_clients_that_draw_the_same_noise_are_flagged():
    clients = draws(privacy.NoiseSource.public(0), "clients")
    assert privacy.audit_noise(clients).passed
    clients["a"][7] = clients["a"][2]
    assert not privacy.audit_noise(clients).passed
