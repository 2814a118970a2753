"""Measure ways of putting concepts together on gatherings of held-out subjects. Rows come one by one.

    python scripts/compose.py --quick             # three gatherings, the nulls and the sum: a few minutes
    python scripts/compose.py                     # all 36 gatherings, all methods: many hours of a CPU
    python scripts/compose.py --method sum --method "masked side by side" --minutes 60
    python scripts/compose.py --part 0/2          # one of two processes that share the folder
    python scripts/compose.py --only-table        # measure and print what is there, and make nothing
    python scripts/compose.py --keep              # also write the rows to data/bench/compose.csv
    python scripts/compose.py --method joint --add  # put these rows beside those that are kept there

Every clip is kept in `--out` as soon as it is made, and so is every concept; a run that was stopped goes on.
The whole of one gathering comes before the next, and the first gathering of every case before the second.
"""
from pathlib import Path
from typing import Annotated
import torch, typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.atlas.places import load_zoo
from sas_nb.dit import VideoDiT
from sas_nb.files import check_names
from sas_nb.lab.compared import Judge
from sas_nb.lab.compose_bench import asked, Bench, Cast, METHODS, NULLS, rows, run
from sas_nb.lab.compose_table import beside, by_case, load_rows, methods_in, save_rows, summary
from sas_nb.lab.finder import Finder
from sas_nb.lab.gatherings import CAST, gatherings
from sas_nb.lab.oracles import Oracles
from sas_nb.terminal import spell_out, tidy
from sas_nb.writing import atomic
from table import part

QUICK = ("different", "person and bonfire", "person, waves, bonfire")
KEPT = Path("data/bench/compose.csv")


def words(table: list[dict]) -> str:
    "Markdown: the table, and how often everyone is there, case by case."
    cases = by_case(table)
    methods = methods_in(table)
    lines = ["| all present | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for case, row in cases.items():
        lines.append(f"| {case} | " + " | ".join(f"{row[m]:.2f}" for m in methods) + " |")
    return summary(table) + "\n\n" + "\n".join(lines)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Three gatherings, the nulls and the sum.")] = False,
    method: Annotated[
        list[str] | None, typer.Option(help="One of the methods; may be repeated.", show_default="all")
    ] = None,
    each: Annotated[int, typer.Option(min=1, max=CAST, help="Gatherings of each case.")] = CAST,
    seeds: Annotated[int, typer.Option(min=1, help="Clips of each method; captions alone have four.")] = 1,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    share: Annotated[str, typer.Option("--part", help="i/n: this process takes every n-th clip.")] = "0/1",
    only_table: Annotated[bool, typer.Option("--only-table", help="Make nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help=f"Also write the rows to {KEPT}.")] = False,
    add: Annotated[bool, typer.Option("--add", help=f"Put the rows beside those in {KEPT}.")] = False,
    model: str = "tiny",
    zoo: Annotated[str, typer.Option(help="Concepts of single subjects, as a folder.")] = "zoo",
    out: Annotated[Path, typer.Option(help="Where clips, concepts and rows are kept.")] = Path("out/compose"),
):
    "Make what is missing, measure what is there, print the table."
    with tidy():
        methods = method or (list(NULLS) + ["sum"] if quick else list(METHODS))
        check_names(methods, list(METHODS), "--method")
        dit = VideoDiT.load(model, dtype=torch.float32)
        cast = Cast(dit, out / "concepts", load_zoo(zoo, dit=dit))
        bench = Bench(out, cast, Judge(Oracles.load(), Finder.load()))
        who = [g for g in gatherings(1 if quick else each) if not quick or g.case in QUICK]
        asks = asked(who, methods, seeds, of_base=1 if quick else 4)
        table = out / "compose.csv"
        done = rows(bench, asks) if only_table else run(bench, asks, table, minutes, part(share))
        save_rows(done, table)
        if add: done = beside(load_rows(KEPT), done)
        if keep or add: save_rows(done, KEPT)
        text = words(done) if done else "There is no clip yet."
        with atomic(out / "table.md") as tmp: tmp.write_text(text + "\n")
    spell_out()
    Console().print(Markdown(text.replace("<br>", " ")))
    print(f"{len(done)} rows; written: {table}, {out / 'table.md'}" + (f", {KEPT}" if keep or add else ""))


if __name__ == "__main__": typer.run(main)
