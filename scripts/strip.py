"""Take out of notebooks what `nbdev-clean` leaves in: second copies of pictures and the state of widgets. `python scripts/strip.py [notebook ...]`"""
import base64, io, json, sys
from pathlib import Path
from PIL import Image
from lint_notebooks import notebooks


def strip(nb: dict) -> dict:
    "The same notebook with one picture format an output (PNG where there is one), without `metadata.widgets`, and without outputs of cells that are only to be read."
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        if "outputs" in cell: cell["outputs"] = [] if "#| eval: false" in "".join(cell["source"]) else [o for o in cell["outputs"] if not noise(o)]
        for data in (o.get("data", {}) for o in cell.get("outputs", [])):
            if "image/png" in data: data.pop("image/jpeg", None); data["image/png"] = smaller(data["image/png"])
    return nb


def noise(out: dict) -> bool:
    "Warnings, progress bars and live widgets say nothing in a saved notebook."
    return out.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in out.get("data", {})


def smaller(png: str | list[str], most: int = 40_000) -> str | list[str]:
    "A large picture in 96 colours: a third of the size, and hardly another picture."
    raw = base64.b64decode(png if isinstance(png, str) else "".join(png))
    image = Image.open(io.BytesIO(raw))
    if len(raw) <= most or image.mode == "P": return png
    image.convert("RGB").quantize(96, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def strip_file(path: Path) -> bool:
    "Strip a notebook in place, in the layout that `nbdev-clean` writes; False where there was nothing to do."
    before = path.read_text(encoding="utf-8")
    nb = json.loads(before)
    stripped = strip(json.loads(before))
    if stripped == nb: return False
    path.write_text(json.dumps(stripped, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    return True


if __name__ == "__main__":
    done = [path for path in [Path(a) for a in sys.argv[1:]] or notebooks() if strip_file(path)]
    print(f"stripped {len(done)} notebooks: {', '.join(p.name for p in done) or 'none needed it'}")
