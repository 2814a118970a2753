"""The whole road in one script: learn a dynamic concept from one video, show it again, edit it by words.

    python scripts/demo.py           # or: make demo
    python scripts/demo.py --fast    # a few steps only: everything runs, next to nothing is learned
    python scripts/demo.py --help

Everything is written to out/demo/. Ctrl-C stops it safely, and the same command goes on from there.
"""
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
import torch
import typer
from rich.table import Table
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.learning import learn
from sas_nb.log import plot_history
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe, Run
from sas_nb.sheet import contact_sheet
from sas_nb.terminal import say, show as print_tables, spell_out, tidy

# What to learn, and what to ask of it afterwards. For a video of your own, change these and pass --clip.
PROMPTS = Prompts("a [v] woman in a red shirt and purple trousers in a park", "she is [u] dancing")
EDITS = {  # row of the contact sheet -> prompt
    "in the snow": "a [v] woman in a red shirt and purple trousers in the snow. she is [u] dancing",
    "at night": "a [v] woman in a red shirt and purple trousers in a park at night. she is [u] dancing",
    "in a top hat": "a [v] woman in a red shirt and purple trousers wearing a top hat in a park. "
                    "she is [u] dancing",
    "in a green shirt": "a [v] woman in a green shirt and purple trousers in a park. she is [u] dancing",
}
MODEL = "tiny"  # any model of `sas-nb models`
RECIPE = Recipe.default()  # the library's own; Recipe.paper() is the paper's
FAST_STEPS, FAST_SAMPLING = 10, 4
SEED = 0  # of the training and of every clip, so that edits start from the same noise


def load(path: Path | None) -> tuple[VideoDiT, Clip]:
    "The base model, and the video at the size that the model knows."
    dit = VideoDiT.load(MODEL)
    r = dit.defaults
    path = path or data_path("clips/dancer.mp4")
    return dit, Clip.load(path, num_frames=r.num_frames, fps=r.fps, size=(r.height, r.width))


def train(dit: VideoDiT, clip: Clip, steps: tuple[int, int], out: Path) -> Concept:
    "Both stages: the frames as a set teach the appearance, the clip as a sequence teaches the motion."
    stage1, stage2 = (dict(steps=n) for n in steps)
    recipe = RECIPE.with_(both=dict(seed=SEED), stage1=stage1, stage2=stage2)
    return learn(clip, PROMPTS, dit, recipe, Run(out=out))


def show(concept: Concept, sampling: int | None) -> dict[str, Clip]:
    "The concept under its training prompt, then under each edit."
    prompts = {"reconstruction": concept.prompt} | EDITS
    return dict(zip(prompts, concept.generate(list(prompts.values()), SEED, sampling)))


def write(concept: Concept, rows: dict[str, Clip], out: Path) -> dict[Path, str]:
    "Loss curves, contact sheet, and a video of each row; what was written, with what it shows."
    pictures = {"sheet.png": "all clips below, frame by frame", "loss.png": "the loss of both stages"}
    files = {out / name: what for name, what in pictures.items()}
    contact_sheet(rows, title=concept.prompt).save(out / "sheet.png")
    plot_history(concept).savefig(out / "loss.png", dpi=120, bbox_inches="tight")
    for label, clip in rows.items(): files[clip.save(out / f"{label.replace(' ', '-')}.mp4")] = label
    concept_files = {
        "concept.safetensors": "the concept: A, B1, B2 and the vectors of its two words",
        "concept.json": "its prompts, recipe and origin"}
    return files | {out / "concept" / name: what for name, what in concept_files.items()}


def peak_memory() -> str:
    "The most memory this process has held so far."
    parts = []
    if torch.cuda.is_available(): parts = [f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"]
    if sys.platform != "win32":
        import resource
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory")
    return ", ".join(parts)


def report(written: dict[Path, str], seconds: dict[str, float]) -> list[Path]:  # what is missing
    "Say what was made, how long each step took, and where to look."
    files = Table("file", "shows", title="What was made")
    missing = [path for path in written if not path.is_file() or not path.stat().st_size]
    for path, what in written.items():
        files.add_row(str(path), f"{what}{' (MISSING)' if path in missing else ''}")
    times = Table("step", title="How long it took", show_footer=True)
    times.columns[0].footer = f"total, at most {peak_memory()}"
    times.add_column("seconds", justify="right", footer=f"{sum(seconds.values()):.1f}")
    for step, s in seconds.items(): times.add_row(step, f"{s:.1f}")
    print_tables(files, times)
    return missing


def command() -> str:
    "What to type for sas-nb: the one of this Python, which need not be on the PATH."
    beside = Path(sys.executable).with_name("sas-nb")
    if not beside.exists(): return f"{sys.executable} -m sas_nb.cli"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


_OWN = "A video to learn from, instead of the dancer; change the prompts at the top of this script to fit it."
_CLIP = typer.Option(help=_OWN)
_WHERE = "out/demo, or out/demo-fast"
_OUT = typer.Option(help="Folder to write; a run found there goes on.", show_default=_WHERE)
_FEW = f"{FAST_STEPS} steps of each stage: everything runs, next to nothing is learned."
_FAST = typer.Option("--fast", help=_FEW)


def main(
    clip: Annotated[Path | None, _CLIP] = None,
    steps1: Annotated[int, typer.Option(help="Optimizer steps of stage 1.", min=0)] = RECIPE.stage1.steps,
    steps2: Annotated[int, typer.Option(help="Optimizer steps of stage 2.", min=0)] = RECIPE.stage2.steps,
    out: Annotated[Path | None, _OUT] = None,
    fast: Annotated[bool, _FAST] = False,
):
    "Learn a dynamic concept from one video with the tiny model, show it again, and edit it by prompt."
    spell_out()
    if fast: steps1 = steps2 = FAST_STEPS
    out = (out or Path("out/demo-fast" if fast else "out/demo")).expanduser()
    seconds = {}

    @contextmanager
    def timed(step):
        print(f"{step} ...", flush=True)
        began = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - began

    with tidy():
        with timed("load the model and the video"):
            dit, reference = load(clip)
        before = " (goes on with what is in the folder; --out takes another)" if out.exists() else ""
        with timed(f"learn: {steps1} steps of Set, {steps2} of Sequence{before}"):
            concept = train(dit, reference, (steps1, steps2), out)
        with timed("generate: as trained, and the edits"):
            rows = {"reference": reference} | show(concept, FAST_SAMPLING if fast else None)
        with timed("draw and write"):
            written = write(concept, rows, out)
    if report(written, seconds): raise typer.Exit(1)
    edit = f"{command()} generate {out} \"{EDITS['in the snow']}\" --out edit.mp4"
    say(f"Look at {out / 'sheet.png'} first. More edits: {edit}")
    say(f"See it dance beside 72 others, whose looks and dances you can mix: {command()} explore")


if __name__ == "__main__": typer.run(main)
