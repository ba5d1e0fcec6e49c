"""Noise: its size, its independence of devices, tree aggregation, and optimizer state."""

import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from jaxkit import privacy
from jaxkit.privacy import noise as noises
from jaxkit.privacy.noise import gaussian_draw, privatize_tree_sum


def of_size(shape, clip_norm=1.0, dtype=jnp.float32):
    """A sum that is zero, with a bound."""
    none = jnp.zeros((), jnp.int32)
    zeros = jnp.zeros(shape, dtype)
    return privacy.BoundedSum(zeros, clip_norm, none, none, none, none).sealed()


def test_noise_is_gaussian_of_the_stated_size():
    noise = privacy.privatize_sum(3.0, 4, jax.random.key(0))
    zeros = of_size(20_000, 2.0)
    draw, state = jax.jit(noise.update)(zeros, noise.init(zeros))
    assert scipy.stats.kstest(np.asarray(draw) / (2.0 * 3.0 / 4), "norm").pvalue > 1e-3
    again, _ = jax.jit(noise.update)(zeros, state)
    assert abs(np.corrcoef(draw, again)[0, 1]) < 0.03


def test_updates_that_are_not_compiled_compile_their_draw_once():
    noise, zeros = privacy.privatize_sum(1.0, 1), of_size((3, 5))
    first, state = noise.update(zeros, noise.init(zeros), key=jax.random.key(0))
    before = noises._normals._cache_size()
    second, _ = noise.update(zeros, state, key=jax.random.key(1))
    assert noises._normals._cache_size() == before > 0
    assert np.all(first != second)


def test_noise_is_equal_on_one_and_eight_devices(devices):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    noise = privacy.privatize_sum(1.0, 1, jax.random.key(1))
    update = jax.jit(lambda g: noise.update(of_size(g.shape), noise.init(g))[0])
    spread = NamedSharding(mesh, PartitionSpec("data"))
    zeros = jnp.zeros((16, 4))
    np.testing.assert_array_equal(update(zeros), update(jax.device_put(zeros, spread)))


def test_running_sum_of_tree_noise_is_one_draw_for_each_node():
    steps, runs = 6, 4000

    def sums(key):
        noise = privatize_tree_sum(1.0, 1, 4, key)
        step = lambda state, _: noise.update(of_size(()), state)[::-1]  # noqa: E731
        return jnp.cumsum(jax.lax.scan(step, noise.init(None), length=steps)[1])

    drawn = np.asarray(jax.jit(jax.vmap(sums))(jax.random.split(jax.random.key(0), runs)))
    # Nodes that cover updates 1..t: {1}, {12}, {12, 3}, {1234}; then a second tree is added.
    nodes = [{"a1"}, {"a12"}, {"a12", "a3"}, {"a1234"}, {"a1234", "b1"}, {"a1234", "b12"}]
    expected = np.array([[len(s & t) for s in nodes] for t in nodes])
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=6 * 2 / runs**0.5)


def test_a_plan_without_clipping_and_noise_is_the_optimizer_on_the_mean(close):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    loss = lambda w, batch, key: jnp.mean(jnp.sum((w - batch) ** 2, -1)) / 2  # noqa: E731
    gradient = privacy.clipped_grad_sum(loss, 100.0)
    everyone = privacy.full_batches(4)
    plan = privacy.dp_sgd(gradient, everyone, 5, delta=1e-3, noise_multiplier=1e-9)
    private, plain = plan.optimizer(optax.adamw(0.1)), optax.adamw(0.1)

    @jax.jit
    def step(params, state, other, other_state, key):
        updates, state = private.update(gradient(params, data), state, params, key=key)
        grad = jax.grad(loss)(other, data, None)
        other_updates, other_state = plain.update(grad, other_state, other)
        return (
            optax.apply_updates(params, updates), state,
            optax.apply_updates(other, other_updates), other_state,
        )  # fmt: skip

    carry = (jnp.zeros(2), private.init(jnp.zeros(2)), jnp.zeros(2), plain.init(jnp.zeros(2)))
    source = privacy.NoiseSource.from_os()
    for index in range(5):
        carry = step(*carry, plan.noise_key(source, index))
    close(carry[0], carry[2], 1e-4)
    # No key is in the state, so none is in a checkpoint.
    assert not any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(carry[1])
    )
    averaged = optax.MultiSteps(private, 2)
    start, total = averaged.init(jnp.zeros(2)), gradient(jnp.zeros(2), data)
    with pytest.raises((TypeError, ValueError), match="BoundedSum"):
        averaged.update(total, start, jnp.zeros(2))


def test_noise_follows_the_bound_of_the_sum_whatever_it_was_clipped_at():
    everyone, rows = privacy.full_batches(8), jnp.ones((8, 2))
    ratios = []
    for clip_norm in (1.0, 5.0):
        gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), clip_norm)
        plan = privacy.dp_sgd(gradient, everyone, 1, delta=1e-3, noise_multiplier=3.0)
        total = dataclasses.replace(gradient(jnp.zeros(2), rows), total=jnp.zeros(20_000)).sealed()
        for sums, factor in ((total, 1.0), (total.scale(0.5), 0.5)):
            plain = privacy.privatize_sum(3.0, 8, jax.random.key(1))
            noise, _ = plain.update(sums, plain.init(None))
            ratios.append(float(jnp.std(noise)) / (3.0 * clip_norm * factor / 8))
        assert plan.epsilon() == pytest.approx(1.0, abs=2.0)
    np.testing.assert_allclose(ratios, 1.0, rtol=0.03)


CHANGES = {
    "signs": lambda s: jax.tree.map(jnp.sign, s),
    "twice": lambda s: jax.tree.map(lambda x: 2 * x, s),
    "negated": lambda s: jax.tree.map(jnp.negative, s),
    "reversed": lambda s: jax.tree.map(lambda x: x[::-1] if x.ndim else x, s),
    "rounded": lambda s: jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), s),
    "one entry": lambda s: dataclasses.replace(s, total=s.total.at[1].multiply(3)),
    "two sums": lambda s: jax.tree.map(jnp.subtract, s, s),
    "another bound": lambda s: dataclasses.replace(s, clip_norm=s.clip_norm / 2),
    "another unit": lambda s: dataclasses.replace(s, unit="user"),
    "other counts": lambda s: dataclasses.replace(s, clipped=s.clipped + 1),
    "unsealed": lambda s: dataclasses.replace(s, seal=None),
}


GRADIENT = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(jnp.sin(x @ w)), jnp.float32(0.7))
POINT = jnp.arange(4.0), jnp.arange(12.0).reshape(3, 4)


@pytest.fixture(scope="module")
def bounded_sum():
    return jax.jit(GRADIENT)(*POINT)


@pytest.mark.parametrize("change", CHANGES)
def test_a_sum_whose_numbers_were_changed_gets_no_noise(bounded_sum, change):
    release = privacy.privatize_sum(1.0, 3, jax.random.key(0))
    state = release.init(None)
    mean, _ = release.update(bounded_sum, state)
    assert bool(jnp.all(jnp.isfinite(mean)))
    changed = CHANGES[change](bounded_sum)
    for use in (lambda: release.update(changed, state), lambda: changed.scale(2.0)):
        with pytest.raises(ValueError, match="was changed since its bound was proved"):
            use()
    if change != "unsealed":
        within = jax.jit(lambda s: release.update(CHANGES[change](s).scale(3.0), state)[0])
        assert bool(jnp.all(jnp.isnan(within(bounded_sum))))
        here = jax.jit(lambda w, x: release.update(CHANGES[change](GRADIENT(w, x)), state)[0])
        assert bool(jnp.all(jnp.isnan(here(*POINT))))


@pytest.mark.parametrize(
    "before",
    [optax.clip(1.0), optax.scale(2.0), optax.clip_by_block_rms(1.0)],
    ids=["clip", "scale", "clip_by_block_rms"],
)
def test_optax_changes_of_every_number_before_the_noise_are_refused_in_one_line(before):
    chain = optax.chain(before, privacy.privatize_sum(1.0, 3, jax.random.key(0)))
    total = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), 0.7)(*POINT)
    with pytest.raises(ValueError, match="was changed since its bound was proved"):
        chain.update(total, chain.init(POINT[0]), POINT[0])


def test_a_program_that_sums_and_adds_noise_at_once_hashes_nothing(bounded_sum):
    release = privacy.privatize_sum(1.0, 3, jax.random.key(0))
    state = release.init(None)
    both = jax.jit(lambda w, x: release.update(GRADIENT(w, x), state)[0])
    np.testing.assert_allclose(both(*POINT), release.update(bounded_sum, state)[0], rtol=1e-6)
    constant = str(0x85EBCA6B)  # of the hash
    programs = both.lower(*POINT), jax.jit(lambda s: release.update(s, state)[0]).lower(bounded_sum)
    assert [constant in program.compile().as_text() for program in programs] == [False, True]


def test_a_sum_keeps_its_bound_through_programs_loops_and_a_file(bounded_sum, tmp_path):
    release = privacy.privatize_sum(0.0, 1, jax.random.key(0))
    ocp.save(tmp_path / "sum", bounded_sum)
    carried, stacked = jax.jit(lambda s: jax.lax.scan(lambda c, _: (c.scale(2.0), c), s, length=3))(
        ocp.load(tmp_path / "sum", bounded_sum)
    )
    update = lambda s: release.update(s, release.init(None))[0]  # noqa: E731
    np.testing.assert_array_equal(update(carried), 8 * bounded_sum.total)
    np.testing.assert_array_equal(jax.vmap(update)(stacked)[1], 2 * bounded_sum.total)
    assert carried.clip_norm == pytest.approx(8 * 0.7)


def test_what_a_loss_that_has_no_noise_would_tell_an_optimizer_is_refused():
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), 1.0)
    everyone, rows = privacy.full_batches(8), jnp.ones((8, 2))
    plan = privacy.dp_sgd(gradient, everyone, 1, delta=1e-3, noise_multiplier=1.0)
    optimizer, params = plan.optimizer(optax.polyak_sgd()), jnp.zeros(2)
    total, state = gradient(params, rows), optimizer.init(params)
    with pytest.raises(TypeError, match=r"only key may be given .*, got grad, value"):
        optimizer.update(
            total, state, params, key=jax.random.key(0), value=total.loss, grad=total.total
        )


def test_a_plan_has_no_draws_beyond_its_steps():
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), 1.0)
    plan = privacy.dp_sgd(gradient, privacy.full_batches(8), 2, delta=1e-3, noise_multiplier=1.0)
    source = privacy.NoiseSource.public(0)
    keys = [plan.noise_key(source, step) for step in range(2)]
    assert bool(keys[0] != keys[1])
    for draw in (plan.draw, plan.noise_key):
        with pytest.raises(ValueError, match="step must be below the 2 steps of the plan, got 2"):
            draw(source, 2)
        with pytest.raises(ValueError, match="step must be an integer >= 0, got -1"):
            draw(source, -1)


def test_a_plan_with_other_parts_says_what_they_cost():
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), 1.0)
    plan = privacy.dp_sgd(gradient, privacy.full_batches(8), 2, delta=1e-3, noise_multiplier=2.0)
    trees = privacy.dp_ftrl(gradient, 8, 4, 2, delta=1e-3, noise_multiplier=2.0)
    longer, louder = ({"num_steps": 8}, {"noise_multiplier": 1.0})
    costs = [dataclasses.replace(plan, **part).epsilon() for part in (longer, louder)]
    assert costs[0] == pytest.approx(costs[1])  # both have mu = 2^(1/2)
    assert min(costs) > plan.epsilon()
    for part in (longer, louder):
        assert dataclasses.replace(trees, **part).epsilon() > trees.epsilon()
    with pytest.raises(ValueError, match=r"count_noise_multiplier .* \(1, inf\), got 0.9"):
        dataclasses.replace(plan, count_noise_multiplier=0.9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_numbers_of_a_narrow_type_round_no_noise_away(dtype):
    def size(z, clip_norm):
        gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x) * jnp.sum(w), clip_norm)
        total = gradient(jnp.zeros(9), jnp.zeros(2)).scale(1.003)
        release = privacy.privatize_sum(z, 1, jax.random.key(0))
        return float(jnp.linalg.norm(release.update(total, release.init(None))[0]))

    one, bound = dtype(1), dtype(0.7)
    assert size(1.003, one) == pytest.approx(1.003 * size(1.0, 1.0), rel=1e-6)
    assert size(one, 1.003) == pytest.approx(1.003 * size(1.0, 1.0), rel=1e-6)
    rows = [jnp.ones((4, 5)), jnp.ones((4, 3))]
    clipped = privacy.clip_per_example(rows, bound, mode="per_layer").gradients
    norms = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64), 1) for leaf in clipped))
    assert np.all(norms <= float(bound) * (1 + 1e-5))


def test_a_plan_is_the_same_however_many_devices_pad_its_batches():
    gradient = privacy.clipped_grad_sum(lambda w, row, key: jnp.sum(w * row), 1.0)

    def plan(multiple, rate=0.01):
        options = {"num_steps": 20, "delta": 1e-5, "epsilon": 8.0, "multiple": multiple}
        sampling = privacy.poisson_sampling(3000, rate, **options)
        return privacy.dp_sgd(gradient, sampling, 20, delta=1e-5, noise_multiplier=1.0)

    assert plan(1).sampling.padded_size != plan(8).sampling.padded_size
    assert plan(1).fingerprint == plan(8).fingerprint != plan(1, rate=0.02).fingerprint


def test_secrets_are_fresh_kept_by_their_owner_and_never_shown(tmp_path):
    first, second = privacy.NoiseSource.from_os(), privacy.NoiseSource.from_os()
    assert first.fingerprint != second.fingerprint
    drawn = {
        tuple(source.key_data(purpose, run, step).tolist())
        for source in (first, second)
        for purpose in ("noise", "batches")
        for run in ("a", "b")
        for step in range(20)
    }
    assert len(drawn) == 160  # no two share a key
    path = tmp_path / "private" / "noise.secret"
    made = privacy.NoiseSource.stored(path, data=DATA, fresh=True)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_bytes()
    assert secret.hex() not in repr(vars(made)) or secret.hex() not in repr(made)
    assert repr(made) == f"NoiseSource(operating system, fingerprint {made.fingerprint})"
    with pytest.raises(TypeError, match="keep its file"):
        pickle.dumps(made)
    fingerprint = made.fingerprint
    again = privacy.NoiseSource.stored(path, data=DATA, fresh=False)
    assert again.fingerprint == fingerprint
    path.write_bytes(secret[:-1])
    with pytest.raises(OSError, match=r"must hold \d+ bytes, got"):
        privacy.NoiseSource.stored(path, data=DATA, fresh=False)
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="owner alone"):
        privacy.NoiseSource.stored(path, data=DATA, fresh=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="would be released again"):
        privacy.NoiseSource.stored(path, data=DATA, fresh=False)
    seeds = {privacy.NoiseSource.public(seed).fingerprint for seed in (0, 2**32, 2**64)}
    assert len(seeds) == 3
    assert made.is_secret
    assert again.is_secret
    assert first.is_secret
    assert not privacy.NoiseSource.public(0).is_secret
    assert not privacy.NoiseSource(bytes(32)).is_secret


DATA = {"x": np.arange(6.0), "y": np.zeros(2, int)}
OTHER = [DATA | {"x": DATA["x"] + 1e-12}, DATA | {"x": np.arange(6.0).reshape(2, 3)}, [], DATA["x"]]


@pytest.mark.parametrize("fresh", [True, False])
def test_one_source_draws_from_a_secret_and_for_one_data_set(tmp_path, fresh):
    path = tmp_path / "noise.secret"
    first = privacy.NoiseSource.stored(path, data=DATA, fresh=True)
    first.key("noise", "run", 3)
    second = privacy.NoiseSource.stored(tmp_path / "." / "noise.secret", data=DATA, fresh=fresh)
    with pytest.raises(ValueError, match="opened again by a later one"):
        first.key("noise", "run", 4)
    second.key("noise", "run", 3)
    for data in OTHER:
        with pytest.raises(ValueError, match="data must"):
            privacy.NoiseSource.stored(path, data=data, fresh=False)
    again = privacy.NoiseSource.stored(path, data=DATA, fresh=False)
    program = (
        "import numpy as np; from jaxkit import privacy; "
        "data = {'x': np.arange(6.0), 'y': np.zeros(2, int)}; "
        f"privacy.NoiseSource.stored({str(path)!r}, data=data, fresh=False)"
    )
    if not fresh:
        run = lambda: subprocess.run([sys.executable, "-c", program], capture_output=True)  # noqa: E731
        assert b"another process draws from" in run().stderr
        del again
        assert run().returncode == 0


def test_a_restored_state_draws_the_noise_that_the_uninterrupted_run_draws(tmp_path):
    noise = privacy.privatize_sum(1.0, 1, jax.random.key(5))
    update = jax.jit(noise.update)
    _, state = update(of_size(3), noise.init(None))
    ocp.save(tmp_path / "state", state)
    restored = ocp.load(tmp_path / "state", state)
    np.testing.assert_array_equal(update(of_size(3), state)[0], update(of_size(3), restored)[0])


def test_a_pass_in_order_takes_each_example_once_and_pays_for_whole_trees():
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x * w), 1.0)
    plan = privacy.dp_ftrl(gradient, 10, 3, 2, delta=1e-3, epsilon=4.0)
    source = privacy.NoiseSource.from_os()
    drawn = [plan.draw(source, step).indices.tolist() for step in range(plan.num_steps)]
    assert drawn == 2 * [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    spent = [plan.epsilon(step) for step in range(7)]
    assert spent[0] < spent[1] == spent[3] < spent[4] == spent[6] == plan.epsilon()
    assert plan.epsilon() == pytest.approx(4.0, rel=1e-3)
    optimizer, key = plan.optimizer(optax.sgd(1.0)), plan.noise_key(source, 0)
    params, released = jnp.zeros(()), []
    state = optimizer.init(params)
    for _ in range(2):
        total = gradient(params, jnp.zeros(3))
        updates, state = optimizer.update(total, state, params, key=key)
        released.append(float(updates))
    assert len(set(released)) == 2
    with pytest.raises(ValueError, match="step must be 0, whose key serves all updates, got 1"):
        plan.noise_key(source, 1)


def test_clip_norms_that_adapt_reach_their_quantile_and_pay_for_the_counts():
    norms = jnp.linspace(0.5, 10.0, 400)
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x * w), 1.0)
    options = {"delta": 1e-3, "noise_multiplier": 1.0, "count_noise_multiplier": 5.0}
    plan = privacy.dp_sgd(gradient, privacy.full_batches(400), 80, **options)
    source, optimizer = privacy.NoiseSource.public(0), plan.optimizer(optax.identity())
    keys = jnp.stack([plan.noise_key(source, step) for step in range(plan.num_steps)])

    @jax.jit
    def run(keys):
        def step(carry, key):
            clip_norm, state = carry
            at = dataclasses.replace(plan.gradient, clip_norm=clip_norm)
            total = at(jnp.zeros(()), norms)
            mean, state = optimizer.update(total, state, jnp.zeros(()), key=key)
            noise = (mean * 400 - total.total) / total.clip_norm
            after = plan.next_clip_norm(total, key, quantile=0.8)
            return (after, state), (after, noise)

        return jax.lax.scan(step, (jnp.float32(1.0), optimizer.init(jnp.zeros(()))), keys)[1]

    found, noise = run(keys)
    assert float(found[-20:].mean()) == pytest.approx(0.5 + 0.8 * 9.5, rel=0.05)
    # Both releases together cost one of z = 1: 1/z^2 = 1/z_sum^2 + (1/2)^2/sigma_b^2.
    expected = (1 - 1 / (2 * 5.0) ** 2) ** -0.5
    assert float(noise.std()) == pytest.approx(expected, rel=0.25)
    assert plan._sum_noise == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"count_noise_multiplier .* got 0.4"):
        privacy.dp_sgd(
            gradient, privacy.full_batches(4), 1, **options | {"count_noise_multiplier": 0.4}
        )
    plain = privacy.dp_sgd(gradient, privacy.full_batches(4), 1, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="needs a plan made with count_noise_multiplier"):
        plain.next_clip_norm(gradient(jnp.zeros(()), norms), keys[0])


@pytest.mark.parametrize("most", [2**22, 24, 5, 0])
def test_arrays_have_normals_of_their_own_however_many_are_drawn_together(most, monkeypatch):
    monkeypatch.setattr("jaxkit.privacy.noise._DRAWN_TOGETHER", most)
    like = [jnp.zeros(shape) for shape in ((4, 6), 24, 5, (), (0, 3), (30, 9))]
    like.append(jnp.zeros(7, jnp.bfloat16))
    drawn = gaussian_draw(jax.random.key(3), 7, like)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, like)
    numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(drawn)])
    assert numbers.dtype == np.float32
    assert len(np.unique(numbers)) == len(numbers)
    assert scipy.stats.kstest(numbers, "norm").pvalue > 1e-3
    # Nor are they those of another release.
    other = gaussian_draw(jax.random.key(3), 8, like)
    assert not np.isin(numbers, np.concatenate([np.ravel(x) for x in jax.tree.leaves(other)])).any()
