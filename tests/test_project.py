"""The project as a whole: metadata in step, library in step with the notebooks, sizes, and no traces of one machine."""
import ast, importlib.util, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
import sas_nb
import readme

if sys.version_info >= (3, 11): import tomllib
else: import tomli as tomllib


@pytest.fixture(scope="module")
def settings(root):
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def pyproject(root): return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_name(line): return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()


def test_settings_and_pyproject_say_the_same(settings, pyproject):
    project = pyproject["project"]
    assert project["name"] == settings["lib_name"] == sas_nb.__name__
    assert project["requires-python"] == f">={settings['min_python']}"
    assert project["license"] == settings["license"]
    assert settings["version"] == sas_nb.__version__
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"]["attr"] == f"{settings['lib_name']}.__version__"


def test_metadata_is_not_written_twice(pyproject):
    single = {"version", "description", "authors", "keywords", "dependencies", "optional-dependencies", "scripts"}
    assert single <= set(pyproject["project"]["dynamic"]) and not single & set(pyproject["project"])


def test_nbdev_config(settings, pyproject):
    nbdev = pyproject["tool"]["nbdev"]
    assert nbdev["lib_path"] == settings["lib_name"] and nbdev["nbs_path"] == "nbs"
    assert nbdev["tst_flags"].split() == ["notest", "slow", "gpu"]


def test_constraints_pin_every_requirement(settings, root):
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (root / "constraints.txt").read_text(), re.M))
    groups = [k for k in settings if k.endswith("requirements") and k != "docs_requirements"]
    wanted = " ".join(settings[k] for k in groups).split()
    assert not [w for w in wanted if requirement_name(w) not in pins]
    assert not [p for p, version in pins.items() if "+" in version], "a local version cannot be found by pip elsewhere"


@pytest.mark.parametrize("supported, pin", [("", "a==1"), (">=3.9", "a==1"), (">=3.11", 'a==1 ; python_version >= "3.11"'),
                                            (">=3.11.5", 'a==1 ; python_full_version >= "3.11.5"'), ("!=3.10.*,>=3.9", 'a==1 ; python_version >= "3.11"')])
def test_a_pin_leaves_out_the_pythons_that_a_version_does_not_support(root, supported, pin):
    spec = importlib.util.spec_from_file_location("pin", root/"scripts"/"pin.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    dist = type("", (), dict(name="a", version="1+cpu", metadata={"Requires-Python": supported or None}))
    assert script.pin(dist) == pin


def test_changelog_has_this_version(root):
    assert f"## [{sas_nb.__version__}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def regenerated(root, tmp_path_factory):
    "A copy of the project with notebooks cleaned and the library exported into an empty package."
    copy = tmp_path_factory.mktemp("regenerated")
    shutil.copy(root / "pyproject.toml", copy)
    shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".*", "_*"))
    for init in (root / "sas_nb").rglob("__init__.py"):
        place = copy / init.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(init, place)
    for command in ("nbdev_clean", "nbdev_export"):
        call = f"from nbdev.{'clean' if command == 'nbdev_clean' else 'cli'} import {command}; {command}()"
        subprocess.run([sys.executable, "-c", call], cwd=copy, check=True, env={k: v for k, v in os.environ.items() if k != "IN_TEST"})
    return copy


def texts(folder, pattern): return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob(pattern) if ".ipynb_checkpoints" not in p.parts}


def test_library_is_what_the_notebooks_export(root, regenerated):
    here, exported = texts(root / "sas_nb", "*.py"), texts(regenerated / "sas_nb", "*.py")
    assert not sorted(set(here) - set(exported)), "modules that no notebook exports"
    assert not [name for name in exported if here.get(name) != exported[name]], "out of step with the notebooks: run `make sync`"


def test_notebooks_are_clean(root, regenerated):
    here, cleaned = texts(root / "nbs", "*.ipynb"), texts(regenerated / "nbs", "*.ipynb")
    assert not [name for name in cleaned if here[name] != cleaned[name]], "not clean: run `make sync`"


def test_readme_is_what_the_index_says(root):
    if not readme.INDEX.exists(): pytest.skip("nbs/index.ipynb is not written yet")
    assert not readme.stale(), "out of step with nbs/index.ipynb: run `make readme`"


def test_sizes(root, files):
    sizes = {f: (root / f).stat().st_size for f in files}
    assert not {str(f): n for f, n in sizes.items() if n > 20 * 2**20}, "files over 20 MB"
    assert sum(n for f, n in sizes.items() if f.parts[0] == "data") < 100 * 2**20


def test_nothing_pickled_is_shipped(files):
    assert not [str(f) for f in files if f.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".bin", ".npy", ".npz", ".joblib"}], "use safetensors"


def test_no_paths_of_one_machine(root, files):
    "Neither this checkout's place nor anyone's home folder is written into a file."
    places = [str(p) + os.sep for p in (root, root.parent, Path.home()) if p != Path(p.anchor)]
    trace = re.compile((r"(?<![\w/.:-])(?:" + "|".join([*map(re.escape, places), r"/(?:home|Users)/[a-z]\w+/"]) + ")").encode())
    binary = {".safetensors", ".mp4", ".png", ".gif", ".jpg"}
    found = {str(f): m[0].decode() for f in files if f.suffix not in binary and (m := trace.search((root / f).read_bytes()))}
    assert not found


def modules(root):
    "Dotted name -> file of every module of the library."
    package = root / "sas_nb"
    files = [p for p in package.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")]
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in files}


def imports(path):
    "All that a file of the library imports anywhere in it; modules of the library without its name."
    package = ["sas_nb", *path.relative_to(Path(sas_nb.__file__).parent).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        above = package[:len(package) + 1 - node.level] if getattr(node, "level", 0) else []
        yield from (".".join([*above, *filter(None, [n])]).removeprefix("sas_nb.") for n in names)


def test_no_module_imports_itself_in_a_circle(root):
    "There is an order in which a module imports only what stands above it, imports inside functions included."
    left = {name: {m for m in imports(path) if m in modules(root)} for name, path in modules(root).items() if name != "cli"}
    while left:
        free = [name for name, used in left.items() if not used & set(left)]
        assert free, f"a circle of imports among {sorted(left)}"
        for name in free: del left[name]


def test_the_page_knows_no_model_and_the_renderer_no_widget(root):
    of = {name: {m.partition(".")[0] if not m.startswith("explore.") else m for m in imports(path)} for name, path in modules(root).items()}
    for name in ("explore.page", "explore.widgets", "explore.worker"): assert not of[name] & {"torch", "diffusers", "dit", "concept", "zoo"}, name
    assert not of["explore.renderer"] & {"ipywidgets", "anywidget", "traitlets", "explore.widgets", "explore.page"}


@pytest.mark.parametrize("module, without", [
    ("explore", "torch skia voila tensorboard anywidget"), ("explore.widgets", "torch skia voila tensorboard"),
    ("explore.page", "torch skia voila tensorboard"), ("explore.renderer", "anywidget skia voila tensorboard"),
    ("explore.serve", "torch ipywidgets skia voila tensorboard"), ("folders", "torch numpy av diffusers"), ("atlas", "anywidget matplotlib skia voila tensorboard")])
def test_an_import_loads_only_what_it_needs(module, without, root):
    code = f"import sys, sas_nb.{module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0 and not set(without.split()) & set(ran.stdout.split()), ran.stderr


@pytest.mark.parametrize("module, light", [
    ("clip", ["matplotlib", "skia", "cv2", "tensorboard", "voila", "IPython", "diffusers"]),
    ("cache", ["torch", "PIL", "av"])])
def test_a_module_loads_only_what_it_needs(root, module, light):
    code = f"import sys, sas_nb.{module}; print(*[m for m in {light} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_make_lists_every_target(root):
    "`make` alone names all that is not a file, each with what it does."
    if not shutil.which("make"): pytest.skip("make is not here")
    targets = re.search(r"^\.PHONY: (.+)$", (root / "Makefile").read_text(), re.M)[1].split()
    listed = re.findall(r"^make ([\w-]+) +\S", subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True).stdout, re.M)
    assert sorted(listed) == sorted(targets)


def test_no_command_asks_an_index_for_us(root, files):
    "This project is in no package index, so whatever we tell people to install names where it is."
    ours = [f for f in files if f.suffix in {".py", ".ipynb", ".md"} and f.parts[0] != "tests"]
    asked = re.compile(r"""pip install (?:-\w+ )*\\?["']?sas[_-]nb(?!\S* @)""")
    assert not [str(f) for f in ours if asked.search((root / f).read_text(encoding="utf-8"))]
