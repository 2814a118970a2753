"Writing replaces what we wrote, and nothing else; links lead, and stay."
import json, os, shutil

import pytest, torch
from safetensors.torch import save_file

from sas_nb.atlas.members import synthetic
from sas_nb.atlas.places import load_zoo
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.files import expanded, read_about, UserError
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.zoo import save_zoo
from sas_nb.writing import atomic, check_place


@pytest.fixture(scope="module")
def concepts(): return synthetic(4)[0]

@pytest.fixture(scope="module")
def film(): return Clip(torch.rand(5, 3, 16, 16), 8)

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def write(folder, files, marker="m.json", **kwargs):
    with atomic(folder, marker=marker, **kwargs) as tmp:
        for name, text in ({marker: "{}"} | files).items():
            (tmp/name).parent.mkdir(exist_ok=True)
            (tmp/name).write_text(text)


# one file

def test_a_link_to_a_file_is_followed(film, tmp_path):
    (tmp_path/"disk").mkdir()
    (tmp_path/"disk/film.data").write_text("old")
    os.link(tmp_path/"disk/film.data", tmp_path/"disk/second name")
    (tmp_path/"one.mp4").symlink_to("disk/film.data")
    (tmp_path/"two.mp4").symlink_to("one.mp4")
    (tmp_path/"new.mp4").symlink_to("disk/later/new.mp4")
    for name in ("two.mp4", "new.mp4"):
        film.save(tmp_path/name)
        assert (tmp_path/name).is_symlink() and len(Clip.load(tmp_path/name)) == 5
    assert (tmp_path/"one.mp4").is_symlink() and (tmp_path/"disk/later/new.mp4").is_file() and (tmp_path/"disk/second name").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "one.mp4", "two.mp4", "new.mp4"}

def loop(path): path.symlink_to(path.name)
def protected(path): path.write_text("mine"); path.chmod(0o444)
def fifo(path): os.mkfifo(path)

@pytest.mark.parametrize("make, says", [(loop, "leads back to itself"), (protected, "write-protected"), (fifo, "no ordinary file"), (lambda p: p.mkdir(), "a folder has that name")])
def test_what_cannot_be_written_over_is_told_before_the_work(tmp_path, make, says):
    make(tmp_path/"a.txt")
    with pytest.raises(UserError, match=says):
        with atomic(tmp_path/"a.txt"): pytest.fail("the work must not even begin")
    assert len(list(tmp_path.iterdir())) == 1

def test_a_new_file_has_the_rights_of_any_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic(tmp_path/"a.safetensors") as tmp: save_file(dict(x=torch.zeros(1)), tmp)
        write(tmp_path/"f", dict(b="new"))
        (tmp_path/"a.safetensors").chmod(0o600)
        with atomic(tmp_path/"a.safetensors") as tmp: tmp.write_text("again")
    finally: os.umask(old)
    assert [oct(p.stat().st_mode & 0o777) for p in (tmp_path/"f/b", tmp_path/"f/m.json", tmp_path/"a.safetensors")] == ["0o640", "0o640", "0o600"]

def test_nothing_is_left_where_nothing_was(tmp_path):
    for kwargs in ({}, dict(marker="m.json")):
        with pytest.raises(KeyError):
            with atomic(tmp_path/"new/deep/a", **kwargs): raise KeyError
        assert not list(tmp_path.iterdir())

def test_a_home_that_nobody_has():
    with pytest.raises(UserError, match="no home folder"): expanded("~nobody-at-all/x")


# folders

def test_only_listed_files_are_replaced_and_removed(tmp_path):
    write(tmp_path, {"a": "1", "part/b": "1", "other/c": "1"})
    for name in ("notes", "part/notes"): (tmp_path/name).write_text("mine")
    write(tmp_path, {"a": "2"})
    assert {k: v.decode() for k, v in tree(tmp_path).items() if k != "m.json"} == {"a": "2", "notes": "mine", "part/notes": "mine"}
    assert json.loads((tmp_path/"m.json").read_text())["files"] == ["a", "m.json"] and not (tmp_path/"other").exists()

@pytest.mark.parametrize("listed", [["../thesis", "m.json"], ["/etc/hostname", "m.json"], ["part/../../thesis", "m.json"], [1, None, {}, "m.json"], ["thesis", "m.json"]])
def test_a_list_reaches_no_further_than_our_names(tmp_path, listed):
    (tmp_path/"thesis").write_text("years")
    (tmp_path/"f").mkdir(); (tmp_path/"f/thesis").write_text("years")
    (tmp_path/"f/m.json").write_text(json.dumps(dict(files=listed)))
    write(tmp_path/"f", dict(a="new"), names=("a", "m.json", "part/*"))
    assert (tmp_path/"thesis").read_text() == (tmp_path/"f/thesis").read_text() == "years" and (tmp_path/"f/a").read_text() == "new"

def test_an_older_folder_is_known_by_its_sign(tmp_path):
    kind = dict(names=("a", "b", "m.json"), sign=("m.json", '"ours"'))
    for name in ("a", "b", "c", "m.json"): (tmp_path/name).write_text("other" if name == "m.json" else name)
    with pytest.raises(UserError, match="Will not replace"): write(tmp_path, dict(a="new"), **kind)
    (tmp_path/"m.json").write_text('{"ours": ')
    check_place(tmp_path, ("a", "m.json"), marker="m.json", **kind)
    write(tmp_path, dict(a="new"), **kind)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "c", "m.json"} and (tmp_path/"a").read_text() == "new"

@pytest.mark.parametrize("there", ["a", "part/b", "part"])
def test_a_users_file_in_the_way_stops_all(tmp_path, there):
    (tmp_path/there).parent.mkdir(exist_ok=True)
    (tmp_path/there).write_text("mine")
    with pytest.raises(UserError, match="Will not replace|a file has that name"): write(tmp_path, {"0": "new", "a": "new", "part/b": "new"})
    assert {k: v.decode() for k, v in tree(tmp_path).items()} == {there: "mine"}

def test_links_in_a_folder_and_to_it_are_followed(tmp_path):
    (tmp_path/"disk").mkdir()
    write(tmp_path/"disk/f", {"a": "1", "b": "1"})
    shutil.move(tmp_path/"disk/f/a", tmp_path/"disk/a")
    (tmp_path/"disk/f/a").symlink_to("../a")
    (tmp_path/"link").symlink_to("disk/f"); (tmp_path/"again").symlink_to("link"); (tmp_path/"dangling").symlink_to("disk/new")
    write(tmp_path/"again", {"a": "2"}); write(tmp_path/"dangling", {"a": "3"})
    assert all((tmp_path/n).is_symlink() for n in ("link", "again", "dangling", "disk/f/a"))
    assert [(tmp_path/"disk"/n).read_text() for n in ("a", "new/a")] == ["2", "3"] and {p.name for p in (tmp_path/"disk/f").iterdir()} == {"a", "m.json"}

def test_the_folder_one_stands_in_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    for text in "12": write(".", dict(a=text))
    assert (tmp_path/"a").read_text() == "2" and os.stat(".").st_ino == tmp_path.stat().st_ino == inode

@pytest.mark.parametrize("at", range(4))
def test_a_mixture_is_never_taken_for_a_whole(tmp_path, monkeypatch, at):
    "The machine stops at any rename: what is there is the old folder, the new one, or says that it is neither."
    class Off(BaseException): pass
    write(tmp_path, dict(a="old", b="old"))
    real, calls = os.replace, []
    def stops(x, y):
        if len(calls) >= at: raise Off
        calls.append(1)
        return real(x, y)
    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(Off): write(tmp_path, dict(a="new", b="new"))
    monkeypatch.undo()
    try: read_about(tmp_path/"m.json")
    except UserError as e: assert "was being written" in str(e)
    else: assert len({(tmp_path/n).read_text() for n in "ab"}) == 1
    write(tmp_path, dict(a="last")) # and it can be written again
    assert (tmp_path/"a").read_text() == "last" and not (tmp_path/"b").exists()


# what we write with it

def test_a_concept_over_another_keeps_what_is_not_ours(concepts, tmp_path):
    concepts[0].save(tmp_path)
    (tmp_path/"notes.txt").write_text("mine"); (tmp_path/"concept").mkdir(); (tmp_path/"concept/log.jsonl").write_text("a run")
    concepts[1].save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "concept", "concept.json", "concept.safetensors"} and Concept.load(tmp_path).weights.keys() == concepts[1].weights.keys()

def test_exports_of_all_kinds_into_one_folder(concepts, tmp_path):
    (tmp_path/"notes.txt").write_text("mine")
    for format, split in (("diffusers", False), ("peft", False), ("peft", True), ("comfyui", False)): concepts[0].export(tmp_path, format, split)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "README.md", "export.json", "tokens.safetensors", "lora.safetensors"}
    (tmp_path/"export.json").unlink() # as an older version left it
    concepts[0].export(tmp_path)
    assert (tmp_path/"pytorch_lora_weights.safetensors").exists() and not (tmp_path/"lora.safetensors").exists()

def test_zoos_and_oracles_keep_what_is_not_theirs(concepts, tmp_path):
    for where, save in ((tmp_path/"zoo", lambda f: save_zoo(dict(zip("ab", concepts)), f, 1)), (tmp_path/"oracles", lambda f: Oracles.load("oracles").save(f))):
        save(where)
        (where/"notes.txt").write_text("mine")
        save(where)
        assert (where/"notes.txt").read_text() == "mine"
    save_zoo(dict(a=concepts[0]), tmp_path/"zoo", 1)
    assert list(load_zoo(tmp_path/"zoo")) == ["a"] and not (tmp_path/"zoo/concepts-01.safetensors").exists()
