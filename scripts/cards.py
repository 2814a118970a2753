"""What training on the known models needs of the cards that people have, as `sas-nb plan --json` tells.

Nothing is downloaded. A pair of model and card takes minutes; one that the table has is kept, unless --again
is given. Writes data/bench/cards.csv and prints it as Markdown.
"""
import argparse
import csv
from pathlib import Path

from sas_nb.cards import CARDS
from sas_nb.plan import plan

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"Wan 2.1 1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
          "Wan 2.2 TI2V-5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
          "Wan 2.1 14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
          "Wan 2.2 A14B": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
NAMES = "t4", "l4", "4090", "a100", "h100"
COLUMNS = ("name", "gpu", "frames", "height", "width", "fits", "peak_gpu_gib", "peak_host_gib", "disk_gib",
           "hours", "why", "instead")


def markdown(rows: list[dict]) -> str:
    "A row for each model and size, a column for each card: GPU and host memory in GiB, and hours."
    cards = list(dict.fromkeys(r["gpu"] for r in rows))
    lines = ["| default recipe | " + " | ".join(cards) + " |", "|---" * (len(cards) + 1) + "|"]
    for what in dict.fromkeys(map(subject, rows)):
        own = {r["gpu"]: r for r in rows if subject(r) == what}
        lines.append(f"| {what} | " + " | ".join(cell(own.get(c)) for c in cards) + " |")
    return "\n".join(lines)


def subject(row: dict) -> str:
    return f"{row['name']}, {row['frames']} frames of {row['height']}x{row['width']}"


def cell(row: dict | None) -> str:
    if row is None: return "not asked"
    if str(row["fits"]) != "True": return f"no. {row['instead']}"
    gpu, host, hours = (float(row[k]) for k in ("peak_gpu_gib", "peak_host_gib", "hours"))
    return f"{gpu:.1f} GiB, host {host:.1f} GiB, {hours:.1f} h"


def write(rows: list[dict], out: Path):
    with out.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--cards", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), help="height and width")
    parser.add_argument("--out", type=Path, default=ROOT / "data/bench/cards.csv")
    parser.add_argument("--again", action="store_true", help="plan pairs again that the table has")
    args = parser.parse_args()
    there = args.out.exists() and not args.again
    rows = list(csv.DictReader(args.out.open(encoding="utf-8"))) if there else []
    for name in args.models:
        for gpu in (CARDS[c] for c in args.cards):
            height, width = args.size
            asked = dict(name=name, gpu=gpu.name, frames=args.frames, height=height, width=width)
            if any(all(r[k] == str(v) for k, v in asked.items()) for r in rows): continue
            said = plan(MODELS[name], (args.frames, height, width), gpu=gpu).to_dict() | dict(name=name)
            rows.append({k: said[k] for k in COLUMNS})
            write(rows, args.out)
            print(subject(rows[-1]), gpu.name, cell(rows[-1]), flush=True)
    print(markdown(rows))


if __name__ == "__main__": main()
