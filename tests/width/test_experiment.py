"""The experiment: its claims hold, and its model is where the room meets a real text."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxkit import models, width
from jaxkit.experiments import character_blocks, width_llama
from jaxkit.experiments import width as experiment
from jaxkit.width import paths


def test_rules_share_what_is_measured_at_the_base():
    asked = []

    def measure(d, rule, seed):
        asked.append((d, rule, seed))
        return {"loss": 10 * d + len(rule) + 100 * seed}

    found = experiment.by_rule(measure, ("a", "bb"), (1, 2), (0, 1))
    assert found["a"]["loss"].tolist() == [[11, 21], [111, 121]]
    assert found["bb"]["loss"].tolist() == [[11, 22], [111, 122]]
    assert sum(d == 1 for d, *_ in asked) == 2


@pytest.mark.slow
def test_character_model_starts_at_the_uniform_loss_and_learns():
    text = character_blocks.prose()
    fresh = character_blocks.init(jax.random.key(0), 32, text.vocab_size)
    logits, _ = character_blocks.apply(fresh, text.validation[None, : character_blocks.CONTEXT])
    assert not logits.any()
    trained = character_blocks.train(text, 32, "robust", num_steps=60)
    assert float(trained.loss) < 0.85 * float(jnp.log(text.vocab_size))


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
@pytest.mark.claims
def test_quick_experiment_finds_every_claim():
    evidence = experiment.run(quick=True)
    assert evidence.holds, [claim for claim in evidence.claims if claim.verdict == "not shown"]
    assert set(evidence.figures) == {"width_singular_values", "width_gains"}


@pytest.mark.slow
def test_the_llama_style_proxy_learns_and_the_rules_hold_its_matrices_by_their_decay():
    sizes = width_llama.Sizes(32, 64, 1, 40)
    run = functools.partial(width_llama.train, 2.0**-6, 3.0, sizes=sizes, seed=0, d=64)
    weak, strong = (run(rule=rule) for rule in ("mup_fixed", "mup_independent"))
    assert (strong.sigma < weak.sigma).all()
    uniform = float(jnp.log(character_blocks.prose().vocab_size))
    assert max(float(one.loss) for one in (weak, strong)) < 0.8 * uniform
