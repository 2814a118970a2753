"""Choose the defaults: train variants of the recipe, and of its strongest rival, on held-out people that no benchmark uses.

    python scripts/tune.py                     # how likely each variant finds the exact answers to be: no sampling
    python scripts/tune.py --sample            # and what its clips are worth
    python scripts/tune.py --only "rate x 4" --only "LoRA-8, rate x 1"

Every pair of person and variant is kept as soon as it is done, and the same command goes on from there. Prints means and paired 95 % intervals
over people; writes them and all rows to --out, and with --keep to data/bench/ as well.
"""
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
import typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.bench import TABLE, Budget, case, losses, measured, one_stage, run, set_and_sequence, table
from sas_nb.cli import tidy
from sas_nb.clip import UserError, atomic
from sas_nb.dit import VideoDiT, fingerprint
from sas_nb.oracles import Oracles
from sas_nb.residual import OFF
from table import write

FIRST = 100  # people are numbered from here; the benchmark's are 0 to 23


def paper(**changes): return set_and_sequence("paper", **changes)


VARIANTS = {
    "paper's recipe": paper(), "ours": set_and_sequence(),
    **{f"LoRA-8, rate x {k}": one_stage(lr_factor=float(k)) for k in (1, 2, 4)},
    **{f"rate x {k}": paper(lr_factor=float(k)) for k in (2, 4, 8)},
    "rate x 4, no dropout": paper(lr_factor=4., dropout=0.), "rate x 4, dropout 0.2": paper(lr_factor=4., dropout=.2),
    "rate x 4, no prior": paper(lr_factor=4., prior=0.), "rate x 4, no token mask": paper(lr_factor=4., token_mask=0.),
    "rate x 4, no regularisation": paper(lr_factor=4., **OFF), "rate x 4, token rate 1e-3": paper(lr_factor=4., token_lr=1e-3),
    **{f"rate x {k}, dropout 0.2, prior 1/8, token rate 1e-3": paper(lr_factor=float(k), dropout=.2, prior=.125, token_lr=1e-3) for k in (4, 8)}}


def main(
    people: Annotated[int, typer.Option(min=1)] = 3, only: Annotated[list[str] | None, typer.Option(help="A variant; may be repeated.", show_default="all")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Generate and measure clips, too.")] = False,
    steps1: int = 30, steps2: int = 60, batch: int = 4, seed: int = 0,
    sampling_steps: Annotated[int, typer.Option(min=1)] = 10, minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Also write data/bench/tune.csv and .json.")] = False, out: Path = Path("out/tune"),
):
    "Train variants, measure them, print the table."
    with tidy():
        names, budget = list(only or VARIANTS), Budget(steps1, steps2, batch, seed=seed)
        if odd := next((n for n in names if n not in VARIANTS), None): raise UserError(f"There is no variant {odd!r}: choose from {'; '.join(VARIANTS)}.")
        dit, oracles = VideoDiT.load("tiny"), Oracles.load()
        who = [case(FIRST + n, fps=dit.recommended.fps) for n in range(people)]
        rows = run(who, {n: VARIANTS[n] for n in names}, out / "rows", oracles, dit, budget, sampling=dict(steps=sampling_steps) if sample else None, measure=measured if sample else losses, minutes=minutes)
        words = table(rows, names[0], (("loss", False), ("loss", True)) + (TABLE[:-1] if sample else ()))
        about = dict(people=sorted({r["concept"] for r in rows}), budget=asdict(budget), sampling_steps=sampling_steps if sample else None, dit=fingerprint(dit.transformer))
        write(rows, about, out, "rows")
        if keep: write(rows, about, Path("data/bench"), "tune")
        with atomic(out / "table.md") as tmp: tmp.write_text(words + "\n")
    Console().print(Markdown(words.replace("<br>", " ")))
    print(f"{len(about['people'])} people from number {FIRST} on, {steps1} + {steps2} steps of {batch}; written: {out / 'rows.csv'}, {out / 'table.md'}")


if __name__ == "__main__": typer.run(main)
