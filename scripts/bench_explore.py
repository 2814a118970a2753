"""How long the explorer lets a hand wait: previews, full videos and kept ones, with the tiny model. Prints a
table and writes out/bench_explore.json.

    # four made-up concepts, two threads, fifteen positions; under a minute on idle cores
    python scripts/bench_explore.py
    python scripts/bench_explore.py run1 run2 run3     # over concepts of your own

The targets are for two idle cores: a preview in 0.4 s, a full video in 2.5 s, a kept one in 0.05 s. All times
are from the change of a widget's trait to the bytes on the screen's trait, so they include snapping, mixing,
putting the concept on the model, sampling, decoding, encoding and the worker thread, and not the browser. On
a busy machine they are longer. So the load is printed, and beside each time what this process computed, in
seconds of one core: that is nearly the same on a busy machine, and two idle cores take about half of it.
"""
import json, os, time
from functools import partial
from pathlib import Path
from typing import Annotated
import numpy as np
import torch, typer
from rich.console import Console
from rich.table import Table
from sas_nb.atlas.members import synthetic
from sas_nb.dit import VideoDiT
from sas_nb.explore.maps import Position
from sas_nb.explore.page import Explorer
from sas_nb.explore.renderer import Studio
from sas_nb.hub import fingerprint
from sas_nb.layers import linear_layers
from sas_nb.terminal import spell_out
from sas_nb.writing import atomic

TARGETS = {"preview": .4, "full video": 2.5, "kept video": .05}


def made_up(n: int = 4, rank: int = 8) -> dict:
    "Concepts of random coefficients on the tiny model: time does not depend on what they show."
    dit = VideoDiT.load("tiny")
    layers = dit.family.lora_layers
    sizes = {name: tuple(m.weight.shape) for name, m in linear_layers(dit.transformer, layers).items()}
    about = dict(base="tiny", fingerprint=fingerprint(dit.transformer), layers=layers)
    concepts, _ = synthetic(n, rank=rank, sizes=sizes, **about)
    for c in concepts:
        c.dit, c.tokens = dit, {k: torch.zeros(dit.text_width) for k in c.tokens}
        c.weights = {k: w if k.endswith(".A") else .01 * w for k, w in c.weights.items()}
    return {f"concept {i + 1}": c for i, c in enumerate(concepts)}


def attach(concept):
    with concept.attached(): pass


def seconds(work) -> tuple[float, float]:  # that passed, and that this process computed on all its threads
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(explorer: Explorer, positions: int) -> dict[str, list[tuple]]:
    "Both kinds of seconds for each kind of answer, at positions along a walk over the map."
    pad = explorer.pad["appearance"]
    places = []
    found = {k: [] for k in TARGETS}
    x, y = pad.point
    def to(point):
        def work():
            pad.point = point
            explorer.worker.wait()
        return work
    for k in range(1, positions + 1):
        places.append([x - k * pad.step, y + k * pad.step / 2])
        pad.dragging = True
        found["preview"].append(seconds(to(places[-1])))
        pad.dragging = False  # the full video follows
        explorer.worker.wait()
    for place in places: found["kept video"].append(seconds(to(place)))
    explorer.studio.kept.clear()
    render = explorer.studio.render
    who = [explorer.studio.names[0]] * 2
    steps = [Position(*who, look_by=(0, k * pad.step)) for k in range(1, positions + 1)]
    found["full video"] = [seconds(partial(render, position)) for position in steps]
    return found


def main(
    concepts: Annotated[list[Path], typer.Argument(help="Folders of concepts, else made-up ones.")] = None,
    threads: int = 2,
    positions: int = 15,
    out: Path = Path("out/bench_explore.json"),
):
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    explorer = Explorer(Studio(concepts or made_up()), faces=0)
    explorer.worker.wait(300)
    s = explorer.studio
    found = measure(explorer, positions)
    parts = {"mixing": [seconds(lambda: s.concept(explorer.position)) for _ in range(positions)]}
    c = s.concept(explorer.position)
    parts["putting it on the model"] = [seconds(lambda: attach(c)) for _ in range(positions)]
    title = (f"Explorer, {len(s.atlas)} concepts, {s.preview} and {s.steps} steps, {threads} threads; "
             f"load {load:.1f} on {os.cpu_count()} cores")
    table = Table("what", "median", "worst", "computed, median", "target on two idle cores", title=title)
    times = {k: dict(zip(("passed", "computed"), map(list, zip(*v)))) for k, v in (found | parts).items()}
    for k, t in times.items():
        shown = (np.median(t["passed"]), max(t["passed"]), np.median(t["computed"]))
        target = f"{1000 * TARGETS[k]:.0f} ms" if k in TARGETS else ""
        table.add_row(k, *(f"{1000 * x:.1f} ms" for x in shown), target)
    spell_out()
    Console().print(table)
    if load > .5: print(f"The machine was busy (load {load:.1f}): on idle cores these times are shorter.")
    figures = dict(seconds=times, load=load, cores=os.cpu_count(), threads=threads)
    with atomic(out) as tmp: tmp.write_text(json.dumps(figures | dict(steps=[s.preview, s.steps]), indent=1))


if __name__ == "__main__": typer.run(main)
