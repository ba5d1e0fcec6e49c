"""The configuration of a language-model run, and what it builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import optax

from jaxkit import lexinvariant, losscurves, models, schedules, validation
from jaxkit import width as width_room
from jaxkit.jobs import options, refinement
from jaxkit.schedules import profiles

#: Fields that a resumed run may change: they do not touch the numbers.
FREE_FIELDS = frozenset(
    {"checkpoint_every", "evaluate_every", "evaluation_windows", "keep_best", "keep_checkpoints",
     "keep_every", "log_every", "mesh", "runs", "tensorboard"}
)  # fmt: skip


#: Steps end where int32 does, sizes and parameters where no machine holds them.
LARGEST_STEPS, LARGEST_SIZE, LARGEST_MODEL = 2**31 - 1, 2**24, 10**13


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """Train with (epsilon, delta)-differential privacy for each window of text, or picture.

    Attributes:
        epsilon: budget of the whole run; without it training is not private.
        delta: of the guarantee; well below one over the number of windows or pictures.
        clip_norm: largest norm of the gradient of one window or picture.
        public_noise_seed: draw noise and batches from this seed, so that the run can be repeated
            elsewhere: whoever knows the seed can subtract the noise, and there is no guarantee.
            Without it they come from a secret in RUNS/NAME/private, which may go at the end.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    public_noise_seed: int | None = None

    def validate(self) -> None:
        """Refuse what is out of range: called by what holds it, which names the option."""
        if self.epsilon is not None:
            validation.number("privacy.epsilon", self.epsilon, **options.POSITIVE)
        validation.number("privacy.delta", self.delta, **options.INSIDE)
        validation.number("privacy.clip_norm", self.clip_norm, **options.POSITIVE)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """How a text is read from files.

    Attributes:
        also: further files, folders or patterns, joined to the text.
        held_out: file, folder or pattern to validate on, instead of the end of the text.
        field: where JSON lines and Parquet hold the text; a.b is field b of field a.
        where: conditions field=value on their rows, all of which must hold.
        suffixes: endings of the files that count in a folder; by default those of text, JSON lines
            and Parquet.
        separator: what stands between documents; by default a newline between files, a blank line
            between rows.
        newlines: "lf" reads the line ends of Windows as newlines, "keep" as they are.
        broken: "error" stops at a file or row that cannot be read, "skip" leaves it out.
        token_dtype: of the numbers in a .bin file of packed tokens.
    """

    also: tuple[str, ...] = ()
    held_out: str | None = None
    field: str = "text"
    where: tuple[str, ...] = ()
    suffixes: tuple[str, ...] | None = None
    separator: str | None = None
    newlines: Literal["lf", "keep"] = "lf"
    broken: Literal["error", "skip"] = "error"
    token_dtype: Literal["uint8", "uint16", "uint32"] = "uint16"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a language model on real text; run it again to resume.

    Everything goes to RUNS/NAME: the configuration, metrics, checkpoints, figures and a report.

    Attributes:
        name: name of the run.
        runs: folder that holds the runs.
        text: UTF-8 text file or folder of them; without it, prose embedded in Python.
        corpus: how the text is read.
        validation_fraction: share of the text kept for validation.
        tokenizer: "char" (the characters of the training text), "byte", a tokenizers JSON file, or
            ids:VOCAB_SIZE for packed tokens.
        unknown: what the tokenizer "char" does with characters that the training text lacks, or
            rarer than its 255 most frequent: "error" refuses, "skip" leaves them out, "replace"
            reads each as one token for unknown.
        init_from: folder of a run whose newest parameters this one begins with; its tokenizer is
            taken over too.
        steps: optimizer updates; more than before make a finished run longer.
        batch_size: sequences in a batch, over all devices.
        sequence_length: tokens of context T.
        accumulation_steps: microbatches whose gradients make one update.
        tokens_per_step: tokens of an update; batch_size is then that of a microbatch, and as many
            of those are accumulated as it takes.
        algorithm: "adamw", or "adafactor" with b1 as its momentum, whose steps are relative to the
            size of the parameters (lexinvariant models were trained so, from 0.01 to 0.001).
        learning_rate: peak learning rate.
        end_value: learning rate to which the schedule decays.
        schedule: decay of the learning rate: rex, linear, cosine, wsd, constant, ..., or
            refined:RUN for the schedule refined from the gradient norms of a finished run, or
            law:FIT for the cool-down that a law of `jaxkit fit-curve` chooses.
        warmup_steps: updates of linear warm-up; by default a tenth of the run, 50 at most, and
            none for a refined schedule, which has its own.
        weight_decay: decoupled weight decay of the matrices.
        b1: AdamW's decay of the mean gradient.
        b2: AdamW's decay of the squared gradient.
        clip_norm: gradients are scaled down to this global norm.
        embedding: "fixed" learns one token table, "lexinvariant" draws one for every sequence,
            "relabel" renames the tokens of every sequence, "mixed" draws some rows of the table.
        p: probability that a token type is renamed ("relabel") or its row drawn ("mixed"); 1 by
            default. With less the model still knows names, and is scored on the text as it is.
        anneal_p: part of the run over which p rises from 0 to its value, such as 0.6: what small
            models need to learn from context (not in the paper). Renamed types then swap names
            among themselves, so that no two share one.
        position: how positions enter: t5, rope, alibi or none.
        base_width: width at which learning rate and weight decay were tuned; they are then
            carried over to d_model by the width rule of AdamW.
        d_model: width of the residual stream.
        num_layers: number of blocks.
        num_heads: attention heads.
        head_dim: width of a head.
        d_ff: width of the MLP.
        num_kv_heads: heads of keys and values, each shared by as many heads of queries; by default
            one each.
        activation: of the MLP: relu, silu, gelu or gelu_tanh.
        gated_mlp: use a gated MLP.
        rotary_base: wavelength base of rotary positions.
        norm_epsilon: added to the mean square in every norm.
        embedding_affine: learn a scale and a bias after the token table.
        tied_readout: score tokens against the table that was read, not against a second one.
        dropout: chance that an element of a block's branch is left out in training.
        dtype: type of activations and matmul inputs.
        remat: recompute blocks in the backward pass to save memory.
        privacy: budget of a differentially private run.
        seed: seed of parameters, data order and draws.
        mesh: devices as axis=size pairs, such as data=2,fsdp=2,tensor=2; default: all on data.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the latest checkpoints to keep.
        keep_every: also keep the checkpoints of steps divisible by this.
        keep_best: also keep the checkpoint of the least validation loss, among those whose step has
            an evaluation; sample and evaluate read it as --step STEP.
        evaluate_every: steps between evaluations.
        evaluation_windows: contexts of validation text in each evaluation but the last.
        log_every: steps between lines of metrics.
        tensorboard: write event files for TensorBoard too, to RUNS/NAME/tensorboard.

    Raises:
        ValueError: if a value is out of range or does not fit another.

    Example:
        >>> TrainConfig(steps=10, warmup_steps=2).schedule_function()(2).item()
        0.003...
    """

    name: str = "default"
    runs: str = "runs"
    text: str | None = None
    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    validation_fraction: float = 0.1
    tokenizer: str = "char"
    unknown: Literal["error", "skip", "replace"] = "error"
    init_from: str | None = None
    steps: int = 1000
    batch_size: int = 16
    sequence_length: int = 128
    accumulation_steps: int = 1
    tokens_per_step: int | None = None
    algorithm: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 3e-3
    end_value: float = 0.0
    schedule: str = "rex"
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    clip_norm: float = 1.0
    embedding: Literal["fixed", "lexinvariant", "relabel", "mixed"] = "fixed"
    p: float | None = None
    anneal_p: float | None = None
    position: Literal["t5", "rope", "alibi", "none"] = "t5"
    base_width: int | None = None
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int = 32
    d_ff: int = 512
    num_kv_heads: int | None = None
    activation: Literal["relu", "silu", "gelu", "gelu_tanh"] = "relu"
    gated_mlp: bool = False
    rotary_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    embedding_affine: bool = True
    tied_readout: bool = True
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    privacy: PrivacyConfig = dataclasses.field(default_factory=PrivacyConfig)
    seed: int = 0
    mesh: str = ""
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    keep_every: int | None = None
    keep_best: bool = False
    evaluate_every: int = 100
    evaluation_windows: int = 64
    log_every: int = 1
    tensorboard: bool = False

    def __post_init__(self):
        options.folder_name("name", self.name)
        options.at_least_one(self, "keep_checkpoints", "evaluation_windows")
        self._check_sizes()
        validation.choice("unknown", self.unknown, ("error", "skip", "replace"))
        if self.unknown != "error" and self.tokenizer != "char":
            raise ValueError(
                f"unknown needs tokenizer='char', got {self.unknown!r} with {self.tokenizer!r}"
            )
        options.not_empty(self, "runs", "text", "tokenizer", "init_from")
        validation.seed("seed", self.seed)
        if self.tokens_per_step is not None:
            self._accumulate()
        options.at_least_one(self, "accumulation_steps")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps must divide batch_size={self.batch_size}, got "
                f"{self.accumulation_steps}"
            )
        options.within(self, options.POSITIVE, "clip_norm")
        options.within(self, {"minimum": 0}, "weight_decay", "learning_rate")
        validation.number("end_value", self.end_value, minimum=0, maximum=self.learning_rate)
        if self.end_value and self.schedule_source is not None:
            raise ValueError(f"end_value must be 0 with {self.schedule}, got {self.end_value}")
        validation.choice("algorithm", self.algorithm, ("adamw", "adafactor"))
        if self.algorithm != "adamw" and self.base_width is not None:
            raise ValueError(f"base_width is for adamw, got {self.base_width} with adafactor")
        options.within(self, options.DECAY, "dropout", "b1", "b2")
        validation.choice("embedding", self.embedding, get_args(lexinvariant.Method))
        for field in ("p", "anneal_p"):
            value = getattr(self, field)
            if value is None:
                continue
            validation.number(field, value, minimum=0, maximum=1, open_minimum=field == "anneal_p")
            if self.embedding not in ("relabel", "mixed"):
                raise ValueError(
                    f"{field} needs embedding='relabel' or 'mixed', got {field}={value!r} with "
                    f"{self.embedding!r}"
                )
        if self.warmup_steps is not None:
            validation.integer("warmup_steps", self.warmup_steps, minimum=0)
            if self.pilot is not None and self.warmup_steps:
                raise ValueError(
                    "warmup_steps must be 0 with a refined schedule, which has its own warm-up, "
                    f"got {self.warmup_steps}"
                )
        self.privacy.validate()
        if self.private:
            for field, plain in (("accumulation_steps", 1), ("anneal_p", None)):
                if getattr(self, field) != plain:
                    raise ValueError(
                        f"{field} must be left out of a private run, got {getattr(self, field)}"
                    )
        options.at_least_one(self, "keep_every", "checkpoint_every", "evaluate_every", "log_every")
        if self.keep_best and self.checkpoint_every % self.evaluate_every:
            raise ValueError(
                "keep_best needs an evaluation at each checkpoint: evaluate_every must divide "
                f"checkpoint_every={self.checkpoint_every}, got {self.evaluate_every}"
            )
        if self.schedule_source is None:
            self.schedule_function()
        if self.base_width is not None:
            self._at_width(validation.integer("base_width", self.base_width, minimum=1))

    def _check_sizes(self) -> None:
        """Refuse what no machine holds before anything of that size is made."""
        widths = ("d_model", "num_layers", "num_heads", "head_dim", "d_ff", "sequence_length",
                  "batch_size")  # fmt: skip
        for field in (*widths, "steps"):
            size = validation.integer(field, getattr(self, field), minimum=1)
            largest = LARGEST_STEPS if field == "steps" else LARGEST_SIZE
            if size > largest:
                raise ValueError(f"{field} must be at most {largest:,}, got {size:,}")
        layer = self.d_model * (4 * self.num_heads * self.head_dim + 3 * self.d_ff)
        if self.num_layers * layer > LARGEST_MODEL:
            raise ValueError(
                f"num_layers, d_model, num_heads, head_dim and d_ff must make at most "
                f"{LARGEST_MODEL:,} parameters, got some {self.num_layers * layer:,}"
            )

    @property
    def private(self) -> bool:
        """Whether the run has a privacy budget."""
        return self.privacy.epsilon is not None

    @property
    def pilot(self) -> str | None:
        """The run or file of gradient norms that the schedule is refined from, if it is."""
        return self._after("refined:")

    @property
    def law(self) -> str | None:
        """The fit that chooses the schedule, if one does."""
        return self._after("law:")

    def _after(self, kind: str) -> str | None:
        return self.schedule.removeprefix(kind) if self.schedule.startswith(kind) else None

    @property
    def schedule_source(self) -> str | None:
        """What the schedule is read from, if it is: the pilot or the fit."""
        return self.pilot or self.law

    @property
    def warmup(self) -> int:
        """Updates of the warm-up; 0 where the schedule has its own."""
        if self.pilot is not None:
            return 0
        return min(50, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    def _accumulate(self) -> None:
        """Make batch_size that of an update, of as many microbatches as it takes."""
        tokens = validation.integer("tokens_per_step", self.tokens_per_step, minimum=1)
        updates, rest = divmod(tokens, self.batch_size * self.sequence_length)
        if rest:
            raise ValueError(
                f"tokens_per_step must be a multiple of batch_size x sequence_length = "
                f"{self.batch_size * self.sequence_length}, got {tokens}"
            )
        # A stored configuration holds the sizes that this made: then there is nothing to do.
        if updates > 1:
            if self.accumulation_steps != 1:
                raise ValueError(
                    "accumulation_steps must be left out with tokens_per_step, got "
                    f"{self.accumulation_steps}"
                )
            object.__setattr__(self, "batch_size", self.batch_size * updates)
            object.__setattr__(self, "accumulation_steps", updates)

    def schedule_function(self) -> optax.Schedule:
        """The learning rate by step.

        Raises:
            ValueError: if the schedule is unknown, or the pilot's norms or the law cannot be used.
            OSError: if the pilot's norms or the law cannot be read.
        """
        if self.pilot is not None:
            norms = refinement.read_pilot(self.pilot).norms
            # The recorder of this job keeps l1 norms: the rule for optimizers of the Adam family.
            return schedules.refined_schedule(norms, self.learning_rate, self.steps, norm="l1")
        if self.law is not None:
            law = losscurves.read_law(self.law)
            return losscurves.chosen_schedule(
                law, self.steps, peak_value=self.learning_rate, warmup_steps=self.warmup
            )
        validation.choice("schedule", self.schedule, profiles.PROFILES)
        return schedules.schedule_from_profile(
            self.schedule, self.learning_rate, self.steps, warmup_steps=self.warmup,
            end_value=self.end_value,
        )  # fmt: skip

    def optimizer(self, vocab_size: int) -> optax.GradientTransformation:
        """Record gradient norms, clip, AdamW or Adafactor with decay on matrices."""
        moments: dict[str, Any] = {"b1": self.b1, "b2": self.b2}
        schedule = self.schedule_function()
        if self.algorithm == "adafactor":
            update = optax.adafactor(
                schedule,
                momentum=self.b1,
                weight_decay_rate=lambda step: self.weight_decay * schedule(step),
                weight_decay_mask=decay_mask,
            )
        elif self.base_width is None:
            update = optax.adamw(
                schedule, weight_decay=self.weight_decay, mask=decay_mask, **moments
            )
        else:
            base, delta, target = (
                self._parameter_shapes(vocab_size, width)
                for width in (self.base_width, 2 * self.base_width, self.d_model)
            )
            scaling = width_room.width_scaling(base, target, delta=delta)
            update = width_room.adamw_width_scaled(schedule, self.weight_decay, scaling, **moments)
        return optax.chain(
            schedules.record_gradient_norms(self.steps, norm="l1"),
            optax.clip_by_global_norm(self.clip_norm),
            update,
        )

    def model(self, vocab_size: int, platform: str | None = None) -> models.DecoderLM:
        """The language model for a vocabulary of this size, on `platform` (JAX's default)."""
        multiplier = 1.0
        if self.base_width is not None:
            # 1/m on the logits; the model's own 1/sqrt(D) has done half of it.
            multiplier = width_room.readout_multiplier(self.d_model, self.base_width)
            multiplier *= (self.d_model / self.base_width) ** 0.5
        on_cpu = (platform or jax.default_backend()) == "cpu"
        fields = (field.name for field in dataclasses.fields(models.DecoderConfig))
        same = {name: getattr(self, name) for name in fields if hasattr(self, name)}
        own: dict[str, Any] = {
            "vocab_size": vocab_size,
            "embedding": "given" if self.embedding == "lexinvariant" else "fixed",
            # Random rows or names give attention nothing constant to find the previous token by.
            "recency_heads": self.embedding != "fixed" and self.position == "t5",
            # Gradients of single examples gain nothing, and take longer to compile.
            "unroll_layers": on_cpu and self.num_layers <= 8 and not self.private,
            "readout_multiplier": multiplier,
        }
        return models.DecoderLM(models.DecoderConfig(**same | own))

    def loss(self, model: models.DecoderLM) -> Callable[..., jax.Array]:
        """The training loss `loss(params, batch, key)` of the model."""
        p: Any = 1.0 if self.p is None else self.p
        if self.anneal_p is None:
            return lexinvariant.next_token_loss(model, method=self.embedding, p=p)
        rise = lexinvariant.relabelling_schedule(self.steps, self.anneal_p)
        return lexinvariant.next_token_loss(
            model,
            method=self.embedding,
            p=lambda step: p * rise(step),
            batch_size=self.batch_size,
            closed=self.embedding == "relabel",
        )

    @property
    def reading(self) -> lexinvariant.Method:
        """How the trained model reads text: under hidden names if it learned to know none."""
        return self.embedding if self.p in (None, 1.0) else "fixed"

    def _at_width(self, d_model: int) -> TrainConfig:
        """This configuration with everything that grows with the width shrunk or grown to it."""
        scaled = {}
        for field in ("num_heads", "num_kv_heads", "d_ff"):
            if getattr(self, field) is None:
                continue
            size, rest = divmod(getattr(self, field) * d_model, self.d_model)
            if rest or not size:
                raise ValueError(
                    f"base_width={self.base_width} must scale {field}={getattr(self, field)} of "
                    f"d_model={self.d_model} to a whole number, got {size + rest / self.d_model:g}"
                )
            scaled[field] = size
        return dataclasses.replace(self, d_model=d_model, base_width=None, **scaled)

    def _parameter_shapes(self, vocab_size: int, d_model: int) -> Any:
        model = self._at_width(d_model).model(vocab_size)
        return nn.meta.unbox(jax.eval_shape(models.initializer(model), jax.random.key(0)))


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay applies to: matrices, not norms, biases or token tables."""
    matrices = {"query", "key", "value", "out", "up", "gate", "down"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)
