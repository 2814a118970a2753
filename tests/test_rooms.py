"Who may import whom: the road needs no wing, a judge not the training of what it judges, and what is only read no brush."
import ast, json, re
import pytest

WINGS = ["atlas", "explore", "lab"]
NOT_ROAD = ["cli", "command"]  # the command stands before all rooms
JUDGES = ["metrics", "motion", "controls", "published", "report", "oracles"]  # of sas_nb/lab; `oracles_x` too
TRAINING = ["pretrain", "autoencoder"]  # of the model that is judged, wherever they stand
NO_BRUSH = ["lab.gaits", "lab.specs", "lab.world", "lab.metrics", "lab.motion", "lab.published",
            "lab.zoo"]  # import nothing that draws


@pytest.fixture(scope="module")
def rooms(root):
    "Module, without `sas_nb.` -> what it imports at any place in its code, as full names."
    folder = root / "sas_nb"
    return {name_of(p, folder): imports(p, folder) for p in sorted(folder.rglob("*.py")) if p.name != "_modidx.py"}


def name_of(path, folder):
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, folder):
    package = ["sas_nb", *path.relative_to(folder).parent.parts]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): modules |= {a.name for a in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        base = package[:len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        modules |= {source} | {f"{source}.{a.name}" for a in node.names}
    return {m.removeprefix("sas_nb.") for m in modules if m.split(".")[0] == "sas_nb"} | {m for m in modules if m.split(".")[0] != "sas_nb"}


def of_room(module, names):
    "Whether the last part of a module is one of these names, or begins with one and an underscore."
    last = module.split(".")[-1]
    return any(last == n or last.startswith(f"{n}_") for n in names)


def at_import(rooms, start):
    "Every module that importing one brings along, as far as it is ours; first the module, then whom it imports."
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in seen: continue
        seen.add(name)
        waiting += [m for m in rooms.get(name, ()) if m in rooms]
    return seen


def test_the_road_imports_no_wing(rooms):
    road = [m for m in rooms if m and "." not in m and m not in [*WINGS, *NOT_ROAD]]
    found = {m: sorted(i for i in rooms[m] if i.split(".")[0] in WINGS) for m in road}
    assert not {m: i for m, i in found.items() if i}


def test_a_judge_imports_no_training_of_what_it_judges(rooms):
    judges = [m for m in rooms if of_room(m, JUDGES) and not of_room(m, ["oracle_training", "oracles_training"])]
    found = {m: sorted(i for i in rooms[m] if i in rooms and of_room(i, TRAINING)) for m in judges}
    assert judges and not {m: i for m, i in found.items() if i}


BORROWED = ["mkldnn_convolution", "WanResample", "feat_cache", "unpatchify", "torch.ops."]
PRIVATE = re.compile(r"\b(?:torch|diffusers|wan_vae)(?:\.\w+)*\._[a-z]\w*")  # what torch or diffusers keep to themselves


def borrowed(code):
    "Names of others' internals in a module's code."
    return [name for name in BORROWED if name in code] + PRIVATE.findall(code)


def test_every_borrowed_internal_is_named_in_fast_alone(root, rooms):
    found = {m: borrowed((root / "sas_nb" / f"{m.replace('.', '/')}.py").read_text(encoding="utf-8")) for m in rooms
             if (root / "sas_nb" / f"{m.replace('.', '/')}.py").is_file()}
    assert {"mkldnn_convolution", "WanResample", "feat_cache", "torch.ops."} <= set(found.pop("fast"))
    counting = {"torch.ops.", "torch._subclasses", "torch.utils._python_dispatch", "torch.utils._pytree"}
    assert set(found.pop("fake")) == counting  # tensors without values: they compute nothing
    assert not {m: names for m, names in found.items() if names}


@pytest.mark.parametrize("name", NO_BRUSH)
def test_what_does_not_draw_needs_no_drawing_library(rooms, name):
    brings = at_import(rooms, name)
    assert not [m for m in brings if "skia" in rooms[m]]


def test_the_lab_is_read_in_order(root, rooms):
    "A notebook's module imports only modules of its own number or a lower one, and nobody imports in a circle."
    number = {}
    for path in sorted((root / "nbs" / "lab").glob("[0-9]*.ipynb")):
        cells = ("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"])
        if module := next((m[1] for c in cells if (m := re.match(r"#\|\s*default_exp (\S+)", c))), None): number[module] = path.stem[:2]
    for name, mine in number.items():
        inside = [m for m in rooms[name] if m in number]
        assert not [m for m in inside if number[m] > mine], name
        assert not [m for m in inside if name in at_import(rooms, m)], f"{name} imports itself"
