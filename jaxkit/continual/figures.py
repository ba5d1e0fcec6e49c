"""Pictures of a stream: who forgot what, when a block grew, which adapters each task uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxkit import plotting
from jaxkit.continual.expandable_state import SEMAConfig
from jaxkit.continual.sema import SEMALearner
from jaxkit.continual.sema_programs import Learning
from jaxkit.continual.stream_runs import StreamResult
from jaxkit.continual.streams import Stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_matrix_figure(
    accuracy: Float[np.ndarray, "T T"], names: Sequence[str], *, title: str = ""
) -> Figure:
    """Accuracy `[i, j]` on task i (rows) after task j (columns), in percent; NaN is left white.

    Example:
        >>> figure = accuracy_matrix_figure(np.array([[1.0, 0.5], [np.nan, 0.7]]), ["a", "b"])
    """
    size = max(3.4, 1.6 + 0.55 * len(names))
    figure, panel = plotting.axes(width=size + 0.8, height=size)
    panel.grid(False)
    image = panel.imshow(100 * accuracy, cmap="viridis", vmin=0, vmax=100)
    for i, row in enumerate(accuracy):
        for j, value in enumerate(row):
            if np.isfinite(value):
                colour = "black" if value > 0.6 else "white"
                panel.text(
                    j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8
                )
    ticks = range(len(names))
    panel.set_xticks(ticks, [str(t + 1) for t in ticks])
    panel.set_yticks(ticks, [f"{t + 1}: {name}" for t, name in enumerate(names)])
    panel.set(xlabel="after task", title=title)
    figure.colorbar(image, ax=panel, label="accuracy, %", shrink=0.8)
    return figure


def expansion_figure(result: StreamResult, config: SEMAConfig, names: Sequence[str]) -> Figure:
    """Scores of all batches that a `SEMALearner` scanned, the threshold, and where a block grew.

    Example:
        >>> from jaxkit import models
        >>> config = SEMAConfig(models.VisionTransformer(), 10, expand_from=11, expand_to=11)
        >>> event = {"kind": "scan", "task": 1, "scores": [[0.8]]}
        >>> result = StreamResult(np.eye(2), np.ones(2, int), (event,), None, 0, True)
        >>> figure = expansion_figure(result, config, ["a", "b"])
    """
    figure, panel = plotting.axes(width=7.5, height=3.4)
    width = 0.6 / config.num_expandable
    for e, block in enumerate(config.expandable):
        colour = plotting.COLORS[e % len(plotting.COLORS)]
        shift = (e - (config.num_expandable - 1) / 2) * width
        scans = [event for event in result.events if event["kind"] == "scan"]
        points = [(s["task"] + shift, row[e]) for s in scans for row in s["scores"]]
        if points:
            x, y = np.array(points).T
            panel.plot(x, y, "o", color=colour, alpha=0.45, markersize=4, linewidth=0,
                       label=f"block {block}")  # fmt: skip
        grew = [
            (event["task"] + shift, event["score"])
            for event in result.events
            if event["kind"] == "expand" and event["block"] == block and event["score"] is not None
        ]
        if grew:
            x, y = np.array(grew).T
            panel.plot(x, y, "*", color=colour, markersize=14, markeredgecolor="black",
                       linewidth=0, label=f"block {block} grows")  # fmt: skip
    if np.isfinite(config.threshold):
        panel.axhline(
            config.threshold, color="#999999", linestyle="--", linewidth=1, label="threshold"
        )
    panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
    panel.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, None), ylabel="score of a batch",
              title="The shallowest block above the threshold grows")  # fmt: skip
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", frameon=False,
                  fontsize="small")  # fmt: skip
    return figure


def growth_pictures_figure(result: StreamResult, stream: Stream) -> Figure:
    """What each adapter was opened for: the strangest images of the batch, a row an adapter.

    Raises:
        ValueError: if no block grew on a shift.

    Example:
        >>> from jaxkit.continual import digits_stream
        >>> event = {"kind": "expand", "task": 2, "block": 3, "score": 4.2, "rows": [5, 7]}
        >>> result = StreamResult(np.eye(6), np.ones(6, int), (event,), None, 0, True)
        >>> figure = growth_pictures_figure(result, digits_stream()[0])
    """
    grown = [event for event in result.events if event["kind"] == "expand" and event["rows"]]
    if not grown:
        raise ValueError("result must have a block that grew on a shift, none did")
    figure, panels = plotting.axes(len(grown), 1, width=6.4, height=1.1, squeeze=False)
    for event, panel in zip(grown, panels[:, 0], strict=True):
        task = stream.tasks[event["task"]]
        images = np.asarray(task.train_images[np.array(event["rows"])])
        gap = max(1, images.shape[2] // 16)
        strip = np.concatenate(
            # Grey, which neither dark nor light pictures run into.
            np.pad(images, [(0, 0), (gap, gap), (gap, gap), (0, 0)], constant_values=0.5),
            axis=1,
        )
        panel.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0,
                     vmax=1)  # fmt: skip
        where = f"task {event['task'] + 1} ({task.name}), block {event['block']}"
        panel.set_title(f"{where}, score {event['score']:.1f}", loc="left", fontsize="small")
        panel.axis("off")
    return figure


def router_weights_figure(learner: SEMALearner, state: Learning, stream: Stream) -> Figure:
    """Which adapters each task uses: mean weights on its test images, a panel a block.

    Example:
        >>> import jax
        >>> from jaxkit import datasets, models
        >>> from jaxkit.continual import class_incremental_stream
        >>> model = models.VisionTransformer(8, 8, 1, width=8, depth=1, num_heads=1, mlp_dim=8)
        >>> backbone = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
        >>> config = SEMAConfig(model, 10, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learner = SEMALearner(config, backbone)
        >>> stream = class_incremental_stream(datasets.load_digits(), 5)
        >>> figure = router_weights_figure(learner, learner.init(0), stream)
    """
    config, names = learner.config, [task.name for task in stream.tasks]
    weights = np.stack(
        [learner.inspect(state, task.test_images)[2].mean(0) for task in stream.tasks]
    )
    blocks = config.num_expandable
    figure, panels = plotting.axes(
        1, blocks, width=max(2.6, 7.5 / blocks), height=3.2, sharey=True, squeeze=False
    )
    used = int(np.flatnonzero(weights.max((0, 1)) > 0).max()) + 1
    for e, (block, panel) in enumerate(zip(config.expandable, panels[0], strict=True)):
        below = np.zeros(len(names))
        for slot in range(used):
            share = weights[:, e, slot]
            colour = plotting.COLORS[slot % len(plotting.COLORS)]
            panel.bar(range(len(names)), share, bottom=below, color=colour,
                      label=f"adapter {slot + 1}")  # fmt: skip
            below = below + share
        panel.set_xticks(range(len(names)), names, rotation=35, ha="right")
        panel.set(title=f"block {block}", ylim=(0, 1))
    panels[0][0].set(ylabel="mean weight of the adapter")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper",
                  frameon=False, fontsize="small")  # fmt: skip
    return figure
