"""Train a tiny model from nothing, or go on training one: autoencoder, DiT, oracles, report card, each going
on where it stopped.

    python scripts/pretrain.py  # or: make pretrain; hours on a laptop
    python scripts/pretrain.py --start data/tiny --autoencoder-minutes 0  # the shipped model, its DiT longer
    # both longer, compiled
    python scripts/pretrain.py --start data/tiny --fast
    # a large GPU
    python scripts/pretrain.py --start data/tiny --autoencoder-minutes 4 --dit-minutes 6 --fast \\
        --workers 14 --autoencoder-batch 64 --clips 512 --images 256 --first 30000 --fresh 8

The result is OUT/pipeline, a model folder, with its curves; beside it OUT/oracles, and OUT/report.
"""
from pathlib import Path
from typing import Annotated
import torch, typer
from sas_nb.terminal import tidy
from sas_nb.lab.autoencoder import train_autoencoder
from sas_nb.lab.oracle_training import train_oracles
from sas_nb.lab.pretrain import train_dit
from sas_nb.lab.report import report_card


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, curves and results.")] = Path("runs/tiny"),
    start: Annotated[
        Path | None, typer.Option(help="A model folder to begin with, such as data/tiny.")
    ] = None,
    autoencoder_minutes: float = 60,
    dit_minutes: float = 90,
    oracle_minutes: float = 30,
    frozen_encoder: Annotated[
        bool, typer.Option("--frozen-encoder", help="Sharpen the decoder only: latents stay what they were.")
    ] = False,
    encoder_dim: Annotated[
        int | None,
        typer.Option(help="Channels of a wider encoder; the shipped one has 96.", show_default="as it is")
    ] = None,
    decoder_dim: Annotated[
        int | None,
        typer.Option(help="Channels of a wider decoder; the shipped one has 96.", show_default="as it is")
    ] = None,
    autoencoder_batch: int = 6,
    clips: Annotated[int, typer.Option(help="Clips in a step of the DiT.")] = 24,
    images: int = 16,
    first: Annotated[int, typer.Option(help="Clips drawn before the DiT's first step.")] = 1600,
    fresh: Annotated[int, typer.Option(help="Clips drawn for each step.")] = 4,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Compile: minutes at first, then steps of half the time or less. Needs a C++ compiler."
        ),
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that draw clips.")] = 1,
    device: Annotated[str | None, typer.Option(show_default="the best there is")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of the report card; 0 for none.")] = 500,
):
    torch.backends.cudnn.benchmark = True # shapes never change
    torch.set_float32_matmul_precision("high")
    out, start = out.expanduser(), start and start.expanduser()
    with tidy():
        vae = train_autoencoder(
            out, autoencoder_minutes, autoencoder_batch, workers=workers, device=device,
            frozen_encoder=frozen_encoder, encoder_dim=encoder_dim, decoder_dim=decoder_dim, start=start,
            fast=fast
        )
        if dit_minutes:
            train_dit(
                out, vae, dit_minutes, clips, images, first, fresh, workers=workers, device=device,
                start=start, same_latents=frozen_encoder or not autoencoder_minutes, fast=fast
            )
        if oracle_minutes:
            train_oracles(out / "oracle-training", vae, oracle_minutes, workers=workers, device=device)
        if prompts and dit_minutes: report_card(str(out / "pipeline"), out / "report", prompts, progress=True)
    if dit_minutes: print(f"Done: {out / 'pipeline'} is a model folder; try "
                          f"VideoDiT.load({str(out / 'pipeline')!r}).")


if __name__ == "__main__": typer.run(main)
