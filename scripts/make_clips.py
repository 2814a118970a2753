"""Draw the example clips from the worlds' own specs.

    python scripts/make_clips.py [FOLDER]           # those of data/clips, from the world of the tiny model
    python scripts/make_clips.py --large [FOLDER]   # those of data/next/clips, from the world for 64 pixels
"""
import argparse
from pathlib import Path
from types import ModuleType
from sas_nb.lab import draw, draw
from sas_nb.lab.specs import Thing, caption
from sas_nb.lab.worlds import world_of

DATA = Path(__file__).resolve().parent.parent / "data"
CLIPS = dict(
    dancer=draw.heldout_spec(6),
    waves=draw.Spec((Thing("waves", shape=(.4, .2, .9, .6)),), scene="beach", backdrop=.3))
LARGE = dict(
    dancer=draw.heldout_spec(6),
    man=draw.heldout_spec(39),
    waves=draw.Spec((Thing("waves", shape=(.5, .3, .8, .5)),), scene="beach", backdrop=.3),
    bonfire=draw.Spec((Thing("bonfire", shape=(.6, .6, .5, .3)),), scene="forest", light="night",
                            backdrop=.6))


OF_WORLD = {draw: CLIPS, draw: LARGE}


def make(folder: Path, world: ModuleType) -> dict[str, Path]:
    "Write every clip of a world, three seconds at 24 frames a second, 256 x 256 pixels."
    clips = OF_WORLD[world]
    return {name: world.render(spec, num_frames=72, fps=24, size=256).save(folder / f"{name}.mp4")
            for name, spec in clips.items()}


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    folder = given.folder or DATA / ("next/clips" if given.large else "clips")
    world = draw if given.large else world_of("tiny")
    for name, path in make(folder, world).items():
        print(f"{path.name}, {path.stat().st_size/1024:.0f} KB: {caption(OF_WORLD[world][name])}")


if __name__ == "__main__": main()
