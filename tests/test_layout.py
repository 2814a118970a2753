"Maps that keep their word: exact at the marks, steady between, and no picture on another."
import numpy as np
import pytest
from sas_nb.atlas.layout import laid_out, natural_neighbours

RNG = np.random.default_rng(0)
SITES = dict(many=RNG.uniform(-1, 1, (60, 2)), three=np.array([(-.5, -.2), (.6, .1), (0, .7)]),
             two=np.array([(-.8, .3), (.5, -.4)]), one=np.array([(.2, .2)]),
             collinear=np.stack([np.linspace(-.9, .9, 7), np.linspace(-.45, .45, 7)], 1),
             lattice=np.stack(np.meshgrid(*[np.linspace(-.9, .9, 5)]*2), -1).reshape(-1, 2),
             close=np.array([(0, 0), (1e-4, 0), (.5, .5), (0, -1e-4)]))


def gram(n, seed=0, d=40):
    X = np.random.default_rng(seed).normal(size=(n, d))
    return X @ X.T


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
class TestNaturalNeighbours:
    def test_exact_at_every_site(self, sites):
        for k, x in enumerate(sites): assert natural_neighbours(sites, x).tolist() == np.eye(len(sites))[k].tolist()

    def test_shares_are_shares_everywhere_and_beyond_the_edge(self, sites):
        for x in [*np.random.default_rng(1).uniform(-1.5, 1.5, (20, 2)), (-1, -1), (1, 1), (0, 1), (5, -9)]:
            w = natural_neighbours(sites, x)
            assert w.min() >= 0 and w.sum() == pytest.approx(1, abs=1e-12) and np.isfinite(w).all()

    def test_continuous_along_random_paths(self, sites):
        "A thousandth of a step changes next to nothing, wherever the path is."
        if len(sites) == 4: pytest.skip("sites a ten-thousandth apart change as quickly")
        a, b = np.random.default_rng(2).uniform(-1, 1, (2, 2))
        for t in np.linspace(0, 1, 50):
            here, next_ = (natural_neighbours(sites, a + u*(b-a)) for u in (t, t+1e-4))
            assert np.abs(next_ - here).max() < .01

    def test_the_way_to_a_site_ends_at_it(self, sites):
        rng = np.random.default_rng(3)
        for k in range(min(len(sites), 6)):
            for far, least in ((1e-6, .95), (1e-8, .999)):
                x = sites[k] + far*rng.normal(size=2)
                assert natural_neighbours(sites, x)[k] > least


def test_between_two_it_is_half_each_and_near_one_it_is_mostly_that_one():
    two = np.array([(-.5, 0), (.5, 0)])
    assert natural_neighbours(two, (0, 0)) == pytest.approx([.5, .5])
    assert natural_neighbours(two, (0, .9)) == pytest.approx([.5, .5])  # off their line
    near = [natural_neighbours(two, (x, 0))[0] for x in (-.4, -.2, 0, .2, .4)]
    assert near == sorted(near, reverse=True) and near[0] > .7


def test_only_neighbours_have_a_share():
    lattice = SITES["lattice"]
    w = natural_neighbours(lattice, (.05, .02))
    assert np.abs(lattice[w > 1e-9]).max() < .46 and (w > 1e-9).sum() <= 6


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 13, 40, 64, 150])
def test_no_mark_covers_another(n, middle):
    points, step = laid_out(gram(n), middle and n > 1)
    assert points.tolist() == laid_out(gram(n), middle and n > 1)[0].tolist()  # the same every day
    assert points == pytest.approx(np.round(points/step)*step, abs=1e-5) and np.abs(points).max() <= 1
    marks = np.concatenate([points, np.zeros((int(middle and n > 1), 2))])
    apart = np.abs(marks[:, None] - marks[None]).max(-1)[~np.eye(len(marks), dtype=bool)]
    cells = 2*np.ceil((np.sqrt(n+1)-1)/2) + 1
    assert n == 1 or apart.min() >= min(.22, 1.7/cells)


def test_alike_members_stand_near():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 30)) + np.repeat([[0.], [6.]], 20, 0)
    points, _ = laid_out(X @ X.T)
    across = [np.linalg.norm(points[i] - points[j]) for i in range(20) for j in range(20, 40)]
    within = [np.linalg.norm(points[i] - points[j]) for i in range(20) for j in range(20) if i != j]
    assert np.mean(within) < .8*np.mean(across)


def test_members_that_are_all_alike_are_laid_out_too():
    points, _ = laid_out(np.ones((5, 5)))
    assert np.abs(points[:, None] - points[None]).max(-1)[~np.eye(5, dtype=bool)].min() > .2
