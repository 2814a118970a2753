"""What becomes of one person's look with another's dance, measured by the oracles on pairs of a zoo.

    python scripts/mixtures.py                            # 12 pairs of the shipped zoo: ten minutes
    python scripts/mixtures.py --pairs 2 --steps 4 --out small.json   # a rehearsal

Writes mixtures.json beside a zoo of drawn people, which the explorer reads:
  strengths  of look and dance in a mixture, each in the early layers and in the late ones: those at which the
             product of what is kept of both is largest. One strength after the other is chosen, twice
  kept       what all that were tried keep: the share of the way from somebody else's look or dance (0) to
             one's own (1); `plain` and `found` are the plain sum and the chosen one, on as many other pairs
  clothes    how often the oracles see a look's own shirt and trousers, when the prompt names them and when
             it leaves them to the weights; `carried`: whether they need no words
  best       the pairs in which look, dance and clothes are clearest
"""
import json
from pathlib import Path
from typing import Annotated
import numpy as np
import torch
import typer
from response import likeness, reference
from sas_nb.atlas.places import zoo_folder
from sas_nb.explore.maps import Position
from sas_nb.explore.prompts import without_clothes
from sas_nb.explore.renderer import Studio
from sas_nb.hub import fingerprint
from sas_nb.lab.cases import Case
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.zoo import spec_of
from sas_nb.writing import atomic

FPS = 12.
EARLY = 2 / 3  # so many of the layers are early ones
TRIED = dict(look_early=(1., .8, .6), dance_late=(1., .5, .25, 0.), dance_early=(1., 1.25, 1.5),
             look_late=(1., 1.2))
PLAIN = dict.fromkeys(TRIED, 1.)
TOLERANCE = .1  # clothes that are so much less often right are still as good


class Seen:
    "A studio whose clips the oracles look at: `look` is who should be seen, `dance` whose steps."
    def __init__(self, studio: Studio, steps: int):
        self.studio, self.steps, self.oracles = studio, steps, Oracles.load()
        self.members = {m.name: studio.concept(Position(m.name, m.name)) for m in studio.atlas.members}
        self.truth = {}

    def of(self, name: str):  # its spec, face and joints
        if name not in self.truth: self.truth[name] = reference(self.oracles, self.members[name])
        return self.truth[name]

    def judge(self, place: Position, look: str, dance: str) -> dict[str, float]:
        (spec, face, _), (_, _, steps) = map(self.of, (look, dance))
        clip = self.studio.clip(place, self.steps)
        seen = likeness(self.oracles.look(clip.frames[None]), spec, face, steps)
        return dict(clothes=seen["clothes"], look=seen["identity"], dance=seen["pose"])


def mean(rows: list[dict], key: str) -> float: return float(np.mean([r[key] for r in rows]))


def ends(seen: Seen, pairs: list[tuple]) -> dict[str, tuple[float, float]]:
    "Look and dance -> what somebody else's is worth, and one's own."
    def alone(name, look, dance): return seen.judge(Position(name, name), look, dance)
    looks, dances = ([alone(pair[k], *pair) for pair in pairs] for k in (0, 1))
    own = [alone(d, d, d) for _, d in pairs]
    return dict(look=(mean(dances, "look"), mean([alone(p, p, p) for p, _ in pairs], "look")),
                dance=(mean(looks, "dance"), mean(own, "dance")))


def as_known(at: dict[str, float]) -> dict:
    "Strengths as the explorer reads them."
    return dict(early=EARLY, appearance=[at["look_early"], at["look_late"]],
                motion=[at["dance_early"], at["dance_late"]])


def kept_at(seen: Seen, pairs: list[tuple], limits: dict, at: dict[str, float]) -> dict[str, float]:
    "The shares of look and dance that mixtures of these strengths keep."
    seen.studio.mixing = dict(strengths=as_known(at))
    rows = [seen.judge(Position(*pair), *pair) for pair in pairs]
    shares = {k: (mean(rows, k) - low) / (own - low) for k, (low, own) in limits.items()}
    return {k: round(v, 3) for k, v in shares.items()}


def strengths_of(seen: Seen, pairs: list[tuple], others: list[tuple]) -> dict:
    "The strengths that show both best on some pairs, and what they are worth on others."
    limits = ends(seen, pairs)
    tried = {}

    def worth(at):
        key = tuple(at.values())
        if key not in tried:
            tried[key] = kept_at(seen, pairs, limits, at)
            print(f"{at}: keeps {tried[key]}", flush=True)
        return float(np.prod([max(share, 0.) for share in tried[key].values()]))

    best = PLAIN
    for name, values in 2 * list(TRIED.items()): best = max([best | {name: v} for v in values], key=worth)
    limits = ends(seen, others)
    plain, found = (kept_at(seen, others, limits, at) for at in (PLAIN, best))
    return dict(strengths=as_known(best), plain=plain, found=found,
                kept=[dict(zip(TRIED, key)) | shares for key, shares in tried.items()])


def dressed(seen: Seen, look: str, dance: str) -> dict[str, dict]:
    "A look with a dance, its clothes named, as the drawing has them, and left to the weights."
    caption, _ = Case(look, spec_of(seen.members[look]), {}, FPS).prompts()
    motion = seen.studio.concept(Position(look, dance)).info["motion"]
    prompts = {"named": f"{caption}. {motion}", "left out": f"{without_clothes(caption)}. {motion}"}
    return {k: seen.judge(Position(look, dance, prompt=p), look, dance) for k, p in prompts.items()}


def clothes_of(seen: Seen, pairs: list[tuple]) -> dict:
    "Whether clothes need words, and the pairs that are clearest."
    own = [dressed(seen, look, look) for look, _ in pairs]
    mixed = [dressed(seen, *pair) for pair in pairs]
    def right(rows): return {k: round(mean([r[k] for r in rows], "clothes"), 3) for k in rows[0]}
    clothes = {"its own dance": right(own), "another's dance": right(mixed)}
    others = clothes["another's dance"]
    order = sorted(range(len(pairs)), key=lambda i: -sum(mixed[i]["left out"].values()))
    return dict(clothes=clothes, carried=others["left out"] >= others["named"] - TOLERANCE,
                best=[list(pairs[i]) for i in order[:6]])


def main(
    zoo: Annotated[str, typer.Option(help="The shipped zoo, or a folder.")] = "zoo",
    pairs: Annotated[int, typer.Option(help="How many pairs to measure.")] = 12,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    out: Annotated[Path, typer.Option(help="The file to write; in the zoo's folder when not given.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
):
    if threads: torch.set_num_threads(threads)
    folder = zoo_folder(zoo)
    seen = Seen(Studio([folder]), steps)
    people = seen.studio.groups["people"]
    def pair(k, apart): return people[k % len(people)], people[(k + apart) % len(people)]
    chosen, others = [pair(k, 4) for k in range(pairs)], [pair(pairs + k, 7) for k in range(pairs)]
    found = strengths_of(seen, chosen, others)
    seen.studio.mixing = found
    about = dict(base=fingerprint(seen.studio.dit.transformer), pairs=pairs, steps=steps,
                 **found, **clothes_of(seen, chosen))
    with atomic(out or folder / "mixtures.json") as tmp: tmp.write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__": typer.run(main)
