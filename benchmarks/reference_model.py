"""Trains the reference networks: one checkpoint for every output stride, by a recipe anyone can run again.

python -m edgeseg.benchmarks.reference_model train deeplabv3_mobilenet_v2 --data ../shared/data/camvid \
    --backbone ../shared/models/mobilenet_v2_backbone_voc.safetensors --threads 2 -o runs/deeplabv3

Started again with the same arguments, a run that was stopped or killed goes on from its last checkpoint and ends at
the weights it would have had (on the same machine with the same number of threads).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
import torch
from safetensors.torch import save

from edgeseg import images
from edgeseg._edge import exit_code
from edgeseg._files import sha256, write_atomic
from edgeseg._terminal import Finite, SizeType, status
from edgeseg.benchmarks.reference_curves import draw_curves
from edgeseg.benchmarks.reference_data import Batches, class_weights, digest, draw_streets, read_photos
from edgeseg.benchmarks.reference_journal import Journal
from edgeseg.benchmarks.reference_networks import RECIPES, by_phases, fold_norms, start_from, unfold_norms
from edgeseg.benchmarks.reference_scores import scores, show
from edgeseg.benchmarks.reference_training import Run, Schedule, ahead
from edgeseg.errors import InputError
from edgeseg.models import load_weights
from edgeseg.types import Size

_NETWORK = click.Choice(sorted(RECIPES))


@click.group()
def main() -> None:
    """Train and score edgeseg's reference networks."""


@main.command()
@click.argument("network", type=_NETWORK)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Holds images/SPLIT and labels/SPLIT.")
@click.option("--split", default="train", show_default=True)
@click.option("--backbone", type=click.Path(path_type=Path), help="Pretrained weights of the backbone.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the photos; the recipe's own if left out.")
@click.option("--size", type=SizeType(), help="Of the views, each side a multiple of 32; the recipe's own if left out.")
@click.option("--batch", type=click.IntRange(2), help="Views per step; the recipe's own if left out.")
@click.option("--streets", type=click.IntRange(0), default=64, show_default=True, help="Drawn scenes mixed in.")
@click.option("--held-out", type=Finite(0, 0.5), default=0.0, show_default=True, help="Kept apart, and scored on.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--checkpoint-every", type=click.IntRange(1), default=100, show_default=True, help="Steps.")
@click.option("--score-every", type=click.IntRange(1), show_default="20", help="Epochs, if held out.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.")
def train(
    network: str,
    data: Path,
    split: str,
    backbone: Path | None,
    output: Path,
    epochs: int | None,
    size: Size | None,
    batch: int | None,
    streets: int,
    held_out: float,
    seed: int,
    checkpoint_every: int,
    score_every: int | None,
    device: str,
    threads: int | None,
) -> None:
    """Train NETWORK; writes NETWORK.safetensors (half precision), log.jsonl and checkpoints into the folder.

    Off a terminal the log is the progress: a line per step. An epoch is as many whole batches as the photos make.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; leave it out to train on the CPU")
    if score_every and not held_out:
        raise InputError(f"--score-every {score_every}: nothing is held out to score on; give --held-out, as 0.1")
    if threads:
        torch.set_num_threads(threads)
    recipe = RECIPES[network].changed(epochs=epochs, size=size, batch=batch)
    torch.manual_seed(seed)
    model = recipe.build()
    if backbone is not None:
        start_from(model, backbone)
    folded = fold_norms(model) if backbone is not None else []
    by_phases(model)
    photos = read_photos(data, split, held_out)
    per_epoch = max(1, len(photos.train) // recipe.batch)
    schedule = Schedule(
        steps=per_epoch * recipe.epochs,
        shares=recipe.shares,
        seed=seed,
        learning_rate=recipe.learning_rate,
    )
    run = Run(model, schedule, class_weights(photos.train), device)
    settings: dict[str, object] = {"network": network}
    settings |= {"data": digest(photos), "backbone": None if backbone is None else sha256(backbone)}
    settings |= {"held_out": held_out, "streets": streets, "size": recipe.size, "batch": recipe.batch}
    settings |= {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    journal = Journal(output, settings | dataclasses.asdict(schedule))
    journal.resume(run)
    drawn = draw_streets(streets, seed, photos.train[0][1].shape)
    batches = Batches(photos.train, drawn, recipe.size, recipe.batch, seed)
    began, first = time.perf_counter(), run.step
    with status() as tell:
        for views, labels in ahead(batches, range(run.step, schedule.steps)):
            started = time.perf_counter()
            loss = run.train_on(views, labels)
            seconds = time.perf_counter() - started
            journal.note({"step": run.step, "loss": round(loss, 4), "seconds": round(seconds, 3)})
            left = (schedule.steps - run.step) * (time.perf_counter() - began) / (run.step - first) / 60
            tell(f"step {run.step} of {schedule.steps}: loss {loss:.3f}, about {left:.0f} min left")
            finished = run.step == schedule.steps
            if held_out and (finished or run.step % (per_epoch * (score_every or 20)) == 0):
                with run.averaged() as averaged:
                    rows = scores(averaged, photos.held_out, recipe.shares, device)
                journal.note({"step": run.step, "held_out": [dataclasses.asdict(row) for row in rows]})
            if finished or run.step % checkpoint_every == 0:
                journal.save(run)
    weights = unfold_norms(run.average, folded)
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    path = output / f"{network}.safetensors"
    write_atomic(path, save({name: value.cpu().contiguous() for name, value in half.items()}))
    click.echo(f"{path}: {schedule.steps} steps of {recipe.batch} views, {path.stat().st_size / 1e6:.1f} MB")


@main.command()
@click.argument("network", type=_NETWORK)
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Holds images/SPLIT and labels/SPLIT.")
@click.option("--split", default="val", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def score(network: str, weights: Path, data: Path, split: str, as_json: bool) -> None:
    """Score a checkpoint of NETWORK in torch, in float32, at every output stride it was trained for."""
    model = RECIPES[network].build()
    load_weights(model, weights)
    photos = read_photos(data, split, 0.0).train
    show(scores(model, photos, RECIPES[network].shares), as_json)


@main.command()
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def curves(folders: tuple[Path, ...], output: Path) -> None:
    """Draw the losses of the runs in FOLDERS."""
    images.write(output, draw_curves(folders))


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "reference_model"))
