"""Write README.md from nbs/index.ipynb; its pictures go to nbs/images/.

Cells marked `#| hide` and lines starting `#|` are left out.
"""
import os, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from lint_notebooks import directive

ROOT = Path(__file__).resolve().parent.parent
INDEX, IMAGES = ROOT / "nbs" / "index.ipynb", "images"
NOTE = "<!-- Written from nbs/index.ipynb by `make readme`: edit that notebook, not this file. -->\n\n"
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")(?!\w+:|#|/)([^)\"\s]+)")


def visible(cell):
    "The cell without its `#|` lines, or source where it says `#| echo: false`; None where it is hidden."
    if directive(cell.source, "hide") is not None or directive(cell.source, "include") == "false": return None
    kept = nbformat.from_dict(cell)
    kept.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)
    # GitHub shows no embedded data: fall back to the picture or the text beside it
    for out in kept.get("outputs", []):
        if "data:" in "".join(out.get("data", {}).get("text/html", "")): del out.data["text/html"]
    kept.metadata.transient = {"remove_source": directive(cell.source, "echo") == "false"}
    return kept if kept.source.strip() or kept.get("outputs") else None


def pictures(cell) -> int:
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for o in cell.get("outputs", []))


def moved(link: re.Match) -> str:
    "A link relative to nbs/, as one relative to the top folder."
    return link[1] + os.path.normpath(os.path.join("nbs", link[2])).replace(os.sep, "/")


def relink(markdown: str) -> str:
    "Links relative to nbs/ become relative to the top folder, outside code blocks."
    parts = re.split(r"(^```.*?^```|^    [^\n]*$)", markdown, flags=re.S | re.M)
    return "".join(p if i % 2 else LINK.sub(moved, p) for i, p in enumerate(parts))


def describe(markdown: str, alt: str) -> str:
    "Give the next picture that has only its format for alt text a description."
    return re.sub(r"!\[(png|jpeg|svg)\]\(", lambda _: f"![{alt}](", markdown, count=1)


def readme(index: Path = INDEX) -> tuple[str, dict[str, bytes]]:
    "README's text, and its pictures by their path relative to nbs/."
    nb = nbformat.read(index, as_version=4)
    shown = [(kept, directive(c.source, "fig-alt") or "") for c in nb.cells if (kept := visible(c))]
    nb.cells = [c for c, _ in shown]
    nb.metadata.language_info = {"name": "python"}
    places = {"output_files_dir": IMAGES, "unique_key": "index"}
    body, resources = MarkdownExporter().from_notebook_node(nb, places)
    for alt in (alt for c, alt in shown for _ in range(pictures(c))): body = describe(body, alt)
    body = re.sub(r"\n{3,}", "\n\n", relink(body)).strip()
    return NOTE + body + "\n", resources["outputs"]


def stale(index: Path = INDEX) -> list[str]:
    "Which of README.md and its pictures differ from what the notebook says now."
    body, images = readme(index)
    files = {"README.md": body.encode()} | {f"nbs/{name}": data for name, data in images.items()}
    here = {name: (ROOT / name).read_bytes() if (ROOT / name).is_file() else None for name in files}
    return [name for name, data in files.items() if here[name] != data]


if __name__ == "__main__":
    if not INDEX.exists(): sys.exit("nbs/index.ipynb is missing, and README.md is written from it.")
    body, images = readme()
    (ROOT / "README.md").write_text(body, encoding="utf-8", newline="\n")
    for name, data in images.items():
        (ROOT / "nbs" / name).parent.mkdir(exist_ok=True)
        (ROOT / "nbs" / name).write_bytes(data)
    print(f"README.md: {len(body.splitlines())} lines, {len(images)} pictures")
