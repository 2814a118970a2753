"""Draw the example clips of data/next/clips from the world for 64 pixels. `python scripts/make_clips_large.py [folder]`"""
import sys
from pathlib import Path
from sas_nb.lab.specs import caption, Thing
from sas_nb.world_large import heldout_spec, render, Spec

FOLDER = Path(__file__).resolve().parent.parent / "data" / "next" / "clips"
CLIPS = dict(
    dancer=heldout_spec(6),
    man=heldout_spec(39),
    waves=Spec((Thing("waves", shape=(.5, .3, .8, .5)),), scene="beach", backdrop=.3),
    bonfire=Spec((Thing("bonfire", shape=(.6, .6, .5, .3)),), scene="forest", light="night", backdrop=.6))


def make(folder: Path) -> dict[str, Path]:
    "Write every clip, three seconds at 24 frames a second, 256 x 256 pixels."
    return {name: render(spec, num_frames=72, fps=24, size=256).save(folder / f"{name}.mp4") for name, spec in CLIPS.items()}


if __name__ == "__main__":
    for name, path in make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER).items():
        print(f"{path.name}, {path.stat().st_size/1024:.0f} KB: {caption(CLIPS[name])}")
