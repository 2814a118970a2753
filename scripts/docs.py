"""Write the pages of the site into build/docs/, for mkdocs: README, notebooks as they are stored, the API,
and the explorer as a page without a kernel, where `make site` has written it.

The API is read from the exported cells, not imported: each public name with its signature as it is
written, comments included, and its docstring; methods added by `@patch` stand with the others.
"""
import ast, os, re, shutil, textwrap
from collections.abc import Iterator
from pathlib import Path
import nbformat
from lint_notebooks import NBS, ROOT, directive, is_exported, notebooks, parsed

OUT = ROOT / "build" / "docs"
PAGE = ROOT / "build" / "explore"  # of scripts/static_page.py
REPOSITORY = "https://github.com/sas-nb/sas_nb/blob/main/"
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")(?!\w+:|#|/)([^)#\"\s]+)")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def relink(markdown: str, folder: Path) -> str:
    "Links of a page of a folder of the project that lead to no page of the site lead to the repository."
    def moved(link: re.Match) -> str:
        target = Path(os.path.normpath(folder / link[2]))
        there = target.suffix == ".ipynb" or target.is_relative_to(NBS / "images")
        return link[0] if there else f"{link[1]}{REPOSITORY}{target.relative_to(ROOT).as_posix()}"
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.S | re.M)
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def page(path: Path) -> str:
    "A notebook for the site: hidden cells and lines for nbdev are gone, outputs are as they are stored."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if directive(c.source, "hide") is None]
    for cell in nb.cells:
        if directive(cell.source, "echo") == "false": cell.metadata.tags = ["remove_input"]
        if cell.cell_type == "markdown": cell.source = relink(cell.source, path.parent)
        else: cell.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    return nbformat.writes(nb)


def is_public(node: ast.stmt) -> bool: return isinstance(node, Definition) and not node.name.startswith("_")


def head(node: Definition, source: str) -> str:
    "A definition as it is written, up to its body; of a class its fields too."
    lines = source.splitlines()
    start = min(n.lineno for n in [node, *node.decorator_list]) - 1
    body = node.body[0]
    before = lines[body.lineno - 1].encode()[:body.col_offset].decode()
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)] if isinstance(node, ast.ClassDef) else []
    declared = [lines[i] for n in fields for i in range(n.lineno - 1, n.end_lineno)]
    return textwrap.dedent("\n".join([*lines[start:body.lineno - 1], before.rstrip(), *declared])).strip()


def owner(node: Definition) -> str | None:
    "The class that `@patch` gives a function to."
    if isinstance(node, ast.ClassDef): return None
    patched = any(ast.unparse(d).startswith("patch") for d in node.decorator_list)
    first = [*node.args.posonlyargs, *node.args.args][:1] if patched else []
    return ast.unparse(first[0].annotation) if first and first[0].annotation else None


def entry(node: Definition, source: str, of: str | None = None) -> Iterator[str]:
    "The page's part for one definition, and for the public methods of a class."
    name = f"{of}.{node.name}" if of else node.name
    title = f"{'###' if of else '##'} `{name}`"
    yield f"{title}\n\n```python\n{head(node, source)}\n```\n\n{ast.get_docstring(node) or ''}\n"
    if not isinstance(node, ast.ClassDef): return
    for method in node.body:
        if is_public(method): yield from entry(method, source, name)


def api(nb) -> str:
    "The public names of a notebook's module."
    parts = []
    for source in (c.source for c in nb.cells if c.cell_type == "code" and is_exported(c.source)):
        for node in parsed(source).body:
            if is_public(node): parts += entry(node, source, owner(node))
    return "\n".join(parts)


def write_api() -> None:
    "A page for each module, and one that lists them."
    listed = []
    for path in notebooks():
        nb = nbformat.read(path, as_version=4)
        module = next((m for c in nb.cells if (m := directive(c.source, "default_exp"))), None)
        if module is None: continue
        about = re.search(r"^> (.+)$", next(c.source for c in nb.cells if c.cell_type == "markdown"), re.M)[1]
        place = path.relative_to(ROOT).as_posix()
        text = f"# sas_nb.{module}\n\n> {about}\n\nFrom [{place}](../{place}).\n\n{api(nb)}"
        (OUT / "api" / f"{module}.md").write_text(text, encoding="utf-8")
        listed.append(f"| [sas_nb.{module}]({module}.md) | {about} |")
    table = "\n".join(["| module | what it is |", "|---|---|", *listed])
    (OUT / "api" / "index.md").write_text(f"# API\n\n{table}\n", encoding="utf-8")


TRY = """# Whose look, whose dance?

Each of these people was learned from one short video. The model runs in this page, on your processor.
<a href="../explore/">Open it in a window of its own.</a>

<iframe src="../explore/" title="the explorer" loading="lazy" style="width: 100%; height: 900px; border: 0">
</iframe>
"""
NOTHING_TO_TRY = """# Whose look, whose dance?

This site was built without the explorer that runs in a browser: `make site` writes it. With sas_nb installed,
`sas-nb explore` opens it on your machine.
"""


def write_try(page: Path, out: Path) -> None:
    "The explorer and a page that shows it; mkdocs copies what is beside the pages."
    there = (page / "index.html").is_file()
    if there: shutil.copytree(page, out / "explore")
    (out / "try.md").write_text(TRY if there else NOTHING_TO_TRY, encoding="utf-8")


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "api").mkdir(parents=True)
    for path in notebooks():
        place = OUT / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(page(path), encoding="utf-8")
    shutil.copytree(NBS / "images", OUT / "nbs" / "images")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (OUT / "index.md").write_text(relink(readme, ROOT), encoding="utf-8")
    write_api()
    write_try(PAGE, OUT)
    print(f"build/docs: {len(notebooks())} notebooks, {len(list((OUT / 'api').glob('*.md'))) - 1} modules")
