"""Two real processes on loopback give the numbers of one."""

import textwrap

import jax
import numpy as np
import pytest

PROGRAM = textwrap.dedent(
    """
    import dataclasses, json
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jaxkit import lexinvariant as lx, models, training

    with training.distributed_run():
        mesh = training.make_mesh("fsdp=2,data=-1")
        index, count = training.local_rows(mesh, 8)
        rows = slice(index * 8 // count, (index + 1) * 8 // count)
        tokens = np.random.default_rng(0).integers(0, 8, (8, 13)).astype(np.int32)
        batch = {"tokens": tokens[rows], "index": np.arange(40, 48)[rows]}
        config = models.DecoderConfig(
            8, d_model=16, num_layers=2, num_heads=2, head_dim=8, d_ff=32,
            embedding="given", recency_heads=True,
        )
        found = {}
        for method, embedding, options in (
            ("lexinvariant", "given", {}),
            ("lexinvariant", "given", {"chunk_size": 3}),
            ("relabel", "fixed", {"p": 0.5, "closed": True}),
        ):
            model = models.DecoderLM(dataclasses.replace(config, embedding=embedding))
            init = models.initializer(model)
            boxed = jax.eval_shape(init, jax.random.key(0))
            make = jax.jit(
                lambda key: nn.meta.unbox(init(key)),
                out_shardings=training.parameter_shardings(boxed, mesh),
            )
            loss = lx.next_token_loss(model, method=method, **options)

            @jax.jit
            def measure(params, batch, key):
                value, gradient = jax.value_and_grad(loss)(params, batch, key)
                norms = [jnp.sqrt(jnp.sum(x * x)) for x in jax.tree.leaves(gradient)]
                return value, jnp.stack(norms)

            value, norms = measure(
                make(jax.random.key(0)), training.place_batch(batch, mesh), jax.random.key(5)
            )
            found[f"{method} {options}"] = [float(value), np.asarray(norms).tolist()]
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), found]))
    """
)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(on_processes):
    (one, alone), (two, together) = on_processes(PROGRAM, 1), on_processes(PROGRAM, 2)
    assert (one, two) == (1, 2)
    assert alone.keys() == together.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, together)
