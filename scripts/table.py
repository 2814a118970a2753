"""Compare methods on held-out concepts whose every edit has an exact answer. Writes rows.csv, table.md and
what made them.

    # or: make bench-quick; three people, three methods, few steps, about ten minutes on two idle cores
    python scripts/table.py --quick
    python scripts/table.py --keep             # 24 people and 4 things, ten methods, few steps: hours
    # ours and what is nearest to it with the steps and batches of `learn`, the paper's recipe with its own
    python scripts/table.py --long --keep
    # ours with one thing changed: regularisers alone and left out, ranks, dropouts, layers, numbers of steps
    python scripts/table.py --ablation --keep
    python scripts/table.py --estimate         # only say how long it would take
    python scripts/table.py --part 0/4         # one of four processes or machines that share the folder

Every pair of concept and method is kept as soon as it is done, and the same command goes on from there; on
another machine it goes on from the rows in data/bench/. All methods of one concept come before the next
concept, and the table is made of the concepts that every method has.
"""
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
import json
import torch, typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.terminal import spell_out, tidy
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.hub import fingerprint
from sas_nb.lab.bench import estimate, LEAKS, row_files, run, table
from sas_nb.lab.cases import cases, in_words
from sas_nb.lab.methods import ABLATIONS, BRIEF, Budget, METHODS, REGULARISERS
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import complete, load_table, restore, save_table
from sas_nb.recipe import Recipe
from sas_nb.writing import atomic

KEPT = Path("data/bench")
SMALL = dict(steps1=45, steps2=105, batch=4)
QUICK = dict(people=3, things=0, method=("ours", "LoRA-8 (DB-LoRA)", "two-stage")) | SMALL
PAPER = "paper's recipe, 600 + 900 steps of 8"
# the two between are nearest to ours
LONG = "ours", "LoRA-8 (DB-LoRA)", "LoRA-8, our guidance", "ours, no pairs", PAPER
CHANGED = REGULARISERS | ABLATIONS
SETS = dict(
    quick=QUICK, table=dict(people=24, things=4, method=BRIEF) | SMALL,
    ablation=dict(people=6, things=0, method=tuple(m for m in CHANGED if m != PAPER)) | SMALL,
    long=dict(people=24, things=0, method=LONG, steps1=75, steps2=250, batch=8)
)
# sets with methods of their own; those of the ablation are asked for the edits in words
POOLS = dict(ablation=CHANGED, long=METHODS | {PAPER: ABLATIONS[PAPER]})
IN_WORDS = ("ablation",)


def part(text: str) -> tuple[int, int]:
    "'1/4' as (1, 4)."
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise UserError(f"--part is {text!r}: give i/n with i from 0 to n-1, as in 0/4.")
    return int(i), int(n)


def load(model: str) -> VideoDiT:
    "In float32 throughout, so that rows of all machines are alike."
    torch.backends.cudnn.allow_tf32 = False
    return VideoDiT.load(model, dtype=torch.float32)


def unpack(name: str, folder: Path):
    "What is kept of a table goes on where it was: its rows, as the files of a run."
    about = KEPT / f"{name}.json"
    files = json.loads(about.read_text("utf-8")).get("files", {}) if about.exists() else {}
    if files: restore(load_table(KEPT / f"{name}.csv"), files, folder)


def files_of(rows: list[dict], paths: dict) -> dict[str, tuple[str, str]]:
    "The files of these rows, see `restore`."
    there = {(r["concept"], r["method"]) for r in rows}
    return {path.name: pair for pair, path in paths.items() if pair in there}


def write(rows: list[dict], about: dict, folder: Path, name: str):
    "Rows as a tidy CSV, and beside them what they come from."
    save_table(rows, folder / f"{name}.csv")
    with atomic(folder / f"{name}.json") as tmp: tmp.write_text(json.dumps(about, indent=1) + "\n")


Number = Annotated[int | None, typer.Option(min=0, show_default="the set's")]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A small subset.")] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Ours with one thing changed, few steps.")
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="Ours and its rivals with the steps and batches of `learn`.")
    ] = False,
    people: Number = None,
    things: Number = None,
    method: Annotated[
        list[str] | None, typer.Option(help="One of the methods; may be repeated.", show_default="the set's")
    ] = None,
    steps1: Number = None,
    steps2: Number = None,
    batch: Number = None,
    seed: int = 0,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    sampling_steps: Annotated[int | None, typer.Option(min=1, show_default="the model's")] = None,
    model: str = "tiny",
    share: Annotated[str, typer.Option("--part", help="i/n: this process takes every n-th concept.")] = "0/1",
    only_estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure a few steps, say how long it would take, and stop.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Also write the rows to data/bench/.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep rows and write the table.",
            show_default="out/table, out/ablation, out/long"
        ),
    ] = None,
):
    "Train every method on every concept, measure every edit, print the table."
    flags = dict(quick=quick, ablation=ablation, long=long)
    name = next((n for n, on in flags.items() if on), "table")
    given = dict(
        people=people, things=things, method=method or None, steps1=steps1, steps2=steps2, batch=batch
    )
    s = SETS[name] | {k: v for k, v in given.items() if v is not None}
    kind = name if name in POOLS else "table"
    pool = POOLS.get(name, METHODS)
    with tidy():
        if odd := next((m for m in s["method"] if m not in pool), None):
            raise UserError(f"There is no method {odd!r}: choose from {', '.join(pool)}.")
        budget = Budget(s["steps1"], s["steps2"], s["batch"], seed=seed)
        folder = out or Path("out") / kind
        dit = load(model)
        oracles = Oracles.load()
        which = part(share)
        if only_estimate:
            hours = estimate(dit, list(s["method"]), budget, s["people"] + s["things"], oracles)
            return print(f"{s['people'] + s['things']} concepts x {len(s['method'])} methods, "
                         f"{budget.steps1} + {budget.steps2} steps of {budget.batch}: about {hours:.1f} "
                         "hours on one core or device; shared by n processes, an n-th.")
        asked = [
            in_words(c) if name in IN_WORDS else c for c in cases(s["people"], s["things"], dit.defaults.fps)
        ]
        methods = {m: pool[m] for m in s["method"]}
        sampling = dict(steps=sampling_steps) if sampling_steps else None
        unpack(kind, folder / "rows")
        paths = row_files(asked, methods, folder / "rows", oracles, dit, budget, sampling)
        rows = run(
            asked, methods, folder / "rows", oracles, dit, budget, which, sampling, minutes=minutes
        )
        about = dict(
            concepts=sorted({r["concept"] for r in complete(rows)}), methods=list(s["method"]),
            budget=asdict(budget), sampling_steps=sampling_steps, dit=fingerprint(dit.transformer),
            recipes={r: Recipe.named(r).to_dict() for r in ("default", "paper")},
            files=files_of(complete(rows), paths)
        )
        write(complete(rows), about, folder, "rows")
        if keep: write(complete(rows), about, KEPT, kind)
        against = "ours" if "ours" in s["method"] else s["method"][0]
        words = (
            f"{table(complete(rows), against)}\n\n{table(complete(rows), against, LEAKS)}"
            if complete(rows)
            else "No concept has every method yet."
        )
        with atomic(folder / "table.md") as tmp: tmp.write_text(words + "\n")
    spell_out()
    Console().print(Markdown(words.replace("<br>", " ")))
    print(f"{len(about['concepts'])} concepts; written: {folder / 'rows.csv'} (a row per sample), "
          f"{folder / 'table.md'}" + (f", data/bench/{kind}.csv" if keep else ""))


if __name__ == "__main__": typer.run(main)
