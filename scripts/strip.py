"""Take out of notebooks what `nbdev-clean` leaves in: second copies of pictures and the state of widgets.

`python scripts/strip.py [notebook ...]`; without names, all of them.
"""
import base64, io, json, sys
from pathlib import Path
from PIL import Image
from lint_notebooks import notebooks

WIDGET = "application/vnd.jupyter.widget-view+json"


def strip(nb: dict) -> dict:
    """The same notebook without `metadata.widgets`, with one picture an output.

    Cells that are only to be read have no outputs.
    """
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        if "outputs" not in cell: continue
        only_read = "#| eval: false" in "".join(cell["source"])
        cell["outputs"] = [] if only_read else [o for o in cell["outputs"] if not noise(o)]
        for out in cell["outputs"]: one_picture(out.get("data", {}))
    return nb


def one_picture(data: dict) -> None:
    "Keep one picture of an output, which stands for a widget too: of Pillow's two the smaller one."
    if "image/png" not in data: return
    data.pop(WIDGET, None)
    png, jpeg = data["image/png"], data.pop("image/jpeg", None)
    if jpeg is None: data["image/png"] = smaller(png)
    elif len("".join(jpeg)) < len("".join(png)):
        del data["image/png"]
        data["image/jpeg"] = jpeg


def noise(out: dict) -> bool:
    "Warnings, progress bars, and live widgets without a picture say nothing in a saved notebook."
    data = out.get("data", {})
    empty = out["output_type"] == "display_data" and not "".join(data.get("text/html", "x"))
    return out.get("name") == "stderr" or empty or (WIDGET in data and "image/png" not in data)


def smaller(png: str | list[str], most: int = 40_000) -> str | list[str]:
    "A large diagram in 64 colours: a third of the size, and hardly another picture."
    raw = base64.b64decode("".join(png))
    image = Image.open(io.BytesIO(raw))
    if len(raw) <= most or image.mode == "P": return png
    few = image.convert("RGB").quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(buffer := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def strip_file(path: Path) -> bool:
    "Strip a notebook in place, in the layout that `nbdev-clean` writes; False where there was nothing to do."
    before = path.read_text(encoding="utf-8")
    nb = json.loads(before)
    stripped = strip(json.loads(before))
    if stripped == nb: return False
    written = json.dumps(stripped, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    path.write_text(written, encoding="utf-8", newline="\n")
    return True


if __name__ == "__main__":
    done = [path for path in [Path(a) for a in sys.argv[1:]] or notebooks() if strip_file(path)]
    print(f"stripped {len(done)} notebooks: {', '.join(p.name for p in done) or 'none needed it'}")
