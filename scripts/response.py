"""What every slider does, measured: response curves of the zoo's concepts, by the oracles. Writes data/zoo/response.csv, which the notebook nbs/analysis/motion_and_appearance.ipynb draws.

    python scripts/response.py                 # 16 people of the shipped zoo; under a minute each on a free core
    python scripts/response.py --concepts 3 --steps 8 --out small.csv   # a rehearsal

Each clip is asked for in the snow, where nobody was filmed, so that one clip answers four questions: is it still the same person, the same dance, the same words, and did the edit happen. Sliders:
  appearance, motion       strength of A1 B1, of A1 B2; rest 1
  look PC 1, dance PC 1    along the first component of either part, in standard deviations from where the concept lies; rest 0
  look to other, dance to other   towards another person's look, or dance; rest 0, the other at 1
A run that was stopped goes on; rows of another zoo or of other settings are thrown away first.
"""
import csv, hashlib, time
from dataclasses import replace
from pathlib import Path
from typing import Annotated
import numpy as np, torch, typer
from sas_nb.atlas.geometry import Atlas
from sas_nb.atlas.places import load_zoo, zoo_folder
from sas_nb.concept import Concept
from sas_nb.lab.bench import save_table
from sas_nb.lab.controls import adherence
from sas_nb.lab.draw import render
from sas_nb.lab.motion import pose_correlation
from sas_nb.lab.oracle_nets import seen_joints, words_of
from sas_nb.lab.oracles import named_answers, Oracles
from sas_nb.lab.specs import edit, SCENES
from sas_nb.lab.world import Person
from sas_nb.lab.zoo import spec_of

SLIDERS = {"appearance": (0, .5, .75, 1, 1.25, 1.5, 2, 3), "motion": (0, .5, .75, 1, 1.25, 1.5, 2, 3), "look PC 1": (-4, -2, -1, 0, 1, 2, 4), "dance PC 1": (-4, -2, -1, 0, 1, 2, 4),
           "look to other": (0, .25, .5, .75, 1), "dance to other": (0, .25, .5, .75, 1)}
WORDS = ("kind", "shirt", "trousers", "hat", "held", "motion")
COLUMNS = ("run", "concept", "other", "slider", "value", "seed", "identity", "identity_other", "pose", "pose_other", "swing", "words", "scene")
FPS = 12.


def moved(atlas: Atlas, who: str, other: str, slider: str, value: float) -> Concept:
    "The concept with one slider at a value."
    i, j, n = atlas.index(who), atlas.index(other), np.eye(len(atlas))
    if slider in ("appearance", "motion"): return atlas.mix(n[i]).at(**{slider: float(value)})
    if slider.endswith("PC 1"):
        look = slider.startswith("look")
        p = atlas.pca("appearance" if look else "motion")
        there = n[i] + value * p.std[0] * p.axes[0]
        return atlas.mix(there, n[i]) if look else atlas.mix(n[i], there)
    return atlas.interpolate(who, other, *((value, 0.) if slider.startswith("look") else (0., value)))


def judged(oracles: Oracles, frames: torch.Tensor, mine, others) -> list[dict]:
    "What the oracles say of clips (B, T, 3, H, W) of one concept. `mine` and `others` are a spec, its oracle embedding, and its joints."
    said = oracles.look(frames)
    seen = [dict(zip(words, row)) for words, row in ((list(named_answers(said)), r) for r in zip(*(w for w, _ in named_answers(said).values())))]
    (spec, face, steps), (_, other_face, other_steps) = mine, others
    wanted = {k: v for k, v in words_of(edit(spec, scene="snow")).items() if k in WORDS}
    path = said["joints"] - said["joints"].mean(1, keepdim=True)
    poses = lambda s: pose_correlation(said["joints"], torch.as_tensor(s).float().expand_as(said["joints"]))
    rows = zip(said["identity"] @ face, said["identity"] @ other_face, poses(steps), poses(other_steps), path.square().sum(-1).mean((1, 2)).sqrt(), seen)
    return [dict(identity=float(a), identity_other=float(b), pose=float(c), pose_other=float(d), swing=float(e), words=adherence(s, wanted), scene=float(s["scene"] == "snow")) for a, b, c, d, e, s in rows]


def reference(oracles: Oracles, c: Concept):
    "A concept's truth: its spec, how the oracle sees the one who was filmed, and where the joints really were."
    spec = spec_of(c)
    return spec, oracles.identity(render(spec, fps=FPS))[0], seen_joints(spec, fps=FPS)


def one_concept(zoo: dict, atlas: Atlas, oracles: Oracles, who: str, other: str, sliders: dict, seeds: int, steps: int, run: str) -> list[dict]:
    "All rows of one concept. Rest is the same clip for every slider, so it is made once."
    mine, others, prompt = reference(oracles, zoo[who]), reference(oracles, zoo[other]), zoo[who].prompt.replace(SCENES["park"], SCENES["snow"])
    rest = lambda slider: 1. if slider in ("appearance", "motion") else 0.
    made, rows = {}, []
    for slider, values in sliders.items():
        for v in values:
            key = "rest" if v == rest(slider) else (slider, v)
            if key not in made:
                c = moved(atlas, who, other, slider, v); c.dit = zoo[who].base()
                frames = torch.stack([x.frames for x in c.generate([prompt] * seeds, list(range(seeds)), steps=steps)])
                made[key] = judged(oracles, frames, mine, others)
            rows += [dict(run=run, concept=who, other=other, slider=slider, value=float(v), seed=s) | r for s, r in enumerate(made[key])]
    return rows


def read(path: Path) -> list[dict]:
    "Rows with numbers as numbers."
    number = lambda k, v: v if k in COLUMNS[:4] else float(v)
    if not path.exists(): return []
    with open(path, newline="") as f: return [{k: number(k, v) for k, v in r.items()} for r in csv.DictReader(f)]


def main(
    zoo: Annotated[str, typer.Option(help="The shipped zoo, or a folder.")] = "zoo",
    concepts: Annotated[int, typer.Option(help="How many people to measure.")] = 16,
    seeds: Annotated[int, typer.Option(help="Clips in each place.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 12,
    out: Annotated[Path, typer.Option(help="The table; data/zoo/response.csv when not given.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
):
    if threads: torch.set_num_threads(threads)
    people = {n: c for n, c in load_zoo(zoo).items() if not c.info["truth"]["thing"]}
    folder = zoo_folder(zoo)
    out, names = out or folder / "response.csv", list(people)
    run = hashlib.sha256((folder / "zoo.json").read_bytes() + repr((SLIDERS, seeds, steps)).encode()).hexdigest()[:12]
    rows, atlas, oracles = [r for r in read(out) if r["run"] == run], Atlas(people), Oracles.load()
    done = {r["concept"] for r in rows}
    for k, who in enumerate(names[:concepts]):
        if who in done: continue
        began = time.time()
        rows += one_concept(people, atlas, oracles, who, names[(k + 1) % len(names)], SLIDERS, seeds, steps, run)
        save_table(rows, out, COLUMNS)
        print(f"{who}: {time.time() - began:.0f} s; {len({r['concept'] for r in rows})} of {min(concepts, len(names))} done", flush=True)


if __name__ == "__main__": typer.run(main)
