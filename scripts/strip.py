"""Take out of notebooks what `nbdev-clean` leaves in: second copies of pictures and the state of widgets. `python scripts/strip.py [notebook ...]`"""
import json, sys
from pathlib import Path
from lint_notebooks import notebooks


def strip(nb: dict) -> dict:
    "The same notebook with one picture format an output (PNG where there is one) and without `metadata.widgets`."
    nb["metadata"].pop("widgets", None)
    for out in (o for c in nb["cells"] for o in c.get("outputs", [])):
        if "image/png" in (data := out.get("data", {})): data.pop("image/jpeg", None)
    return nb


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
