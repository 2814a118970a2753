"""A plan and a run agree, at small size to a few percent of live bytes; at full size what issues of memory promise holds."""
from dataclasses import replace
import json, threading
import pytest, torch
from typer.testing import CliRunner
import wan_folder
from sas_nb import counterfactual, phases, sketch, streamed, text
from sas_nb import cards
from sas_nb.cache import data_path, known_models
from sas_nb.cards import Card, card
from sas_nb.clip import Clip
from sas_nb.dit import VideoDiT
from sas_nb.fake import Counted, pretended
from sas_nb.files import UserError
from sas_nb.known_models import HUB
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.phases import Job, needed, PHASES, rehearsed
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe, Run
from sas_nb.train import Trainer
from sas_nb.ladder import ways

SHAPE = 5, 48, 48
PROMPTS = "a [v] man in a red shirt", "he is [u] dancing"
CPU = Card("this CPU", 1000., .1, .1, 1., bf16=False, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = wan_folder.write(tmp_path_factory.mktemp("wan"))
    (folder / "sas_nb.json").write_text(json.dumps(dict(steps=3)))
    return folder


def held(dit): return [t for name in dit.loaded if isinstance(m := dit._held(name), torch.nn.Module) for t in (*m.parameters(), *m.buffers())]


def live_peaks(folder, recipe, memory, monkeypatch):
    "Peaks of live bytes in each phase of a real run, from when its part is in memory: that of the phase before it goes as it comes."
    peaks, counted, dit = {}, Counted(), VideoDiT.load(folder, "cpu", memory=memory)

    def watch(owner, method, part, name):
        stock = getattr(owner, method)

        def watched(self, *args, **kwargs):
            phase = name(self) if callable(name) else name
            dit._part(part)
            counted.add(*held(dit))
            counted.restart()
            out = stock(self, *args, **kwargs)
            peaks[phase] = max(peaks.get(phase, 0), counted.peak["cpu"])
            return out
        monkeypatch.setattr(owner, method, watched)

    mapped = streamed.stored_tensors
    monkeypatch.setattr(streamed, "stored_tensors", lambda folder: (tensors := mapped(folder), counted.leave_out(*tensors.values()))[0])
    watch(text, "encoded", "text_encoder", "text")
    watch(VideoDiT, "encode", "vae", "encoding")
    watch(VideoDiT, "denoise", "transformer", lambda d: "sampling" if d.adapted else "prior")
    watch(counterfactual, "redraw", "transformer", "pairs")
    watch(VideoDiT, "decode", "vae", "decoding")
    watch(Trainer, "fit", "transformer", lambda t: "stage 1" if t.stage.name == "appearance" else "stage 2")
    with counted:
        clip = Clip(torch.rand(SHAPE[0], 3, *SHAPE[1:]), 8.)
        concept = learn(clip, PROMPTS, dit, recipe, Run(progress=False, memory=memory))
        concept.generate(seed=0)
    return peaks


RECIPE = Recipe.default().with_(both=dict(steps=2, batch=4))


SPARING = Memory(apart=True, tiled=True, checkpointing=True, at_once=1)


STRANGERS = RECIPE.with_(both=dict(composites=.4))


@pytest.mark.parametrize("recipe, memory", [(RECIPE, Memory()), pytest.param(STRANGERS, Memory(), marks=pytest.mark.slow),
                                            pytest.param(RECIPE, SPARING, marks=pytest.mark.slow)],
                         ids=["plain", "strangers", "sparing"])
def test_a_plan_and_a_run_agree(folder, recipe, memory, monkeypatch, tmp_path):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path))
    real = live_peaks(folder, recipe, memory, monkeypatch)
    monkeypatch.undo()
    read = VideoDiT.load(folder, "cpu").tokenizer
    monkeypatch.setattr(sketch, "_tokens", lambda prompt: len(read(prompt).input_ids))
    monkeypatch.setattr(phases, "_PROMPTS", Prompts.of(PROMPTS))
    job = Job(str(folder), SHAPE, recipe, CPU)
    planned = {name: needed(job, memory, name).host for name in PHASES}
    rehearsed.cache_clear()
    assert real.keys() == planned.keys()
    near = .15 if recipe is STRANGERS else .05 # their pictures are large beside so small a model
    assert {k: round(planned[k]/real[k], 3) for k in real if abs(planned[k]/real[k]-1) > near} == {}


def test_strangers_are_drawn_and_read(folder):
    def operations(recipe, name): return sum(rehearsed(Job(str(folder), (9, 48, 48), recipe, CARD), Memory(), name).operations.values())
    for name in ("text", "encoding", "prior"): assert operations(STRANGERS, name) > 1.05*operations(RECIPE, name), name
    rehearsed.cache_clear()


def test_what_is_repeated_needs_the_same(folder, monkeypatch):
    "Blocks, frames and depths that are counted again, against all of them run."
    job, memory = Job(str(folder), (9, 48, 48), RECIPE, CARD), Memory(apart=True, checkpointing=True, at_once=1)
    short = {n: rehearsed(job, memory, n) for n in ("encoding", "sampling", "decoding")}
    rehearsed.cache_clear()
    monkeypatch.setattr(sketch, "repeating", lambda counted, part: None)
    assert {n: (p.card, p.host, p.operations) for n, p in short.items()} == {n: (p.card, p.host, p.operations) for n in short for p in [rehearsed(job, memory, n)]}
    rehearsed.cache_clear()


CARD = Card("small", 1000., 1., 1., 1.)


def configured(root, **changes):
    "A folder with the configurations of Wan 2.1 1.3B alone, and some of their numbers changed."
    for part, file in {"": "model_index.json", **sketch._FILES}.items():
        config = json.loads((data_path("models/Wan-AI/Wan2.1-T2V-1.3B-Diffusers") / file).read_text())
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(config | SMALL_PARTS.get(part, {}) | changes.get(part, {})))
    return root


# beside a transformer of two or four heads
SMALL_PARTS = dict(text_encoder=dict(d_model=256, d_ff=512, num_heads=4, num_layers=2, vocab_size=65536), transformer=dict(text_dim=256, num_layers=5), vae=dict(base_dim=8))


FEW = RECIPE.with_(both=dict(batch=2, prior=0.), layers=r"blocks\.\d+\.attn1\.to_q")  # little to compute, and the same in each block
LINES = [("stage 2", dict(weights="fp8", swapped=6, inputs_on_host=True)), ("sampling", dict(weights="int8", swapped=4)), pytest.param("stage 2", dict(), marks=pytest.mark.slow)]


@pytest.mark.parametrize("name, memory", LINES, ids=str)
def test_a_straight_line_over_depths(tmp_path, name, memory):
    "What is told from a few blocks, some of which may wait on the host, is what eight blocks need."
    root = configured(tmp_path, transformer=dict(num_layers=8, num_attention_heads=2, ffn_dim=512))
    job, memory = Job(str(root), (9, 64, 64), FEW, CARD), Memory(apart=True, checkpointing=True, at_once=1, **memory)
    line, whole = needed(job, memory, name), rehearsed(job, memory, name)
    assert abs(line.card/whole.card-1) < .005 and abs(line.host/whole.host-1) < .005
    assert line.operations[16] == pytest.approx(whole.operations[16], rel=.001)


def run(*args): return CliRunner().invoke(__import__("sas_nb.cli", fromlist=["app"]).app, ["plan", *map(str, args)])


DANCER = "data/clips/dancer.mp4"


@pytest.mark.parametrize("args, words", [
    ((DANCER, "--gpu", "voodoo"), "There is no card 'voodoo'"),
    ((DANCER, "--gpu", "0"), "There is no card '0'"),
    ((DANCER, "--gpu", "-4"), "There is no card '-4'"),
    ((DANCER, "--gpu", "3090"), "There is no card '3090'"),  # not one of 3,090 GiB
    ((DANCER, "--gpu", "RTX 5090"), "There is no card 'RTX 5090'"),
    ((DANCER, "--frames", "0"), "--frames 0"),
    ((DANCER, "--fps", "0"), "--fps 0"),
    ((DANCER, "--dtype", "fp12"), "There is no precision 'fp12'"),
    ((DANCER, "--revision", "v1"), "has no revisions"),
    ((DANCER, "--host", "0"), "host"),
    ((DANCER, "--size", "big"), "is not a size"),
    ((DANCER, "--model", "nobody/nothing"), "the hub cannot be asked for it without a network"),
    ((DANCER, "--weights", "fp4"), "must be 'own' or 'fp8' or 'int8'"),
    ((DANCER, "--swapped", "99"), "swapped=99 is more than the"),
    ((DANCER, "--inputs-on-host", "--no-checkpointing"), "add --checkpointing"),
    ((DANCER, "--model", "no folder"), "There is no model folder"),
    (("nowhere.mp4",), "nowhere.mp4"),
], ids=lambda x: " ".join(map(str, x[1:])) if isinstance(x, tuple) else "")
def test_bad_input_is_one_sentence(args, words, root, monkeypatch):
    monkeypatch.chdir(root)
    result = run(*args)
    assert result.exit_code == 1 and words in " ".join(result.output.split())


@pytest.mark.parametrize("code, says", [("GatedRepo", "accepted its terms"), ("RepoNotFound", "There is no model 'a/b' on the hub")])
def test_a_model_that_may_not_be_read(code, says, root, monkeypatch):
    import huggingface_hub
    answer = type("Answer", (), dict(headers={"X-Error-Code": code}))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: type("S", (), dict(head=lambda self, *a, **k: answer))())
    monkeypatch.chdir(root)
    result = run(DANCER, "--model", "a/b")
    assert result.exit_code == 1 and says in " ".join(result.output.split())


@pytest.fixture
def told(monkeypatch):
    "Made-up hours of each phase, so that nothing is rehearsed; what a plan in a terminal says."
    from sas_nb import plan
    hours = dict(text=.01, encoding=.1, prior=1., pairs=0., sampling=.1, decoding=.1) | {"stage 1": .4, "stage 2": 2.}
    monkeypatch.setattr(plan, "_phase", lambda job, m, name: phases.Phase(name, 2**30, 2**30, {}, (), hours[name]))
    plan._planned.cache_clear()
    yield lambda *args: " ".join(run(DANCER, "--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "--gpu", "t4", *args).output.split())
    plan._planned.cache_clear()


@pytest.mark.parametrize("args, times, cut", [((), 2.4, 0), (("--size", "256x256"), None, 0), (("--size", "320x512"), 2.0, 38),
                                              (("--size", "272x256"), 1.1, 6), (("--size", "128x256"), None, 50)], ids=str)
def test_a_film_that_is_enlarged_or_cut_is_said(told, args, times, cut, root, monkeypatch):
    "The dancer is 256x256; the model's own size for a square film is 624x624."
    monkeypatch.chdir(root)
    said = told(*args)
    assert ("The film is 256x256 (height x width), and is enlarged" in said) is (times is not None)
    assert times is None or f"enlarged {times} times to {'624x624' if not args else args[1]}" in said
    film = json.loads(run(DANCER, "--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "--gpu", "t4", "--json", *args).output)["film"]
    assert (" ".join(film.split()) in said) if film else times is None
    assert (f"{cut}% of its picture is cut away" in said) if cut else "cut away" not in said


def test_what_would_be_done_sooner(told, root, monkeypatch):
    monkeypatch.chdir(root)
    said = told("--frames", 33, "--size", "480x832")
    recipe = Recipe.default()
    assert f"--set stage2.steps={recipe.stage2.steps//2} (about 2.7 hours)" in said and "--set both.prior=0 (about 2.7 hours)" in said
    assert "--frames 17 (" in said and "--size 336x576 (" in said and len(said.split("Done sooner")[1]) < 300
    assert said.endswith("GiB, the download among it.")
    without = told("--frames", 33, "--size", "480x832", "--set", "both.prior=0", "--set", "stage2.steps=1", "--set", "stage1.steps=60")
    assert "--set stage1.steps=30" in without and "stage2.steps" not in without.split("Done sooner")[1]


@pytest.mark.parametrize("model, shape, other", [("Wan2.1-T2V-1.3B", (33, 320, 512), (17, 320, 512)), ("Wan2.2-TI2V-5B", (49, 480, 832), (49, 320, 576)), ("Wan2.1-T2V-1.3B", (33, 832, 480), (33, 576, 336))])
def test_hours_of_another_size_are_about_those_of_its_own_plan(model, shape, other):
    "The products that are told at once against operations that are counted."
    from sas_nb.shorter import pass_products
    job, memory = Job(f"Wan-AI/{model}-Diffusers", shape, FEW, CARD), Memory(apart=True, checkpointing=True, at_once=1)
    counted = [rehearsed(replace(job, shape=s), memory, "sampling", 2).operations[16] for s in (shape, other)]
    told = [pass_products(job.sketch, s) for s in (shape, other)]
    assert counted[1]/counted[0] == pytest.approx(told[1]/told[0], rel=.1) and told[1] < .7*told[0]


def test_a_job_that_is_short_needs_no_advice(folder):
    from sas_nb.plan import plan
    assert plan(str(folder), SHAPE, RECIPE, "4", phases=("encoding", "stage 1")).shorter == {}


def test_what_is_rehearsed_is_told(folder, monkeypatch):
    "To whoever asks for it, at a terminal; each phase by its name, and nobody is told after the plan."
    from sas_nb import plan
    lines = []
    monkeypatch.setattr(plan, "tqdm", lambda **how: type("Bar", (), dict(__enter__=lambda s: s, __exit__=lambda s, *e: None, update=lambda s: None,
                        refresh=lambda s: None, set_description_str=lambda s, name, **k: lines.append((how["disable"], name))))())
    for progress in (True, False):
        plan._planned.cache_clear()
        rehearsed.cache_clear()
        plan.plan(str(folder), SHAPE, RECIPE, "4", phases=("text", "stage 2"), progress=progress)
        assert {name for _, name in lines} == {"text", "stage 2"} and {d for d, _ in lines} == {None if progress else True}
        lines.clear()
    rehearsed(Job(str(folder), (9, 48, 48), RECIPE, CARD), Memory(), "text")
    assert lines == []


def test_a_full_disk_is_said(monkeypatch):
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(sketch, "_offline", lambda name, revision: False)
    monkeypatch.setattr(sketch, "snapshot_download", full)
    with pytest.raises(UserError, match="no room on the disk to download 'a/b': free some space"): sketch.Sketch("a/b", CARD)


SMALL = "--frames", "5", "--size", "48x48", "--json"


@pytest.mark.parametrize("gpu, code", [(".9", 0), (".5", 3)])
def test_what_it_says_for_a_program(folder, gpu, code, root, monkeypatch):
    monkeypatch.chdir(root)
    result = run(DANCER, "--model", folder, "--gpu", gpu, *SMALL)
    said = json.loads(result.output)
    assert result.exit_code == code and said["fits"] is (code == 0)
    assert {"fits", "peak_gpu_gib", "peak_host_gib", "disk_gib", "hours", "phases"} <= said.keys()
    assert [p["name"] for p in said["phases"]] == list(PHASES)
    assert all(p.keys() == {"name", "gpu_gib", "host_gib", "hours", "loaded"} for p in said["phases"])
    assert said["peak_gpu_gib"] == max(p["gpu_gib"] for p in said["phases"])
    assert said["instead"] == ("" if code == 0 else "It would fit on a card with 15 GiB, such as T4 (0.8 GiB).")
    assert "disk" not in run(DANCER, "--model", folder, "--gpu", gpu, *SMALL[:-1]).output, "nothing is to be downloaded"


def test_a_card_that_the_context_fills_is_tried_once(folder, monkeypatch):
    from sas_nb import plan
    cards, planned = [], plan._planned
    def counted(job, *rest):
        cards.append(job.card.gib)
        return planned(job, *rest)
    monkeypatch.setattr(plan, "_planned", counted)
    assert plan.plan(folder, (5, 48, 48), gpu=.5).instead.startswith("It would fit on a card with")
    assert cards[0] == .5 and min(cards[1:]) > .8


def test_the_smallest_change_that_fits(tmp_path, monkeypatch):
    "Cards of just less than each way needs, down to one that nothing fits; each time the first way that fits is chosen."
    from sas_nb import plan
    for module in (phases, plan): monkeypatch.setattr(module, "CONTEXT", 0)
    root, order, found = configured(tmp_path, transformer=dict(num_layers=4, num_attention_heads=4, ffn_dim=2048)), ways(4, {}), []
    def planned(gib): return plan.plan(str(root), (9, 128, 128), FEW, replace(CARD, gib=gib), phases=("stage 2",))
    while not found or found[-1].fits and len(found) < 12: found.append(planned(.999*found[-1].peak_gpu_gib if found else 1000.))
    needs = [plan._phase(found[0].job, memory, "stage 2").card/2**30 for memory in order]
    chosen = [order.index(p.memory) for p in found]
    assert chosen[:5] == [0, 1, 2, 3, 4] and chosen[-1] == len(order)-1, "from plain to all blocks but one on the host"
    for p, rung in zip(found[:-1], chosen):
        assert needs[rung] <= p.job.card.gib and all(n > p.job.card.gib for n in needs[:rung])
    assert found[0].why == "Nothing has to be done to fit it." and found[1].why == "To fit: one part in memory after another."
    assert not found[-1].fits and "does not fit" in str(found[-1]) and "It would fit on a card" in str(found[-1])


@pytest.fixture
def costs(monkeypatch):
    "Made-up needs: each way to save takes something off 40 GiB, and the autoencoder needs 12 of its own, in tiles 3."
    from sas_nb import plan
    def phase(job, m, name):
        gib = (3 if m.tiled else 12) if name in plan._CODEC else 40-10*m.apart-8*m.checkpointing-2*m.inputs_on_host-6*(m.weights != "own")-m.swapped
        return phases.Phase(name, int(gib*2**30), 2**30, {}, (), .1)
    monkeypatch.setattr(plan, "_phase", phase)
    plan._planned.cache_clear()
    yield plan.plan
    plan._planned.cache_clear()


@pytest.mark.parametrize("gib, wishes, memory", [
    (100, {}, {}), (30, {}, dict(apart=True)), (25, {}, dict(apart=True, checkpointing=True, at_once=1)),
    (25, dict(weights="int8"), dict(apart=True, weights="int8")), (24, dict(inputs_on_host=True), dict(apart=True, inputs_on_host=True, checkpointing=True)),
    (25, dict(apart=False), dict(checkpointing=True, at_once=1, inputs_on_host=True, weights="fp8")), (11, {}, dict(apart=True, checkpointing=True, at_once=1, inputs_on_host=True, weights="fp8", swapped=4, tiled=True)),
    (11, dict(tiled=False), None), (14, dict(checkpointing=False), None), (5, {}, None)], ids=str)
def test_wishes_come_first_and_the_plan_chooses_the_rest(tmp_path, costs, gib, wishes, memory):
    root = configured(tmp_path, transformer=dict(num_layers=5, num_attention_heads=2, ffn_dim=256))
    found = costs(str(root), (9, 64, 64), RECIPE, replace(CARD, gib=gib), wishes=wishes)
    assert {k: getattr(found.memory, k) for k in wishes} == wishes and found.fits is (memory is not None)
    if memory is not None: assert found.memory == Memory(**memory)
    elif wishes and gib == 11: assert f"It would fit without {', '.join(f'{k}={v!r}' for k, v in wishes.items())}" in str(found)
    assert found.fits or "does not fit" in str(found) and "It would fit" in str(found)


def test_wishes_that_cannot_be(costs, tmp_path):
    with pytest.raises(UserError, match="checkpointing=True"):
        costs(str(configured(tmp_path)), (9, 64, 64), RECIPE, CARD, wishes=dict(checkpointing=False, inputs_on_host=True))


def test_a_folder_without_configurations(tmp_path):
    with pytest.raises(UserError, match="cannot be planned for"): sketch.Sketch(tmp_path, CARD)
    for half in ("{", "[]", "null"):
        (tmp_path / "model_index.json").write_text(half)
        with pytest.raises(UserError, match="cannot be planned for"): sketch.Sketch(tmp_path, CARD)


def test_known_models_are_read_offline():
    from sas_nb.plan import own_defaults
    assert set(known_models()) == set(HUB) and len(HUB) == 4
    assert own_defaults("Wan-AI/Wan2.2-TI2V-5B-Diffusers").num_frames == 121
    sizes = {name: sketch.Sketch(name, CARD).download()/1e9 for name in known_models() if "A14B" not in name}
    assert {k.split("-")[-2]: round(v) for k, v in sizes.items()} == {"1.3B": 29, "14B": 80, "5B": 34}


def test_two_experts_are_planned_for(tmp_path):
    "Both are in memory while a concept is on them, and one at a time for the prior."
    folder = wan_folder.write(tmp_path, "experts")
    (folder / "sas_nb.json").write_text(json.dumps(dict(steps=3)))
    one = sum(p.numel() for p in wan_folder.random_transformer().parameters())*4
    job = Job(str(folder), SHAPE, RECIPE, CARD)
    phases = {name: needed(job, Memory(apart=True, checkpointing=True, at_once=1), name) for name in ("prior", "stage 1", "stage 2")}
    assert [phases[name].loaded for name in phases] == [("transformer",), *[("transformer", "transformer_2")]*2]
    assert phases["stage 1"].card > 2*one  # in memory both, beside what is computed


def test_a_small_model_is_not_planned_for(monkeypatch):
    from sas_nb import plan
    monkeypatch.setattr(plan, "plan", lambda *args, **how: pytest.fail("the bound says that all fits"))
    assert plan.fitting(VideoDiT.of("tiny"), (17, 64, 64)) == Memory()


def test_learn_refuses_with_the_plans_words(monkeypatch):
    from sas_nb import plan
    small = lambda device: Card("toy", .01, .1, .1, 1., device="cpu")
    monkeypatch.setattr(plan, "this_card", small)
    monkeypatch.setattr(plan, "plan", lambda *args, **how: type("P", (), dict(fits=False, __str__=lambda self: "It does not fit."))())
    with pytest.raises(UserError, match="does not fit"):
        learn(Clip(torch.rand(17, 3, 64, 64), 12.), ("a [v] man", "he is [u] dancing"), "tiny", run=Run(progress=False))


@pytest.fixture
def large(monkeypatch):
    "A card on which everything has room, and a bound that does not say so."
    from sas_nb import plan
    monkeypatch.setattr(plan, "at_most", lambda *args: float("inf"))
    monkeypatch.setattr(plan, "this_card", lambda device: CARD)
    return plan


def test_the_machine_beside_the_card_counts_too(folder, large, monkeypatch):
    "Python alone needs more of the host than there is."
    monkeypatch.setattr(large, "host_gib", lambda: 1.)
    with pytest.raises(UserError, match="text needs .* GiB of host memory, and there are 1.0"):
        large.fitting(VideoDiT.load(folder, "cpu"), SHAPE, RECIPE, phases=("text",))
    monkeypatch.setattr(large, "host_gib", lambda: 8.)
    assert large.fitting(VideoDiT.load(folder, "cpu"), SHAPE, RECIPE, phases=("text",)) == Memory()


def test_too_little_host_memory_is_no_matter_of_the_card(folder):
    from sas_nb.plan import plan
    found = plan(str(folder), SHAPE, RECIPE, CARD, 1., phases=("text",))
    assert not found.fits and found.instead.startswith(f"It would fit with {found.peak_host_gib:.1f} GiB of host memory (")


def test_a_model_is_planned_for_as_it_was_loaded(folder, large, monkeypatch):
    asked = []
    monkeypatch.setattr(large, "plan", lambda *args: asked.append(args) or type("P", (), dict(fits=True, memory=Memory())))
    dit = VideoDiT.load(folder, "cpu", dtype=torch.bfloat16)
    dit.checkpoint.revision = "v1"
    large.fitting(dit, SHAPE, RECIPE, n=3)
    assert asked[0][-3:] == (torch.bfloat16, "v1", 3)


@pytest.mark.parametrize("more", [dict(dtype=torch.float32), dict(n=3)], ids=str)
def test_precision_and_number_of_concepts_count(folder, more):
    "A model in fp32, and three concepts in one pass, need more than one in bf16."
    job = Job(str(folder), SHAPE, RECIPE, CARD)
    less, needs = (rehearsed(j, Memory(apart=True), "stage 2") for j in (job, replace(job, **more)))
    weights = sum(p.numel() for p in wan_folder.random_transformer().parameters())
    assert needs.card-less.card > (2*weights if "dtype" in more else .5*less.card-2*weights)  # what all share is there for one, too
    assert sum(needs.operations.values()) == pytest.approx(more.get("n", 1)*sum(less.operations.values()), rel=.01)
    assert "n" in more or needs.operations.keys() == {32}


def test_another_revision_is_asked_for(folder, monkeypatch):
    "Also of a model whose configuration is shipped."
    from sas_nb import plan
    asked = []
    monkeypatch.setattr(sketch, "_offline", lambda name, revision: asked.append(revision))
    monkeypatch.setattr(sketch, "snapshot_download", lambda name, **how: asked.append(how["revision"]) or str(folder))
    assert plan.plan(known_models()[0], SHAPE, RECIPE, CARD, revision="v1", phases=("text",)).fits
    assert set(asked) == {"v1"}


@pytest.mark.parametrize("name, gib, like, half", [
    ("Tesla T4", 15, "t4", True), ("NVIDIA L4", 22, "l4", False), ("NVIDIA L40S", 45, "a100", False), ("NVIDIA T400 4GB", 4, "t4", True),
    ("Tesla P100-PCIE-16GB", 16, "t4", True), ("NVIDIA GH200 480GB", 95, "h200", False), ("NVIDIA A100-SXM4-80GB", 79, "a100", False),
    ("NVIDIA GeForce RTX 4090", 24, "4090", False)])
def test_the_card_of_this_machine(monkeypatch, name, gib, like, half):
    "Its memory and its precision are its own, its speed that of the nearest that is known."
    about = type("About", (), dict(name=name, total_memory=gib*2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, gib*2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: not half)
    found = cards.this_card(torch.device("cuda"))
    assert (found.name, found.gib, found.tflops, found.bf16) == (name, gib, cards.CARDS[like].tflops, not half)


def test_readme_reads_the_table_of_cards(root):
    "Each row of README's table of cards is a row of data/bench/cards.csv."
    import csv
    rows = list(csv.DictReader((root / "data/bench/cards.csv").open(encoding="utf-8", newline="")))
    text = (root / "README.md").read_text(encoding="utf-8").split("| default recipe | card |")[1].split("\n\n")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    known = {(f"{r['name']}, {r['frames']} frames of {r['height']}x{r['width']}", r["gpu"]): r for r in rows}
    assert len(shown) >= 4 and len(known) == len(rows)
    for what, gpu, needs, host, hours, _ in shown:
        r = known[what, gpu.split(",")[0]]
        assert r["fits"] == "True" and (needs, host) == tuple(f"{float(r[k]):.1f} GiB" for k in ("peak_gpu_gib", "peak_host_gib"))
        assert float(hours) == pytest.approx(float(r["hours"]), rel=.05)
    tutorial = (root / "nbs/tutorials/train_on_colab.ipynb").read_text(encoding="utf-8")
    r = known["Wan 2.1 1.3B, 33 frames of 320x512", "T4"]
    needs, host, hours = (float(r[k]) for k in ("peak_gpu_gib", "peak_host_gib", "hours"))
    assert f"it needs {needs:.1f} GiB of it, {host:.1f} GiB of host memory and about {hours:.1f} hours. {r['why']}" in tutorial


# What a run of the default recipe may need of the card and its host, and what it cannot need less than, in GiB: weights, inputs of blocks, context.
SIZES = [("Wan2.1-T2V-1.3B", (81, 480, 832), (6, 10), (3, 64)), ("Wan2.1-T2V-1.3B", (33, 320, 512), (3.5, 14), (1.8, 11)),
         ("Wan2.1-T2V-14B", (33, 480, 832), (14, 22.5), (1.8, 16)), ("Wan2.2-TI2V-5B", (81, 480, 832), (10.5, 14), (3, 64))]


@pytest.mark.slow
@pytest.mark.parametrize("model, shape, gpu, host", SIZES, ids=[f"{s[0]} {s[1][0]}" for s in SIZES])
def test_at_full_size(model, shape, gpu, host):
    "The default call, in a way that the plan finds."
    from sas_nb.plan import plan
    found = plan(f"Wan-AI/{model}-Diffusers", shape, gpu=card(gpu[1]), host=host[1])
    assert found.fits, str(found)
    assert gpu[0] < found.peak_gpu_gib <= gpu[1] and host[0] < found.peak_host_gib <= host[1]
    assert all(p.card > phases.CONTEXT and p.host > phases.BASE and p.hours > 0 for p in found.phases)


def test_a_step_of_the_largest_model_at_full_size():
    "14 billion weights in eight bits, a matrix at a time: bounds from both sides by what must be there."
    params, layers, width, ffn = 14.29e9, 40, 5120, 13824
    tokens = 9*30*52  # of 33 frames of 480x832
    job = Job("Wan-AI/Wan2.1-T2V-14B-Diffusers", (33, 480, 832), Recipe.default(), card("22.5"))
    stage = needed(job, Memory(apart=True, checkpointing=True, inputs_on_host=True, weights="fp8", at_once=1), "stage 2")
    inputs = layers*tokens*width*2
    assert params+2*2*tokens*ffn < stage.card < 21.7*2**30, "weights, and the widest layer's input and output"
    assert inputs < stage.host < inputs+4*2**30, "and nothing of 27 GiB"
    work = 3*2*params*tokens*job.recipe.stage2.steps*job.recipe.stage2.batch  # forward, again, backward
    assert .9*work < sum(stage.operations.values()) < 3*work


def test_two_plans_at_once_take_turns_and_leave_nothing_behind():
    inside, leave, before = threading.Event(), threading.Event(), torch.nn.functional.scaled_dot_product_attention
    order = []
    def first():
        with pretended():
            inside.set(); leave.wait(10); order.append("first")
    def second():
        inside.wait(10)
        with pretended(): order.append("second")
    both = [threading.Thread(target=f) for f in (first, second)]
    for t in both: t.start()
    inside.wait(10); both[1].join(.2); leave.set()
    for t in both: t.join(10)
    assert order == ["first", "second"] and torch.nn.functional.scaled_dot_product_attention is before
