"""The wheel, built from the source distribution and installed in a clean environment, works from another folder."""
import shutil, subprocess, sys, sysconfig, venv, zipfile
import pytest


@pytest.fixture(scope="module")
def wheel(root, files, tmp_path_factory):
    "Built from a copy, so that nothing left over in build/ gets in."
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for f in files:
        (copy / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f, copy / f)
    build = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, copy], capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_env(wheel, tmp_path_factory):
    "A new environment with only the wheel in it; the requirements come from the environment that runs the tests."
    env = tmp_path_factory.mktemp("env")
    venv.create(env, symlinks=True)
    python = env / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = next(env.glob("lib/python*/site-packages"))
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))  # a .pth is not followed into others: the project stays out
    return env


def run(env, code, cwd):
    ran = subprocess.run([env / "bin" / "python", "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_wheel_holds_the_library_and_its_data(wheel, files):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f.as_posix() for f in files if f.parts[0] == "sas_nb" and f.suffix in {".py", ".js", ".css", ".html"}}
    shipped |= {f"sas_nb/{f.as_posix()}" for f in files if f.parts[0] == "data" and f.parts[1] in {"tiny", "clips", "oracles", "report", "zoo", "finder", "bench", "models"}}
    assert not shipped - names
    assert "sas_nb/py.typed" in names, "type checkers ignore a package without it"
    extra = {n for n in names - shipped - {"sas_nb/py.typed"} if ".dist-info/" not in n}
    assert not extra, "only the library and its data belong in the wheel"


def test_every_module_imports_from_elsewhere(clean_env, files, tmp_path):
    modules = [".".join(f.with_suffix("").parts) for f in files if f.parts[0] == "sas_nb" and f.suffix == ".py" and not f.stem.startswith("_")]
    code = f"import importlib, sas_nb\nfor m in {modules}: importlib.import_module(m)\nprint(sas_nb.__file__)"
    assert run(clean_env, code, tmp_path).startswith(str(clean_env))


def test_the_tiny_model_loads_from_the_wheel(clean_env, tmp_path):
    pytest.importorskip("sas_nb.dit")
    code = "from sas_nb.dit import VideoDiT\nclip = VideoDiT.load('tiny').sample('a man', seed=0, steps=1)\nprint(tuple(clip.frames.shape))"
    assert run(clean_env, code, tmp_path).strip() == "(17, 3, 64, 64)"
