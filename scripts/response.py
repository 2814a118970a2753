"""What every slider does, measured by the oracles on the zoo's concepts, and by the pixels on any.

    python scripts/response.py                 # 16 people of the shipped zoo; under a minute each, free core
    python scripts/response.py --concepts 3 --steps 8 --out small.csv   # a rehearsal
    python scripts/response.py --sliders       # the explorer's sliders, ten minutes: writes controls.json

The first writes data/zoo/response.csv, which nbs/analysis/motion_and_appearance.ipynb draws. Each clip is
asked for in the snow, where nobody was filmed, so that one clip answers four questions: is it still the same
person, the same dance, the same words, and did the edit happen. Sliders:
  appearance, motion       strength of A1 B1, of A1 B2; rest 1
  look PC 1, dance PC 1    along the first component of either part, in standard deviations from where the
                           concept lies; rest 0
  look to other, dance to other   towards another person's look, or dance; rest 0, the other at 1
A run that was stopped goes on; rows of another zoo or of other settings are thrown away first.

The second writes controls.json beside a zoo. All its numbers are in effects of another seed: `effect` of both
ends on the pixels, `leak` into the other part (of a look into what moves, of a dance into what stays), and
`safe`, the stretch around rest where the leak is below 1; `walk` is what differs between the two ends. For
drawn people the oracles add `identity` and `joints`. `strangers` says what somebody else's look changes, and
somebody else's dance.
"""
import csv
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated
import numpy as np
import torch
import typer
from sas_nb.atlas.geometry import Atlas
from sas_nb.atlas.places import load_zoo, zoo_folder
from sas_nb.concept import Concept
from sas_nb.explore.maps import Position
from sas_nb.explore.renderer import FARTHEST, Studio
from sas_nb.explore.sliders import bases, effect, frames_of, tried
from sas_nb.files import read_about
from sas_nb.hub import fingerprint
from sas_nb.lab.controls import adherence
from sas_nb.lab.draw import render
from sas_nb.lab.motion import pose_correlation
from sas_nb.lab.oracle_nets import seen_joints, words_of
from sas_nb.lab.oracles import named_answers, Oracles
from sas_nb.lab.rows import save_table
from sas_nb.lab.specs import edit, SCENES
from sas_nb.lab.zoo import spec_of
from sas_nb.writing import atomic

STRENGTHS = (0, .5, .75, 1, 1.25, 1.5, 2, 3)
DEVIATIONS = (-4, -2, -1, 0, 1, 2, 4)
SHARES = (0, .25, .5, .75, 1)
SLIDERS = {"appearance": STRENGTHS, "motion": STRENGTHS, "look PC 1": DEVIATIONS, "dance PC 1": DEVIATIONS,
           "look to other": SHARES, "dance to other": SHARES}
WORDS = ("kind", "shirt", "trousers", "hat", "held", "motion")
COLUMNS = ("run", "concept", "other", "slider", "value", "seed", "identity", "identity_other", "pose",
           "pose_other", "swing", "words", "scene")
FPS = 12.


# Response curves

def moved(atlas: Atlas, who: str, other: str, slider: str, value: float) -> Concept:
    "The concept with one slider at a value."
    i = atlas.index(who)
    n = np.eye(len(atlas))
    if slider in ("appearance", "motion"): return atlas.mix(n[i]).at(**{slider: float(value)})
    look = slider.startswith("look")
    if slider.endswith("PC 1"):
        p = atlas.pca("appearance" if look else "motion")
        there = n[i] + value * p.std[0] * p.axes[0]
        return atlas.mix(there, n[i]) if look else atlas.mix(n[i], there)
    return atlas.interpolate(who, other, *((value, 0.) if look else (0., value)))


def answers(said: dict) -> list[dict]:
    "The oracles' words for each clip."
    named = named_answers(said)
    return [dict(zip(named, row)) for row in zip(*(words for words, _ in named.values()))]


def judged(oracles: Oracles, frames: torch.Tensor, own, others) -> list[dict]:
    """What the oracles say of clips (B, T, 3, H, W) of one concept. `own` and `others` are a spec, its oracle
    embedding, and its joints."""
    said = oracles.look(frames)
    (spec, face, steps), (_, other_face, other_steps) = own, others
    wanted = {k: v for k, v in words_of(edit(spec, scene="snow")).items() if k in WORDS}
    path = said["joints"] - said["joints"].mean(1, keepdim=True)
    joints = said["joints"]
    def poses(s): return pose_correlation(joints, torch.as_tensor(s).float().expand_as(joints))
    numbers = dict(identity=said["identity"] @ face, identity_other=said["identity"] @ other_face,
                   pose=poses(steps), pose_other=poses(other_steps),
                   swing=path.square().sum(-1).mean((1, 2)).sqrt())
    return [{k: float(v[i]) for k, v in numbers.items()}
            | dict(words=adherence(words, wanted), scene=float(words["scene"] == "snow"))
            for i, words in enumerate(answers(said))]


def reference(oracles: Oracles, c: Concept):
    "A concept's truth: its spec, how the oracle sees who was filmed, and where the joints really were."
    spec = spec_of(c)
    return spec, oracles.identity(render(spec, fps=FPS))[0], seen_joints(spec, fps=FPS)


GARMENTS = "shirt", "trousers"


def likeness(said: dict, spec, face: torch.Tensor, steps) -> dict[str, float]:
    "How much one clip is a person, dances the steps and wears the clothes of a truth, as of `reference`."
    words, wanted = answers(said)[0], words_of(spec)
    joints = torch.as_tensor(steps).float().expand_as(said["joints"])
    return dict(identity=float(said["identity"][0] @ face),
                pose=float(pose_correlation(said["joints"], joints)[0]),
                clothes=float(np.mean([words[k] == wanted[k] for k in GARMENTS])))


def rest_of(slider: str) -> float: return 1. if slider in ("appearance", "motion") else 0.


def one_concept(zoo: dict, atlas: Atlas, oracles: Oracles, who: str, other: str, sliders: dict, seeds: int,
                steps: int, run: str) -> list[dict]:
    "All rows of one concept. Rest is the same clip for every slider, so it is made once."
    truth = [reference(oracles, zoo[name]) for name in (who, other)]
    prompt = zoo[who].prompt.replace(SCENES["park"], SCENES["snow"])
    known = {}

    def judge(slider, value):
        key = "rest" if value == rest_of(slider) else (slider, value)
        if key not in known:
            c = moved(atlas, who, other, slider, value)
            c.dit = zoo[who].base()
            clips = c.generate([prompt] * seeds, list(range(seeds)), steps=steps)
            known[key] = judged(oracles, torch.stack([x.frames for x in clips]), *truth)
        return known[key]

    return [dict(run=run, concept=who, other=other, slider=slider, value=float(v), seed=s) | r
            for slider, values in sliders.items() for v in values for s, r in enumerate(judge(slider, v))]


def read(path: Path) -> list[dict]:
    "Rows with numbers as numbers."
    def number(k, v): return v if k in COLUMNS[:4] else float(v)
    if not path.exists(): return []
    with open(path, newline="") as f:
        return [{k: number(k, v) for k, v in r.items()} for r in csv.DictReader(f)]


def of_zoo(folder: Path, *settings) -> str:
    "Twelve hex digits that name a zoo, and how it is measured."
    of = (folder / "zoo.json").read_bytes() + (repr(settings).encode() if settings else b"")
    return hashlib.sha256(of).hexdigest()[:12]


def write_curves(zoo: str, concepts: int, seeds: int, steps: int, out: Path | None):
    "Concept after concept; those of an earlier run stay."
    people = {n: c for n, c in load_zoo(zoo).items() if not c.info["truth"]["thing"]}
    folder = zoo_folder(zoo)
    out = out or folder / "response.csv"
    names = list(people)
    run = of_zoo(folder, SLIDERS, seeds, steps)
    rows = [r for r in read(out) if r["run"] == run]
    done = {r["concept"] for r in rows}
    atlas = Atlas(people)
    oracles = Oracles.load()
    for k, who in enumerate(names[:concepts]):
        if who in done: continue
        began = time.time()
        other = names[(k + 1) % len(names)]
        rows += one_concept(people, atlas, oracles, who, other, SLIDERS, seeds, steps, run)
        save_table(rows, out, COLUMNS)
        count = len({r["concept"] for r in rows})
        print(f"{who}: {time.time() - began:.0f} s; {count} of {min(concepts, len(names))} done", flush=True)


# The explorer's sliders

def change(frames: np.ndarray, rest: np.ndarray, oracles: Oracles | None) -> dict[str, float]:
    "What differs between two clips (T, H, W, 3): all pixels, what stays, what moves; identity and joints."
    stays = frames.mean(0) - rest.mean(0)
    numbers = dict(pixels=frames - rest, stays=stays, moves=frames - rest - stays)
    found = {k: float(np.abs(v).mean()) for k, v in numbers.items()}
    if oracles is None: return found
    said = oracles.look(torch.tensor(np.stack([frames, rest])).permute(0, 1, 4, 2, 3))
    joints = (said["joints"][0] - said["joints"][1]).norm(dim=-1).mean()
    return found | dict(identity=1 - float(said["identity"][0] @ said["identity"][1]), joints=float(joints))


def between(studio: Studio, base: str, oracles: Oracles | None) -> Callable[..., dict[str, float]]:
    "What differs between two positions, or one and a base at rest, in effects of another seed on that base."
    rest = Position(base, base)
    at_rest = frames_of(studio.render(rest, True))
    def frames(p): return at_rest if p == rest else frames_of(studio.render(p, True))
    def plain(*ends): return change(*map(frames, ends), oracles)
    seeds = [plain(replace(rest, seed=seed), rest) for seed in (1, 2)]
    unit = {k: max(np.mean([s[k] for s in seeds]), 1e-6) for k in seeds[0]}
    return lambda p, q=rest: {k: v / unit[k] for k, v in plain(p, q).items()}


def means(rows: list[dict]) -> dict[str, float]:
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


def slider_curve(studio: Studio, slider, changes: dict[str, Callable]) -> dict[float, dict]:
    "Value -> what it changes, the mean over the places where sliders are tried."
    values = map(float, np.arange(-FARTHEST, FARTHEST + 1))
    return {v: means([of(slider.end(v, base)) for base, of in changes.items()]) for v in values}


def strangers(studio: Studio, group: str, changes: dict[str, Callable], most: int = 6) -> dict[str, dict]:
    "What somebody else's look changes, and somebody else's dance: what a slider may be compared with."
    names = studio.spanning(group)
    others = names[::max(1, len(names) // most)][:most]
    pairs = [(base, of, other) for base, of in changes.items() for other in others if other != base]
    ways = dict(look=lambda base, other: Position(other, base), dance=Position)
    rows = {k: [of(at(base, other)) for base, of, other in pairs] for k, at in ways.items()}
    return {k: {m: round(v, 3) for m, v in means(r).items()} for k, r in rows.items()}


def safe(curve: dict, leak: str) -> list[float]:
    "The stretch around rest in which a leak is below another seed's."
    ends = []
    for sign in (-1, 1):
        values = [sign * v for v in range(1, int(FARTHEST) + 1)]
        within = [v for i, v in enumerate(values) if all(curve[float(w)][leak] <= 1 for w in values[:i + 1])]
        ends.append(float([0, *within][-1]))
    return ends


def about_slider(studio: Studio, slider, changes: dict[str, Callable]) -> dict:
    curve = slider_curve(studio, slider, changes)
    ends = [curve[-float(FARTHEST)], curve[float(FARTHEST)]]
    leak = "moves" if slider.part == "appearance" else "stays"
    mean = {k: round(v, 3) for k, v in means(ends).items()}
    far = float(FARTHEST)
    away = means([of(slider.end(-far, base), slider.end(far, base)) for base, of in changes.items()])
    walk = {k: round(v, 3) for k, v in away.items()}
    about = dict(effect=round(effect(studio, slider), 3), leak=mean[leak], safe=safe(curve, leak), walk=walk)
    return about | mean


def write_sliders(zoo: str, out: Path | None):
    """controls.json beside a zoo, group after group; one that an earlier run measured of the same zoo
    stays."""
    folder = zoo_folder(zoo)
    out = out or folder / "controls.json"
    studio = Studio([folder], most=10_000)
    drawn = all("truth" in c.state()["info"] for c in studio.atlas.members)
    about = read_about(out) if out.exists() else {}
    for group, names in studio.groups.items():
        of = dict(base=fingerprint(studio.dit.transformer), zoo=of_zoo(folder), preview=studio.preview,
                  members=names)
        if of.items() <= about.get(group, {}).items(): continue
        oracles = Oracles.load() if drawn and group == "people" else None
        changes = {base: between(studio, base, oracles) for base in bases(studio, group)}
        others = strangers(studio, group, changes)
        print(f"{group}, strangers: {others}", flush=True)
        known = {}
        for s in tried(studio, group):
            known[s.label] = about_slider(studio, s, changes)
            print(f"{group}, {s.label}: {known[s.label]}", flush=True)
        about[group] = of | dict(sliders=known, strangers=others)
        with atomic(out) as tmp: tmp.write_text(json.dumps(about, indent=1) + "\n")


def main(
    zoo: Annotated[str, typer.Option(help="The shipped zoo, or a folder.")] = "zoo",
    concepts: Annotated[int, typer.Option(help="How many people to measure.")] = 16,
    seeds: Annotated[int, typer.Option(help="Clips in each place.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 12,
    out: Annotated[Path, typer.Option(help="The file to write; in the zoo's folder when not given.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
    sliders: Annotated[bool, typer.Option(help="Measure the explorer's sliders instead.")] = False,
):
    if threads: torch.set_num_threads(threads)
    if sliders: write_sliders(zoo, out)
    else: write_curves(zoo, concepts, seeds, steps, out)


if __name__ == "__main__": typer.run(main)
