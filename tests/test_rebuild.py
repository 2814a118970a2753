"What was made from what: stale artefacts are seen, made anew in order, and not made twice."
import json, subprocess, sys
from dataclasses import replace
import pytest
from sas_nb.files import UserError
import rebuild
from rebuild import Artefact, House

WRITE = "python tool.py {name} --base {{base}}"  # writes what it read, and a line into log


@pytest.fixture
def house(tmp_path):
    "A base, two judges' worth of artefacts with stand-in commands, one made by hand, and one that git does not keep."
    (tmp_path/"base").write_text("first")
    (tmp_path/"tool.py").write_text("import sys, pathlib\nname, base = sys.argv[1], sys.argv[3]\nif pathlib.Path('broken').exists() and name == 'table': sys.exit(3)\n"
                                    "pathlib.Path(f'{name}.txt').write_text(f'{name} of {base}')\nopen('log', 'a').write(name+'\\n')\n")
    def one(name, *reads, **more): return Artefact(name, ("base", *reads), (f"{name}.txt",), (WRITE.format(name=name),), **more)
    card = Artefact("card", ("zoo",), ("card.md",), by_hand="Write it.")
    return House(tmp_path, (one("oracles"), one("zoo"), one("table", "oracles", "zoo"), card, one("page", "table", kept=False)),
                 dict(base=lambda root: (root/"base").read_text()))

def again(house, **sources): return replace(house, known={}, sources=house.sources | sources)
def log(house): return (house.root/"log").read_text().split() if (house.root/"log").exists() else []


def test_all_is_made_in_order_and_once(house):
    assert set(house.stale()) == {"oracles", "zoo", "table", "card"} and [a.name for a in house.waiting()] == ["oracles", "zoo", "table", "card", "page"]
    assert log(house) == [] and not house.file.exists(), "looking makes nothing"
    assert [a.name for a in house.rebuild()] == ["card"] and log(house) == ["oracles", "zoo", "table", "page"]
    assert set(house.stale()) == {"card"}
    (house.root/"card.md").write_text("by hand")
    assert house.stale() == {"card": "nobody noted what made it"}
    house.note("card", house.stamp(house.artefacts[3]))
    assert not house.stale() and house.rebuild() == [] and len(log(house)) == 4
    assert house.noted()["table"] == dict(base="first", oracles=house.print_of("oracles"), zoo=house.print_of("zoo"))


def test_another_base_is_seen_and_so_is_what_was_read(house):
    house.rebuild()
    (house.root/"base").write_text("second")
    house = again(house)
    assert house.stale()["zoo"] == "of another base (first, now second)" and {"oracles", "table", "page"} <= set(house.stale())
    house.rebuild(["oracles"])
    assert log(house)[4:] == ["oracles"] and "another oracles" in house.stale()["table"]
    house.rebuild()
    assert log(house)[4:] == ["oracles", "zoo", "table", "page"] and set(house.stale()) == {"card"}
    (house.root/"zoo.txt").write_text("another zoo of the same base")
    assert set(house.stale()) == {"table", "card"} and house.stale()["table"].startswith("of another zoo (")
    assert [a.name for a in house.waiting()] == ["table", "card", "page"], "what reads it will be of another table"


def test_a_run_that_stopped_goes_on(house):
    (house.root/"broken").touch()
    with pytest.raises(UserError, match="table is not made .*goes on from there"): house.rebuild()
    assert log(house) == ["oracles", "zoo"] and {"oracles", "zoo"} <= set(house.noted()) and "table" not in house.noted()
    (house.root/"broken").unlink()
    house.rebuild()
    assert log(house) == ["oracles", "zoo", "table", "page"]


def test_ctrl_c_is_the_scripts(house):
    "It writes its checkpoint before it ends, however long that takes; nothing after it begins."
    (house.root/"slow.py").write_text("import os, signal, time, pathlib\nsignal.signal(signal.SIGINT, signal.default_int_handler)\ntry:\n    os.kill(os.getppid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n"
                                      "except KeyboardInterrupt:\n    time.sleep(.6)\n    pathlib.Path('checkpoint').touch()\n    raise SystemExit(130)\n")
    stops = replace(house.artefacts[0], commands=("python slow.py",))
    with pytest.raises(UserError, match="oracles is not made"): replace(house, artefacts=(stops, *house.artefacts[1:])).rebuild()
    assert (house.root/"checkpoint").exists() and log(house) == [] and not house.noted()


def test_what_a_command_did_not_write_is_not_made(house):
    lazy = replace(house.artefacts[0], files=("oracles.txt", "accuracy.txt"))
    house = replace(house, artefacts=(lazy,))
    with pytest.raises(UserError, match="did not write accuracy.txt"): house.rebuild()
    assert not house.noted() and house.stale() == {"oracles": "accuracy.txt is not there"}


def test_a_table_without_all_its_methods_is_not_whole(house, tmp_path):
    from rebuild import lacking
    from table import SETS
    file = tmp_path/"data/bench/long.json"
    file.parent.mkdir(parents=True)
    def says(methods, people):
        file.write_text(json.dumps(dict(methods=list(methods), concepts=[f"person-{i}" for i in range(people)])))
        return lacking("long", tmp_path)
    every = SETS["long"]["method"]
    assert says(every, 24) == "" and says(every, 20) == "without 4 of 24 concepts"
    assert says(every[:-1], 20) == f"without 4 of 24 concepts, {every[-1]!r}"
    house.rebuild()
    parts = [replace(a, lacks=lambda root: "without its end") if a.name == "table" else a for a in house.artefacts]
    assert replace(house, artefacts=tuple(parts)).stale()["table"] == "without its end"


def test_what_git_does_not_keep_is_stale_only_where_it_is(house):
    house.rebuild()
    (house.root/"base").write_text("second")
    house = again(house)
    assert "page" in house.stale()
    (house.root/"page.txt").unlink()
    assert "page" not in house.stale() and "page" in [a.name for a in house.waiting()]


def test_a_notebook_reads_what_its_code_names(tmp_path):
    def notebook(*sources, outputs=True):
        cells = [dict(cell_type="code", source=[s], outputs=[1] if outputs else []) for s in sources]
        (tmp_path/"a.ipynb").write_text(json.dumps(dict(cells=cells)))
        found = rebuild.of_notebook(tmp_path/"a.ipynb", tmp_path)
        return found and found.reads
    assert notebook("VideoDiT.load('tiny')") == ("base",) and notebook("zoo = load_zoo()\njudge = Oracles.load()") == ("oracles", "zoo", "base")
    assert notebook("x = 1") is None and notebook("VideoDiT.load('tiny')", outputs=False) is None
    assert notebook("#| export\nname = 'tiny'") is None and notebook("learn_it(3)") is None and notebook("def learn(): pass") is None


# The repository itself

def test_the_list_holds_together(root):
    "Each artefact reads what stands above it, is made by a script that is there, and has been made."
    house, seen = rebuild.here(), {"base", "world"}
    names = [a.name for a in house.artefacts]
    assert len(set(names)) == len(names) and {"nbs/index.ipynb", "nbs/01_dit.ipynb", "nbs/analysis/does_it_work.ipynb"} <= set(names)
    for a in house.artefacts:
        assert set(a.reads) <= seen and a.reads and bool(a.commands) != bool(a.by_hand), a.name
        assert not a.kept or not house.missing(a), a.name
        for command in a.commands: assert command.split()[0] == "cp" or (root/command.split()[1]).is_file(), command
        if not a.name.endswith(".ipynb"): seen.add(a.name)
    assert set(house.noted()) <= set(names), "made.json knows nothing else"


def test_of_another_base_all_of_it_is_stale():
    house = rebuild.here()
    stale = again(house, base=lambda root: "f"*16).stale()
    assert {a.name for a in house.artefacts if "base" in a.reads and a.kept} <= set(stale)
    noted = house.noted()
    assert all(f"of another base ({noted[n]['base']}, now {'f'*16})" in stale[n] for n in stale if "base" in noted.get(n, ()))


def test_what_a_fingerprint_is_of_is_said(capsys):
    house = rebuild.here()
    assert rebuild.say_stale(again(house, base=lambda root: "f"*16)) and "`sas-nb info` shows the transformer's own" in " ".join(capsys.readouterr().out.split())
    small = again(house)
    small.stale = lambda: dict(page="nobody noted what made it")
    assert rebuild.say_stale(small) and "sas-nb info" not in capsys.readouterr().out  # only where one is named


def test_the_commands_options_are_known(root):
    "A rehearsal of the list would take days; that its scripts take these options is a second each."
    for a in rebuild.ARTEFACTS:
        for command in a.commands:
            program, script, *given = command.split()
            if program != "python": continue
            text = (root/script).read_text()
            for option in (w for w in given if w.startswith("--")):
                assert option in text or option[2:].replace("-", "_")+":" in text, command


def test_the_command(root, tmp_path):
    ran = subprocess.run([sys.executable, root/"scripts/rebuild.py", "--only", "gone"], capture_output=True, text=True)
    assert ran.returncode and "has no 'gone'" in ran.stderr+ran.stdout


# What it runs

def test_a_notebook_is_run_and_only_what_had_outputs_has_them(tmp_path):
    import nbformat, run_notebook
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"), title="kept"))
    old = nbformat.v4.new_output("stream", name="stdout", text="old\n")
    for source, outputs in (("x = 2", []), ("print(x)", [old]), ("print('quiet')", []), ("#| notest\nprint('again')", [old]), ("x", [old])):
        nb.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs))
    path = tmp_path/"a.ipynb"
    nbformat.write(nb, path)
    run_notebook.run(path)
    seen = nbformat.read(path, as_version=4)
    shown = ["".join(o.get("text", "") or o["data"]["text/plain"] for o in c.outputs) for c in seen.cells]
    assert shown == ["", "2\n", "", "old\n", "2"] and seen.metadata.title == "kept" and {c.execution_count for c in seen.cells} == {None}
    before = path.read_text().replace('"x = 2"', '"x = y"')
    path.write_text(before)
    with pytest.raises(Exception, match="NameError"): run_notebook.run(path)
    assert path.read_text() == before, "a failed run writes nothing"


def test_a_judge_is_trained_for_its_base_and_kept(tmp_path, monkeypatch):
    from types import SimpleNamespace
    import judges
    monkeypatch.chdir(tmp_path)
    trained = []
    def train(folder, vae, minutes):
        trained.append((folder, minutes))
        return SimpleNamespace(save=lambda place: trained.append(place))
    monkeypatch.setitem(judges.TRAIN, "finder", (train, 30.))
    judges.main(judges.Judge.finder, keep=True)
    (folder, minutes), place = trained
    assert folder.name == "finder" and folder.parent.name == rebuild.of_base(rebuild.ROOT) and minutes == 30 and str(place) == "data/finder"


def test_a_report_is_kept(tmp_path, monkeypatch):
    import report
    monkeypatch.chdir(tmp_path)
    (tmp_path/"r").mkdir()
    for name in ("report.json", "sheet.png"): (tmp_path/"r"/name).write_text(name)
    report.keep_files(tmp_path/"r")
    assert (tmp_path/"data/report/report.json").read_text() == "report.json" and (tmp_path/"data/report/sheet.png").exists()


def test_clips_are_of_the_base_s_world():
    import make_clips
    from sas_nb.lab.worlds import world_of
    world = world_of("tiny")
    assert {"dancer", "waves"} <= set(make_clips.CLIPS) and all(isinstance(s, world.Spec) for s in make_clips.CLIPS.values())


def test_rows_of_experts_are_not_taken_for_those_of_another_zoo(monkeypatch, tmp_path):
    import experts
    one = experts.rows_file(2)
    (tmp_path/"zoo.json").write_text("{}")
    monkeypatch.setattr(experts, "zoo_folder", lambda name: tmp_path)
    assert experts.rows_file(2) != one and experts.rows_file(2) != experts.rows_file(1)
    assert experts.read(tmp_path/"none.csv") == []


def test_the_choice_is_of_variants_that_there_are():
    import tune, table
    assert all(set(s["only"]) <= set(tune.VARIANTS) for s in tune.SETS.values()) and set(tune.SETS) == {"tune", "tune_sampling"}
    for name, s in table.SETS.items(): assert set(s["method"]) <= set(table.POOLS.get(name, table.METHODS)), name
