"""Draw the example clips from the world's own specs.

    python scripts/make_clips.py [FOLDER]    # into data/clips where no folder is given
"""
import argparse
from pathlib import Path
from sas_nb.lab.draw import caption, heldout_spec, render, Spec, Thing

FOLDER = Path(__file__).resolve().parent.parent / "data" / "clips"
CLIPS = dict(
    dancer=heldout_spec(6),
    man=heldout_spec(39),
    waves=Spec((Thing("waves", shape=(.5, .3, .8, .5)),), scene="beach", backdrop=.3),
    bonfire=Spec((Thing("bonfire", shape=(.6, .6, .5, .3)),), scene="forest", light="night", backdrop=.6))


def make(folder: Path) -> dict[str, Path]:
    "Write every clip, three seconds at 24 frames a second, 256 x 256 pixels."
    return {name: render(spec, num_frames=72, fps=24, size=256).save(folder / f"{name}.mp4")
            for name, spec in CLIPS.items()}


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    for name, path in make(parser.parse_args().folder).items():
        print(f"{path.name}, {path.stat().st_size/1024:.0f} KB: {caption(CLIPS[name])}")


if __name__ == "__main__": main()
