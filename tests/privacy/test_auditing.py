"""Audits: the correct algorithm passes, each planted fault is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import privacy
from jaxkit.privacy import mechanisms

STEPS, PHASE, RUNS = 12, 4, 3000
CLAIM = {"anchor": 4.0, "variation": 6.0, "clip": 1.0, "smoothness": 0.25}


@pytest.fixture(scope="module")
def audit():
    """Audit SpiderBoost on 5 rows, the first of which comes and goes, in one compiled program.

    The canary's gradient is long (norm about 5) and changes fast, so that clips matter.
    """
    x = jnp.array([[6.0, 8.0], [0.6, 0.8], [-0.8, 0.6], [0.3, -0.4], [0.1, 0.9]])
    data = x, jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])
    canary = jnp.array([True, False, False, False, False])

    @jax.jit
    def scores(real, keys):
        gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, real["clip"])
        estimator = privacy.spiderboost(
            gradient,
            difference_clip=real["smoothness"],
            # Noise as claimed, unless a fault makes it smaller.
            anchor_noise_multiplier=real["anchor"] / real["clip"],
            variation_noise_multiplier=real["variation"] * 0.25 / real["smoothness"],
            anchor_size=5,
            variation_size=5,
        )

        def score(present, key):
            return privacy.spiderboost_scores(
                estimator,
                jnp.zeros(2),
                data,
                canary,
                present,
                key,
                num_steps=STEPS,
                phase_length=PHASE,
                learning_rate=0.02,
                clip_norm=1.0,
                difference_clip=0.25,
                anchor_noise_multiplier=4.0,
                variation_noise_multiplier=6.0,
                anchor_size=5,
                variation_size=5,
            )

        present = jnp.arange(2 * RUNS) >= RUNS
        return jax.vmap(score)(present, keys)

    mechanism = mechanisms.spiderboost_mechanism(
        privacy.full_batches(5),
        privacy.full_batches(5),
        4.0,
        6.0,
        num_steps=STEPS,
        phase_length=PHASE,
    )

    def run(**faults):
        drawn = scores(CLAIM | faults, jax.random.split(jax.random.key(0), 2 * RUNS))
        return privacy.audit_llr(drawn[:RUNS], drawn[RUNS:], mechanism.gaussian)

    return run


def test_the_correct_algorithm_passes_and_uses_most_of_its_allowance(audit):
    result = audit()
    assert result.passed
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
    result = audit(**faults)
    assert not result.passed
    assert result.lower > result.claimed


def test_halved_noise_quadruples_the_separation(audit):
    ratio = audit(anchor=2.0, variation=3.0).measured / audit().measured
    assert 3.2 < ratio < 4.8


def test_audit_of_scores_without_noise_needs_no_statistics():
    apart = privacy.audit_llr(np.zeros(30), np.ones(30), 1.0)
    assert not apart.passed
    together = privacy.audit_llr(np.zeros(30), np.zeros(30), 1.0)
    assert together.passed
