"""Train what judges a base's clips, for its autoencoder: the oracles, or the finder of figures.

    python scripts/judges.py oracles            # about two hours of two cores
    python scripts/judges.py finder --keep      # and into data/finder, where all scripts read it

They stop by the clock, and the same command goes on from there. Every base has a folder of its own below
--out.
"""
from enum import Enum
from pathlib import Path
from typing import Annotated
import typer
from sas_nb.dit import VideoDiT
from sas_nb.hub import maker_fingerprint
from sas_nb.lab.finder_training import train_finder
from sas_nb.lab.oracle_training import train_oracles
from sas_nb.terminal import tidy

DATA = Path("data")


class Judge(str, Enum):
    oracles = "oracles"
    finder = "finder"


TRAIN = dict(oracles=(train_oracles, 100.0), finder=(train_finder, 30.0))


def main(
    which: Judge,
    minutes: Annotated[float | None, typer.Option(help="Of training.", show_default="100, or 30")] = None,
    model: Annotated[str, typer.Option(help="The base: a name or folder.")] = "tiny",
    out: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("out/judges"),
    keep: Annotated[bool, typer.Option("--keep", help="Also write what was trained to data/.")] = False,
):
    "Train, measure and save."
    name = which.value
    train, usual = TRAIN[name]
    with tidy():
        dit = VideoDiT.load(model)
        folder = out.expanduser() / maker_fingerprint(dit) / name
        judge = train(folder, dit.vae, usual if minutes is None else minutes)
        if keep: judge.save(DATA / name)
    print(f"Written: {folder / name}" + (f", {DATA / name}" if keep else ""))


if __name__ == "__main__": typer.run(main)
