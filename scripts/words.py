"""What keeps more where only plain prompts can be written: words folded into the LoRA, or none ever?

Held-out people are learned with new words, and again without any. Then each is asked for what it was trained
on, and for edits, in four ways: with its words; with plain prompts and the words folded into the LoRA; with
plain prompts and nothing in the words' place; and learned without words. All are sampled with ordinary
guidance, as stock programs sample. The oracles say what is left. Writes data/bench/words.csv, a row for each
clip, and prints the means. Rows and trainings are kept in out/words, by what made them, and the same command
goes on from there.
"""
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from sas_nb.cache import data_path
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.folded import fold_words
from sas_nb.hub import maker_fingerprint
from sas_nb.lab.bench import rows, table
from sas_nb.lab.cases import Case, case, in_words
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import COLUMNS, load_table, save_table
from sas_nb.learning import learn
from sas_nb.recipe import Recipe, Run

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = dict(token_init=0., token_lr=0.)  # a word that is nothing stays nothing
SHOWN = ("identity", None), ("pose", None), ("made", True), ("mse_subject", None)


def silent(concept: Concept) -> Concept:
    "Words that are nothing: its prompts are read as plain ones."
    return replace(concept, tokens={k: torch.zeros_like(v) for k, v in concept.tokens.items()})


def folded(concept: Concept) -> Concept:
    "As it is exported: what the words do, in the coefficients of the appearance, and plain prompts."
    weights = {k: v.clone() for k, v in concept.weights.items()}
    new = fold_words(concept)
    for layer in {k.rpartition(".")[0] for k in weights}:
        A, B1, B2 = (weights[f"{layer}.{part}"] for part in ("A", "B1", "B2"))
        less = A.new_zeros(new.rank, A.shape[1]), B1.new_zeros(len(B1), new.rank)
        more = new.layers.get(layer, less)
        weights[f"{layer}.A"] = torch.cat([A, more[0]])
        weights[f"{layer}.B1"] = torch.cat([B1, more[1]], 1)
        weights[f"{layer}.B2"] = torch.cat([B2, less[1]], 1)
    about = concept.info | dict(rank=concept.rank + new.rank)
    return replace(silent(concept), weights=weights, info=about)


def asked(way: str, concept: Concept, one: Case, oracles: Oracles, steps: int | None) -> list[dict]:
    blank = dict.fromkeys(COLUMNS, float("nan")) | dict(method=way)
    return [blank | row for row in rows(concept, one, oracles, steps=steps, negative_scale=1.)]


def measured(dit: VideoDiT, one: Case, recipe: Recipe, oracles: Oracles, steps: int | None, home: Path):
    "Each way of asking for one person, in rows. Trainings that were stopped go on in `home`."
    def learned(name: str, recipe: Recipe) -> Concept:
        run = Run(home / f"{one.name}-{name}", progress=False)
        return learn(one.clip(), one.prompts(), dit, recipe, run)
    own, never = learned("with", recipe), learned("without", recipe.with_(both=WITHOUT))
    ways = {"with its words": own, "words folded in": folded(own), "words left out": silent(own),
            "learned without words": never}
    return [row for way, concept in ways.items() for row in asked(way, concept, one, oracles, steps)]


def rows_file(recipe: Recipe) -> Path:
    "Where rows of this base, recipe and these oracles are kept."
    of = maker_fingerprint(VideoDiT.of("tiny")) + repr(recipe)
    judges = (data_path("oracles") / "oracles.safetensors").read_bytes()
    return ROOT / "out" / "words" / f"{hashlib.sha256(of.encode() + judges).hexdigest()[:12]}.csv"


def main(
    people: Annotated[int, typer.Option(help="Held-out people, from the first.")] = 3,
    steps1: Annotated[int | None, typer.Option(help="Of the first stage; the recipe's if left out.")] = None,
    steps2: Annotated[int | None, typer.Option(help="Of the second stage.")] = None,
    sampling_steps: Annotated[int | None, typer.Option(help="Of each clip; the base's if left out.")] = None,
    out: Annotated[Path, typer.Option(help="The table to write.")] = ROOT / "data/bench/words.csv",
):
    steps = dict(stage1=dict(steps=steps1), stage2=dict(steps=steps2))
    recipe = Recipe.default().with_(**{k: v for k, v in steps.items() if v["steps"] is not None})
    dit, oracles, kept = VideoDiT.of("tiny"), Oracles.load(), rows_file(recipe)
    found = load_table(kept) if kept.exists() else []
    for n in range(people):
        one = in_words(case(n, fps=dit.defaults.fps))
        if any(r["concept"] == one.name for r in found): continue
        found += measured(dit, one, recipe, oracles, sampling_steps, kept.with_suffix(""))
        save_table(found, kept)
        print(one.name, flush=True)
    save_table(found, out)
    print(table(found, "words folded in", SHOWN))


if __name__ == "__main__": typer.run(main)
