"""Pictures a second beside a plain Pillow loop and PyTorch's DataLoader, with the same transforms.

20,000 JPEG files of 500 x 375 pixels are written to a temporary folder (200 different ones under
many names). Each side decodes, draws a box (area 0.05 to 1), resizes it to 224 x 224 and flips half
of them. The loop and ours on one thread take turns in one process and are told in pictures a
CPU-second, so that a busy machine does not matter; the loaders with two workers take turns and are
told in pictures a second. A process of its own says how long the first batch takes and how much
memory an epoch's beginning needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np
import timing
import zstandard
from PIL import Image

from jaxkit import datasets
from jaxkit.experiments.evidence import Table

PICTURES, DIFFERENT, BATCH, ROUNDS = 20_000, 200, 32, 5
RECIPE = datasets.picture_recipe("sema")


def write_pictures(root: pathlib.Path) -> None:
    """Smooth noise, so that a file has the 35 to 65 kB of a photograph."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(DIFFERENT):
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8))
        fine = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(fine + rng.normal(0, 8, fine.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "one.jpg", quality=85)
        kept.append((root / "one.jpg").read_bytes())
    (root / "one.jpg").unlink()
    for i in range(PICTURES):
        folder = root / f"class{i % 100:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(kept[i % DIFFERENT])


def plain(path: str, rng: np.random.Generator) -> np.ndarray:
    """One picture as a program without a library reads it."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    width, height = picture.size
    for _ in range(10):
        area = width * height * rng.uniform(0.05, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            break
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    picture = picture.crop((left, top, left + w, top + h))
    pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


class Plain:
    """The loop's pictures as a data set of PyTorch."""

    def __init__(self, names: list[str]):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.array(plain(self.names[i], np.random.default_rng(i)))


def one_core(pictures: datasets.Pictures, names: list[str]) -> list[str]:
    """Pictures a CPU-second of both, in turns.

    Ours reads ahead, so that what was decoded in a turn is counted, not what was asked for.
    """
    rng, batches, decoded = np.random.default_rng(0), 8, 0
    order = iter(np.random.default_rng(1).permutation(len(names)))
    open_one = datasets.PictureFiles.open

    def counted(files: datasets.PictureFiles, i: int):
        nonlocal decoded
        decoded += 1
        return open_one(files, i)

    def loop() -> None:
        for _ in range(batches):
            np.stack([plain(names[next(order)], rng) for _ in range(BATCH)])

    def stream() -> None:
        ours = datasets.picture_batches(pictures, RECIPE, batch_size=BATCH, seed=0, num_threads=1)
        for _ in range(batches):
            next(ours)
        ours.close()

    rates = []
    with unittest.mock.patch.object(datasets.PictureFiles, "open", counted):
        for _ in range(2 * ROUNDS):
            by_loop, decoded = timing.cpu_seconds(loop), 0
            by_us = timing.cpu_seconds(stream)
            rates.append((batches * BATCH / by_loop, decoded / by_us))
    by_loop, by_us = np.array(rates[1:]).T
    cells = map(timing.spread, (by_us, by_loop, by_us / by_loop))
    return ["pictures a CPU-second", *cells]


def two_workers(pictures: datasets.Pictures, names: list[str]) -> list[str]:
    """Pictures a second of both loaders with two worker processes, in turns."""
    try:
        from torch.utils import data
    except ImportError:
        return ["pictures a second, 2 workers", "-", "torch is not installed", "-"]
    ours = datasets.picture_batches(pictures, RECIPE, batch_size=BATCH, seed=0, num_workers=2)
    loader = data.DataLoader(Plain(names), BATCH, shuffle=True, num_workers=2)
    theirs, batches = iter(loader), 30

    def rate(source) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            next(source)
        return batches * BATCH / (time.perf_counter() - start)

    # What was read ahead while the other side had its turn is taken first.
    def turn(source) -> float:
        for _ in range(16):
            next(source)
        return rate(source)

    rates = np.array([[turn(theirs), turn(ours)] for _ in range(ROUNDS)]).T
    ours.close()
    return [
        "pictures a second, 2 workers",
        timing.spread(rates[1]),
        timing.spread(rates[0]),
        timing.spread(rates[1] / rates[0]),
    ]


def first_batch(root: str) -> None:
    """In a process of its own: seconds until the first batch, and the peak after a hundred."""
    start = time.perf_counter()
    train = datasets.find_pictures(root).train
    batches = datasets.picture_batches(train, RECIPE, batch_size=BATCH, seed=0)
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(100):
        next(batches)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def write_rows(path: pathlib.Path, size: int) -> None:
    """JSON lines of so many bytes, of random words, packed by zstd."""
    rng = np.random.default_rng(0)
    words = [f"{word} " for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")]
    with open(path, "wb") as file, zstandard.ZstdCompressor(3).stream_writer(file) as stream:
        written = 0
        while written < size:
            text = "".join(words[i] for i in rng.integers(len(words), size=20_000))
            written += stream.write(json.dumps({"text": text}).encode() + b"\n")


def trained(folder: pathlib.Path, runs: str, kill_at: int | None = None) -> tuple[float, float]:
    """Seconds and peak MB of `jaxkit train`; killed once its tokens have `kill_at` bytes."""
    words = (
        f"train --text {folder}/rows.jsonl.zst --runs {folder}/{runs} --name run --tokenizer char "
        "--validation-fraction 0.001 --steps 3 --batch-size 64 --sequence-length 64 --d-model 16 "
        "--num-layers 1 --num-heads 1 --head-dim 16 --d-ff 16 --evaluation-windows 16"
    )
    command, start, peak = [sys.executable, "-m", "jaxkit", *words.split()], time.time(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]))
        grown = (folder / runs / ".cache").glob("tokens-*.partial")
        if kill_at is not None and any(file.stat().st_size > kill_at for file in grown):
            process.kill()
        time.sleep(0.02)
    if process.wait() != (0 if kill_at is None else -9):
        raise AssertionError(f"jaxkit train ended with {process.returncode}")
    return time.time() - start, peak / 1024


def text(gigabytes: float = 0.2) -> Table:
    """A text of JSON lines in zstd: tokenized once, in bounded memory, and to the end if killed."""
    size = round(gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_rows(folder / "rows.jsonl.zst", size)
        starts = [
            ("killed while it tokenizes", *trained(folder, "killed", size // 3)),
            ("started again", *trained(folder, "killed")),
            ("never killed", *trained(folder, "whole")),
        ]
        shutil.rmtree(folder / "whole" / "run")
        starts.append(("another run on the same text", *trained(folder, "whole")))
        digests = []
        for runs in ("killed", "whole"):
            (tokens,) = (
                file for file in (folder / runs / ".cache").glob("tokens-*.npy")
                if file.stat().st_size > size // 2
            )  # fmt: skip
            with open(tokens, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
            log = json.loads((folder / runs / "run" / "metrics.jsonl").read_text().splitlines()[-1])
            digests[-1] += f" {log['loss']}"
    if digests[0] != digests[1]:
        raise AssertionError(f"a killed run must end as another, got {digests}")
    rows = [(label, f"{seconds:.0f}", f"{peak:.0f}") for label, seconds, peak in starts]
    title = f"{gigabytes:g} GB of JSON lines in zstd; same tokens and loss after the kill"
    return Table(title, ("jaxkit train", "seconds", "peak memory, MB"), rows)


def run() -> Table:
    """Both comparisons, and what a start costs."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(pathlib.Path(folder))
        command = [sys.executable, __file__, folder]
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.split()
        pictures = datasets.find_pictures(folder).train
        names = [f"{folder}/{name}" for name in pictures.source.names]
        rows = [
            one_core(pictures, names),
            two_workers(pictures, names),
            ["seconds to the first batch", f"{float(found[0]):.2f}", "-", "-"],
            ["peak memory, MB", f"{float(found[1]):.0f}", "-", "-"],
        ]
    title = f"{PICTURES:,} JPEG pictures of 500 x 375, cut and resized to 224 x 224"
    return Table(title, ["", "jaxkit", "Pillow loop / PyTorch DataLoader", "ratio"], rows)


if __name__ == "__main__":
    first_batch(sys.argv[1])
