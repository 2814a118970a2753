"""Which part of the network holds the look, and which the dance: the zoo's people with a part left out.

    python scripts/parts.py                            # 16 people of the shipped zoo: ten minutes
    python scripts/parts.py --concepts 2 --steps 4 --out small.csv   # a rehearsal

Writes parts.csv beside the zoo, a row for each clip, all of one prompt and seed. `half` is appearance or
motion, `part` a part of the network, and `keeps` what is left of this half: "all" of it, "none", all of it
"without" this part of the network, or this part "only". The other half stays whole. The oracles say how much
a clip is the person (`identity`), dances the dance (`pose`), and wears the clothes (`clothes`, of shirt and
trousers), which no prompt names. A run that was stopped goes on; rows of another zoo or of other settings are
thrown away first.
"""
import csv
from pathlib import Path
from typing import Annotated
import torch
import typer
from response import likeness, of_zoo, reference
from sas_nb.atlas.members import CONCEPT_PARTS
from sas_nb.atlas.mixing import in_layers
from sas_nb.atlas.places import load_zoo, zoo_folder
from sas_nb.concept import Concept
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import save_table

PARTS = {
    "self-attention, queries and keys": r"attn1\.to_[qk]$",
    "self-attention, values and output": r"attn1\.to_(v|out\.0)$",
    "cross-attention, queries and keys": r"attn2\.to_[qk]$",
    "cross-attention, values and output": r"attn2\.to_(v|out\.0)$",
    "feed-forward": r"ffn\.",
}
COLUMNS = "run", "concept", "half", "part", "keeps", "identity", "pose", "clothes"


def variants(c: Concept) -> list[tuple]:
    "Half, part, what is kept, and the concept of each clip."
    made = [("", "", "all", c)]
    for half in CONCEPT_PARTS:
        made.append((half, "", "none", in_layers(c, half, ".", without=True)))
        for part, pattern in PARTS.items():
            made.append((half, part, "without", in_layers(c, half, pattern, without=True)))
            made.append((half, part, "only", in_layers(c, half, pattern)))
    return made


def known(path: Path, run: str) -> list[dict]:
    if not path.exists(): return []
    with open(path, newline="") as f: return [row for row in csv.DictReader(f) if row["run"] == run]


def main(
    zoo: Annotated[str, typer.Option(help="The shipped zoo, or a folder.")] = "zoo",
    concepts: Annotated[int, typer.Option(help="How many people.")] = 16,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    out: Annotated[Path, typer.Option(help="The file to write; in the zoo's folder when not given.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
):
    if threads: torch.set_num_threads(threads)
    folder = zoo_folder(zoo)
    out = out or folder / "parts.csv"
    run = of_zoo(folder, PARTS, steps)
    rows = known(out, run)
    done = {row["concept"] for row in rows}
    oracles = Oracles.load()
    people = {n: c for n, c in load_zoo(zoo).items() if not c.info["truth"]["thing"]}
    for name, c in list(people.items())[:concepts]:
        if name in done: continue
        truth = reference(oracles, c)
        for half, part, keeps, changed in variants(c):
            clip = changed.generate(seed=0, steps=steps)
            numbers = likeness(oracles.look(clip.frames[None]), *truth)
            rows.append(dict(run=run, concept=name, half=half, part=part, keeps=keeps) | numbers)
        save_table(rows, out, COLUMNS)
        print(f"{name}: {len({row['concept'] for row in rows})} of {concepts} done", flush=True)


if __name__ == "__main__": typer.run(main)
