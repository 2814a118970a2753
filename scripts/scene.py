"""A dancer, waves and a bonfire, each learned from its own clip, in one scene: the picture of lesson 10.

    python scripts/scene.py            # writes nbs/images/scene.webp: half a minute
    python scripts/scene.py --seed 3 --out scene.webp

The three are members of the zoo; the scene is the way "masked", each in its place.
"""
from pathlib import Path
from typing import Annotated
import torch, typer
from sas_nb.atlas.places import load_zoo
from sas_nb.composing import compose
from sas_nb.lab.draw import render
from sas_nb.lab.zoo import spec_of
from sas_nb.sheet import to_images

PLACES = {"man-14": (0, .3, .55, 1), "waves-00": (0, .63, .6, 1), "bonfire-01": (.5, .4, 1, 1)}
SCENE = "{him} and [v2] [u2] ocean waves and a [v3] [u3] bonfire on a stage. he is [u1] dancing"
IMAGE = Path(__file__).resolve().parent.parent/"nbs"/"images"/"scene.webp"


def side_by_side(clips, path: Path):
    "Clips playing beside one another, three times as large."
    frames = torch.cat([c.frames for c in clips], -1)
    frames = frames.repeat_interleave(3, 2).repeat_interleave(3, 3)
    first, *others = to_images(frames, range(len(frames)), frames.shape[-2])
    stays = round(1000/clips[0].fps) # milliseconds
    first.save(path, save_all=True, append_images=others, duration=stays, loop=0, quality=70)


def main(seed: int = 1, out: Annotated[Path, typer.Option(help="A .webp.")] = IMAGE):
    concepts = load_zoo(names=list(PLACES))
    assert list(concepts) == list(PLACES) # places are in their order
    filmed = [render(spec_of(c), 17, c.fps) for c in concepts.values()]
    him = concepts["man-14"].info["appearance"].replace("[v]", "[v1]").removesuffix(" in a park")
    together = compose(concepts, "masked", list(PLACES.values()))
    scene = together.generate(SCENE.format(him=him), seed)
    side_by_side([*filmed, scene], out)
    print(f"wrote {out}")


if __name__ == "__main__": typer.run(main)
