"""Hold the notebooks to the house rules that ruff does not know.

`python scripts/lint_notebooks.py [notebook ...]` prints what to mend, one line each.
"""
import ast, re, sys
from collections.abc import Iterator
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT / "nbs", ROOT / "sas_nb"
WINGS = "atlas", "explore", "lab"  # packages of the library, and folders of nbs/
MAX_STATEMENTS = 12  # of an exported cell
MAX_MODULE = 300  # lines
EXAMPLES = .5  # lines of examples to each exported line of a lesson
MAX_TEXT = 4000  # characters of one text output
TOP = r"home|root|Users|tmp|opt|usr|var|mnt|srv|private|work|workspace|content"
ABSOLUTE = re.compile(rf"(?<![\w:/.<])(/(?:{TOP})/[\w.-]+|[A-Z]:\\Users\\)")


def notebooks() -> list[Path]:
    def is_ours(path: Path) -> bool: return not any(part[0] in "._" for part in path.relative_to(NBS).parts)
    return sorted(filter(is_ours, NBS.rglob("*.ipynb")))


def max_bytes(path: Path) -> int: return 1_048_576 if "analysis" in path.parts else 204_800
def is_index(path: Path) -> bool: return path == NBS / "index.ipynb"
def is_part(path: Path) -> bool: return path.parent == NBS / "parts"
def is_start(path: Path) -> bool: return path == NBS / "00_start.ipynb"


def is_lesson(path: Path) -> bool:
    "Numbered notebooks at the top; the start comes before them, and has no module."
    return path.parent == NBS and re.match(r"\d+_", path.stem) is not None and not is_start(path)


def text(value: str | list[str]) -> str: return value if isinstance(value, str) else "".join(value)


def module_of(path: Path) -> str | None:
    "The module that a path stands for: `nbs/05_data` is data, `nbs/atlas/01_mixing` atlas.mixing; else None."
    name = re.sub(r"^\d+_", "", path.stem)
    if is_lesson(path) or is_part(path): return name
    wing = path.parent.name
    return f"{wing}.{name}" if path.parent.parent == NBS and wing in WINGS else None


def directive(source: str, name: str) -> str | None:
    "What follows `#| name` or `#| name:` in a cell, or None where it has no such line."
    line = re.search(rf"^#\s*\|\s*{name}\b:?[ \t]*(.*)$", source, re.M)
    return line and line[1].strip()


def is_exported(source: str) -> bool: return directive(source, "exports?i?") is not None
def code_cells(nb) -> list[str]: return [c.source for c in nb.cells if c.cell_type == "code"]


def lint_file(path: Path, nb) -> Iterator[str]:
    "What is wrong with the notebook as a whole."
    size = path.stat().st_size
    most = max_bytes(path)
    if size > most: yield f"{size // 1024} KB, over {most // 1024} KB: clear or shrink outputs"
    if "widgets" in nb.metadata: yield "metadata.widgets breaks GitHub's rendering: remove it"
    try: nbformat.validate(nb)
    except nbformat.ValidationError as e: yield f"not a valid notebook: {e.message.splitlines()[0]}"
    kernel = nb.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3": yield "metadata.kernelspec.name must be python3"
    prose = [c.source for c in nb.cells if c.cell_type == "markdown"]
    if not prose or not re.match(r"# \S.*\n+> \S.*(\n\n|\s*$)", prose[0]):
        yield "the first text cell must be '# Title' and '> a one-line description'"
    if is_index(path) or is_part(path): return
    heading = re.compile(r"^#+ .*\bexercises\b", re.I | re.M)
    if not any(map(heading.search, prose)): yield "no 'Exercises' heading"


def lint_module(path: Path, nb) -> Iterator[str]:
    "A notebook that exports says so in its first code cell, and exports the module that its path stands for."
    code, module = code_cells(nb), module_of(path)
    if not any(is_exported(s) or directive(s, "default_exp") is not None for s in code): return
    if module is None: yield "exports, and only lessons, parts/ and the wings' folders do"
    elif directive(code[0], "default_exp") != module:
        yield f"the first code cell must be '#| default_exp {module}'"


def parsed(source: str) -> ast.Module:
    "A cell's code; lines for IPython alone count as `pass`."
    return ast.parse(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M))


HEADINGS = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
READINGS = ast.Name | ast.Attribute | ast.Subscript


def is_uncounted(node: ast.stmt, parent: ast.AST) -> bool:
    "Headings, imports, docstrings and the fields that a class declares are not counted as statements."
    if isinstance(node, HEADINGS): return True
    if isinstance(node, ast.AnnAssign): return isinstance(parent, ast.ClassDef)
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant): return False
    return isinstance(node.value.value, str) and parent.body[0] is node


def statements(source: str) -> int:
    "How many statements a cell has, those inside functions included."
    parents = ast.walk(parsed(source))
    pairs = ((parent, node) for parent in parents for node in ast.iter_child_nodes(parent))
    return sum(isinstance(node, ast.stmt) and not is_uncounted(node, parent) for parent, node in pairs)


def kind(value: ast.expr) -> str:
    "What sort of expression it is; two calls are of one sort where they call the same function."
    return f"call of {ast.unparse(value.func)}" if isinstance(value, ast.Call) else type(value).__name__


def unrelated(node: ast.AST) -> bool:
    """Whether it is `a, b = x, y` with values of different kinds, none of which reads a or b.

    That is two statements in one. A swap or a step (`a, b = b, a + b`) needs the tuple, and values of one
    kind (`x, y = 0, 0`) are one thought.
    """
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple): return False
    if not isinstance(node.targets[0], ast.Tuple): return False
    names = {ast.unparse(t) for t in node.targets[0].elts}
    reads = {ast.unparse(n) for n in ast.walk(node.value) if isinstance(n, READINGS)}
    return not names & reads and len({kind(v) for v in node.value.elts}) > 1


def lint_code(source: str) -> Iterator[str]:
    "What is too wide in one code cell."
    count = statements(source) if is_exported(source) else 0
    if count > MAX_STATEMENTS: yield f"{count} statements, over {MAX_STATEMENTS}: split it into named steps"
    for node in filter(unrelated, ast.walk(parsed(source))):
        yield f"`{ast.unparse(node.targets[0])} = ...` sets unrelated things: one statement each"


def lines(source: str) -> int:
    "Lines that are neither blank nor directives."
    return sum(not re.match(r"\s*(#\s*\|.*)?$", line) for line in source.splitlines())


def lint_style(path: Path, nb) -> Iterator[str]:
    "What is too wide, too long, or has too few examples."
    code = code_cells(nb)
    for i, source in ((i, c.source) for i, c in enumerate(nb.cells) if c.cell_type == "code"):
        for problem in lint_code(source): yield f"cell {i}: {problem}"
    module = LIB / f"{(module_of(path) or '').replace('.', '/')}.py"
    length = len(module.read_text(encoding="utf-8").splitlines()) if module.is_file() else 0
    if length > MAX_MODULE: yield f"its module has {length} lines, over {MAX_MODULE}: split it"
    if not is_lesson(path): return
    exported = sum(lines(s) for s in code if is_exported(s))
    shown = sum(lines(s) for s in code if not is_exported(s) and directive(s, "hide") is None)
    if shown < EXAMPLES * exported:
        yield f"{shown} lines of examples for {exported} exported ones: at least half as many"
    same = path.parent.glob(f"{path.stem.split('_')[0]}_*.ipynb")
    twins = [p.stem for p in same if p != path and is_lesson(p)]
    if twins: yield f"its number is also that of {', '.join(sorted(twins))}"


def lint_output(out, source: str) -> Iterator[str]:
    "What is wrong with one output of a code cell."
    if out.output_type == "error":
        yield f"saved with an error, {out.ename}: {out.evalue[:60]}"
        return
    data = out.get("data", {})
    shown = {k: text(v) for k, v in data.items() if k.startswith("text/")}
    shown["stream"] = text(out.get("text", ""))
    if any(k.startswith("image/") for k in data) and not directive(source, "fig-alt"):
        yield "shows a picture: say what it shows in a '#| fig-alt: ...' line"
    if {"image/png", "image/jpeg"} <= data.keys():
        yield "holds a picture twice, as PNG and as JPEG: run `make sync`"
    if re.search(r"<img(?![^>]*\salt=)", shown.get("text/html", "")): yield "shows an <img> without alt text"
    for kind, value in shown.items():
        if place := ABSOLUTE.search(value): yield f"an output holds a path of one machine, {place[0]}"
        if kind != "text/html" and len(value) > MAX_TEXT:
            yield f"a text output of {len(value)} characters, over {MAX_TEXT}"


def has_picture(cell) -> bool:
    "Whether one of a code cell's stored outputs is a picture or holds one."
    parts = [part for out in cell.outputs for part in out.get("data", {}).items()]
    return any(k.startswith("image/") or "<img" in text(v) or "<video" in text(v) for k, v in parts)


def lint_cell(cell) -> Iterator[str]:
    "What is wrong with one code cell's outputs."
    if "raises-exception" in cell.metadata.get("tags", []): return
    runs = directive(cell.source, "eval") != "false"
    if directive(cell.source, "fig-alt") and runs and not has_picture(cell):
        yield "has alt text and no picture is stored: run the notebook, and see that the figure shows itself"
    for out in cell.outputs: yield from lint_output(out, cell.source)


def lint(path: Path) -> list[str]:
    "Every problem of a notebook, each as `notebook[, cell N]: what to mend`; N counts all cells from 0."
    name = (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
    try: nb = nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError: return [f"{name}: not a notebook: its text is not JSON"]
    checks = lint_file, lint_module, lint_style
    problems = [f"{name}: {p}" for check in checks for p in check(path, nb)]
    code = [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"]
    return problems + [f"{name}, cell {i}: {p}" for i, c in code for p in lint_cell(c)]


if __name__ == "__main__":
    paths = [Path(a).resolve() for a in sys.argv[1:]] or notebooks()
    problems = [p for path in paths for p in lint(path)]
    print(*problems, f"{len(paths)} notebooks, {len(problems)} problems", sep="\n")
    sys.exit(bool(problems))
