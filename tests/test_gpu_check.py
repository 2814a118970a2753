"The check of a real card, at toy length on a CPU: every part runs, what it writes has one shape, and what fails stops nothing."
import json, subprocess, sys, time
from pathlib import Path
import pytest, torch
from typer.testing import CliRunner

SCRIPT = Path(__file__).parent.parent/"scripts"/"gpu_check.py"
FEW = dict(PEAKS=["stage 2, 33 frames", "decoding, 33 frames, tiles"], ROADS=["L4, larger"],
           LOOPS=["stage 1, images"], ATTENTION=["self", "text, masked padding token"],
           STEPS=["TI2V-5B, 81 frames, inputs on the host", "14B in fp8, 33 frames, half of the blocks on the host"])


@pytest.fixture(scope="module")
def check():
    import gpu_check
    return gpu_check

def run(check, out, *words):
    result = CliRunner().invoke(check.app, ["run", "--toy", "--minutes", "600", "--no-plan", "--out", str(out), *words])
    assert result.exit_code == 0, (result.output, result.exception)
    return {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}

@pytest.fixture(scope="module")
def results(check, tmp_path_factory):
    "All parts, with a few points of those that have many alike."
    with pytest.MonkeyPatch.context() as patch:
        for name, few in FEW.items(): patch.setattr(check, name, {k: getattr(check, name)[k] for k in few})
        out = tmp_path_factory.mktemp("gpu_check")
        first = run(check, out)
        check.plan_all(out, True, tmp_path_factory.mktemp("work"))
        return first | dict(compared=json.loads((out/"peaks.json").read_text()))


def test_every_part_is_written(check, results):
    assert set(results) == {*check.PARTS, "compared"} and list(check.PARTS) == list(check.SHARES) == list(check.TARGETS)
    for name in check.PARTS:
        result = results[name]
        assert set(result) == {"part", "where", "targets", "points", "left", "seconds"}, result
        assert result["part"] == name and result["targets"] == check.TARGETS[name] and result["left"] == []
        assert result["where"]["torch"] == torch.__version__ and result["where"]["toy"]
        assert result["points"] and all("took" in point and "error" not in point for point in result["points"].values()), result["points"]

def test_what_must_be_right_is(results):
    points = results["right"]["points"]
    assert len(points) == 8 and {k: v["right"] for k, v in points.items()} == dict.fromkeys(points, True)
    assert points["resume"]["steps"] == 4 and points["fp16"]["overflow_skipped"]

def test_peaks_stand_beside_the_plans(results):
    points = results["compared"]["points"]
    assert set(points) == set(FEW["PEAKS"]) and all(p["measured_gib"] > 0 and p["planned_gib"] > 0 for p in points.values())
    assert {k: p["ratio"] for k, p in points.items() if not .5 < p["ratio"] < 2} == {} # the plan is for cards: on a CPU, and so small, it is only near

def test_speed_has_ratios_and_shares(results):
    points = results["speed"]["points"]
    for name in FEW["LOOPS"]: assert {"ours_seconds", "loop_seconds", "ratio", "share_of_matrix_rate"} <= set(points[name])
    assert set(points["micro-batch"]) == {"1", "2", "4", "took"} and points["matrix rate"]["tflops"] > 0
    assert all(points["padding"][k]["seconds"] > 0 for k in ("one token, masked", "all, as stock", "none"))
    self = points["attention, self"]
    assert self["math"]["seconds"] > 0 and "error" in self["cudnn"] # no CPU has it

def test_the_other_parts_have_their_figures(results):
    assert all(p["fits"] for p in results["small"]["points"].values())
    assert all(p["step_seconds"] > 0 and p["peak_gib"] > 0 for p in results["large"]["points"].values())
    text, = results["text"]["points"].values()
    assert text["finite"] and len(text["seconds"]) == 2


def broken(*args): raise torch.OutOfMemoryError("too large")

def test_what_fails_stops_nothing(check, tmp_path, monkeypatch):
    parts = dict(right=broken, peaks=lambda c: dict(a=lambda: dict(n=1), b=broken, c=lambda: dict(n=3)), text=lambda c: dict(d=lambda: dict(n=4)))
    monkeypatch.setattr(check, "PARTS", parts)
    results = run(check, tmp_path/"out")
    assert set(results) == set(parts) and results["right"]["error"] == "OutOfMemoryError: too large" and results["right"]["points"] == {}
    points = results["peaks"]["points"]
    assert (points["a"]["n"], points["c"]["n"], results["text"]["points"]["d"]["n"]) == (1, 3, 4)
    assert points["b"]["error"] == "OutOfMemoryError: too large" and "broken" in points["b"]["traceback"]

def test_a_part_ends_with_its_time_and_the_next_has_its_own(check, tmp_path, monkeypatch):
    now = [time.time()]
    clock = type("Clock", (), dict(time=staticmethod(lambda: now[0]), perf_counter=time.perf_counter))
    def slow():
        now[0] += 60
        return {}
    monkeypatch.setattr(check, "time", clock)
    monkeypatch.setattr(check, "START", now[0])
    monkeypatch.setattr(check, "SHARES", dict(right=.5, text=.5))
    monkeypatch.setattr(check, "PARTS", dict(right=lambda c: dict(a=slow, b=slow, c=slow), text=lambda c: dict(d=slow, e=slow)))
    results = run(check, tmp_path/"out", "--minutes", "3")
    assert (list(results["right"]["points"]), results["right"]["left"]) == (["a", "b"], ["c"])
    assert (list(results["text"]["points"]), results["text"]["left"]) == (["d", "e"], [])

def test_it_starts_where_nothing_reads_videos(tmp_path):
    "The other machine has neither av nor skia."
    block = "import sys; sys.modules['skia'] = None; import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'av' else f(n, *a); "
    block += f"sys.argv = ['gpu_check', '--help']; import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0 and "--minutes" not in done.stderr and "plans" in done.stdout, done.stderr
