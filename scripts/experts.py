"""Which of two experts carries who it is, and which how it moves? Of the tiny model, taken twice.

People of the shipped zoo are put on two copies of their model, one for the noisy times and one for the
others (see nbs/lab/24_experts.ipynb). Then one copy loses the coefficients of the appearance, or of the
motion, and the oracles say what is left. Writes data/bench/experts.csv, a row for each clip. Rows are kept
in out/experts, by what made them, and the same command goes on from there.
"""
import argparse
import csv
import hashlib
import itertools
import tempfile
from pathlib import Path

import torch
from sas_nb.atlas import load_zoo
from sas_nb.atlas.places import zoo_folder
from sas_nb.cache import data_path
from sas_nb.dit import VideoDiT
from sas_nb.hub import maker_fingerprint
from sas_nb.lab.draw import render
from sas_nb.lab.experts import on_experts, two_experts
from sas_nb.lab.motion import pose_correlation
from sas_nb.lab.oracle_nets import seen_joints
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import save_table
from sas_nb.lab.zoo import spec_of

ROOT = Path(__file__).resolve().parent.parent
BOTH, HIGH, LOW, NONE = ("high", "low"), ("high",), ("low",), ()
WAYS = [(BOTH, BOTH), (HIGH, BOTH), (LOW, BOTH), (NONE, BOTH), (BOTH, HIGH), (BOTH, LOW), (BOTH, NONE)]
COLUMNS = ("boundary", "concept", "seed", "appearance", "motion", "identity", "pose")


def people(n: int) -> dict:
    "The first of the zoo's people, each with the clip that it was learned from."
    zoo = {name: c for name, c in load_zoo().items() if not c.info["truth"]["thing"]}
    return dict(itertools.islice(zoo.items(), n))


def judged(clips: list, concept, oracles: Oracles) -> list[dict]:
    "Likeness to the true clip, as cosines of the oracles, and correlation of the joints with the true ones."
    spec = spec_of(concept)
    T, _, size, _ = clips[0].shape
    true = render(spec, T, concept.fps, size)
    x = torch.stack([c.frames for c in clips])
    likeness = oracles.identity(x).float() @ oracles.identity(true[None]).float()[0]
    joints = torch.as_tensor(seen_joints(spec, T, concept.fps)).float()
    poses = [pose_correlation(j, joints) for j in oracles.joints(x).float()]
    return [dict(identity=f"{a:.4f}", pose=f"{b:.4f}") for a, b in zip(likeness, poses)]


def measured(concept, two: VideoDiT, way: tuple, seeds: range, oracles: Oracles) -> list[dict]:
    there = on_experts(concept, two, *way)
    prompts = [concept.prompt] * len(seeds)
    found = judged(there.generate(prompts, list(seeds), progress=False), concept, oracles)
    said = dict(zip(("appearance", "motion"), map(" ".join, way)))
    return [dict(seed=s) | said | row for s, row in zip(seeds, found)]


def rows_file(seeds: int) -> Path:
    "Where rows of this base, this zoo and these oracles are kept."
    zoo, oracles = zoo_folder("zoo") / "zoo.json", data_path("oracles") / "oracles.safetensors"
    of = maker_fingerprint(VideoDiT.of("tiny")).encode() + zoo.read_bytes() + oracles.read_bytes()
    return ROOT / "out" / "experts" / f"{hashlib.sha256(of).hexdigest()[:12]}-{seeds}.csv"


def read(path: Path) -> list[dict]:
    if not path.exists(): return []
    with path.open(encoding="utf-8", newline="") as f: return list(csv.DictReader(f))


def main():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--boundaries", type=float, nargs="*", default=(.875, .6))
    parser.add_argument("--out", type=Path, default=ROOT / "data/bench/experts.csv")
    args = parser.parse_args()
    kept = rows_file(args.seeds)
    rows = read(kept)
    there = {(r["boundary"], r["concept"]) for r in rows}
    oracles = Oracles.load()
    with tempfile.TemporaryDirectory() as folder:
        for boundary in args.boundaries:
            two = VideoDiT.load(two_experts(Path(folder) / str(boundary), boundary=boundary))
            sigmas = two.schedule(two.defaults.steps).sigmas[:-1]
            print(f"boundary {boundary}: {int((sigmas >= boundary).sum())} of {len(sigmas)} steps are noisy")
            for name, concept in people(args.people).items():
                if (str(boundary), name) in there: continue
                own = dict(boundary=str(boundary), concept=name)
                found = (measured(concept, two, way, range(args.seeds), oracles) for way in WAYS)
                rows += [own | row for row in itertools.chain(*found)]
                save_table(rows, kept, COLUMNS)
                print(name, flush=True)
    save_table(rows, args.out, COLUMNS)


if __name__ == "__main__": main()
