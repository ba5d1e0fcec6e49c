"""The language model beside a compact PyTorch program of the same model, batch and precision.

Both train on the same batches of the embedded prose, on two threads, in turns of ten steps in one
process. The PyTorch side is written as its users write it: fused QKV projection,
`scaled_dot_product_attention` with the T5 bias as its mask, `clip_grad_norm_`, fused AdamW. It runs
on the CPU, so on an accelerator it is left out, and what the accelerator makes of models of its own
size is added: tokens a second and model FLOP utilisation.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxkit import datasets, jobs, lexinvariant, models, training
from jaxkit.experiments.evidence import Table
from jaxkit.models import positions

ROUNDS, STEPS = 12, 10

#: What an accelerator is given: 25M and 151M parameters, one such batch a device.
LARGE = tuple(
    jobs.TrainConfig(
        batch_size=batch_size,
        sequence_length=512,
        d_model=width,
        num_layers=layers,
        num_heads=width // 128,
        head_dim=128,
        d_ff=4 * width,
        dtype="bfloat16",
    )
    for width, layers, batch_size in ((512, 8, 64), (1024, 12, 32))
)


def token_stream(config: jobs.TrainConfig):
    """Batches of the main job, and the size of its vocabulary."""
    corpus = datasets.embedded_prose().train
    tokenizer = datasets.CharTokenizer.from_corpus(corpus)
    tokens = datasets.tokenize(corpus, tokenizer)
    batches = datasets.token_batches(
        tokens,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return batches, tokenizer.vocab_size


def jaxkit_steps(config: jobs.TrainConfig) -> tuple[Callable[[int], float], Callable[[], int]]:
    """The main job's own step: `advance(steps) -> last loss`, and the number of traces."""
    batches, vocab_size = token_stream(config)
    mesh = training.make_mesh()
    model, optimizer = config.model(vocab_size), config.optimizer(vocab_size)
    init = models.initializer(model)
    key = jax.random.key(config.seed)
    state = [training.init_state(init, optimizer, key, mesh)]
    loss, traces = lexinvariant.next_token_loss(model), [0]

    def counted(*arguments):
        traces[0] += 1
        return loss(*arguments)

    shardings = training.state_shardings(init, optimizer, key, mesh)
    step = training.make_train_step(counted, optimizer, shardings=shardings)

    def advance(steps: int) -> float:
        measured = None
        for _ in range(steps):
            batch = training.place_batch(next(batches), mesh)
            state[0], measured = step(state[0], batch)
        return float("nan") if measured is None else float(measured.loss)

    return advance, lambda: traces[0]


def torch_steps(config: jobs.TrainConfig) -> Callable[[int], float]:
    """The same model in PyTorch: `advance(steps) -> last loss`."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(2)
    torch.manual_seed(0)
    batches, vocab_size = token_stream(config)
    width, heads, length = config.d_model, config.num_heads, config.sequence_length
    inner = heads * config.head_dim

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
            self.qkv = nn.Linear(width, 3 * inner, bias=False)
            self.out = nn.Linear(inner, width, bias=False)
            self.up = nn.Linear(width, config.d_ff, bias=False)
            self.down = nn.Linear(config.d_ff, width, bias=False)
            self.relative_bias = nn.Parameter(torch.zeros(heads, 32))

        def forward(self, x, bucket, future):
            batch = x.shape[0]
            parts = self.qkv(self.attention_norm(x)).split(inner, dim=-1)
            q, k, v = (p.view(batch, length, heads, -1).transpose(1, 2) for p in parts)
            bias = self.relative_bias[:, bucket].masked_fill(future, float("-inf"))[None]
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + self.out(attended.transpose(1, 2).reshape(batch, length, inner))
            return x + self.down(torch.relu(self.up(self.mlp_norm(x))))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Parameter(torch.randn(vocab_size, width))
            self.scale, self.shift = (
                nn.Parameter(torch.ones(width)),
                nn.Parameter(torch.zeros(width)),
            )
            self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
            self.norm = nn.RMSNorm(width)
            distance = np.maximum(np.arange(length)[:, None] - np.arange(length), 0)
            bucket = np.asarray(positions.t5_bucket(jax.numpy.asarray(distance)))
            self.register_buffer("bucket", torch.tensor(bucket, dtype=torch.long))
            self.register_buffer("future", torch.ones(length, length).triu(1).bool())

        def forward(self, tokens):
            x = self.embedding[tokens] * self.scale + self.shift
            for block in self.blocks:
                x = block(x, self.bucket, self.future)
            return self.norm(x) @ self.embedding.T / width**0.5

    model = Decoder()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(config.b1, config.b2), fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)

    def advance(steps: int) -> float:
        loss = None
        for _ in range(steps):
            tokens = torch.tensor(next(batches)["tokens"], dtype=torch.long)
            logits = model(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
        return float("nan") if loss is None else loss.item()

    return advance


def overhead(config: jobs.TrainConfig, step_seconds: float) -> tuple[str, str, str, str]:
    """Host time of the input pipeline and of the driver, checkpoints too, as a share of a step."""
    import tempfile

    batches, vocab_size = token_stream(config)
    mesh = training.make_mesh()
    times = []
    for _ in range(300):
        start = time.perf_counter()
        training.place_batch(next(batches), mesh)["tokens"].block_until_ready()
        times.append(time.perf_counter() - start)
    model, optimizer = config.model(vocab_size), config.optimizer(vocab_size)
    key = jax.random.key(config.seed)
    state = training.init_state(models.initializer(model), optimizer, key, mesh)
    schedule = jax.jit(config.schedule_function())
    schedule(0)

    def advance(state: training.TrainState, step: int, most: int | None) -> training.Lap:
        row = {"step": step + 1, "loss": 2.0, "gradient_norm": 1.0}
        return training.Lap(
            state, rows=lambda seconds: [{**row, "learning_rate": float(schedule(step))}]
        )

    with tempfile.TemporaryDirectory() as folder, training.Run(folder) as run:
        run.identify({})
        cadence = training.Cadence(config.checkpoint_every, None)
        start = time.perf_counter()
        training.drive(
            advance, state, num_steps=1000, run=run, cadence=cadence,
            progress=training.Console(1000),
        )  # fmt: skip
        driver = (time.perf_counter() - start) / 1000
    inputs = np.median(times)
    return (
        "input pipeline; driver with log and checkpoints",
        f"{inputs * 1e3:.3f}; {driver * 1e3:.3f} ms a step",
        "",
        f"{inputs / step_seconds:.2%}; {driver / step_seconds:.2%} of a step",
    )


def run() -> list[Table]:
    """Measure."""
    tables = [beside_torch()]
    if jax.default_backend() != "cpu":
        tables.append(utilisation(LARGE))
    return tables


def utilisation(configs: Sequence[jobs.TrainConfig]) -> Table:
    """Tokens a second of training steps, and the share of the devices' peak that they use."""
    rows = []
    for base in configs:
        config = dataclasses.replace(base, batch_size=base.batch_size * jax.device_count())
        advance, _ = jaxkit_steps(config)
        advance(3)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            advance(STEPS)
            seconds.append((time.perf_counter() - start) / STEPS)
        _, vocab_size = token_stream(config)
        model = config.model(vocab_size)
        rate = config.batch_size * config.sequence_length / float(np.median(seconds))
        flops = rate * models.train_flops_per_token(model.config, config.sequence_length)
        share = training.model_flops_utilization(flops)
        counts = models.parameter_counts(model.config)
        rows.append(
            (
                f"{sum(counts) / 1e6:.0f}M",
                f"{config.batch_size} x {config.sequence_length}",
                f"{rate:,.0f}",
                f"{flops / 1e12:.2f}",
                "peak not known" if share is None else f"{share:.1%}",
            )
        )
    kind = jax.devices()[0].device_kind
    return Table(
        f"Training steps on {jax.device_count()} x {kind}, {configs[0].dtype}",
        ("parameters", "batch", "tokens/s", "model TFLOP/s", "model FLOP utilisation"),
        rows,
    )


def beside_torch() -> Table:
    """The main job's model on both sides, in turns; jaxkit alone on an accelerator."""
    training.keep_freed_memory()
    config = jobs.TrainConfig()
    ours, traces = jaxkit_steps(config)
    sides = {"jaxkit": ours}
    if jax.default_backend() == "cpu":
        try:
            sides["PyTorch"] = torch_steps(config)
        except ImportError:
            print("PyTorch is not installed: pip install 'jaxkit[benchmark]'")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for advance in sides.values():
        advance(5)
    for _ in range(ROUNDS):
        for name, advance in sides.items():
            start = time.perf_counter()
            advance(STEPS)
            seconds[name].append((time.perf_counter() - start) / STEPS)
    tokens = config.batch_size * config.sequence_length
    rows = [
        (
            name,
            f"{tokens / np.median(times):,.0f} tokens/s",
            f"{tokens / np.max(times):,.0f} to {tokens / np.min(times):,.0f}",
            f"{np.median(times) * 1e3:.1f} ms a step",
        )
        for name, times in seconds.items()
    ]
    if "PyTorch" in sides:
        ratios = np.array(seconds["PyTorch"]) / np.array(seconds["jaxkit"])
        rows.append(
            (
                "jaxkit / PyTorch, turn by turn",
                f"{np.median(ratios):.2f}x",
                f"{ratios.min():.2f} to {ratios.max():.2f}",
                "",
            )
        )
    rows.append(overhead(config, float(np.median(seconds["jaxkit"]))))
    rows.append(("traces of the loss", str(traces()), "", ""))
    batch = f"{config.batch_size} x {config.sequence_length}"
    size = f"{config.num_layers} layers x {config.d_model}"
    return Table(
        f"Language model ({size}, {batch} tokens, float32)", ("", "median", "range", ""), rows
    )
