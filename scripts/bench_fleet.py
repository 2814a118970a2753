"""What company saves: one step of one concept among many, against training its members one after another; and
what a ready basis saves a newcomer. Prints tables and writes out/bench_fleet.json.

    python scripts/bench_fleet.py --threads 2   # the ways side by side in one process, in turns; minutes
    python scripts/bench_fleet.py --compile     # also: many at once, compiled
    python scripts/bench_fleet.py --new         # also: new people over the zoo's A, against from scratch
    python scripts/bench_fleet.py --quick       # one batch size of each stage

`alone` is what `learn` does: float32. Many train in two precisions and can be compiled, see
`sas_nb.fast.bf16_products` and `compiled`; `alone, bf16` is there to tell what company saves from what
bfloat16 does. Compiling takes one to two minutes for each row, which are not counted: in a long run they are
nothing, in a short one leave `--compile` out. Seconds are the clock's, the best of some turns; `cpu` is the
processor's time for the same steps, all threads together, which other programs on the machine disturb less.
"""
import json, time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated
import torch, typer
from bench import PROMPT, STAGES, WHO
from rich.console import Console
from rich.table import Table
from sas_nb.adapter import SharedLoRA
from sas_nb.atlas.places import load_zoo
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.data import frame_set, sequence, StageData
from sas_nb.dit import VideoDiT
from sas_nb.fast import compiled
from sas_nb.flow import flow_loss, interpolate, velocity_target
from sas_nb.lab.cases import case
from sas_nb.lab.draw import render
from sas_nb.lab.motion import pose_correlation
from sas_nb.lab.oracle_nets import seen_joints
from sas_nb.lab.oracles import Oracles
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe, Run, Stage
from sas_nb.stages import build
from sas_nb.text import add_tokens
from sas_nb.train import Trainer
from sas_nb.writing import atomic


def took(f) -> tuple[float, float]:
    "Seconds by the clock and of the processor."
    wall = time.perf_counter()
    cpu = time.process_time()
    f()
    return time.perf_counter() - wall, time.process_time() - cpu


# Company

def stage_of(recipe: Recipe, name: str) -> Stage: return next(s for s in recipe.stages if s.name == name)


def ways(stage: str, batch: int, members: int, compile: bool) -> dict:
    "Name -> (the stage's numbers, context of a step, members)."
    exact = stage_of(Recipe.paper().with_(both=dict(batch=batch, prior=0.)), stage)
    half = replace(exact, bf16=True)
    rows = {
        "alone": (exact, False, 1), "alone, bf16": (half, False, 1), "many": (exact, False, members),
        "many, bf16": (half, False, members)
    }
    return rows | ({"many, bf16, compiled": (half, True, members)} if compile else {})


def train(trainer: Trainer, steps: int):
    for _ in range(steps): trainer.train_step()


def company(dit, stage: str, data, batch: int, members: int, turns: int, A: dict, compile: bool) -> dict:
    """Milliseconds for one step of one concept in each way, the best of some turns. What is compiled has
    all its turns at once, for it is compiled anew each time."""
    best = {}
    found = ways(stage, batch, members, compile)
    for turn in range(turns):
        for name, (numbers, at_once, n) in found.items():
            if at_once and turn: continue
            adapter = SharedLoRA(dit, n=n, A=A)
            steps = 3 if n == 1 else 1
            with adapter.attached(), compiled(dit) if at_once else nullcontext():
                trainer = Trainer(dit, adapter, StageData([data] * n), numbers, Run(progress=False))
                for _ in range(1 + at_once): trainer.train_step()  # warm
                for _ in range(turns if at_once else 1):
                    for kind, v in zip(("wall", "cpu"), took(partial(train, trainer, steps))):
                        best[name, kind] = min(best.get((name, kind), 1e9), 1000 * v / steps / n)
    row = dict(stage=STAGES[stage], batch=batch, members=members) | {
        f"{n} {k}": v for (n, k), v in best.items()
    }
    return row | {
        f"{n}: times faster, {k}": best["alone", k] / best[n, k]
        for n in found
        if n != "alone"
        for k in ("wall", "cpu")
    }


# A newcomer

@torch.no_grad()
def own_loss(adapter, data, tokens: dict, draws: int = 2) -> float:
    """Flow-matching loss on the concept's own examples, at five times and fixed noise, nothing dropped or
    masked. The adapter is on its model."""
    x0, text, found = data.batch([i % len(data) for i in range(5 * draws)])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(.1, .9, 5).repeat(draws)
    text = add_tokens(text, found, tokens)
    with adapter.undropped(): v = adapter.dit.velocity(interpolate(x0, noise, t), t, text).cpu()
    return float(flow_loss(v, velocity_target(x0, noise)))


class Timed(Trainer):
    "Writes seconds and loss into a curve every few steps; the measuring itself is not counted."
    def __init__(self, *args, curve: list, spent: list, every: int):
        super().__init__(*args)
        self.curve, self.spent, self.every = curve, spent, every

    def train_step(self):
        for k, v in enumerate(took(super().train_step)): self.spent[k] += v
        if self.step % self.every: return
        loss = own_loss(self.adapter, self.data.concepts[0], self.adapter.member()[1])
        self.curve.append(
            dict(stage=self.stage.name, step=self.step, wall=self.spent[0], cpu=self.spent[1], loss=loss)
        )


def newcomer(dit, c, A: dict | None, steps: int, batch: int, every: int) -> tuple[list[dict], Clip]:
    """Learn one case over a frozen A, or from scratch when None: losses and seconds on the way, and what
    it generates."""
    recipe = Recipe.default().with_(both=dict(steps=steps, batch=batch, prior=0.))
    how = dict(curve=[], spent=[0., 0.], every=every)
    data = build(dit, [c.clip()], [Prompts.of(c.prompts())], recipe)
    adapter = SharedLoRA(dit, recipe.rank, A=A)
    with adapter.attached():
        for stage in recipe.stages:
            Timed(dit, adapter, data[stage.name], stage, Run(progress=False), **how).fit()
        clip = dit.sample(c.prompt(), seed=0, tokens=adapter.member()[1])
    return how["curve"], clip


def newcomers(dit, A: dict, people: int, steps: int, batch: int, every: int) -> list[dict]:
    "Both ways for some people who are not in the zoo."
    rows = []
    oracles = Oracles.load()
    for i in range(people):
        c = case(i)
        found = {}
        for name, basis in (("over the zoo's A", A), ("from scratch", None)):
            curve, made = newcomer(dit, c, basis, steps, batch, every)
            face = oracles.identity(torch.stack([made.frames, render(c.spec, fps=c.fps).frames]))
            joints = torch.as_tensor(seen_joints(c.spec, fps=c.fps)).float()
            pose = float(pose_correlation(oracles.joints(made)[0], joints))
            found[name] = dict(curve=curve, identity=float(face[0] @ face[1]), pose=pose)
        for stage in STAGES:
            curves = {n: [r for r in f["curve"] if r["stage"] == stage] for n, f in found.items()}
            target = curves["from scratch"][-1]["loss"]
            reached = next((r["step"] for r in curves["over the zoo's A"] if r["loss"] <= target), None)
            for n, curve in curves.items():
                before = [r["cpu"] for r in found[n]["curve"] if r["stage"] == "appearance"][-1]
                rows.append(dict(
                    who=c.name, stage=STAGES[stage], way=n, steps=steps,
                    cpu_s=curve[-1]["cpu"] - (0 if stage == "appearance" else before),
                    loss=curve[-1]["loss"],
                    steps_to_the_loss_from_scratch=reached if n.startswith("over") else steps,
                    identity=found[n]["identity"], pose=found[n]["pose"],
                    curve=[[r["step"], r["cpu"], r["loss"]] for r in curve]))
    return rows


def show(title: str, rows: list[dict]):
    columns = [k for k in rows[0] if k != "curve"]
    t = Table(*columns, title=title)
    for r in rows: t.add_row(*(f"{r[k]:.3g}" if isinstance(r[k], float) else str(r[k]) for k in columns))
    Console(width=200).print(t)


def main(
    members: Annotated[int, typer.Option(help="Most members at once; 64 samples go in one pass.")] = 32,
    turns: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads for all ways; 0 leaves them alone.")] = 0,
    quick: Annotated[bool, typer.Option(help="One batch size of each stage.")] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also many at once, compiled; needs a C++ compiler.")
    ] = False,
    new: Annotated[
        bool, typer.Option(help="Also learn new people over the zoo's basis and from scratch.")
    ] = False,
    people: Annotated[int, typer.Option(help="How many new people.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps of each stage for a new one.")] = 150,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path("out/bench_fleet.json"),
):
    if threads: torch.set_num_threads(threads)
    dit = VideoDiT.load("tiny")
    r = dit.defaults
    clip = Clip.load(
        data_path("clips/dancer.mp4"), num_frames=r.num_frames, fps=r.fps, size=(r.height, r.width)
    )
    A = {k: v for k, v in SharedLoRA(dit, 8).member()[0].items() if k.endswith(".A")}
    rows = []
    for stage in STAGES:
        data = frame_set(dit, clip, WHO) if stage == "appearance" else sequence(dit, clip, PROMPT)
        for batch in (2,) if quick else (1, 2, 4, 8):
            rows.append(
                company(dit, stage, data, batch, max(1, min(members, 64 // batch)), turns, A, compile)
            )
    names = [k[:-5] for k in rows[0] if k.endswith(" wall") and ":" not in k]
    show(
        f"Milliseconds for one step of one concept, {torch.get_num_threads()} threads",
        [{k: r[k] for k in ("stage", "batch", "members", *(f"{n} wall" for n in names))} for r in rows]
    )
    show(
        "Times faster than training alone",
        [{k: v for k, v in r.items() if k in ("stage", "batch") or "times" in k} for r in rows]
    )
    figures = dict(threads=torch.get_num_threads(), torch=torch.__version__, company=rows)
    if new:
        basis = {k: v for k, v in next(iter(load_zoo().values())).weights.items() if k.endswith(".A")}
        figures["new"] = newcomers(dit, basis, people, steps, 4, max(1, steps // 10))
        show(f"A new concept, {steps} steps a stage at batch 4", figures["new"])
    with atomic(out) as tmp: tmp.write_text(json.dumps(figures, indent=1))
    print(f"written to {out}")


if __name__ == "__main__": typer.run(main)
