"""Compare methods on held-out concepts whose every edit has an exact answer. Writes rows.csv and table.md.

    python scripts/table.py --quick            # or: make bench-quick; three people, three methods, half the steps, about ten minutes on two idle cores
    python scripts/table.py                    # 24 people and 4 things, all methods: hours, or a GPU
    python scripts/table.py --part 0/4         # one of four processes or machines that share the folder

Every pair of concept and method is kept as soon as it is done, and the same command goes on from there.
"""
from pathlib import Path
from typing import Annotated
import typer
from rich.console import Console
from rich.markdown import Markdown
from sas_nb.bench import METHODS, Budget, cases, run, save_table, table
from sas_nb.cli import tidy
from sas_nb.clip import UserError, atomic
from sas_nb.dit import VideoDiT
from sas_nb.oracles import Oracles

QUICK = dict(people=3, things=0, methods=("LoRA-8 (DB-LoRA)", "two-stage", "ours"), budget=Budget(75, 200, batch=4))


def part(text: str) -> tuple[int, int]:
    "'1/4' as (1, 4)."
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)): raise UserError(f"--part is {text!r}: give i/n with i from 0 to n-1, as in 0/4.")
    return int(i), int(n)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A small subset.")] = False,
    people: Annotated[int, typer.Option(min=0)] = 24, things: Annotated[int, typer.Option(min=0)] = 4,
    method: Annotated[list[str] | None, typer.Option(help="One of the methods; may be repeated.", show_default="all")] = None,
    steps1: int = 150, steps2: int = 400, batch: int = 8, seed: int = 0,
    model: str = "tiny", share: Annotated[str, typer.Option("--part", help="i/n: this process takes every n-th pair.")] = "0/1",
    out: Annotated[Path, typer.Option(help="Where to keep rows and write the table.")] = Path("out/table"),
):
    "Train every method on every concept, measure every edit, print the table."
    with tidy():
        set_, methods, budget = (people, things), list(method or METHODS), Budget(steps1, steps2, batch, seed=seed)
        if quick: set_, methods, budget = (QUICK["people"], QUICK["things"]), list(method or QUICK["methods"]), QUICK["budget"]
        dit = VideoDiT.load(model)
        rows = run(cases(*set_, fps=dit.recommended.fps), methods, out / "rows", Oracles.load(), dit, budget, part(share))
        save_table(rows, out / "rows.csv")
        words = table(rows, "ours" if "ours" in methods else methods[0])
        with atomic(out / "table.md") as tmp: tmp.write_text(words + "\n")
    Console().print(Markdown(words.replace("<br>", " ")))
    print(f"written: {out / 'rows.csv'} (a row per sample), {out / 'table.md'}")


if __name__ == "__main__": typer.run(main)
