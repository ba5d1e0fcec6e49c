import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh

from jaxkit import lexinvariant as lx
from jaxkit import models, training

PAPER = models.DecoderConfig(
    128,
    d_model=1024,
    num_layers=12,
    num_heads=8,
    head_dim=128,
    d_ff=4096,
    embedding="given",
)


@pytest.mark.parametrize("case", range(2))
def test_parameters_and_operations_are_those_of_the_closed_forms(case, vectors):
    case = vectors["accounting"]["cases"][case]
    config = dataclasses.replace(PAPER, vocab_size=case["vocab"])
    counts = models.parameter_counts(config)
    assert counts.matmul == case["params"]["matmul"]
    assert counts.norms == case["params"]["norms"]
    assert counts.relative_bias == case["params"]["rel_bias"]
    assert counts.embedding_affine == case["params"]["embed_affine"]
    flops = case["train_flops_per_token"]
    assert models.train_flops_per_token(config, case["seq_len"]) == sum(flops.values())
    one = AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))
    cost = models.step_cost(config, optax.sgd(0.1), one, 1, case["seq_len"])
    assert cost.table_bytes == case["embedding_bytes_per_sequence_f32"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding": "fixed"},
        {"qk_norm": True, "gated_mlp": True},
        {"share_relative_bias": True},
        {"position": "rope"},
    ],
)
def test_counts_sum_to_the_size_of_the_parameter_tree(options):
    config = dataclasses.replace(PAPER, num_layers=3, **options)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    table = jax.ShapeDtypeStruct((128, 1024), jnp.float32)
    params = jax.eval_shape(
        lambda t, e: models.DecoderLM(config).init(jax.random.key(0), t, e), tokens, table
    )
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert sum(models.parameter_counts(config)) == size


def test_devices_share_a_151m_model_up_to_256_of_them():
    optimizer = optax.adam(1e-3)

    def cost(*sizes):
        mesh = AbstractMesh(sizes, ("data", "fsdp", "tensor"))
        return models.step_cost(PAPER, optimizer, mesh, 512, 512)

    alone, shared = cost(1, 1, 1), cost(16, 8, 2)
    small = 4 * (sum(models.parameter_counts(PAPER)) - models.parameter_counts(PAPER).matmul)
    assert alone.parameter_bytes == 4 * sum(models.parameter_counts(PAPER))
    assert shared.num_devices == 256
    # Matrices are split over fsdp and tensor; norms and biases stay on every device.
    matrices = 4 * models.parameter_counts(PAPER).matmul // 16
    assert matrices < shared.parameter_bytes <= matrices + small
    assert 2 * matrices < shared.optimizer_bytes <= 2 * (matrices + small) + 8
    assert shared.flops == alone.flops // 256
    assert shared.table_bytes == alone.table_bytes // 256


def test_a_batch_that_the_mesh_does_not_divide_is_refused(bad_input):
    mesh = AbstractMesh((4, 2, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(ValueError, match="divisible by data x fsdp = 8, got 12"):
        models.step_cost(PAPER, optax.sgd(0.1), mesh, 12, 512)


@pytest.fixture(scope="module")
def compiled_step(devices):
    """Compile a small model's step on a mesh: what it moves, and what was worked out."""
    config = models.DecoderConfig(64, d_model=64, num_layers=2, num_heads=4, head_dim=16, d_ff=256,
                              unroll_layers=True)  # fmt: skip
    model, optimizer, key = models.DecoderLM(config), optax.sgd(0.1), jax.random.key(0)
    init = models.initializer(model)

    def compile_on(text):
        mesh = training.make_mesh(text)
        state = training.abstract_state(init, optimizer, key, mesh)
        shardings = training.state_shardings(init, optimizer, key, mesh)
        rows = {"tokens": ((8, 9), jnp.int32), "index": ((8,), jnp.int32)}
        batch = {
            name: jax.ShapeDtypeStruct(*row, sharding=training.batch_sharding(mesh))
            for name, row in rows.items()
        }
        step = training.make_train_step(lx.next_token_loss(model), optimizer, shardings=shardings)
        moved = training.program_cost(step.lower(state, batch).compile(), mesh)
        return moved, models.step_cost(config, optimizer, mesh, 8, 8)

    return compile_on


def test_copies_of_a_model_sum_their_gradients_and_little_else(compiled_step):
    moved, cost = compiled_step("data=8")
    assert {one.kind for one in moved.collectives} == {"all-reduce"}
    assert moved.received(["data"]) == pytest.approx(cost.data_exchange_bytes, rel=0.05)
    assert cost.fsdp_exchange_bytes == cost.tensor_exchange_bytes == 0


@pytest.mark.parametrize("text", ["data=2,fsdp=4", "data=2,fsdp=2,tensor=2"])
def test_what_a_split_model_exchanges_is_its_parameters_and_what_was_worked_out(
    text, compiled_step
):
    moved, cost = compiled_step(text)
    # CPUs sum gradients whole where accelerators leave each device its part, at half the price.
    summed = moved.received(["fsdp"], "all-reduce")
    assert moved.received() - summed / 2 == pytest.approx(cost.exchange_bytes, rel=0.02)
    assert summed == pytest.approx(moved.received(["fsdp"], "all-gather"), rel=0.02)
