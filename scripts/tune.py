"""Choose the defaults: train variants of the recipe, and of its strongest rival, on held-out people that no
benchmark uses.

    python scripts/tune.py                     # how likely each variant finds the exact answers; no sampling
    python scripts/tune.py --sample            # and what its clips are worth
    python scripts/tune.py --only ours --only "ours, shift 1"

    python scripts/tune.py --set tune          # many variants, trained briefly
    # ways of sampling; these are the rows that data/bench/ keeps
    python scripts/tune.py --set tune_sampling --keep tune_sampling

Variants of training are sampled with ordinary guidance, and all are asked for the edits in words alone. Every
pair of person and variant is kept as soon as it is done, and the same command goes on from there. Prints
means and paired 95 % intervals over people; writes them and all rows to --out, and with --keep NAME to
data/bench/ as well.
"""
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
import typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.terminal import spell_out, tidy
from sas_nb.files import check_names, UserError
from sas_nb.hub import fingerprint
from sas_nb.lab.bench import LEAKS, losses, measured, row_files, run, TABLE, table
from sas_nb.lab.cases import case, in_words
from sas_nb.lab.methods import ABLATIONS, Budget, one_stage, set_and_sequence
from sas_nb.lab.oracles import Oracles
from sas_nb.recipe import Recipe, Sampling
from sas_nb.writing import atomic
from table import files_of, KEPT, load, part, unpack, write

FIRST = 100  # people are numbered from here; the benchmark's are 0 to 23


def variants() -> dict:
    "Ours, ours with one thing changed, the paper's recipe, and the strongest rival at several rates."
    changed = {
        "appearance prompt": dict(full_caption=False), "frames as images": dict(frozen=False),
        "shift 1": dict(shift=1.0), "shift 2": dict(shift=2.0), "shift 8": dict(shift=8.0),
        "rate x 4": dict(lr_factor=4.0), "rate x 16": dict(lr_factor=16.0),
        "prior alone": dict(dropout=0.0, token_mask=0.0), "no dropout": dict(dropout=0.0),
        "dropout 0.5": dict(dropout=0.5), "no prior": dict(prior=0.0), "prior 1/4": dict(prior=0.25),
        "no token mask": dict(token_mask=0.0),
        "token rate of the paper": dict(token_lr=Recipe.paper().stage1.token_lr),
        "images, shift 1": dict(frozen=False, shift=1.0)
    }
    parts = {
        "rank 16": dict(rank=16), "rank 16, no prior": dict(rank=16, both=dict(prior=0.0)),
        "equal steps": dict(stage1=dict(steps=75), stage2=dict(steps=75)),
        "more steps in stage 1": dict(stage1=dict(steps=100), stage2=dict(steps=50)),
        "stage 1 rate x 16": dict(stage1=dict(lr_factor=16.0)),
        "stage 2 rate x 16": dict(stage2=dict(lr_factor=16.0)),
        "stage 2 no dropout": dict(stage2=dict(dropout=0.0)),
        "no pairs": dict(stage2=dict(counterfactuals=0.0)),
        "pairs 1/4": dict(stage2=dict(counterfactuals=0.25)),
        "stage 2 no prior": dict(stage2=dict(prior=0.0)), "stage 2 shift 8": dict(stage2=dict(shift=8.0)),
        "prior 1/4, then none": dict(stage1=dict(prior=0.25), stage2=dict(prior=0.0))
    }
    changed |= {"silent words": dict(token_init=0.), "words of full length": dict(token_init=1.)}
    parts |= {name: dict(both=changes) for name, changes in changed.items()}
    shares = {"half": .5, "two thirds": 2/3, "three quarters": .75, "all": 1.}
    sampled = {
        **{f"{name} guidance": dict(guidance_factor=f) for name, f in shares.items() if f < 1},
        **{
            f"{name} guidance, against {a:g}": dict(guidance_factor=f, negative_scale=a)
            for name, f in shares.items()
            for a in (0.5, 0.7)
        },
        "edits 3": dict(edit_guidance=3.0),
        **{
            f"two thirds guidance, against 0.7, edits {e:g}":
            dict(guidance_factor=2/3, negative_scale=0.7, edit_guidance=e) for e in (1.0, 3.0, 6.0)
        },
    }
    ours = set_and_sequence(sampling=Sampling()).remembered()
    lora = one_stage().remembered()
    return {"ours": ours, **{f"ours, {name}": ours.sampled(**s) for name, s in sampled.items()},
            **{f"LoRA-8, {name}": lora.sampled(**s) for name, s in sampled.items()},
            "paper's recipe": set_and_sequence(Recipe.paper()),
            **{f"LoRA-8, rate x {k}": one_stage(lr_factor=float(k)) for k in (1, 2, 4, 8, 16)},
            "LoRA-8, rate x 4, shift 4": one_stage(lr_factor=4., shift=4.),
            "ours, each stage in its noise": ABLATIONS["each stage in its noise"],
            **{f"ours, {name}": set_and_sequence(sampling=Sampling(), **how) for name, how in parts.items()}}


VARIANTS = variants()
_BRIEFLY = (
    "ours", "LoRA-8, rate x 4", "LoRA-8, rate x 8", "LoRA-8, rate x 16", "ours, no pairs",
    "ours, frames as images", "ours, rank 16",
    "ours, no prior", "ours, rank 16, no prior",
    "ours, stage 2 no prior", "ours, stage 2 no dropout", "ours, stage 1 rate x 16",
    "ours, stage 2 rate x 16", "ours, equal steps", "ours, more steps in stage 1", "ours, shift 2",
    "ours, stage 2 shift 8", "ours, no token mask"
)
_SAMPLED = (
    "ours", "ours, two thirds guidance", "ours, two thirds guidance, against 0.7", "ours, edits 3",
    "ours, two thirds guidance, against 0.7, edits 1", "ours, two thirds guidance, against 0.7, edits 3",
    "ours, two thirds guidance, against 0.7, edits 6", "LoRA-8, edits 3", "LoRA-8, rate x 4",
    "ours, each stage in its noise"
)
SETS = dict(
    tune=dict(people=4, only=_BRIEFLY, steps1=50, steps2=100, batch=4, sampling_steps=10),
    tune_sampling=dict(people=8, only=_SAMPLED, steps1=75, steps2=250, batch=8, sampling_steps=20)
)


def main(
    people: Annotated[int, typer.Option(min=1)] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="A variant; may be repeated.", show_default="all")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Generate and measure clips, too.")] = False,
    steps1: int = 30,
    steps2: int = 60,
    batch: int = 4,
    seed: int = 0,
    sampling_steps: Annotated[int, typer.Option(min=1)] = 10,
    which: Annotated[str | None, typer.Option("--set", show_default="none", help=(
        f"All of these numbers and variants, sampled: {', '.join(SETS)}."))] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    share: Annotated[str, typer.Option("--part", help="i/n: this process takes every n-th concept.")] = "0/1",
    keep: Annotated[
        str | None,
        typer.Option(
            help="Also write data/bench/KEEP.csv and .json; the analysis reads tune_sampling."
        ),
    ] = None,
    out: Path = Path("out/tune"),
):
    "Train variants, measure them, print the table."
    with tidy():
        if which:
            check_names([which], list(SETS), "--set")
            people, only, steps1, steps2, batch, sampling_steps = SETS[which].values()
            sample = True
        names = list(only or VARIANTS)
        budget = Budget(steps1, steps2, batch, seed=seed)
        if odd := next((n for n in names if n not in VARIANTS), None):
            raise UserError(f"There is no variant {odd!r}: choose from {'; '.join(VARIANTS)}.")
        dit = load("tiny")
        oracles = Oracles.load()
        who = [in_words(case(FIRST + n, fps=dit.defaults.fps)) for n in range(people)]
        chosen = {n: VARIANTS[n] for n in names}
        how = dict(sampling=dict(steps=sampling_steps), measure=measured) if sample else dict(measure=losses)
        if keep: unpack(keep, out / "rows")
        paths = row_files(who, chosen, out / "rows", oracles, dit, budget, **how)
        rows = run(
            who, chosen, out / "rows", oracles, dit, budget, part(share), minutes=minutes, **how
        )
        words = table(
            rows, names[0], (("loss", False), ("loss", True)) + (TABLE[:-1] + LEAKS if sample else ())
        )
        about = dict(
            people=sorted({r["concept"] for r in rows}), budget=asdict(budget),
            sampling_steps=sampling_steps if sample else None, dit=fingerprint(dit.transformer),
            files=files_of(rows, paths)
        )
        write(rows, about, out, "rows")
        if keep: write(rows, about, KEPT, keep)
        with atomic(out / "table.md") as tmp: tmp.write_text(words + "\n")
    spell_out()
    Console().print(Markdown(words.replace("<br>", " ")))
    print(f"{len(about['people'])} people from number {FIRST} on, {steps1} + {steps2} steps of {batch}; "
          f"written: {out / 'rows.csv'}, {out / 'table.md'}")


if __name__ == "__main__": typer.run(main)
