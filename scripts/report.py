"""The report card of a tiny model: prompts drawn by seed, one clip each, judged by oracles. Writes
report.json and sheet.png.

    python scripts/report.py                                    # the shipped model, 500 prompts
    python scripts/report.py --model runs/tiny/pipeline --n 50

Ctrl-C stops it safely, and the same command goes on from there.
"""
from pathlib import Path
from typing import Annotated
import typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.terminal import tidy, spell_out
from sas_nb.lab.report import card_markdown, report_card
from sas_nb.writing import atomic


KEPT = Path("data/report")


def keep_files(out: Path):
    for name in ("report.json", "sheet.png"):
        with atomic(KEPT / name) as tmp: tmp.write_bytes((out.expanduser() / name).read_bytes())


def main(
    model: Annotated[str, typer.Option(help="'tiny', or a model folder that pre-training wrote.")] = "tiny",
    n: Annotated[int, typer.Option(help="How many prompts.", min=1)] = 500,
    out: Annotated[Path, typer.Option(help="Folder to write; samples found there are read.")] = Path(
        "out/report"
    ),
    seed: Annotated[int, typer.Option(help="The first prompt's seed.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the model's own")
    ] = None,
    batch: Annotated[int, typer.Option(help="Clips sampled at a time.", min=1)] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Also write card and sheet to data/report/.")] = False,
):
    """Say how well a tiny model follows its prompts, with intervals, beside what the oracles say of real
    clips."""
    with tidy(): card = report_card(model, out, n, seed, steps, guidance, batch, progress=True)
    if keep: keep_files(out)
    spell_out()
    Console().print(Markdown(card_markdown(card)))
    print(f"Look at {out / 'sheet.png'}; the figures are in {out / 'report.json'}.")


if __name__ == "__main__": typer.run(main)
