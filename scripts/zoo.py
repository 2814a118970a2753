"""Make a zoo: a population of concepts over one universal basis, each with its truth, small enough to ship.

    python scripts/zoo.py                                               # the shipped one, into data/zoo
    python scripts/zoo.py --people 1000 --out big --fast                # a thousand, compiled
    python scripts/zoo.py --people 5 --things 1 --share .2 --out small  # a rehearsal

The shipped one has 64 people and 8 things: an hour and a half on two cores. People have an identity and a
dance that no word names, and clothes that the caption leaves out, so that the weights must know them; all
are filmed in the park, so that nothing differs but them. Everyone is
trained with the same chance (noise, times, dropout), so that what differs between two concepts is what
differs between their clips. Ctrl-C, a kill or `--minutes` stop it cleanly, and the same command goes on.
It writes
  zoo.json, basis.safetensors, concepts-NN.safetensors   what `sas_nb.atlas.places.load_zoo` reads
  truth.csv     who is who: words, seed, identity and gait vectors
  packing.json  what eight bits cost: coefficients, PCA, loss, pixels
  sheet.png     everyone: as filmed, as learned, and in the snow
"""
import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated
import numpy as np
import torch
import typer
from bench_fleet import own_loss
from PIL import Image, ImageDraw
from sas_nb.atlas.geometry import Atlas
from sas_nb.atlas.places import load_zoo
from sas_nb.concept import Concept
from sas_nb.data import sequence
from sas_nb.dit import VideoDiT
from sas_nb.explore.prompts import without_clothes
from sas_nb.hub import fingerprint
from sas_nb.lab.cases import Case, case
from sas_nb.lab.compose_bench import MEMBER
from sas_nb.lab.draw import render
from sas_nb.lab.rows import save_table
from sas_nb.lab.specs import SCENES
from sas_nb.lab.world import IDENTITY, Person
from sas_nb.lab.zoo import save_zoo, spec_of, ZOO
from sas_nb.learning import learn_many, universal_basis
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe, Run
from sas_nb.stages import build
from sas_nb.writing import atomic, check_place

BESIDE = dict(marker="packing.json", names=("packing.json", "truth.csv", "sheet.png"),
              sign=("packing.json", '"coefficients_relative_error"'))  # what lies beside the zoo
FIRST = 1000  # held-out people and things from this number on: the benchmark's come before
SCENE = "park"


def cast(people: int, things: int, fps: float = 12.) -> dict[str, Case]:
    "Name -> case: who is in the zoo. The same number is always the same subject."
    drawn = [case(FIRST + i, fps=fps) for i in range(people)]
    drawn += [case(FIRST + i, True, fps) for i in range(things)]
    numbers = [*range(people), *range(things)]
    return {
        f"{c.spec.subjects[0].kind}-{i:02d}": replace(c, spec=replace(c.spec, scene=SCENE), edits={})
        for i, c in zip(numbers, drawn)
    }


def plan(share: float = 1., bf16: bool = True, fast: bool = False) -> Recipe:
    """The recipe of the basis and of the members, at a share of the full number of steps: ours in batches of
    2, and so at half its rate, which falls to nothing; with images in stage 1, whose caption is of looks
    alone, and beside strangers, so that members can be composed."""
    def steps(stage): return dict(steps=max(1, round(stage.steps * share)))
    return MEMBER.with_(both=dict(bf16=bf16, compile=fast), stage1=steps(MEMBER.stage1),
                        stage2=steps(MEMBER.stage2))


def said(c: Case) -> Prompts:
    "What is said of a member: nothing of clothes, hats and hair, which are to be in its weights."
    look, moves = c.prompts()
    return Prompts(without_clothes(look), moves)


def learned_zoo(who: dict[str, Case], dit: VideoDiT, recipe: Recipe, folder: Path) -> list[Concept]:
    "The basis from all, then all members over it; a run found in the folder goes on."
    clips = [c.clip() for c in who.values()]
    prompts = [said(c) for c in who.values()]
    run = Run(out=folder, save_every=25)
    looks = build(dit, clips, prompts, recipe)["appearance"]
    A = universal_basis(dit, looks, recipe, replace(run, out=folder / "basis"))
    return learn_many(clips, prompts, dit, recipe, run, A)


def known(number: int, c: Case) -> dict:
    "What travels with a concept: the seed's number and the spec as data."
    return dict(number=FIRST + number, thing=not isinstance(c.spec.subjects[0], Person), spec=asdict(c.spec))


# Stopping

def stop_cleanly(minutes: float):
    """Let a kill and the clock do what Ctrl-C does: the running step ends, a checkpoint is written, and
    the program stops."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if minutes:
        clock = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
        clock.daemon = True
        clock.start()


# What the files say

def truth_table(zoo: dict[str, Concept]) -> list[dict]:
    """One flat row for each concept, all with the same columns; what only people or only things have is
    empty for the others."""
    def row(name, c):
        spec = spec_of(c)
        s = spec.subjects[0]
        t = c.info["truth"]
        words = {k: getattr(s, k, "") for k in ("kind", "shirt", "trousers", "hat", "held", "motion")}
        about = dict(
            name=name,
            seed=t["number"],
            **words,
            scene=spec.scene,
            appearance=c.info["appearance"],
            movement=c.info["motion"],
        )
        if t["thing"]: return about | {f"shape_{i}": v for i, v in enumerate(s.shape)}
        return (
            about
            | {f"identity_{k}": v for k, v in zip(IDENTITY, s.identity)}
            | {f"gait_{i}": v for i, v in enumerate(s.gait.vector)}
        )

    rows = [row(n, c) for n, c in zoo.items()]
    columns = dict.fromkeys(k for r in rows for k in r)
    return [{k: r.get(k, "") for k in columns} for r in rows]


# What eight bits cost

def _moved_components(p, q) -> dict:
    "How far storing moved the first five components, and the members along them."
    same = len(p.axes) == len(q.axes)
    units = [x.axes / np.linalg.norm(x.axes, axis=1, keepdims=True) for x in (p, q)]
    cos = (units[0] * units[1]).sum(1)[:5] if same else np.zeros(1)
    moved = [np.abs(p.scores[:, k] * np.sign(c) - q.scores[:, k]).max() / p.std[k] for k, c in enumerate(cos)]
    return dict(worst_coordinate_of_first_five=float(max(moved)),
                least_cosine_of_first_five=float(np.abs(cos).min()))


def packing(exact: dict[str, Concept], stored: dict[str, Concept], some: int = 4) -> dict:
    "What storing changed, as numbers."
    coefficients = [
        float((stored[n].weights[k] - w).norm() / w.norm())
        for n, c in exact.items()
        for k, w in c.weights.items()
        if not k.endswith(".A") and w.any()
    ]
    atlases = Atlas(exact), Atlas(stored)
    pca = {part: _moved_components(*(a.pca(part) for a in atlases)) for part in ("appearance", "motion")}

    def own(c, clip):
        with c.attached() as adapter: return own_loss(adapter, sequence(c.dit, clip, c.prompt), c.tokens)

    losses = {
        n: [own(z[n], render(spec_of(exact[n]), fps=12.0)) for z in (exact, stored)]
        for n in list(exact)[:some]
    }
    clips = {n: [z[n].generate(seed=1, steps=10).frames for z in (exact, stored)] for n in list(exact)[:some]}
    psnr = {n: float(-10 * (x - y).square().mean().log10()) for n, (x, y) in clips.items()}
    return dict(
        bits=8,
        coefficients_relative_error=dict(median=float(np.median(coefficients)), worst=max(coefficients)),
        pca_in_standard_deviations=pca,
        loss_on_own_clip_exact_and_stored=losses,
        pixels_psnr_db=psnr,
    )


# Everyone

def sheet(zoo: dict[str, Concept], columns: int = 12, steps: int = 12, side: int = 64) -> Image.Image:
    "For each: a frame of the clip, the same moment as learned, and in the snow; above its name."
    rows = -(-len(zoo) // columns)
    picture = Image.new("RGB", (columns * (side + 4), rows * (3 * side + 18)), "white")
    draw = ImageDraw.Draw(picture)
    def shown(x): return Image.fromarray((x.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    for i, (name, c) in enumerate(zoo.items()):
        x, y = i % columns * (side + 4) + 2, i // columns * (3 * side + 18)
        films = c.generate([c.prompt, c.prompt.replace(SCENES[SCENE], SCENES["snow"])], [0, 0], steps=steps)
        for k, frames in enumerate((render(spec_of(c), fps=12.0).frames, *(f.frames for f in films))):
            picture.paste(shown(frames[8]), (x, y + k * side))
        draw.text((x, y + 3 * side + 2), name, "black")
    return picture


def main(
    people: Annotated[int, typer.Option(help="How many people.")] = 64,
    things: Annotated[int, typer.Option(help="How many dynamic things.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the zoo.")] = Path("data/zoo"),
    work: Annotated[Path, typer.Option(
        help="Folder for checkpoints; one in it for each base and plan.")] = Path("out/zoo"),
    model: Annotated[str, typer.Option(help="The base: a name or folder.")] = "tiny",
    share: Annotated[float, typer.Option(help="Share of the full number of steps, for a rehearsal.")] = 1.0,
    rank: Annotated[int, typer.Option(help="Rank of the basis.")] = 8,
    minutes: Annotated[float, typer.Option(help="Stop cleanly after so many; 0 for never.")] = 0.0,
    bf16: Annotated[bool, typer.Option(help="Products with frozen weights in bfloat16.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help=(
        "Compile: a minute or two at first, then steps of two thirds of the time. Needs a C++ compiler."
    ))] = False,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
):
    if threads: torch.set_num_threads(threads)
    stop_cleanly(minutes)
    out, work = out.expanduser(), work.expanduser()
    check_place(out, BESIDE["names"], **BESIDE)
    check_place(out, ZOO["names"][:2], **ZOO)
    began = time.time()
    dit = VideoDiT.load(model)
    who = cast(people, things)
    def say(text): print(f"[{(time.time() - began) / 60:5.1f} min] {text}", flush=True)
    way = ("" if bf16 else "-fp32") + ("-fast" if fast else "")
    folder = work / f"{fingerprint(dit.transformer)}-{people}-{things}-r{rank}-{share:g}{way}"
    recipe = plan(share, bf16, fast).with_(rank=rank)
    say(f"{people} people and {things} things, steps "
        f"{', '.join(str(s.steps) for s in (recipe.stage1, *recipe.stages))}, checkpoints in {folder}")
    try:
        learned = learned_zoo(who, dit, recipe, folder)
    except KeyboardInterrupt as e:
        say(str(e) or "Stopped; the same command goes on.")
        raise typer.Exit(130) from None
    for c, concept, number in zip(who.values(), learned, [*range(people), *range(things)]):
        concept.info["truth"] = known(number, c)
    zoo = dict(zip(who, learned))
    say("trained; writing")
    save_zoo(zoo, out)
    stored = load_zoo(out, dit=dit)
    rows = truth_table(stored)
    say("measuring what eight bits cost, and drawing everyone")
    cost = packing(zoo, stored)
    print(json.dumps(cost, indent=1))
    with atomic(out, **BESIDE) as tmp:
        save_table(rows, tmp / "truth.csv", list(rows[0]), lambda v: repr(float(v)))
        (tmp / "packing.json").write_text(json.dumps(cost, indent=1))
        sheet(stored).quantize(128, dither=Image.Dither.NONE).save(tmp / "sheet.png", optimize=True)
    sizes = {f.name: f.stat().st_size / 1e6 for f in sorted(out.iterdir())}
    say(f"{out}: {sum(sizes.values()):.1f} MB, the largest file {max(sizes.values()):.1f} MB")


if __name__ == "__main__": typer.run(main)
