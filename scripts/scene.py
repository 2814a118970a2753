"""Two dancers, each learned from a clip of their own, in one scene: the picture of lesson 10.

    python scripts/scene.py            # writes nbs/images/scene.webp: half a minute
    python scripts/scene.py --seed 3 --out scene.webp

Both are members of the zoo; the scene is the way "masked", each in their place.
"""
from pathlib import Path
from typing import Annotated
import torch, typer
from sas_nb.atlas.places import load_zoo
from sas_nb.composing import compose
from sas_nb.lab.draw import render
from sas_nb.lab.zoo import spec_of
from sas_nb.sheet import to_images

PLACES = {"woman-48": (0, 0, .5, 1), "man-21": (.5, 0, 1, 1)}
SCENE = "a [v1] woman and a [v2] man on a beach. she is [u1] dancing, he is [u2] dancing"
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
    together = compose(concepts, "masked", list(PLACES.values()))
    scene = together.generate(SCENE, seed)
    side_by_side([*filmed, scene], out)
    print(f"wrote {out}")


if __name__ == "__main__": typer.run(main)
