"""A dancer, waves and a bonfire, each from its own clip, learned together: the lesson's last picture.

    python scripts/scene.py            # trains into out/scene, then writes nbs/images/scene.webp
    python scripts/scene.py --steps 225 525 --arrangement stitched

About a quarter of an hour of two cores. The steps are a third of what `Recipe.together` asks for.
"""
from dataclasses import replace
from pathlib import Path
from typing import Annotated
import torch, typer
from sas_nb.composing import learn_together
from sas_nb.lab.draw import render, truth
from sas_nb.lab.specs import Thing
from sas_nb.lab.world import heldout_spec, Spec
from sas_nb.recipe import Recipe, Run
from sas_nb.sheet import to_images

SPECS = dict(
    dancer=heldout_spec(6),
    waves=Spec((Thing("waves", (.5,)*4),), scene="beach"),
    bonfire=Spec((Thing("bonfire", (.5, .7, .5, .5)),), scene="forest", light="night"),
)
SAID = dict(
    dancer=("a [v1] woman in a red shirt and purple trousers in a park", "she is [u1] dancing"),
    waves=("[v2] ocean waves on a beach", "[u2]"),
    bonfire=("a [v3] bonfire in a forest at night", "[u3]"),
)
SCENE = ("a [v1] woman in a red shirt and purple trousers and a [v3] bonfire and [v2] ocean waves "
         "on a beach. she is [u1] dancing, [u2], [u3]")
IMAGE = Path(__file__).resolve().parent.parent/"nbs"/"images"/"scene.webp"


def mask_of(name, spec):
    "The world's exact one; waves fill their picture."
    if name == "waves": return torch.ones(17, 1, 64, 64)
    return torch.as_tensor(truth(spec, 17, 12.).masks[0]).float()[:, None]


def side_by_side(clips, path: Path):
    "Clips playing beside one another, three times as large."
    frames = torch.cat([c.frames for c in clips], -1)
    frames = frames.repeat_interleave(3, 2).repeat_interleave(3, 3)
    first, *others = to_images(frames, range(len(frames)), frames.shape[-2])
    stays = round(1000/clips[0].fps) # milliseconds
    first.save(path, save_all=True, append_images=others, duration=stays, loop=0, quality=70)


def main(steps: Annotated[tuple[int, int], typer.Option()] = (90, 170), arrangement: str = "cutouts",
         seed: int = 0, out: Path = Path("out/scene")):
    clips = {name: replace(render(spec, 17, 12.), name=name) for name, spec in SPECS.items()}
    recipe = Recipe.default().together(3).with_(
        both=dict(batch=6), stage1=dict(steps=steps[0]), stage2=dict(steps=steps[1]), arrangement=arrangement
    )
    masks = [mask_of(name, spec) for name, spec in SPECS.items()]
    concept = learn_together([(clips[n], SAID[n]) for n in SPECS], recipe=recipe, run=Run(out), masks=masks)
    side_by_side([*clips.values(), concept.generate(SCENE, seed=seed)], IMAGE)
    print(f"wrote {IMAGE}")


if __name__ == "__main__": typer.run(main)
