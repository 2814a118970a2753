"""`from sas_nb import ...` gives each public name from its module, and loads no more than that needs."""
import ast, json, re, subprocess, sys
from textwrap import dedent
import pytest
import sas_nb

HEAVY = """skia voila tensorboard torch.utils.tensorboard cv2 onnxruntime matplotlib.pyplot
    ipywidgets anywidget sas_nb.explore sas_nb.lab""".split()


def loaded(code, root):
    "What `sys.modules` holds after some code in a fresh Python."
    script = f"import sys\n{dedent(code)}\nimport json\nprint(json.dumps([*sys.modules]))"
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def is_here(name, root):
    "Whether the module that a public name comes from is written; the atlas is one when it is a package."
    home = sas_nb._HOMES[name]
    return (root / "sas_nb" / ("atlas/__init__.py" if home == "atlas" else f"{home}.py")).is_file()


@pytest.fixture(scope="module")
def blocks(root): return re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)


def test_readme_writes_under_out(blocks):
    "What is tried in a checkout leaves nothing in it that git would see."
    places = re.findall(r"(?:\.save\(|\.export\(|out=)\"([^\"]*)\"", "".join(blocks))
    assert len(places) > 6 and all(place.startswith("out/") for place in places)


def test_readme_opens_the_zoo(blocks, tmp_path, monkeypatch):
    "As it stands, but with one step of sampling."
    monkeypatch.chdir(tmp_path)
    whole = sas_nb.Concept.generate
    def brief(self, prompt=None, seed=0, steps=None, *given, **kwargs): return whole(self, prompt, seed, 1, *given, **kwargs)
    monkeypatch.setattr(sas_nb.Concept, "generate", brief)
    block, = (b for b in blocks if 'Atlas("zoo")' in b)
    names = {}
    exec(block, names)
    assert len(names["zoo"]) == 72 and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["both.mp4", "man-02.mp4", "mixed.mp4"]


def test_the_package_alone_is_instant(root):
    modules = loaded("import sas_nb", root)
    assert not modules & {"torch", "numpy", "diffusers", "transformers", "fastcore"}
    assert not [m for m in modules if m.startswith("sas_nb.")]


def test_public_names_load_no_wing_and_nothing_heavy(root):
    "Each is its module's own, also after the module was imported by its name."
    names = [name for name in sas_nb.__all__ if is_here(name, root)]
    homes = {sas_nb._HOMES[name] for name in names}
    modules = loaded(f"""
        from sas_nb import {', '.join(names)}
        heavy = set({HEAVY}) & set(sys.modules)
        assert not heavy, heavy
        import {', '.join(f"sas_nb.{home}" for home in homes)}
        from sas_nb import {', '.join(names)}
        for name, home in {[(name, sas_nb._HOMES[name]) for name in names]}:
            assert globals()[name] is getattr(sys.modules["sas_nb." + home], name), name""", root)
    assert {f"sas_nb.{home}" for home in homes} <= modules


def test_no_module_takes_a_public_names_place(root):
    "Importing a module `sas_nb.learn` would set `sas_nb.learn` to it, and the function would be gone."
    modules = {p.stem for p in (root / "sas_nb").iterdir()}
    assert not modules & set(sas_nb.__all__)
    assert set(sas_nb.__all__) == set(sas_nb._HOMES)


def test_dir_and_editors_know_every_name(root):
    assert {*sas_nb.__all__, "__version__"} <= set(dir(sas_nb))
    tree = ast.parse((root / "sas_nb" / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(n for n in tree.body if isinstance(n, ast.If)).body
    assert {a.name: n.module for n in guarded for a in n.names} == sas_nb._HOMES


def test_other_names_are_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Clipp'"): sas_nb.Clipp
    with pytest.raises(ImportError): from sas_nb import teach  # noqa: F401
