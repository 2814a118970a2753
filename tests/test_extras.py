"""Libraries of an extra: one clear sentence where one is missing, and every extra that we name exists."""
import re, sys
from configparser import ConfigParser
import pytest
from sas_nb.extras import require
from sas_nb.files import UserError


@pytest.fixture(scope="module")
def groups(root):
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    lines = config["DEFAULT"].items()
    return {k.removesuffix("_requirements"): v.split() for k, v in lines if k.endswith("requirements")}


@pytest.mark.parametrize("module, package", [
    ("skia", "skia-python"), ("cv2", "opencv-python-headless"), ("voila", "Voila")])
def test_a_missing_library_is_told_with_its_package_and_extra(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"needs {package}.*not installed: run .*pip install .*\[lab\]"):
        require(module, "lab")


def test_a_library_that_cannot_be_loaded_says_why(monkeypatch, tmp_path):
    (tmp_path / "half_there.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="half_there, which cannot be loaded .libGL.so.1.*apt install libgl1"):
        require("half_there", "lab")


def test_what_is_there_is_given():
    assert require("json", "lab").dumps([1]) == "[1]"


def test_extras_that_we_name_exist(root, groups):
    sources = "".join(p.read_text(encoding="utf-8") for p in (root / "sas_nb").rglob("*.py"))
    named = re.findall(r"""require\(["'][\w.]+["'], ["'](\w+)["']\)|needs\(["'](\w+)["']\)""", sources)
    named = {a or b for a, b in named}
    assert {"lab", "metrics"} <= named <= set(groups)


def test_the_road_asks_for_no_library_of_a_wing(groups):
    required = groups["requirements"]
    for heavy in ("skia", "opencv", "onnx", "voila", "ipywidgets", "anywidget", "jupyter"):
        assert not [line for line in required if line.startswith(heavy)]


def test_all_is_all_that_users_need(root, groups, monkeypatch):
    "setup.py adds the extra `all`: every group but those for working on the project."
    monkeypatch.chdir(root)
    source = (root / "setup.py").read_text(encoding="utf-8").split("\nsetup(")[0]
    scope = {}
    exec(source, scope)
    ours = ("requirements", "dev", "docs", "site")
    wanted = {line for name, lines in groups.items() if name not in ours for line in lines}
    assert set(scope["extras"]["all"]) == wanted and "ray" not in scope["extras"]
