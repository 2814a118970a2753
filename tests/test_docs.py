"""The site: its pages name every notebook that readers are to find, and it builds without a warning."""
import re, shutil, subprocess, sys
import numpy as np, pytest
import docs, nbformat
from lint_notebooks import is_index, is_part, notebooks
from sas_nb.lab.rows import load_table


def listed(root):
    settings = (root / "mkdocs.yml").read_text(encoding="utf-8")
    return set(re.findall(r"^\s+- (nbs/\S+\.ipynb)$", settings, re.M))


def test_the_sites_list_names_every_notebook(root):
    ours = {p.relative_to(root).as_posix() for p in notebooks() if not is_index(p) and not is_part(p)}
    assert listed(root) == ours


def test_api_shows_signatures_as_they_are_written():
    source = """#| export
class Line:
    "A line."
    slope: float = 1. # of one
    def at(self, x:float) -> float: return self.slope*x
    def _hidden(self): pass

@patch
def flip(self:Line,
         much:bool=True, # upside down too
        ) -> Line:       # another
    "Mirrored."
    return Line(-self.slope)

def _private(): pass
"""
    page = docs.api(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]))
    for part in ("## `Line`", "slope: float = 1. # of one", "### `Line.at`", "def at(self, x:float)"):
        assert part in page
    for part in ("### `Line.flip`", "much:bool=True, # upside down too", "# another", "Mirrored."):
        assert part in page
    for part in ("hidden", "private", "return", '"A line."'): assert part not in page


def test_links_out_of_the_site_lead_to_the_repository(root):
    page = docs.relink("[a](nbs/02_flow.ipynb) [b](LICENSE) [c](https://x.org) `[d](e)`", root)
    assert page == f"[a](nbs/02_flow.ipynb) [b]({docs.REPOSITORY}LICENSE) [c](https://x.org) `[d](e)`"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(root, tmp_path):
    pytest.importorskip("mkdocs_jupyter", reason="pip install -e '.[docs]'")
    subprocess.run([sys.executable, root / "scripts" / "docs.py"], check=True)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    run = subprocess.run(build, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "site" / "nbs" / "02_flow" / "index.html").is_file()
    shutil.rmtree(tmp_path / "site")


def measured(rows, method):
    "What the README's table says of a method, from the rows of the benchmark."
    own = [r for r in rows if r["method"] == method]
    words = [r for r in own if r["edit"] not in ("none", "strength")]
    slid = [r for r in own if r["identity_by_motion"] == r["identity_by_motion"]]
    def mean(some, column): return float(np.nanmean([r[column] for r in some]))
    leaks = [("identity_by_motion", "identity_by_appearance"), ("motion_by_appearance", "motion_by_motion")]
    shares = [f"{mean(slid, wrong)/mean(slid, right):.0%}".replace("%", " %") if slid else "" for wrong, right in leaks]
    return [f"{mean(words, 'made'):.0%}".replace("%", " %"), f"{mean(words, 'identity'):.2f}", f"{mean(words, 'motion'):.2f}", *shares]


def test_the_readmes_figures_are_those_of_the_benchmark(root):
    rows = load_table(root / "data/bench/long.csv")
    table = (root / "README.md").read_text("utf-8").split("## What is measured")[1].split("\n\n")[2]
    told = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:])}
    names = {"ours": "ours", "ours, without counterfactual pairs": "ours, no pairs", "an ordinary LoRA (DB-LoRA)": "LoRA-8 (DB-LoRA)",
             "the same LoRA, sampled as ours is": "LoRA-8, our guidance"}
    assert told == {name: measured(rows, method) for name, method in names.items()}
