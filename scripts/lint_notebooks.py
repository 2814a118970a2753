"""Hold the notebooks to the house rules. `python scripts/lint_notebooks.py [notebook ...]` prints what to mend, one line each."""
import re, sys
from collections.abc import Iterator
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
MAX_LINES = 25  # of a code cell
MAX_TEXT = 4000  # characters of one text output
ABSOLUTE = re.compile(r"(?<![\w:/.<])(/(?:home|root|Users|tmp|opt|usr|var|mnt|srv|private|work|workspace|content)/[\w.-]+|[A-Z]:\\Users\\)")


def notebooks() -> list[Path]:
    return sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))


def max_bytes(path: Path) -> int: return 1_048_576 if "analysis" in path.parts else 204_800
def is_index(path: Path) -> bool: return path == NBS / "index.ipynb"
def text(value: str | list[str]) -> str: return value if isinstance(value, str) else "".join(value)


def directive(source: str, name: str) -> str | None:
    "What follows `#| name` or `#| name:` in a cell, or None where it has no such line."
    found = re.search(rf"^#\s*\|\s*{name}\b:?[ \t]*(.*)$", source, re.M)
    return found and found[1].strip()


def lint_file(path: Path, nb) -> Iterator[str]:
    "What is wrong with the notebook as a whole."
    size = path.stat().st_size
    if size > max_bytes(path): yield f"{size // 1024} KB, over {max_bytes(path) // 1024} KB: clear or shrink outputs"
    if "widgets" in nb.metadata: yield "metadata.widgets breaks GitHub's rendering: remove it"
    try: nbformat.validate(nb)
    except nbformat.ValidationError as e: yield f"not a valid notebook: {e.message.splitlines()[0]}"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3": yield "metadata.kernelspec.name must be python3"
    prose = [c.source for c in nb.cells if c.cell_type == "markdown"]
    if not prose or not re.match(r"# \S.*\n+> \S.*(\n\n|\s*$)", prose[0]):
        yield "the first text cell must be '# Title' and '> a one-line description'"
    if not is_index(path) and not any(re.search(r"^#+ .*\bexercises\b", p, re.I | re.M) for p in prose): yield "no 'Exercises' heading"


def lint_module(path: Path, nb) -> Iterator[str]:
    "A numbered notebook exports the module that it is named after; no other notebook exports anything."
    code = [c.source for c in nb.cells if c.cell_type == "code"]
    numbered = re.fullmatch(r"\d+_(\w+)", path.stem) if path.parent == NBS else None
    if not numbered:
        if any(directive(s, d) is not None for s in code for d in ("default_exp", "export")): yield "only numbered notebooks in nbs/ export"
    elif not code or directive(code[0], "default_exp") != numbered[1]:
        yield f"the first code cell must be '#| default_exp {numbered[1]}'"


def lint_output(out, source: str) -> Iterator[str]:
    "What is wrong with one output of a code cell."
    if out.output_type == "error":
        yield f"saved with an error, {out.ename}: {out.evalue[:60]}"
        return
    data = out.get("data", {})
    shown = {k: text(v) for k, v in data.items() if k.startswith("text/")} | {"stream": text(out.get("text", ""))}
    if any(k.startswith("image/") for k in data) and not directive(source, "fig-alt"): yield "shows a picture: say what it shows in a '#| fig-alt: ...' line"
    if {"image/png", "image/jpeg"} <= data.keys(): yield "holds a picture twice, as PNG and as JPEG: run `make sync`"
    if re.search(r"<img(?![^>]*\salt=)", shown.get("text/html", "")): yield "shows an <img> without alt text"
    for kind, value in shown.items():
        if found := ABSOLUTE.search(value): yield f"an output holds a path of one machine, {found[0]}"
        if kind != "text/html" and len(value) > MAX_TEXT: yield f"a text output of {len(value)} characters, over {MAX_TEXT}"


def has_picture(cell) -> bool:
    "Whether one of a code cell's stored outputs is a picture or holds one."
    outputs = [out.get("data", {}) for out in cell.outputs]
    return any(k.startswith("image/") or "<img" in text(v) or "<video" in text(v) for d in outputs for k, v in d.items())


def lint_cell(cell) -> Iterator[str]:
    "What is wrong with one code cell and its outputs."
    lines = cell.source.strip().count("\n") + 1
    if lines > MAX_LINES: yield f"{lines} lines, over {MAX_LINES}: split it"
    if "raises-exception" in cell.metadata.get("tags", []): return
    if directive(cell.source, "fig-alt") and directive(cell.source, "eval") != "false" and not has_picture(cell):
        yield "has alt text and no picture is stored: run the notebook, and see that the figure shows itself"
    for out in cell.outputs: yield from lint_output(out, cell.source)


def lint(path: Path) -> list[str]:
    "Every problem of a notebook, each as `notebook[, cell N]: what to mend`; N counts all cells from 0."
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try: nb = nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError: return [f"{name}: not a notebook: its text is not JSON"]
    problems = [f"{name}: {p}" for check in (lint_file, lint_module) for p in check(path, nb)]
    code = [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"]
    return problems + [f"{name}, cell {i}: {p}" for i, c in code for p in lint_cell(c)]


if __name__ == "__main__":
    paths = [Path(a).resolve() for a in sys.argv[1:]] or notebooks()
    problems = [p for path in paths for p in lint(path)]
    print(*problems, f"{len(paths)} notebooks, {len(problems)} problems", sep="\n")
    sys.exit(bool(problems))
