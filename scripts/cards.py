"""What training on the known models needs of the cards that people have, as `sas-nb plan --json` tells.

Nothing is downloaded. A row takes minutes and is written as soon as it is known; one that the table has is
kept, unless --again is given. Writes data/bench/cards.csv, which README reads, and prints it as Markdown.
"""
import argparse
import csv
from pathlib import Path

from sas_nb.cards import card
from sas_nb.lab.rows import save_table
from sas_nb.plan import plan

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"Wan 2.1 1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
          "Wan 2.2 TI2V-5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
          "Wan 2.1 14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
          "Wan 2.2 A14B": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
SMALL, LARGE = (320, 512), (480, 832)
FIRST = [("Wan 2.1 1.3B", 33, *SMALL, "t4"), ("Wan 2.2 TI2V-5B", 81, *LARGE, "14"),
         ("Wan 2.1 1.3B", 81, *LARGE, "10"), ("Wan 2.1 14B", 33, *LARGE, "4090")]  # README shows these
USUAL = "t4", "l4", "4090", "a100", "h100"
CASES = list(dict.fromkeys([*FIRST, *[(m, 33, *LARGE, c) for m in MODELS for c in USUAL]]))
COLUMNS = ("name", "frames", "height", "width", "gpu", "fits", "peak_gpu_gib", "peak_host_gib", "disk_gib",
           "hours", "why", "instead")
KEY = COLUMNS[:5]


def key(case: tuple) -> tuple[str, ...]:
    "What a row is known by: its first columns, as text."
    *what, gpu = case
    return *map(str, what), card(gpu).name


def row(case: tuple) -> dict:
    name, *shape, gpu = case
    said = plan(MODELS[name], tuple(shape), gpu=gpu).to_dict()
    return {k: str((said | dict(name=name))[k]) for k in COLUMNS}


def read(path: Path) -> dict[tuple, dict]:
    if not path.exists(): return {}
    with path.open(encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    return {tuple(r[k] for k in KEY): r for r in rows}


def write(rows: dict[tuple, dict], path: Path):
    "In the order of the cases."
    order = [*map(key, CASES)]
    order += [k for k in rows if k not in order]
    save_table([rows[k] for k in order if k in rows], path, COLUMNS)


def markdown(rows: list[dict]) -> str:
    "A row for each model and size, a column for each card: GPU and host memory in GiB, and hours."
    cards = list(dict.fromkeys(r["gpu"] for r in rows))
    lines = ["| default recipe | " + " | ".join(cards) + " |", "|---" * (len(cards) + 1) + "|"]
    for what in dict.fromkeys(map(subject, rows)):
        own = {r["gpu"]: r for r in rows if subject(r) == what}
        lines.append(f"| {what} | " + " | ".join(cell(own.get(c)) for c in cards) + " |")
    return "\n".join(lines)


def subject(row: dict) -> str: return "{name}, {frames} frames of {height}x{width}".format(**row)


def cell(row: dict | None) -> str:
    if row is None: return "not asked"
    if row["fits"] != "True": return f"no. {row['instead']}"
    gpu, host, hours = (float(row[k]) for k in ("peak_gpu_gib", "peak_host_gib", "hours"))
    return f"{gpu:.1f} GiB, host {host:.1f} GiB, {hours:.1f} h"


def main():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--out", type=Path, default=ROOT / "data/bench/cards.csv")
    parser.add_argument("--again", action="store_true", help="plan again what the table has")
    args = parser.parse_args()
    rows = {} if args.again else read(args.out)
    for case in CASES:
        if key(case) in rows: continue
        rows[key(case)] = row(case)
        write(rows, args.out)
        print(subject(rows[key(case)]), case[-1], cell(rows[key(case)]), flush=True)
    print(markdown(list(read(args.out).values())))


if __name__ == "__main__": main()
