"""Run the quick tests with the lowest versions that settings.ini allows.

`python scripts/lowest.py FOLDER [pytest arguments]`. uv chooses the versions: the lowest of what sas_nb names
itself, the newest of what those need. torch is the one beside this script's Python, since old builds for the
CPU alone are in no index.
"""
import os, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = "requirements", "lab_requirements", "metrics_requirements", "explore_requirements"
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "nbformat", "onnx"]
TESTS = """adapter atlas bad_input clip cli concept data dit extras flow front_door lowrank many metrics
    places prompt real_checkpoint rooms terminals training world writing zoo""".split()


def uv(*arguments) -> None: subprocess.run([sys.executable, "-m", "uv", *map(str, arguments)], check=True)


def floors() -> list[str]:
    "The requirements of the groups, torch's at the version that is installed here."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = " ".join(config["DEFAULT"][group] for group in GROUPS).split()
    return [f"torch=={version('torch')}" if line.startswith("torch>") else line for line in lines]


def install(folder: Path) -> Path:
    "An environment with the lowest versions; the path of its Python."
    uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (folder / "floors.in").write_text("\n".join(floors()) + "\n")
    wheels = os.environ.get("PIP_FIND_LINKS", "").split()
    links = [word for place in wheels for word in ("--find-links", place)]
    lowest = ["--resolution", "lowest-direct", "--python", python, *links]
    uv("pip", "compile", "--quiet", folder / "floors.in", *lowest, "--output-file", folder / "floors.txt")
    uv("pip", "install", "--quiet", "--python", python, *links, "-r", folder / "floors.txt", *TOOLS)
    return python


if __name__ == "__main__":
    python = install(Path(sys.argv[1]).resolve())
    tests = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", *sys.argv[2:], *tests]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)
