"""How many people fit into one adapter? Learn n of them together, and look for each one alone in it.

    python scripts/capacity.py                    # 2, 4 and 8 people, two groups of each: 20 minutes
    python scripts/capacity.py --people 4 --minutes 10
    python scripts/capacity.py --keep             # also write the rows to data/bench/capacity.csv

Everyone has the same number of steps, however many learn; the one who learned alone is the zoo's concept.
Adapters are kept in `--out` as soon as they are there, and a run that was stopped goes on.
"""
import time, warnings
from pathlib import Path
from typing import Annotated
import torch, typer
from sas_nb.atlas.places import load_zoo
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.files import Advice
from sas_nb.lab.compared import compare, Judge
from sas_nb.lab.compose_bench import Cast, learned_jointly
from sas_nb.lab.compose_table import mean_of
from sas_nb.lab.draw import Spec
from sas_nb.lab.finder import Finder
from sas_nb.lab.gatherings import Gathering, prompt_of
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import save_table
from sas_nb.lab.zoo import spec_of
from sas_nb.terminal import tidy

KEPT = Path("data/bench/capacity.csv")
COLUMNS = "people", "group", "rank", "look", "movement", "alone_look", "alone_movement"
CROWDS = 2, 4, 8
SCENE = dict(scene="snow")  # nobody was filmed there


def crowds(zoo: dict[str, Concept], n: int, groups: int) -> list[Gathering]:
    "Groups of n people of the zoo, with nobody in two of them."
    singles = [spec_of(c) for name, c in zoo.items() if name.startswith(("man", "woman"))]
    chosen = [singles[k*n:(k+1)*n] for k in range(groups)]
    return [Gathering(f"crowd-{n}-{k}", "crowd", Spec(tuple(s.subjects[0] for s in of), **SCENE), tuple(of))
            for k, of in enumerate(chosen)]


def likeness(judge: Judge, g: Gathering, k: int, concept: Concept, number: int) -> tuple[float, float]:
    "Look and movement of subject k, alone in the scene and called by words of that number, to its own clip."
    own = g.alone(k)
    prompt = prompt_of(own).replace("1]", f"{number}]" if number else "]")
    row = compare(judge, own, concept.generate(prompt, seed=k)).row
    return row["identity"], row["gait"]


def row_of(judge: Judge, g: Gathering, cast: Cast, group: int) -> dict:
    "A group that learned together, and the same people as each of them learned alone."
    n = len(g.singles)
    concept = learned_jointly(g, cast, cast.recipe.together(n, 0.))
    joint = [likeness(judge, g, k, concept, k+1) for k in range(n)]
    apart = [likeness(judge, g, k, c, 0) for k, c in enumerate(cast.of(g))]
    means = [mean_of(values) for pairs in (joint, apart) for values in zip(*pairs)]
    return dict(zip(COLUMNS, (n, group, cast.recipe.rank, *means)))


def main(
    people: Annotated[
        list[int] | None, typer.Option(min=2, help="How many; may be repeated.", show_default="2, 4, 8")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="Of each size.")] = 2,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help=f"Also write the rows to {KEPT}.")] = False,
    model: str = "tiny",
    zoo: Annotated[str, typer.Option(help="Concepts of single subjects, as a folder.")] = "zoo",
    out: Annotated[Path, typer.Option(help="Where adapters and rows are kept.")] = Path("out/capacity"),
):
    "Learn what is missing, measure, print."
    warnings.simplefilter("ignore", Advice)  # that others of the group are not in the prompt is meant
    with tidy():
        dit = VideoDiT.load(model, dtype=torch.float32)
        members = load_zoo(zoo, dit=dit)
        cast = Cast(dit, out/"adapters", members)
        judge, began, rows = Judge(Oracles.load(), Finder.load()), time.monotonic(), []
        for n in people or CROWDS:
            for group, g in enumerate(crowds(members, n, groups)):
                if minutes is not None and time.monotonic()-began > 60*minutes: break
                rows.append(row_of(judge, g, cast, group))
                print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
                for path in (out/"capacity.csv", *[KEPT]*keep):
                    save_table(rows, path, COLUMNS, "{:.4g}".format)


if __name__ == "__main__": typer.run(main)
