"""How large a population the atlas can take: time and memory of exact PCA in weight space, at the shapes of
Wan 2.1 1.3B. Prints tables and writes out/bench_atlas.json.

    python scripts/bench_atlas.py                  # fifteen minutes; with --threads 2 on a free machine
    python scripts/bench_atlas.py --quick          # a minute: fewer members, one layer
    python scripts/bench_atlas.py --minutes 60     # enough for all 300 layers of 1,000 adapters on one core

Three tables. One: ours, flattening A and B, and the dense updates, side by side in one process on the same
adapters, in turns, with the error of each against dense float64. Two: real files, written to a temporary
folder and read back through the same road as anybody's LoRAs. Three: 1,000 adapters of rank 8, drawn from
seeds as they are read (they would be 20 GB on disk in bfloat16), until the minutes are over; time is a sum
over layers, so what remains is extrapolated from layers of the same shape, and marked so. Each table is made
in a process of its own, so that its peak of memory is its own. Seconds are of the processor (all threads
together), which other programs on the machine disturb least; `wall` is the clock's.
"""
import json, os, resource, shutil, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from functools import partial
from pathlib import Path
from typing import Annotated
import numpy as np
import torch, typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sas_nb.atlas.components import pca_of
from sas_nb.atlas.geometry import Atlas, layer_gram, layers_of
from sas_nb.atlas.members import Member
from sas_nb.lowrank import delta
from sas_nb.writing import atomic

WIDTH, HIDDEN, BLOCKS = 1536, 8960, 30  # of Wan 2.1 1.3B
BLOCK = {
    f"{a}.{o}": (WIDTH, WIDTH) for a in ("attn1", "attn2") for o in ("to_q", "to_k", "to_v", "to_out.0")
} | {"ffn.net.0.proj": (HIDDEN, WIDTH), "ffn.net.2": (WIDTH, HIDDEN)}
# one of each shape
KINDS = {"attention": (WIDTH, WIDTH), "ffn.net.0.proj": (HIDDEN, WIDTH), "ffn.net.2": (WIDTH, HIDDEN)}


def sizes(blocks: int) -> dict[str, tuple[int, int]]:
    "Layer -> (out, in)."
    return {f"blocks.{i}.{k}": s for i in range(blocks) for k, s in BLOCK.items()}


def drawn(seed: int, layer: str, out: int, in_: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer of a made-up LoRA: a third is common to all (a seed of its own), the rest its own;
    bfloat16, as files are."""
    number = sum(ord(c) * 31 ** i for i, c in enumerate(layer)) % 2**31
    def draw(s):
        g = torch.Generator().manual_seed((number * 100003 + s) % 2**63)
        return torch.randn(rank, in_, generator=g) / in_**.5, torch.randn(out, rank, generator=g) * .1
    (A, B), (A0, B0) = draw(seed + 1), draw(0)
    return (A + A0 / 3).bfloat16(), (B + B0 / 3).bfloat16()


def synthetic_member(seed: int, layers: dict, rank: int) -> Member:
    "A member whose weights are drawn when they are read: the streaming road of the atlas, without the disk."
    return Member(
        f"adapter {seed}", {l: (*s, rank) for l, s in layers.items()}, ("update",),
        lambda ls: {l: drawn(seed, l, *layers[l], rank) for l in ls}, dict
    )


def peak() -> float:
    "GB of memory that this process has used at most."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(make):
    "What `make` returns, and the processor's seconds for it."
    began = time.process_time()
    return make(), time.process_time() - began


def alone(threads: int, work, *args):
    "Run a function in a fresh process."
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        return pool.submit(work, *args).result()


# Side by side

def flattened(pairs: list) -> np.ndarray:
    "The usual recipe: inner products of A and B laid end to end."
    X = torch.stack([torch.cat([A.flatten(), B.flatten()]) for A, B in pairs]).float()
    return (X @ X.T).double().numpy()


def dense(pairs: list, dtype=torch.float32) -> np.ndarray:
    "The updates themselves, all in memory at once, as a PCA of them needs."
    X = torch.stack([delta(A.to(dtype), B.to(dtype)).flatten() for A, B in pairs])
    return (X @ X.T).double().numpy()


def error(G: np.ndarray, truth: np.ndarray) -> float:
    "Largest error of the explained variances, as a share of the whole variance."
    a, b = (pca_of(g).explained_variance_ for g in (G, truth))
    k = min(len(a), len(b))
    return float(np.abs(a[:k] / a.sum() - b[:k] / b.sum()).max() if a.sum() else np.nan)


def side_by_side(n: int, rank: int, kinds: dict) -> list[dict]:
    "Per shape of layer: seconds, megabytes that must be in memory at once, and error against dense float64."
    rows = []
    for kind, (out, in_) in kinds.items():
        pairs = [drawn(s, kind, out, in_, rank) for s in range(n)]
        small = pairs[:min(n, 12)]
        truth = dense(small, torch.float64)
        ways = {"ours": lambda p: layer_gram(p)[0].numpy(), "flatten": flattened, "dense": dense}
        for way in ways.values(): way(small)  # warm
        row = dict(layer=kind, n=n, rank=rank)
        for name, way in ways.items(): row[f"{name} error"] = error(way(small), truth)
        turns = [{name: timed(partial(way, pairs))[1] for name, way in ways.items()} for _ in range(3)]
        row |= {f"{name} s": min(t[name] for t in turns) for name in ways}
        numbers = n * rank * (out + in_)
        row["ours MB"] = 4 * (numbers + 2 * min(n * rank, 256) * n * rank) / 2**20
        row["flatten MB"] = 4 * numbers / 2**20
        row["dense MB"] = 4 * n * out * in_ / 2**20
        rows.append(row)
    return rows


# Real files

def on_disk(n: int, blocks: int, rank: int) -> dict:
    "Write n LoRA files, then do their PCA; only the second is timed."
    layers = sizes(blocks)
    folder = Path(tempfile.mkdtemp(prefix="bench_atlas"))
    need = n * sum(2 * rank * (o + i) for o, i in layers.values())
    try:
        if shutil.disk_usage(folder).free < 2 * need:
            return dict(skipped=f"needs {need / 2**30:.1f} GB of disk")
        for s in range(n):
            pairs = {l: zip("AB", drawn(s, l, *size, rank)) for l, size in layers.items()}
            tensors = {f"transformer.{l}.lora_{k}.weight": t for l, pair in pairs.items() for k, t in pair}
            save_file(tensors, folder / f"{s}.safetensors")
        atlas, opening = timed(lambda: Atlas(sorted(folder.glob("*.safetensors"))))
        began = time.perf_counter()
        p, seconds = timed(atlas.pca)
        return dict(
            n=n, layers=len(layers), rank=rank, gb=need / 2**30, opening_s=opening, pca_s=seconds,
            pca_wall_s=time.perf_counter() - began,
            first_components=p.explained_variance_ratio_[:3].round(4).tolist(), peak_gb=peak()
        )
    finally: shutil.rmtree(folder)


# A thousand

def thousand(n: int, rank: int, minutes: float) -> dict:
    """Layer by layer from seeds until the time is over; the rest by arithmetic. One layer of each shape
    comes first."""
    layers = sizes(BLOCKS)
    first = {k: layers[k] for k in ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "blocks.0.ffn.net.2")}
    order = first | layers
    members = [synthetic_member(s, order, rank) for s in range(n)]
    total = 0
    spent = {}
    drawing = 0.
    wall = 0.
    done = 0
    began = time.perf_counter()
    mark = time.process_time()
    for layer, pairs in layers_of(members, budget=2**29):
        drawing, start = drawing + time.process_time() - mark, time.perf_counter()
        g, seconds = timed(partial(layer_gram, pairs))
        wall += time.perf_counter() - start
        total, done = total + g, done + 1
        spent.setdefault(layers[layer], []).append(seconds)
        mark = time.process_time()
        if time.perf_counter() - began > 60 * minutes and len(spent) == len(set(layers.values())): break
    counts = {s: sum(v == s for v in layers.values()) for s in set(layers.values())}
    whole = sum(float(np.mean(spent[s])) * c for s, c in counts.items())
    p, eig = timed(lambda: pca_of(total[0].numpy()))
    return dict(
        n=n, rank=rank, layers=len(layers), layers_done=done, extrapolated=done < len(layers),
        products_s=whole, wall_per_s=wall / sum(map(sum, spent.values())), eig_s=eig,
        drawing_s_per_layer=drawing / done, peak_gb=peak(),
        first_components=p.explained_variance_ratio_[:3].round(5).tolist(), two_over_n=2 / (n - 1),
        dense_gb=4 * n * sum(o * i for o, i in layers.values()) / 2**30,
        per_layer={str(k): float(np.mean(v)) for k, v in spent.items()}
    )


def table(title: str, rows: list[dict], console: Console):
    "Rows of figures; a single row stands upright."
    t = Table(title=title)
    def words(v): return f"{v:.3g}" if isinstance(v, float) else str(v)
    upright = len(rows) == 1 and len(rows[0]) > 6
    for k in ("figure", "value") if upright else rows[0]: t.add_column(k)
    for r in rows[0].items() if upright else (r.values() for r in rows): t.add_row(*map(words, r))
    console.print(t)


def main(
    quick: Annotated[bool, typer.Option(help="Fewer members, fewer layers.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for matrix products.")] = 1,
    minutes: Annotated[float, typer.Option(help="For the thousand adapters.")] = 6.,
    files: Annotated[int, typer.Option(help="How many real files, 22 MB each.")] = 60,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path("out/bench_atlas.json")
):
    console = Console(width=150)
    rank = 8
    sides = alone(
        threads, side_by_side,
        *((16, rank, {"attention": KINDS["attention"]}) if quick else (24, rank, KINDS))
    )
    table("One layer, side by side", sides, console)
    ratios = [
        {
            "layer": r["layer"], "ours / flatten, time": r["ours s"] / r["flatten s"],
            "dense / ours, time": r["dense s"] / r["ours s"],
            "dense / ours, memory": r["dense MB"] / r["ours MB"]
        }
        for r in sides
    ]
    table("Ratios", ratios, console)
    disk = alone(threads, on_disk, *((6, 2, rank) if quick else (files, BLOCKS, rank)))
    table("Real files", [disk], console)
    n = 200 if quick else 1000
    big = alone(threads, thousand, n, rank, .2 if quick else minutes)
    rest = f": {big['layers_done']} of {big['layers']} layers measured, the rest extrapolated"
    title = f"{n} adapters" + rest * big["extrapolated"]
    table(title, [{k: v for k, v in big.items() if k != "per_layer"}], console)
    figures = dict(
        threads=threads, torch=torch.__version__, cpus=os.cpu_count(), side_by_side=sides, ratios=ratios,
        files=disk, thousand=big
    )
    with atomic(out) as tmp: tmp.write_text(json.dumps(figures, indent=1))
    console.print(f"written to {out}")


if __name__ == "__main__": typer.run(main)
