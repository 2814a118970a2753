"""What every test shares: no network, no windows, one thread, a fixed seed, and gpu or slow tests only where they can or should run."""
import os, signal, sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
import pytest, torch
torch.set_num_threads(1) # tiny tensors go faster on one thread, and sums keep their order

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    skips = []
    if not config.getoption("--slow"): skips.append(("slow", pytest.mark.skip(reason="slow: run with --slow")))
    if not torch.cuda.is_available(): skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device")))
    for item in items:
        for name, skip in skips:
            if name in item.keywords: item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    "A cache that no other file's tests fill."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SAS_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_left_on():
    "Whatever a test left on a model comes off."
    yield
    if road := sys.modules.get("road"): road.all_off()


@pytest.fixture
def explorer(studio, tmp_path):
    "A page over the file's own `studio`, without faces."
    from sas_nb.explore.page import Explorer
    e = Explorer(studio, out=tmp_path/"out", faces=0)
    assert e.worker.wait()
    yield e
    e.close()
    e.worker.wait()


@pytest.fixture
def hears_hangups():
    "SIGHUP as at a terminal: what runs under nohup, as on a build machine, ignores it."
    old = signal.getsignal(signal.SIGHUP) if hasattr(signal, "SIGHUP") else None
    if old == signal.SIG_IGN: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    if old == signal.SIG_IGN: signal.signal(signal.SIGHUP, old)


@pytest.fixture(scope="session")
def root() -> Path: return ROOT


@pytest.fixture(scope="session")
def files(root) -> list[Path]:
    "The project's own files, relative to the top: those that git tracks and those that it would."
    import subprocess
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a git checkout")
    return [Path(f) for f in listed.stdout.split("\0") if f and (root / f).is_file()]
