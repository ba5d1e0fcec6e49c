"""The experiment: its claims hold, and its model is where the room meets a real text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import models, width
from jaxkit.experiments import character_blocks, width_llama
from jaxkit.experiments import width as experiment
from jaxkit.width import paths


@pytest.mark.slow
def test_noise_experiment_shares_its_base_between_rules():
    values = experiment.noise_singular_values((64, 128), (0,), experiment.Noise(num_steps=3))
    assert len({values[rule][0, 0] for rule in experiment.RULES}) == 1
    assert all(values[rule].shape == (1, 2) for rule in experiment.RULES)


@pytest.mark.slow
def test_character_model_starts_at_the_uniform_loss_and_learns():
    text = character_blocks.prose()
    short, longer = (
        character_blocks.train(text, 32, "robust", num_steps=steps) for steps in (1, 60)
    )
    uniform = float(jnp.log(text.vocab_size))
    assert float(short.loss) == pytest.approx(uniform, rel=0.05)
    assert float(longer.loss) < 0.85 * uniform


@pytest.mark.parametrize("target", [(8, 32), (2, 128)])
def test_language_model_parameters_have_the_roles_of_its_architecture(target):
    def params(d, heads, head_dim):
        config = models.DecoderConfig(
            vocab_size=96, d_model=d, num_heads=heads, head_dim=head_dim, d_ff=4 * d, num_layers=2
        )
        tokens = jnp.zeros((1, 8), jnp.int32)
        return jax.eval_shape(models.DecoderLM(config).init, jax.random.key(0), tokens)

    scaling = width.width_scaling(params(64, 2, 32), params(256, *target))
    matrices = {
        path.split("/")[-1]: info.width_mult
        for path, info in paths.named_leaves(scaling.info).items()
        if info.role == "matrix"
    }
    assert matrices == dict.fromkeys(("query", "key", "value", "out", "up", "down"), 4.0)


@pytest.mark.slow
def test_quick_experiment_finds_every_claim():
    evidence = experiment.run(quick=True)
    assert evidence.holds, [claim for claim in evidence.claims if claim.verdict == "not shown"]
    assert set(evidence.figures) == {"width_singular_values", "width_gains"}


@pytest.mark.slow
def test_the_llama_style_proxy_learns_and_only_its_matrices_feel_the_rule():
    sizes = width_llama.Sizes(32, 64, 1, 40)
    run = functools.partial(width_llama.train, 2.0**-6, 3.0, sizes=sizes, seed=0)
    base = run(d=32, rule="robust")
    np.testing.assert_array_equal(base.sigma, run(d=32, rule="mup_independent").sigma)
    weak, strong = (run(d=64, rule=rule) for rule in ("mup_fixed", "mup_independent"))
    assert (strong.sigma < weak.sigma).all()
    uniform = float(jnp.log(character_blocks.prose().vocab_size))
    assert max(float(one.loss) for one in (base, weak, strong)) < 0.8 * uniform
