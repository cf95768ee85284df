"""`python -m benchmarks.accumulation`: peak memory of a step in parts, and of the whole at once.

Each row is a fresh process that takes the demo's steps on synthetic images, with an allocator that
gives back at once what is freed. What a step in parts may hold beyond a step over one part are the
features of the whole batch, A x B x D x 4 bytes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from swav_trainer import data
from swav_trainer.config import Config
from swav_trainer.engine import Trainer
from swav_trainer.settings import load_preset

from benchmarks import memory

SIDE = 28  # of the demo's images
STEPS = 2  # the first makes the optimiser's state
MB = 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for one part, the whole in parts, and the whole at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accumulation", description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="images of a part")
    parser.add_argument("--effective-batch", type=int, default=1024, help="images of a step")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(measure(Config(**json.loads(options.child))))
        return 0
    if not 0 < options.batch < options.effective_batch:
        parser.error("--effective-batch must be more than --batch, and both positive")
    part = recipe(options.batch, options.effective_batch)
    rows = {
        "one part": part,
        "the whole in parts": dataclasses.replace(part, effective_batch=options.effective_batch),
        "the whole at once": dataclasses.replace(part, batch_size=options.effective_batch),
    }
    held = len(part.assign) * options.effective_batch * part.feature_dim * 4 / MB
    print(
        f"{part.arch}, crops {part.crops}, parts of {options.batch}, steps of "
        f"{options.effective_batch} images, whose features take {held:.1f} MB"
    )
    print(f"{'':<20}{'MB above the start':>20}{'to part + features':>20}")
    allowed = 0.0
    for name, config in rows.items():
        taken = in_a_fresh_process(config) / MB
        allowed = allowed or taken + held
        share = "" if config is part else f"{taken / allowed:.2f}"
        print(f"{name:<20}{taken:>20.1f}{share:>20}", flush=True)
    return 0


def recipe(batch: int, effective: int) -> Config:
    """Return the demo's settings over synthetic training images for all steps of any row."""
    demo = load_preset("mnist5k")
    count = round(STEPS * effective / (1 - demo.holdout)) + 1
    return dataclasses.replace(
        demo, data=f"synthetic:{count}x{SIDE}", batch_size=batch, effective_batch=0,
        epochs=1, queue_length=0, warmup=0.0,
    )  # fmt: skip


def in_a_fresh_process(config: Config) -> int:
    """Return the bytes of `measure`."""
    command = [sys.executable, "-m", "benchmarks.accumulation", "--child"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    result = subprocess.run(
        [*command, json.dumps(dataclasses.asdict(config))], cwd=Path(__file__).parents[1],
        env=kept | memory.MALLOC, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return int(result.stdout.splitlines()[-1])


def measure(config: Config) -> int:
    """Return the peak of bytes in the first steps, above what a new run holds."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, data.load(config), Path(folder))
        trainer.model.train()

        def steps() -> None:
            for _ in trainer._steps(0, 0):
                trainer.step += 1
                if trainer.step == STEPS:
                    break
            trainer.loader.close()

        return memory.peak_of(steps)


if __name__ == "__main__":
    raise SystemExit(main())
