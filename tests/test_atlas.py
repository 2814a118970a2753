"The atlas against dense matrices: exact PCA in every gauge, spelling and precision, honest statistics, and mixes that are what they say."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA as Dense

from sas_nb.atlas import inversion, mixing
from sas_nb.atlas.components import leave_one_out, null_ratios, pca_of
from sas_nb.atlas.geometry import Atlas, isometric_coordinates, layer_gram, layers_of, member_blocks
from sas_nb.atlas.lora_files import layer_name
from sas_nb.atlas.members import Lora, synthetic
from sas_nb.atlas.probes import together
from sas_nb.atlas.responses import response, safe_range
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.data import frame_set
from sas_nb.files import UserError
from sas_nb.flow import flow_loss, interpolate, velocity_target
from sas_nb.lowrank import delta, norm, reparametrise
from sas_nb.text import add_tokens

check = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PARTS = {"appearance": ("B1",), "motion": ("B2",), "joint": ("B1", "B2")}


@pytest.fixture(scope="module")
def people(): return synthetic(24, seed=5)[0]

@pytest.fixture(scope="module")
def strangers(): return synthetic(10, shared=False, rank=3, seed=6)[0]

@pytest.fixture(scope="module")
def atlas(people): return Atlas(people)

def update(c, layer, b):
    scale = dict(B1=c.appearance, B2=c.motion)[b]
    return delta(c.weights[f"{layer}.A"].double(), scale*c.weights[f"{layer}.{b}"].double())

def dense(concepts, part="joint"):
    "The updates themselves, flattened: (N, all entries of all layers)."
    return np.stack([torch.cat([update(c, l, b).flatten() for l in c.layers for b in PARTS[part]]).numpy() for c in concepts])

def randn(g, *shape): return torch.randn(*shape, generator=g, dtype=torch.float64)

def regauged(c, g, spread=1.):
    "The same concept, each layer in a random invertible gauge with singular values between exp(-spread) and exp(spread)."
    w, turn = {}, lambda r: torch.linalg.qr(randn(g, r, r))[0]
    for l in c.layers:
        r = c.rank
        G = turn(r) @ torch.diag((spread*(2*torch.rand(r, generator=g, dtype=torch.float64)-1)).exp()) @ turn(r)
        for b in ("B1", "B2"): w[f"{l}.A"], w[f"{l}.{b}"] = reparametrise(c.weights[f"{l}.A"].double(), c.weights[f"{l}.{b}"].double(), G)
    return replace(c, weights=w)

def same_pca(p, X, tol=1e-6):
    "PCA `p` is scikit-learn's of the rows of X: variances, coordinates up to sign, and nothing left over."
    d = Dense().fit(X)
    k, size = len(p.explained_variance_), d.explained_variance_.sum()
    assert np.abs(p.explained_variance_ - d.explained_variance_[:k]).max() <= tol*size and d.explained_variance_[k:].sum() <= tol*size
    scores = d.transform(X)[:, :k]
    gaps = np.diff(p.explained_variance_, append=0)/size # a component is only defined where its variance is its own
    for i in np.flatnonzero((np.abs(gaps) > 1e-3) & (np.abs(np.diff(p.explained_variance_, prepend=np.inf)/size) > 1e-3)):
        s = np.sign(p.scores[:, i] @ scores[:, i])
        assert np.abs(s*p.scores[:, i] - scores[:, i]).max() <= tol*size**.5*10


# exact

@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("which", ["people", "strangers"])
def test_pca_is_dense_pca(which, part, request):
    concepts = request.getfixturevalue(which)
    same_pca(Atlas(concepts).pca(part), dense(concepts, part))

def test_pca_of_isometric_coordinates_is_the_same(people, atlas):
    X = torch.cat([isometric_coordinates([(c.weights[f"{l}.A"], c.weights[f"{l}.B1"]) for c in people])[0] for l in people[0].layers], 1).numpy()
    same_pca(atlas.pca("appearance"), X)
    raw = np.stack([torch.cat([c.weights[f"{l}.B1"].flatten() for l in c.layers]).numpy() for c in people])
    assert np.abs(Dense().fit(raw).explained_variance_ratio_[:3] - atlas.pca("appearance").explained_variance_ratio_[:3]).max() > 1e-3 # raw B is not isometric

@check
@given(st.integers(0, 2**31), st.floats(0, 3))
def test_pca_does_not_see_the_gauge(seed, spread):
    g = torch.Generator().manual_seed(seed)
    concepts, _ = synthetic(8, shared=bool(seed % 2), seed=seed % 1000)
    one, two = Atlas(concepts), Atlas([regauged(c, g, spread) for c in concepts])
    for part in PARTS:
        scale = np.abs(one.gram(part)).max()
        assert np.abs(one.gram(part)-two.gram(part)).max() < 1e-6*scale
        assert np.abs(one.pca(part).explained_variance_[:4]-two.pca(part).explained_variance_[:4]).max() < 1e-6*scale

@check
@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_layer_gram_is_dense_whatever_the_ranks_and_blocks(ranks, rows, out, in_, seed):
    g = torch.Generator().manual_seed(seed)
    pairs = [(randn(g, r, in_), randn(g, out, r), randn(g, out, r)) for r in ranks]
    G = layer_gram(pairs, rows=rows)
    for k in (0, 1):
        X = torch.stack([delta(p[0], p[1+k]).flatten() for p in pairs])
        torch.testing.assert_close(G[k], X @ X.T, atol=1e-9*float(max(1, G.abs().max())), rtol=1e-9)

@check
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_blocks_hold_whole_members_once(ranks, rows):
    owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
    blocks = list(member_blocks(owner, rows))
    assert [(a, i) for a, _, i, _ in blocks[1:]] == [(b, j) for _, b, _, j in blocks[:-1]]
    assert blocks[0][::2] == (0, 0) and blocks[-1][1::2] == (sum(ranks), len(ranks))
    assert all(b-a <= rows or j-i == 1 for a, b, i, j in blocks)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("common", [0., 1.])
def test_sixteen_bit_files_are_exact_to_1e_6(dtype, common):
    g = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(8, 512, generator=g).to(dtype), (torch.randn(256, 8, generator=g)).to(dtype)) for _ in range(12)]
    if common: pairs = [(torch.cat([pairs[0][0], a[:2]]), torch.cat([pairs[0][1], b[:, :2]], 1)) for a, b in pairs]
    G = layer_gram(pairs)[0].numpy()
    X = torch.stack([delta(a.double(), b.double()).flatten() for a, b in pairs]).numpy()
    assert np.abs(G - X @ X.T).max() < 1e-6*np.abs(G).max()
    p, d = pca_of(G), Dense().fit(X)
    assert np.abs(p.explained_variance_ - d.explained_variance_[:len(p.explained_variance_)]).max() < 1e-6*d.explained_variance_.sum()

def test_gram_is_dense(strangers):
    X = dense(strangers, "motion")
    np.testing.assert_allclose(Atlas(strangers).gram("motion"), X @ X.T, rtol=1e-9, atol=1e-9*(X*X).sum(1).max())

def test_scales_of_a_concept_count(people):
    weak = [c.at(appearance=.5, motion=2.) for c in people]
    a, b = Atlas(people), Atlas(weak)
    np.testing.assert_allclose(b.gram("appearance"), a.gram("appearance")/4, rtol=1e-5); np.testing.assert_allclose(b.gram("motion"), a.gram("motion")*4, rtol=1e-5)
    assert b.decode(b.pca().scores[0]).appearance == 1 and np.allclose(dense([b.decode(b.pca().scores[0])]), dense(weak[:1]), atol=1e-4)

def test_layers_are_read_within_the_budget(people):
    asked, members = [], Atlas(people).members
    spies = [replace(m, read=lambda ls, m=m: (asked.append(tuple(ls)), m.read(ls))[1]) for m in members]
    one = [l for l, _ in layers_of(spies, budget=1)]
    assert one == people[0].layers and all(len(a) == 1 for a in asked)
    asked.clear()
    assert [l for l, _ in layers_of(spies)] == one and set(asked) == {tuple(one)}

def test_nothing_is_read_before_it_is_asked_for(people):
    broken = [replace(m, read=None) for m in Atlas(people).members]
    assert len(Atlas(broken)) == len(people) and "24 concepts" in repr(Atlas(broken))


# statistics

def test_random_updates_explain_two_over_n_minus_one():
    for n in (6, 11, 21):
        members = Atlas(synthetic(n, latents=0, noise=1., sizes={f"blocks.{i}.l": (60, 40) for i in range(6)}, seed=n)[0])
        two, null = members.pca().explained_variance_ratio_[:2].sum(), members.null(draws=10)
        assert abs(two - 2/(n-1)) < .25*2/(n-1)
        assert null.shape == (10, n-1) and np.allclose(null.sum(1), 1)
        assert abs(two - null[:, :2].sum(1).mean()) < .1*two # the null says the same of them, and closer

@pytest.mark.parametrize("shared", [True, False])
def test_null_has_the_spread_of_real_random_updates(shared):
    "Cosines of random updates have a variance of 1 over the dimensions that the null works with."
    members = Atlas(synthetic(60, latents=0, noise=1e6, rank=2, sizes={"a": (30, 8), "b": (6, 5)}, shared=shared, seed=2)[0])
    for part in ("appearance", "joint"):
        G = members.gram(part)
        cos = (G/np.sqrt(np.outer(G.diagonal(), G.diagonal())))[np.triu_indices(60, 1)]
        assert 1/members.dimensions(part) == pytest.approx(np.var(cos), rel=.25)

def test_null_keeps_unequal_lengths():
    G = np.diag([100.**2, *[1.]*9])
    assert null_ratios(G, 1e6).mean(0)[0] > .9 # one long update makes a component, and no finding
    assert null_ratios(np.eye(10), 3).shape == (20, 9) # fewer dimensions than members

def test_leave_one_out_is_a_dense_projection(strangers):
    X, ks = dense(strangers), [0, 1, 3, 7, 50]
    got = leave_one_out(X @ X.T, ks)
    for i, x in enumerate(X):
        others = np.delete(X, i, 0)
        for j, k in enumerate(ks):
            d = Dense(min(k, len(others)-1)).fit(others) if k else None
            back = d.inverse_transform(d.transform(x[None]))[0] if k else others.mean(0)
            assert got[i, j] == pytest.approx(np.linalg.norm(x-back)/np.linalg.norm(x), abs=1e-6)

def test_reconstruction_tells_structure_from_noise():
    made = Atlas(synthetic(20, latents=4, noise=.05, seed=1)[0]).reconstruction("joint", [0, 4])
    noise = Atlas(synthetic(20, latents=0, noise=1e3, seed=1)[0]).reconstruction("joint", [0, 4, 19])
    assert np.median(made["unseen"][:, 1]) < .1 < np.median(made["unseen"][:, 0])
    assert np.median(noise["unseen"][:, 1]) > .95 and noise["seen"][:, 2].max() < 1e-3

def test_direction_finds_what_is_there_and_no_more():
    people, z = synthetic(40, seed=7)
    atlas = Atlas(people)
    there, kind, elsewhere = (atlas.direction(z[:, 0], p, permutations=49) if y is None else atlas.direction(y, p, permutations=49) for p, y in (("appearance", None), ("appearance", np.where(z[:, 0] > 0, "tall", "small")), ("motion", None)))
    assert there.score > .95 and there.p == .02 and kind.score > .85 and kind.p == .02
    assert elsewhere.p > .05 and elsewhere.score < .3
    assert np.corrcoef(there.positions, z[:, 0])[0, 1] > .99
    assert there.axis.sum() == pytest.approx(0, abs=1e-9) and there.axis @ atlas.gram("appearance") @ there.axis == pytest.approx(1, abs=1e-6)

def test_p_values_of_noise_are_uniform():
    atlas, rng = Atlas(synthetic(16, seed=8)[0]), np.random.default_rng(0)
    p = [atlas.direction(rng.standard_normal(16), permutations=9, folds=4, seed=s).p for s in range(30)]
    assert .3 < np.mean(p) < .75 and 0 < np.mean(np.array(p) <= .3) < .65

def test_groups_are_not_split():
    "Every person thrice, with a random attribute of the person: without groups the person is recognised, with groups there is nothing to find."
    base, _ = synthetic(12, seed=9)
    people = [replace(c, weights={k: w + (.01*torch.randn(w.shape) if k.endswith("B1") else 0) for k, w in c.weights.items()}) for c in base for _ in range(3)]
    values, who = np.repeat(np.random.default_rng(1).standard_normal(12), 3), np.repeat(np.arange(12), 3)
    atlas = Atlas(people)
    blind, honest = atlas.direction(values, permutations=19), atlas.direction(values, groups=who, permutations=19)
    assert blind.score > .5 and blind.p == .05 and honest.score < .3 and honest.p > .05

def test_probe_corrects_for_trying_many():
    people, z = synthetic(30, seed=10)
    rng = np.random.default_rng(0)
    found = Atlas(people).probe({"truth": z[:, 0]} | {f"coin {i}": rng.permutation(30) < 15 for i in range(4)}, "appearance", permutations=49)
    assert found["truth"].q == pytest.approx(.1) and all(d.q >= d.p for d in found.values())

@pytest.mark.parametrize("values, say", [([1.]*24, "no direction"), ([1., 2.], "one value per member"), (["a", "b", "c"]*8, "two kinds"), (["a"]*23+["b"], "two kinds"), ([float("nan")]+[1.]*23, "missing")])
def test_attributes_that_cannot_be_probed(atlas, values, say):
    with pytest.raises(UserError, match=say): atlas.direction(values)

def test_one_group_cannot_be_left_out(atlas):
    with pytest.raises(UserError, match="of one group"): atlas.direction(np.arange(24.), groups=["a"]*24)


# places and mixes

def test_decoding_a_members_coordinates_gives_it_back(people, atlas):
    for made in (atlas.decode(atlas.pca().scores[3]), atlas.decode(appearance=atlas.pca("appearance").scores[3], motion=atlas.pca("motion").scores[3])):
        assert isinstance(made, Concept) and made.rank == people[3].rank
        np.testing.assert_allclose(dense([made]), dense(people[3:4]), atol=1e-4)
        for t, v in people[3].tokens.items(): torch.testing.assert_close(made.tokens[t], v, atol=1e-4, rtol=0)

def test_decode_is_the_dense_inverse_transform(people, atlas):
    d, p, c = Dense().fit(dense(people)), atlas.pca(), np.array([2., -1., .5])
    signs = np.sign((p.scores*d.transform(dense(people))[:, :p.scores.shape[1]]).sum(0))[:3]
    np.testing.assert_allclose(dense([atlas.decode(c)])[0], d.mean_ + (c*signs) @ d.components_[:3], atol=1e-4)
    np.testing.assert_allclose(dense([atlas.mean()])[0], d.mean_, atol=1e-5)

@pytest.mark.parametrize("look, own, motion, says", [
    ("a [v] woman in a park", "she is [u] resting", "he is [u] waving his arms", "she is [u] waving her arms"),
    ("a [v] man in a park", "he is [u] resting", "she is [u] dancing", "he is [u] dancing"),
    ("a [v] bonfire in a park", "it is [u] burning", "he is [u] dancing", "it is [u] dancing"),
    ("a [v] man in a park", "[u]", "she is [u] dancing", "he is [u] dancing"),
    ("a [v] woman in a park", "he is [u] with his hat", "he is [u] with his hat", "he is [u] with his hat")])
def test_a_movement_suits_who_is_seen(look, own, motion, says):
    assert mixing._motion_prompt(dict(info=dict(appearance=look, motion=own)), motion) == says


@pytest.mark.parametrize("shared", [True, False])
def test_looks_of_one_dance_of_another(shared):
    people, _ = synthetic(4, shared=shared, seed=11)
    people[0].info["motion"], people[1].info["motion"] = "he is [u] dancing", "she is [u] swimming"
    made = Atlas(people).interpolate(0, 1, appearance=0, motion=1, rank=8)
    np.testing.assert_allclose(dense([made], "appearance"), dense(people[:1], "appearance"), atol=1e-4); np.testing.assert_allclose(dense([made], "motion"), dense(people[1:2], "motion"), atol=1e-4)
    assert torch.equal(made.tokens["[v]"], people[0].tokens["[v]"]) and torch.equal(made.tokens["[u]"], people[1].tokens["[u]"])
    assert made.info["motion"] == "he is [u] swimming" and made.info["atlas"]["lost"] < 1e-6

def test_mix_of_other_bases_is_the_best_of_its_rank(strangers):
    a = Atlas(strangers).interpolate(0, 1, .5)
    l = strangers[0].layers[0]
    wanted = torch.cat([(update(strangers[0], l, b)+update(strangers[1], l, b))/2 for b in ("B1", "B2")])
    got, S = torch.cat([update(a, l, b) for b in ("B1", "B2")]), torch.linalg.svdvals(wanted)
    assert a.rank == 3 and (got-wanted).norm() == pytest.approx(float(S[3:].norm()), rel=1e-4)
    whole, left = dense(strangers[:2]).mean(0), dense([a])[0]
    assert a.info["atlas"]["lost"] == pytest.approx(np.linalg.norm(whole-left)/np.linalg.norm(whole), rel=1e-4)

def test_a_mix_of_other_bases_in_narrow_layers_can_be_loaded(tmp_path):
    narrow, _ = synthetic(3, shared=False, sizes={"narrow": (24, 6), "wide": (20, 32)}, seed=3)
    made = Atlas(narrow).mix([.3, .3, .3], rank=10)
    again = Concept.load(made.save(tmp_path/"mix"))
    assert again.rank == made.rank == 10 and all(len(made.weights[f"{l}.A"]) == 10 for l in made.layers)
    for k, w in made.weights.items(): torch.testing.assert_close(again.weights[k], w)
    exact = .3*sum(update(c, "narrow", "B1") for c in narrow)
    torch.testing.assert_close(update(made, "narrow", "B1"), exact, atol=1e-5, rtol=1e-4)

def renamed(c, n):
    info = c.info | dict(appearance=f"a [v{n}] man in a park", motion=f"he is [u{n}] dancing")
    return replace(c, tokens={f"{w[:2]}{n}]": t for w, t in c.tokens.items()}, info=info)

@pytest.mark.parametrize("saved", [False, True])
def test_words_with_a_number_are_mixed_with_plain_ones(people, tmp_path, saved):
    mixed = [renamed(people[0], 1), people[1], renamed(people[2], 2)]
    places = [c.save(tmp_path/f"{i}") for i, c in enumerate(mixed)] if saved else mixed
    made, plain = (Atlas(x).mix([.5, .3, .2]) for x in (places, people[:3]))
    assert made.prompts == plain.prompts and made.tokens.keys() == plain.tokens.keys()
    for w, t in plain.tokens.items(): torch.testing.assert_close(made.tokens[w], t)

def test_a_concept_of_several_subjects_is_mixed_with_none_of_others(people):
    words = {w: torch.ones(8) for w in ("[v1]", "[u1]", "[v2]", "[u2]")}
    scene = replace(people[0], tokens=words, info=people[0].info | dict(appearance="a [v1] man and a [v2] dog", motion="he is [u1] up, [u2]"))
    with pytest.raises(UserError, match="of several subjects"): Atlas([scene, people[1]]).mix([.5, .5])
    assert Atlas([scene, people[1]])[0].prompts == scene.prompts

def test_a_slider_moves_by_its_unit_and_only_its_part(people, atlas):
    for part, other in (("appearance", "motion"), ("motion", "appearance")):
        d = atlas.axis(2, part)
        moved = atlas.slide(4, d, -2.5)
        assert np.linalg.norm(dense([moved], part)-dense(people[4:5], part)) == pytest.approx(2.5, rel=1e-4)
        np.testing.assert_allclose(dense([moved], other), dense(people[4:5], other), atol=1e-6)
        where, before = (Atlas([*people, moved]).locate(x, part)[0] for x in (moved, people[4]))
        assert np.linalg.norm(where-before) == pytest.approx(2.5, rel=1e-4)
    joint = atlas.slide(None, atlas.axis(1), 3.)
    assert np.linalg.norm(dense([joint])-dense([atlas.mean()])) == pytest.approx(3, rel=1e-4)

def test_samples_spread_like_the_population(atlas):
    p, drawn = atlas.pca("appearance"), [atlas.locate(atlas.sample(seed), "appearance")[0] for seed in range(40)]
    assert np.std(drawn, 0)[:2] == pytest.approx(p.std[:2], rel=.4)
    assert np.allclose(dense([atlas.sample(0, appearance=0, motion=0)]), dense([atlas.mean()]), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(atlas.sample(3).weights.values(), atlas.sample(3).weights.values()))
    assert not torch.equal(atlas.sample(3).weights["blocks.0.attn1.to_q.B1"], atlas.sample(4).weights["blocks.0.attn1.to_q.B1"])

def test_locate_is_the_dense_projection(people):
    some, other = Atlas(people[1:]), people[0]
    d = Dense().fit(dense(people[1:]))
    where, outside = some.locate(other)
    back = d.inverse_transform(d.transform(dense([other])))
    assert outside == pytest.approx(np.linalg.norm(dense([other])-back)/np.linalg.norm(dense([other])), abs=1e-4)
    np.testing.assert_allclose(np.abs(where), np.abs(d.transform(dense([other]))[0][:len(where)]), atol=1e-3)
    assert Atlas(people).locate(other)[1] < 1e-3

def test_nearest_is_dense(strangers):
    X = dense(strangers, "motion")
    expect = np.linalg.norm(X-X[2], axis=1)
    got = Atlas(strangers).nearest("concept 2", 9, "motion")
    assert [n for n, _ in got] == [f"concept {i}" for i in np.argsort(expect)[1:]] and [d for _, d in got] == pytest.approx(sorted(expect)[1:], rel=1e-6)

def test_projecting_keeps_everything_at_full_rank_and_the_most_below(strangers):
    atlas = Atlas(strangers)
    full = atlas.project_onto()
    assert full.one_basis and not atlas.one_basis and full.truncation_error < 1e-6
    for part in PARTS: np.testing.assert_allclose(full.gram(part), atlas.gram(part), rtol=1e-4, atol=1e-4*atlas.gram(part).max())
    small, X = atlas.project_onto(5), 0
    whole = sum(np.sum(dense([c])**2) for c in strangers)
    for l in atlas.layers: X += float(torch.linalg.svdvals(torch.cat([update(c, l, b) for c in strangers for b in ("B1", "B2")]))[5:].square().sum())
    assert small.truncation_error == pytest.approx((X/whole)**.5, rel=1e-4)

def test_norms_and_angles(people, strangers):
    got = Atlas(strangers).norms("motion")[4]
    assert got == pytest.approx([float(norm(strangers[4].weights[f"{l}.A"], strangers[4].weights[f"{l}.B2"])) for l in strangers[0].layers], rel=1e-6)
    assert max(v.max() for v in Atlas(people).angles(0, 1).values()) < 1e-4
    assert all(v.shape == (3,) and v.max() > 45 for v in Atlas(strangers).angles(0, 1).values())


# files

def lora(c, path, spelling="peft", g=None, dtype=torch.float32, alpha=None):
    "A concept's sum as a LoRA file, in another program's spelling."
    prefix, a, b = dict(peft=("base_model.model.", "lora_A", "lora_B"), diffusers=("transformer.", "lora_A", "lora_B"), kohya=("lora_unet_", "lora_down", "lora_up"), comfy=("diffusion_model.", "lora_A", "lora_B"))[spelling]
    out = {}
    for l, (A, B) in c.adapters()["concept"].items():
        if g is not None: A, B = reparametrise(A.double(), B.double(), randn(g, len(A), len(A)))
        raw = prefix + (l.replace(".", "_") if spelling == "kohya" else l)
        out |= {f"{raw}.{a}.weight": A.to(dtype).contiguous(), f"{raw}.{b}.weight": (B*(len(A)/alpha if alpha else 1)).to(dtype).contiguous()}
        if alpha and spelling == "kohya": out[f"{raw}.alpha"] = torch.tensor(float(alpha))
    path.parent.mkdir(exist_ok=True, parents=True); save_file(out, path)
    return path

def summed(people): return [replace(c, weights=c.weights | {f"{l}.B1": c.weights[f"{l}.B1"]+c.weights[f"{l}.B2"] for l in c.layers}) for c in people]

@pytest.mark.parametrize("raw, name", [("lora_unet_blocks_12_self_attn_q", "blocks.12.attn1.to_q"), ("diffusion_model.blocks.0.cross_attn.o", "blocks.0.attn2.to_out.0"), ("transformer.blocks.3.attn2.to_out.0", "blocks.3.attn2.to_out.0"),
                                       ("lora_unet_blocks_3_ffn_0", "blocks.3.ffn.net.0.proj"), ("base_model.model.blocks.3.ffn.net.2", "blocks.3.ffn.net.2"), ("diffusion_model.blocks.7.ffn.2", "blocks.7.ffn.net.2"),
                                       ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1")])
def test_one_name_for_one_layer(raw, name): assert layer_name(raw) == name

def test_spellings_ranks_alphas_and_gauges_make_no_difference(people, tmp_path):
    g, spell = torch.Generator().manual_seed(1), ("peft", "diffusers", "kohya", "comfy")
    people = [*people[:8], *synthetic(4, rank=2, seed=3)[0]]
    files = [lora(c, tmp_path/f"{i}.safetensors", spell[i % 4], g, torch.float64, alpha=3 if i % 4 == 2 else None) for i, c in enumerate(people)]
    same_pca(Atlas(files).pca(), dense(summed(people), "appearance"))
    assert Atlas(files).names[:2] == ["0", "1"]

def test_diffusers_reads_kohya_as_we_do(tmp_path):
    "The library's own conversion of a Wan LoRA in kohya's names gives the same update."
    from diffusers.loaders.lora_conversion_utils import _convert_musubi_wan_lora_to_diffusers
    g, tensors = torch.Generator().manual_seed(2), {}
    for n, (o, i) in {**{f"{a}_{x}": (6, 6) for a in ("self_attn", "cross_attn") for x in "qkvo"}, "ffn_0": (9, 6), "ffn_2": (6, 9)}.items():
        tensors |= {f"lora_unet_blocks_0_{n}.lora_down.weight": torch.randn(2, i, generator=g), f"lora_unet_blocks_0_{n}.lora_up.weight": torch.randn(o, 2, generator=g), f"lora_unet_blocks_0_{n}.alpha": torch.tensor(3.)}
    save_file(tensors, tmp_path/"k.safetensors")
    theirs = {k.removeprefix("transformer."): v for k, v in _convert_musubi_wan_lora_to_diffusers(dict(tensors)).items()}
    mine = Atlas([tmp_path/"k.safetensors"]*2).members[0]
    assert set(mine.sizes) == {k.rsplit(".lora", 1)[0] for k in theirs}
    for l, (A, B) in mine.read(list(mine.sizes)).items(): torch.testing.assert_close(delta(A.double(), B.double()), delta(theirs[f"{l}.lora_A.weight"].double(), theirs[f"{l}.lora_B.weight"].double()))

def test_alpha_of_peft_and_diffusers(people, tmp_path):
    plain = Atlas([lora(c, tmp_path/"plain"/f"{i}.safetensors") for i, c in enumerate(people[:3])]).gram()
    for i, c in enumerate(people[:3]):
        path = lora(c, tmp_path/f"p{i}"/"adapter_model.safetensors")
        (path.parent/"adapter_config.json").write_text(json.dumps(dict(lora_alpha=8, r=4, alpha_pattern={"attn1.to_q": 4})))
        save_file(load_file(lora(c, tmp_path/f"d{i}.safetensors", "diffusers")), tmp_path/f"d{i}.safetensors", {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 12, "transformer.r": 4})})
    np.testing.assert_allclose(Atlas([tmp_path/f"d{i}.safetensors" for i in range(3)]).gram(), 9*plain, rtol=1e-5)
    peft = Atlas([tmp_path/f"p{i}" for i in range(3)])
    assert peft.norms()[0]/Atlas([tmp_path/"plain"/f"{i}.safetensors" for i in range(3)]).norms()[0] == pytest.approx([1 if "to_q" in l else 2 for l in peft.layers], rel=1e-5)

def test_exported_concepts_are_foreign_loras(people, tmp_path):
    for i, c in enumerate(people[:4]): c.export(tmp_path/f"{i}", ("diffusers", "peft")[i % 2])
    same_pca(Atlas([tmp_path/f"{i}" for i in range(4)]).pca(), dense(summed(people[:4]), "appearance"))

def test_folders_are_the_concepts_they_hold(people, tmp_path):
    for i, c in enumerate(people[:6]): c.at(motion=.5).save(tmp_path/f"c{i}")
    (tmp_path/"notes.txt").write_text("not a member")
    disk, memory = Atlas(tmp_path), Atlas([c.at(motion=.5) for c in people[:6]])
    for part in PARTS: np.testing.assert_allclose(disk.gram(part), memory.gram(part), rtol=1e-12)
    a, b = (x.interpolate(0, 1, .3, .7) for x in (disk, memory))
    assert all(torch.equal(a.weights[k], b.weights[k]) for k in b.weights) and all(torch.equal(a.tokens[k], b.tokens[k]) for k in b.tokens)

def test_an_atlas_of_loras_decodes_to_loras(strangers, tmp_path):
    files = [lora(c, tmp_path/f"{i}.safetensors", "comfy") for i, c in enumerate(strangers)]
    made = Atlas(files).interpolate(0, 1, .25, rank=6)
    assert isinstance(made, Lora) and made.truncation_error < 1e-6
    X = dense(summed(strangers), "appearance")
    back = Atlas([made, made.save(tmp_path/"made.safetensors")])
    assert back.gram()[0, 1] == pytest.approx(np.sum((.75*X[0]+.25*X[1])**2), rel=1e-4)
    assert Atlas([*files, made]).nearest(len(files))[0][1] == pytest.approx(.25*np.linalg.norm(X[0]-X[1]), rel=1e-3)

def test_convolutions_are_flattened(tmp_path):
    g = torch.Generator().manual_seed(4)
    tensors = [{"conv.lora_down.weight": torch.randn(2, 3, 3, 3, generator=g), "conv.lora_up.weight": torch.randn(5, 2, 1, 1, generator=g)} for _ in range(3)]
    for i, t in enumerate(tensors): save_file(t, tmp_path/f"{i}.safetensors")
    X = torch.stack([torch.einsum("or,rikl->oikl", t["conv.lora_up.weight"][..., 0, 0].double(), t["conv.lora_down.weight"].double()).flatten() for t in tensors]).numpy()
    np.testing.assert_allclose(Atlas([tmp_path/f"{i}.safetensors" for i in range(3)]).gram(), X @ X.T, rtol=1e-9)


BARE = """
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
class Refused(MetaPathFinder, Loader): # found, since diffusers looks whether they are there, and never loaded
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in ("skia", "matplotlib") else None
    def create_module(self, spec): raise ImportError(f"{spec.name} is not to be had here")
    def exec_module(self, module): raise ImportError
sys.meta_path.insert(0, Refused())
from sas_nb.atlas.geometry import Atlas
atlas = Atlas(sys.argv[1])
scores = atlas.pca().scores
mixed = atlas.interpolate(0, 1, .25).save(sys.argv[2])
drawn = [m for m in ("skia", "matplotlib", "sas_nb.lab.draw", "sas_nb.lab.metrics") if m in sys.modules]
print(len(atlas), scores.shape, drawn)
"""

def test_an_atlas_of_lora_files_needs_no_drawing_library(strangers, tmp_path):
    "Opened, its PCA computed and a mix saved where neither skia nor matplotlib can be imported."
    import subprocess, sys
    for i, c in enumerate(strangers): lora(c, tmp_path/"loras"/f"{i}.safetensors", "comfy")
    run = subprocess.run([sys.executable, "-c", BARE, str(tmp_path/"loras"), str(tmp_path/"mix.safetensors")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "10 (10, 9) []" and (tmp_path/"mix.safetensors").exists()


# what cannot be

def test_members_that_cannot_be_compared(people, tmp_path):
    file = lora(people[0], tmp_path/"a.safetensors")
    other = lambda **changes: replace(people[1], info=people[1].info | changes)
    small, wide = (synthetic(1, sizes=s)[0][0] for s in ({"blocks.0.attn1.to_q": (24, 20)}, {l: (24, 24) for l in people[0].layers}))
    for members, say in (([people[0]], "no geometry"), ([], "no geometry"), (tmp_path/"none", "There is no"), ([people[0], file], "not of one kind"), ([people[0], other(fingerprint="x")], "different bases"),
                         ([people[0], small], "same layers"), ([people[0], wide], "different models"), ([tmp_path/"none"]*2, "There is no"), ([tmp_path/"empty"]*2 if not (tmp_path/"empty").mkdir() else 0, "neither a concept nor one LoRA")):
        with pytest.raises(UserError, match=say): Atlas(members)

def test_ranks_may_differ(): same_pca(Atlas(mixed := [*synthetic(4, rank=2, seed=1)[0], *synthetic(5, rank=4, seed=2)[0]]).pca(), dense(mixed))

@pytest.mark.parametrize("key", ["x.dora_scale", "x.diff_b", "x.lora_B.bias", "x.hada_w1_a", "x.lora_mid.weight"])
def test_what_is_no_plain_lora_is_named(people, tmp_path, key):
    path = lora(people[0], tmp_path/"a.safetensors")
    save_file(load_file(path) | {key: torch.zeros(2)}, path)
    with pytest.raises(UserError, match=key): Atlas([path]*2)

def test_damaged_and_empty_files(people, tmp_path):
    (tmp_path/"bad.safetensors").write_bytes(b"nothing")
    save_file({"x.lora_A.weight": torch.zeros(2, 4), "x.lora_B.weight": torch.zeros(4, 3)}, tmp_path/"odd.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(2, 4)}, tmp_path/"half.safetensors"); save_file({}, tmp_path/"empty.safetensors")
    for name, say in (("bad", "could not be read"), ("odd", "do not share a rank"), ("half", "no part of a plain LoRA"), ("empty", "holds no LoRA")):
        with pytest.raises(UserError, match=say): Atlas([tmp_path/f"{name}.safetensors"]*2)
    broken = replace(people[1], weights=people[1].weights | {"blocks.0.attn1.to_q.B1": torch.full((24, 4), float("nan"))})
    with pytest.raises(UserError, match="concept 1.*not all finite"): Atlas([people[0], broken]).pca()

def test_wishes_that_cannot_be(atlas, people, tmp_path):
    loras = Atlas([lora(c, tmp_path/f"{i}.safetensors") for i, c in enumerate(people[:3])])
    clip = Clip(torch.zeros(5, 3, 64, 64), 12)
    for wish, say in ((lambda: atlas.pca("style"), "no part 'style'"), (lambda: loras.pca("motion"), "does not say"), (lambda: atlas.index("nobody"), "no member"), (lambda: atlas.index(24), "no member"),
                      (lambda: atlas.decode([0]*99), "at most"), (lambda: atlas.decode([1], motion=[1]), "not both"), (lambda: atlas.mix([1, 2]), "one finite weight"), (lambda: atlas.axis(0), "no component"),
                      (lambda: loras.interpolate(0, 1, .1, .9), "moved together"), (lambda: loras.project_onto(), "does not say"), (lambda: loras.invert(clip, ("a [v] man", "he is [u] dancing")), "one shared A"),
                      (lambda: atlas.plot_map(x=99), "components"), (lambda: atlas.locate(tmp_path/"0.safetensors"), "not of one kind")):
        with pytest.raises(UserError, match=say): wish()


# pictures, and the real model

def test_figures_say_what_they_show(atlas, people, strangers):
    d = atlas.direction([i % 2 for i in range(24)], permutations=0)
    figures = [atlas.plot_scree(draws=3), atlas.plot_reconstruction(components=[0, 2, 5]), atlas.plot_map(labels=["a", "b"]*12, directions=[d]), Atlas(strangers).plot_layers(0, 1),
               atlas.plot_map(images=[Clip(torch.rand(2, 3, 8, 8), 4)]*24)]
    for f in figures:
        f.canvas.draw()
        assert all(ax.get_title() and ax.get_xlabel() for ax in f.axes)
    markers = {tuple(map(tuple, c.get_paths()[0].vertices.round(3))) for c in figures[2].axes[0].collections}
    assert len(markers) == 2 # kinds differ in shape, not in colour alone

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from sas_nb.dit import VideoDiT
    from sas_nb.hub import fingerprint
    from sas_nb.layers import linear_layers
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SAS_NB_CACHE", str(tmp_path_factory.mktemp("cache"))); torch.manual_seed(0)
        dit = VideoDiT.load("tiny", device="cpu")
        layers = r"blocks\.[01]\.attn1\.to_(q|v)"
        sizes = {n: tuple(m.weight.shape) for n, m in linear_layers(dit.transformer, layers).items()}
        people, _ = synthetic(6, rank=2, sizes=sizes, base="tiny", fingerprint=fingerprint(dit.transformer), layers=layers)
        yield dit, [replace(c, dit=dit, tokens={t: .1*torch.randn(dit.text_width) for t in c.tokens}, weights={k: w*(.1 if "B" in k[-2:] else 1) for k, w in c.weights.items()}) for c in people]

PROMPTS = STATIC, DYNAMIC = "a [v] man in a red shirt in a park", "he is [u] dancing"

def test_a_mix_generates(tiny):
    dit, people = tiny
    a = Atlas(people).interpolate(0, 1, appearance=0, motion=0)
    assert torch.equal(a.generate(seed=1, steps=2, num_frames=5).frames, people[0].generate(seed=1, steps=2, num_frames=5).frames)

def test_gradient_of_coordinates_is_the_projected_gradient_of_the_weights(tiny):
    from sas_nb.atlas.inversion import Plane
    dit, people = tiny
    plane = Plane(Atlas(people), "appearance", 3)
    z = torch.randn(3)
    assert set(plane.tensors) == {f"{l}.B1" for l in people[0].layers} | {"[v]"}
    leaves = {k: torch.nn.Parameter(torch.zeros_like(t[0])) for k, t in plane.tensors.items()}
    target = {k: torch.randn_like(p) for k, p in leaves.items()}
    plane.z = z.clone().requires_grad_()
    exact, = torch.autograd.grad(sum(((plane.at(k)-target[k])**2).sum() for k in leaves), plane.z)
    for k, p in leaves.items(): p.data.copy_(plane.at(k).detach())
    sum(((p-target[k])**2).sum() for k, p in leaves.items()).backward()
    torch.testing.assert_close(plane.gradient(leaves), exact, rtol=1e-4, atol=1e-4)

def test_invert_moves_coordinates_only_and_lowers_the_loss(tiny):
    dit, people = tiny
    atlas, clip = Atlas(people), people[2].at(appearance=20.).generate(seed=3, steps=4, num_frames=5) # far enough from the mean that there is something to find
    clip = Clip(clip.frames, 12)
    before = {k: p.clone() for k, p in dit.transformer.named_parameters() if "lora" not in k}
    found = atlas.invert(clip, PROMPTS, steps=(3, 3), components=3, batch=2, progress=False)
    assert all(torch.equal(before[k], p) for k, p in dit.transformer.named_parameters() if k in before) and not any(p.requires_grad for p in dit.transformer.parameters())
    assert [len(l) for l in found.info["atlas"]["losses"]] == [3, 3] and found.info["appearance"] == STATIC
    for part in ("appearance", "motion"):
        where, outside = atlas.locate(found, part)
        assert outside < 1e-3 and np.abs(where[:3]).max() > 0 and np.abs(where[3:]).max() < 1e-4*np.abs(atlas.pca(part).scores).max()
    def loss(concept): # on the same noise and times
        data, g = frame_set(dit, clip, STATIC), torch.Generator().manual_seed(0)
        x0, text, found_ = data.batch([i % 5 for i in range(40)])
        t, noise = torch.linspace(.05, .95, 40), torch.randn(x0.shape, generator=g)
        with torch.no_grad(), concept.at(motion=0.).attached(): return float(flow_loss(dit.velocity(interpolate(x0, noise, t), t, add_tokens(text, found_, concept.tokens)), velocity_target(x0, noise)))
    longer = atlas.invert(clip, PROMPTS, steps=(25, 0), lr=.3, batch=8, progress=False)
    assert loss(longer) < loss(atlas.mean())
    still = atlas.invert(clip, PROMPTS, steps=(0, 0), progress=False)
    np.testing.assert_allclose(dense([still]), dense([atlas.mean()]), atol=1e-6)
    assert len(found.generate(seed=0, steps=1, num_frames=5)) == 5

def test_invert_shows_the_set_as_the_members_saw_it(tiny, monkeypatch):
    dit, people = tiny
    seen = []
    class Enough(Exception): pass
    def look(dit, clips, prompts, recipe):
        seen.append((recipe.stage1.frozen, recipe.stage1.full_caption))
        raise Enough
    monkeypatch.setattr(inversion, "build", look)
    for stage1 in (dict(frozen=True, full_caption=True, steps=7), dict(frozen=True), {}):
        members = [replace(p, info=p.info | dict(recipe=dict(stage1=stage1))) for p in people]
        with pytest.raises(Enough): Atlas(members).invert(Clip(torch.rand(5, 3, 64, 64), 12), PROMPTS, progress=False)
    assert seen == [(True, True), (True, False), (False, False)]

def test_inverting_moves_one_part_in_each_stage_and_takes_the_adapter_off(tiny):
    dit, people = tiny
    atlas, clip = Atlas(people), Clip(torch.rand(5, 3, 64, 64), 12)
    middle = {part: atlas.locate(atlas.mean(), part)[0] for part in ("appearance", "motion")}
    for steps, moved in (((2, 0), "appearance"), ((0, 2), "motion")):
        found = atlas.invert(clip, PROMPTS, steps=steps, batch=2, lr=.5, progress=False)
        apart = {part: float(np.abs(atlas.locate(found, part)[0] - at).max()) for part, at in middle.items()}
        assert apart.pop(moved) > .1 and max(apart.values()) < 1e-3
        assert not dit.adapted

def test_a_loss_that_is_not_finite_stops_the_inversion(tiny):
    dit, people = tiny
    with pytest.raises(UserError, match="lower lr \\(now 0.05\\)"):
        Atlas(people).invert(Clip(torch.full((5, 3, 64, 64), float("nan")), 12), PROMPTS, steps=(1, 1), progress=False)
    assert not dit.adapted

def test_a_mix_is_sampled_like_its_look_and_has_no_recipe(people):
    made = [replace(c, info=c.info | dict(recipe=dict(name="default"), lr=[1., 1.], history={}, trained_with=3, sampling=dict(guidance_factor=.5, negative_scale=s))) for c, s in zip(people[:3], (.2, .7, 1.))]
    info = Atlas(made).interpolate(1, 0, appearance=0., motion=1.).info
    assert info["sampling"]["negative_scale"] == .7 and not {"recipe", "lr", "history", "made", "trained_with"} & set(info)


def test_a_mix_can_be_inspected_from_the_terminal(tmp_path):
    "It has no settings of its own; it has what it was mixed from."
    from typer.testing import CliRunner
    from sas_nb.cli import app
    concepts = synthetic(4)
    concepts = concepts[0] if isinstance(concepts, tuple) else concepts
    Atlas(concepts).interpolate(0, 1, appearance=.25, motion=1).save(tmp_path/"mix")
    said = CliRunner().invoke(app, ["info", str(tmp_path/"mix")])
    assert said.exit_code == 0 and "mixed from" in said.output, said.output


def test_probing_all_shuffles_at_once_is_probing_them_one_by_one():
    from sklearn import linear_model as lm, metrics, model_selection as ms
    people, hidden = synthetic(25, noise=1.)
    atlas = Atlas(people)
    d = atlas.direction(hidden[:, 0], "appearance", permutations=4)
    p = atlas.pca("appearance")
    X, cv, rng = p.scores/np.sqrt((p.scores**2).sum(1).mean()), ms.KFold(5, shuffle=True, random_state=0), np.random.default_rng(0)
    one = lambda y: metrics.r2_score(y, ms.cross_val_predict(lm.RidgeCV(np.logspace(-4, 3, 15)), X, y, cv=cv))
    assert np.allclose([d.score, *d.null], [one(hidden[:, 0]), *(one(rng.permutation(hidden[:, 0])) for _ in range(4))])

def test_attributes_together():
    people, hidden = synthetic(40)
    atlas = Atlas(people)
    mine, other = (atlas.probe({str(k): hidden[:, k] for k in ks}, "appearance", permutations=99) for ks in ((0, 2), (1, 3)))
    assert together(mine)[0] > .9 and together(mine)[1] == .01
    assert together(other)[0] < .3 and together(other)[1] > .05
    assert together(list(mine.values())) == together(mine)
    for bad in ({}, atlas.probe(dict(a=hidden[:, 0]), permutations=0)):
        with pytest.raises(UserError, match="same number of permutations"): together(bad)

def made_rows(leak, n=12, values=(0, .5, 1, 1.5, 2), noise=.02):
    rng = np.random.default_rng(0)
    return [dict(concept=f"c{i}", slider="s", value=v, effect=v+own, leak=leak(v)+own+noise*rng.normal()) for i in range(n) for own in [rng.normal()] for v in values]

def test_a_response_compares_everyone_with_themselves():
    r = response(made_rows(lambda v: 0.), "s", "effect", 1.)
    assert r.values.tolist() == [0, .5, 1, 1.5, 2] and np.allclose([c.mean for c in r.change], [-1, -.5, 0, .5, 1])
    assert all(c.high-c.low < 1e-9 for c in r.change) # people differ by far more than that, and it does not matter
    with pytest.raises(UserError, match="Nobody measured"): response(made_rows(lambda v: 0.), "s", "effect", 3.)
    with pytest.raises(UserError, match="Nobody measured"): response(made_rows(lambda v: 0.), "t", "effect", 1.)

@pytest.mark.parametrize("leak, safe", [(lambda v: 0., (0., 2., "end of what was measured", "end of what was measured")), (lambda v: -.5*(v > 1.2), (0., 1., "end of what was measured", "limit")),
                                        (lambda v: -.5*(v == .5), (1., 2., "limit", "end of what was measured")), (lambda v: .5*abs(v-1), (0., 2., "end of what was measured", "end of what was measured"))])
def test_the_safe_range_is_the_stretch_around_rest(leak, safe):
    rows = made_rows(leak)
    assert safe_range([response(rows, "s", "leak", 1.)]) == safe
    assert safe_range([response(rows, "s", m, 1.) for m in ("leak", "leak")]) == safe

def test_a_noisy_leak_is_not_called_safe():
    "Too few people to know: what cannot be excluded is not safe."
    assert safe_range([response(made_rows(lambda v: 0., n=4, noise=2.), "s", "leak", 1.)])[:2] == (1., 1.)


# other people's files, as their own programs read them

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = torch.nn.ModuleDict({k: torch.nn.Linear(6, 5) for k in ("to_q", "to_k")})

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.proj_out = torch.nn.Linear(5, 6)
    def forward(self, x): return x

FRAGMENTS = ["to_q", "attn1.to_k", "blocks.0.attn1.to_q", "^blocks.0.attn1.to_q", "^blocks.1.attn1.to_k", "^attn1.to_q", "to_q$", "^proj_out", "^proj_out$",
             "base_model.model.blocks.0.attn1.to_q", "transformer.proj_out", r"to_(q|k)", r"blocks\.\d+\.attn1\.to_k", "blocks.[01].attn.*", "o_q", "^.*to_q", "blocks.0", ".*", "attn1_to_q"]
def patterns(numbers): return st.dictionaries(st.sampled_from(FRAGMENTS), numbers, max_size=3).map(lambda d: dict(sorted(d.items()))) # the first that matches counts, and peft's files are sorted

def with_peft(folder, seed=0, adapter="default", **said):
    "A random LoRA by peft itself: its config and state dict, and its updates as it works them out; saved as a folder where that can be."
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    model = get_peft_model(Small(), LoraConfig(**dict(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "proj_out"], init_lora_weights=False) | said), adapter)
    model.save_pretrained(folder)
    truth = {n: m.get_delta_weight(adapter).detach().double() for n, m in model.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    return model, truth

def is_read_as(files, truths):
    "An atlas of these files has the inner products and the norms of these updates."
    made = Atlas(files)
    assert set(made.layers) == set(truths[0])
    np.testing.assert_allclose(made.gram(), [[sum(float((x[l]*y[l]).sum()) for l in x) for y in truths] for x in truths], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.norms(), [[float(t[l].norm()) for l in made.layers] for t in truths], rtol=1e-5)

@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning") # patterns that match nothing
@settings(check, max_examples=15)
@given(patterns(st.integers(1, 5)), patterns(st.integers(1, 16)), st.booleans(), st.integers(0, 99))
def test_patterns_are_matched_as_peft_matches_them(tmp_path_factory, ranks, alphas, rslora, seed):
    from diffusers import WanPipeline
    from peft import get_peft_model_state_dict
    folder = tmp_path_factory.mktemp("peft")
    made = [with_peft(folder/f"{i}", seed+i, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora) for i in (0, 1)]
    is_read_as([folder/"0", folder/"1"], truths := [t for _, t in made])
    for i, (model, _) in enumerate(made):
        weights = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
        WanPipeline.save_lora_weights(folder/f"d{i}", weights, transformer_lora_adapter_metadata=model.peft_config["default"].to_dict())
    is_read_as([folder/"d0", folder/"d1"], truths)

def test_a_strength_for_one_layer_has_the_right_value(tmp_path):
    "By hand: alpha 32 of rank 4 is eight times, in this layer and no other."
    plain, strong = (with_peft(tmp_path/name, r=4, lora_alpha=4, alpha_pattern=p)[1] for name, p in (("a", {}), ("b", {"^blocks.0.attn1.to_q": 32})))
    norms = Atlas([tmp_path/"a", tmp_path/"b"]).norms()
    assert norms[1]/norms[0] == pytest.approx([8 if l == "blocks.0.attn1.to_q" else 1 for l in sorted(plain)], rel=1e-5)

@pytest.mark.parametrize("said, say", [(dict(use_dora=True), "magnitude"), (dict(lora_bias=True), "lora_B.bias"), (dict(bias="all"), "bias"), (dict(modules_to_save=["proj_out"], target_modules=["to_q"]), "proj_out"),
                                       (dict(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"), (dict(init_lora_weights="olora"), "init_lora_weights = 'olora'")])
def test_what_peft_makes_otherwise_is_refused(tmp_path, said, say):
    with_peft(tmp_path/"a", **said)
    with pytest.raises(UserError, match=say): Atlas([tmp_path/"a"]*2)

@pytest.mark.parametrize("field, value", [("layer_replication", [[0, 2], [1, 2]]), ("fan_in_fan_out", True), ("alora_invocation_tokens", [1]), ("use_qalora", True), ("peft_type", "ADALORA"), ("use_dora", True), ("modules_to_save", ["norm"]),
                                          ("init_lora_weights", "corda"), ("bias", "lora_only"), ("target_parameters", ["experts"]), ("of_the_future", "yes"), ("kasa_config", dict(a=1))])
def test_settings_that_change_the_meaning_are_named(tmp_path, field, value):
    with_peft(tmp_path/"a")
    path = tmp_path/"a"/"adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {field: value}))
    with pytest.raises(UserError, match=f"{field} = .*not B A alone"): Atlas([tmp_path/"a"]*2)
    weights = {k.replace("base_model.model.", "transformer."): v for k, v in load_file(tmp_path/"a"/"adapter_model.safetensors").items()}
    save_file(weights, tmp_path/"d.safetensors", {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in (said | {field: value}).items()})})
    with pytest.raises(UserError, match=f"{field} = .*not B A alone"): Atlas([tmp_path/"d.safetensors"]*2)

@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "IA3Config", "OFTConfig"])
def test_other_kinds_of_adapter_are_refused(tmp_path, kind):
    import peft
    more = dict(feedforward_modules=[]) if kind == "IA3Config" else dict(oft_block_size=0, r=1) if kind == "OFTConfig" else {}
    peft.get_peft_model(Small(), getattr(peft, kind)(target_modules=["to_q"], **more)).save_pretrained(tmp_path/"a")
    with pytest.raises(UserError, match="no part of a plain LoRA"): Atlas([tmp_path/"a"]*2)

def test_a_config_of_another_file_is_refused(tmp_path):
    with_peft(tmp_path/"a", r=3)
    path = tmp_path/"a"/"adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(r=5)))
    with pytest.raises(UserError, match="has rank 3 in .* settings say 5"): Atlas([tmp_path/"a"]*2)

def plain_lora(layers, path, g=None, a="lora_A", b="lora_B", dtype=torch.float32, rank=3, size=6, **more):
    g = g or torch.Generator().manual_seed(0)
    save_file(made := {f"{l}.{k}.weight": torch.randn(*s, generator=g).to(dtype) for l in layers for k, s in ((a, (rank, size)), (b, (size, rank)))} | more, path)
    return made

@pytest.mark.parametrize("adapter", ["default", "my-adapter", "v1.2", "a.b-c.d", "lora_A"])
def test_adapters_may_have_names(tmp_path, adapter):
    named, plain = tmp_path/"n.safetensors", tmp_path/"p.safetensors"
    plain_lora(["blocks.0.self_attn.q"], plain); plain_lora(["blocks.0.self_attn.q"], named, a=f"lora_A.{adapter}", b=f"lora_B.{adapter}")
    both = Atlas([named, plain])
    assert both.layers == ["blocks.0.attn1.to_q"] and both.gram() == pytest.approx(both.gram()[0, 0]*np.ones((2, 2)))

@pytest.mark.parametrize("adapters", [("one", "two-b"), ("v1.1", "v1.2"), ("", "other")])
def test_several_adapters_in_one_file_are_named(tmp_path, adapters):
    tensors = {}
    for name in adapters: tensors |= plain_lora(["blocks.0.attn1.to_q"], tmp_path/"x.safetensors", **{k: f"lora_{k.upper()}{'.'*bool(name)}{name}" for k in "ab"})
    save_file(tensors, tmp_path/"x.safetensors")
    with pytest.raises(UserError, match=f"several LoRAs.*{adapters[-1]}.*file of its own"): Atlas([tmp_path/"x.safetensors"]*2)

@pytest.fixture(scope="module")
def wan():
    "Image-to-video's transformer, small and random: all layers that a Wan has."
    from diffusers import WanTransformer3DModel
    torch.manual_seed(0)
    return WanTransformer3DModel(patch_size=[1, 2, 2], num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=20, freq_dim=16, ffn_dim=40, num_layers=2,
                                 cross_attn_norm=True, qk_norm="rms_norm_across_heads", image_dim=28, added_kv_proj_dim=24, rope_max_seq_len=64)

@pytest.fixture(scope="module")
def linears(wan): return {n: (m.out_features, m.in_features) for n, m in wan.named_modules() if isinstance(m, torch.nn.Linear)}

PREFIXES = ["", "diffusion_model.", "transformer.", "base_model.model.", "model.diffusion_model.", "base_model.model.diffusion_model.", "unet.", "model.", "pipe.dit.", "dit.", "module.", "_orig_mod.", "base_model.model._orig_mod.",
            "lora_unet_", "lora_transformer_", "lycoris_"]

def test_every_layer_of_wan_has_both_names(linears):
    "Against diffusers' own table for whole checkpoints; written with dots, with underscores, and behind every prefix."
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from sas_nb.wan import Wan
    assert len(linears) > 28 and {"blocks.1.attn2.add_k_proj", "condition_embedder.image_embedder.ff.net.2", "proj_out"} <= set(linears)
    for layer in linears:
        theirs = Wan.original_name(layer)
        assert list(convert_wan_transformer_to_diffusers({f"{theirs}.weight": 0})) == [f"{layer}.weight"]
        for prefix in PREFIXES:
            for name in (layer, theirs): assert layer_name(prefix + (name.replace(".", "_") if prefix.endswith("_") else name)) == layer
    assert layer_name("lora_unet_blocks_11_cross_attn_k_img") == "blocks.11.attn2.add_k_proj" and layer_name("blocks.3._orig_mod.ffn.0") == "blocks.3.ffn.net.0.proj"
    assert not Wan.original_name("patch_embedding") and not Wan.original_name("blocks.0.attn1.to_qkv") and layer_name("diffusion_model.patch_embedding") == "patch_embedding"

def wan_lora(linears, path, spell, g, alpha=False, layers=None, **kinds):
    "A random LoRA in the authors' names."
    from sas_nb.wan import Wan
    a, b = kinds.get("a", "lora_A"), kinds.get("b", "lora_B")
    tensors = {}
    for l, (o, i) in linears.items():
        raw = spell(Wan.original_name(l))
        tensors |= {f"{raw}.{a}.weight": torch.randn(3, i, generator=g), f"{raw}.{b}.weight": torch.randn(o, 3, generator=g)}
        if alpha and "blocks" in l: tensors[f"{raw}.alpha"] = torch.tensor(1.5)
    save_file(tensors, path)
    return tensors

@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("a, b", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_the_authors_names_are_read_as_diffusers_reads_them(linears, tmp_path, alpha, a, b):
    from diffusers.loaders import lora_conversion_utils as theirs
    dotted = wan_lora(linears, tmp_path/"dots.safetensors", "diffusion_model.{}".format, torch.Generator().manual_seed(1), alpha, a=a, b=b)
    inside = {l: s for l, s in linears.items() if "blocks" in l} # all that diffusers takes in underscores, and always with alpha
    flat = wan_lora(inside, tmp_path/"flat.safetensors", lambda l: "lora_unet_" + l.replace(".", "_"), torch.Generator().manual_seed(1), True, a="lora_down", b="lora_up")
    for name, truth in (("dots", theirs._convert_non_diffusers_wan_lora_to_diffusers(dict(dotted))), ("flat", theirs._convert_musubi_wan_lora_to_diffusers(dict(flat)))):
        member = Atlas([tmp_path/f"{name}.safetensors"]*2).members[0]
        truth = {k.removeprefix("transformer."): v.double() for k, v in truth.items()}
        assert set(member.sizes) == {k.rsplit(".lora", 1)[0] for k in truth}
        for l, (A, B) in member.read(list(member.sizes)).items(): torch.testing.assert_close(delta(A.double(), B.double()), delta(truth[f"{l}.lora_A.weight"], truth[f"{l}.lora_B.weight"]))

def test_what_we_write_arrives_in_diffusers_layer_by_layer(wan, linears, tmp_path):
    from diffusers import WanImageToVideoPipeline
    files = [tmp_path/f"{i}.safetensors" for i in (0, 1)]
    for i, f in enumerate(files): wan_lora(linears, f, "diffusion_model.{}".format, torch.Generator().manual_seed(i), alpha=True)
    members = Atlas(files).members
    wanted = {l: sum(w*delta(*(t.double() for t in m.read([l])[l])) for w, m in zip((.3, .7), members)) for l in linears}
    pipe = WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, image_processor=None, image_encoder=None, transformer=wan)
    pipe.load_lora_weights(Atlas(files).interpolate(0, 1, .7, rank=6).save(tmp_path/"mix.safetensors"))
    arrived = {n: m.get_delta_weight("default_0").detach().double() for n, m in wan.named_modules() if hasattr(m, "get_delta_weight")}
    pipe.unload_lora_weights()
    assert set(arrived) == set(linears)
    for l in linears: torch.testing.assert_close(arrived[l], wanted[l], rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize("layer", ["patch_embedding", "double_blocks.0.img_attn.qkv", "blocks.0.attn1.to_qkv", "vace_blocks.0.self_attn.q"])
def test_what_has_no_name_in_diffusers_is_not_written(tmp_path, layer):
    for i in (0, 1): plain_lora(["diffusion_model.blocks.0.self_attn.q", f"diffusion_model.{layer}"], tmp_path/f"{i}.safetensors", torch.Generator().manual_seed(i))
    made = Atlas([tmp_path/f"{i}.safetensors" for i in (0, 1)]).interpolate(0, 1)
    with pytest.raises(UserError, match=f"'{layer}' is no linear layer of Wan.*nothing was written"): made.save(tmp_path/"new"/"made.safetensors")
    assert not (tmp_path/"new").exists()

@pytest.mark.parametrize("extra, say", [("lora_te_text_model_encoder_layers_0_mlp_fc1", "the text encoder"), ("lora_te2_x", "the text encoder"), ("text_encoder.encoder.block.0.q", "the text encoder"),
                                        ("transformer_2.blocks.0.attn1.to_q", "second transformer"), ("diffusion_model.blocks.0.self_attn.q", "'blocks.0.attn1.to_q' twice")])
def test_what_belongs_to_no_one_dit_is_refused(tmp_path, extra, say):
    plain_lora(["transformer.blocks.0.attn1.to_q", extra], tmp_path/"x.safetensors")
    with pytest.raises(UserError, match=say): Atlas([tmp_path/"x.safetensors"]*2)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("alpha", [None, torch.tensor(1.5), torch.tensor([3.], dtype=torch.bfloat16)])
def test_numbers_of_every_width(tmp_path, dtype, alpha):
    layers, truths = ["blocks.0.attn1.to_q", "blocks.0.attn2.to_v"], []
    for i in (0, 1):
        t = plain_lora(layers, tmp_path/f"{i}.safetensors", torch.Generator().manual_seed(i), dtype=dtype, **({} if alpha is None else {f"{layers[0]}.alpha": alpha}))
        scale = {l: float(alpha)/3 if alpha is not None and l == layers[0] else 1. for l in layers}
        truths.append({l: scale[l]*delta(t[f"{l}.lora_A.weight"].double(), t[f"{l}.lora_B.weight"].double()) for l in layers})
    is_read_as([tmp_path/f"{i}.safetensors" for i in (0, 1)], truths)

@pytest.mark.parametrize("how, say", [(dict(rank=0), "rank 0"), (dict(dtype=torch.int8), "whole numbers")])
def test_pairs_that_are_no_numbers(tmp_path, how, say):
    plain_lora(["blocks.0.attn1.to_q"], tmp_path/"x.safetensors", **how)
    with pytest.raises(UserError, match=say): Atlas([tmp_path/"x.safetensors"]*2)

def test_a_header_in_diffusers_words_over_the_authors_names(wan, tmp_path):
    "diffusers first renames the layers, then matches its header's patterns; so do we."
    from diffusers import WanPipeline
    file = tmp_path/"x.safetensors"
    tensors = {f"diffusion_model.blocks.{i}.self_attn.{x}.lora_{k}.weight": torch.randn(*s) for i in (0, 1) for x in "qk" for k, s in (("A", (3, 24)), ("B", (24, 3)))}
    said = dict(r=3, lora_alpha=6, target_modules=["to_q", "to_k"], alpha_pattern={"^blocks.1.attn1.to_q": 12}, use_rslora=True)
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in said.items()})})
    WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=wan).load_lora_weights(file, adapter_name="x")
    truth = {n: m.get_delta_weight("x").detach().double() for n, m in wan.named_modules() if hasattr(m, "get_delta_weight") and "attn1" in n}
    wan.unload_lora()
    is_read_as([file, file], [{l: truth[l] for l in Atlas([file]*2).layers}]*2)


def test_a_pattern_that_is_no_regular_expression_blames_the_settings(tmp_path):
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    for name in ("a", "b"): model.save_pretrained(tmp_path/name)
    settings = tmp_path/"a"/"adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | dict(alpha_pattern={"^(": 16})))
    with pytest.raises(UserError, match="no regular expression.*adapter_config.json"): Atlas([tmp_path/"a", tmp_path/"b"])
