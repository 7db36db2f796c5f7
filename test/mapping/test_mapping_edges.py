"""Removal of keyframes from the pose graph."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.edges import EdgeStore, compose, reverse
from fast3r_ros.mapping.pose_graph import Edge, optimize

TRACK, LOOP = (0.002, 0.003, 0.002), (0.003, 0.005, 0.003)


def a_walk(count, seed=0):
    """Keyframes on a path with turns and a slowly changing scale."""
    rng = np.random.default_rng(seed)
    poses = [Sim3.identity()]
    for _ in range(count - 1):
        turn = matrix_from_vector(rng.normal(0, 0.1, 3))
        poses.append(poses[-1] @ Sim3(float(np.exp(rng.normal(0, 0.02))), turn, rng.normal(0, 0.3, 3)))
    return poses


def noisy(measured, sigma, depth, rng):
    error = Sim3(
        float(np.exp(rng.normal(0, sigma[2]))),
        matrix_from_vector(rng.normal(0, sigma[0], 3)),
        rng.normal(0, sigma[1] * depth, 3),
    )
    moved = measured.translation + error.translation
    return Sim3(measured.scale * error.scale, measured.rotation @ error.rotation, moved)


def track_edges(poses, j, present=None, rng=None):
    earlier = [i for i in (range(j) if present is None else present) if i < j]
    for span in (1, 2, 4, 8):
        if span <= len(earlier):
            i = earlier[-span]
            measured = poses[i].inverse() @ poses[j]
            if rng is not None:
                measured = noisy(measured, TRACK, 2.0, rng)
            yield Edge(i, j, measured, 2.0, TRACK, robust=False)


def is_connected(store, present):
    number = {identity: n for n, identity in enumerate(present)}
    pairs = [(number[e.i], number[e.j]) for e in store if not e.robust]
    rows, columns = zip(*pairs, strict=True)
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(present), len(present)))
    return connected_components(graph, directed=False)[0] == 1


def assert_exact(store, poses):
    for edge in store:
        truth = poses[edge.i].inverse() @ poses[edge.j]
        assert abs(np.log(edge.i_from_j.scale / truth.scale)) < 1e-9
        assert angle_between(edge.i_from_j.rotation, truth.rotation) < 1e-7
        assert np.allclose(edge.i_from_j.translation, truth.translation, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 38))
def test_connections_survive_and_exact_edges_stay_exact(seed, removed):
    rng = np.random.default_rng(seed)
    poses = a_walk(40, seed)
    store = EdgeStore(edge for j in range(40) for edge in track_edges(poses, j))
    store.add(Edge(2, 37, poses[2].inverse() @ poses[37], 2.0, LOOP, robust=True))
    gone = rng.permutation(40)[:removed]
    for count, identity in enumerate(gone, start=1):
        before = len(store)
        store.remove(int(identity))
        present = sorted(set(range(40)) - set(gone[:count].tolist()))
        assert {e.i for e in store} | {e.j for e in store} <= set(present)
        assert is_connected(store, present)
        assert len(store) <= before
    assert_exact(store, poses)


def test_parts_that_one_edge_joins_stay_joined():
    poses = a_walk(40)
    store = EdgeStore(edge for j in range(20) for edge in track_edges(poses, j))
    for j in range(21, 40):
        for edge in track_edges(poses, j, present=range(20, 40)):
            store.add(edge)
    store.add(Edge(5, 25, poses[5].inverse() @ poses[25], 2.0, LOOP, robust=False))
    present = list(range(40))
    assert is_connected(store, present)
    for identity in (5, 25, 4, 24, 6, 26):
        store.remove(identity)
        present.remove(identity)
        assert is_connected(store, present), identity
    assert_exact(store, poses)


def test_the_number_of_edges_follows_the_number_of_keyframes_for_any_trajectory_length():
    poses, rng = a_walk(1200), np.random.default_rng(0)
    store, present = EdgeStore(), []
    largest = 0
    for j in range(len(poses)):
        for edge in track_edges(poses, j, present[-12:]):
            store.add(edge)
        if j % 5 == 0 and j > 60:
            old = int(rng.choice(present[:-20]))
            store.add(Edge(old, j, poses[old].inverse() @ poses[j], 2.0, LOOP, robust=True))
        present.append(j)
        if len(present) > 60:
            gone = int(rng.choice(present[:-10]))
            present.remove(gone)
            store.remove(gone)
        largest = max(largest, len(store))
    assert is_connected(store, present)
    assert largest <= 8 * 60
    assert_exact(store, poses)


def test_the_composed_uncertainty_is_the_one_that_errors_have():
    rng = np.random.default_rng(0)
    a, b, c = a_walk(3, seed=3)
    first = Edge(0, 1, a.inverse() @ b, 2.0, (0.01, 0.005, 0.01), False)
    second = Edge(1, 2, b.inverse() @ c, 1.5, (0.01, 0.005, 0.01), False)
    ratios = {"compose": [], "reverse": []}
    for _ in range(400):
        one, two = (
            Edge(e.i, e.j, noisy(e.i_from_j, e.sigma, e.depth, rng), e.depth, e.sigma, False)
            for e in (first, second)
        )
        for name, measured, truth in (
            ("compose", compose(one, two), a.inverse() @ c),
            ("reverse", reverse(one), b.inverse() @ a),
        ):
            error = np.linalg.norm(measured.i_from_j.translation - truth.translation) / np.sqrt(3)
            ratios[name].append(error / (measured.sigma[1] * measured.depth))
    for values in ratios.values():
        assert 0.4 < np.sqrt(np.mean(np.square(values))) < 1.3


def test_a_loop_takes_the_drift_out_of_a_thinned_graph():
    angles = np.linspace(0, 2 * np.pi, 200)
    truth = [
        Sim3(1.0, matrix_from_vector([0, 0, a]), np.array([10 * np.cos(a), 10 * np.sin(a), 0.0]))
        for a in angles
    ]
    rng = np.random.default_rng(0)
    store = EdgeStore(edge for j in range(200) for edge in track_edges(truth, j, rng=rng))
    store.add(Edge(0, 199, truth[0].inverse() @ truth[199], 2.0, LOOP, robust=True))
    drifted = {0: truth[0]}
    for edge in sorted(store, key=lambda e: e.j):
        if edge.j - edge.i == 1:
            drifted[edge.j] = drifted[edge.i] @ edge.i_from_j
    for identity in range(1, 199):
        if identity % 4:
            store.remove(identity)
    kept = {i: pose for i, pose in drifted.items() if i % 4 == 0 or i == 199}
    result = optimize(kept, list(store))

    def rmse(poses):
        return np.sqrt(
            np.mean([((p.translation - truth[i].translation) ** 2).sum() for i, p in poses.items()])
        )

    assert rmse(result) < 0.3 * rmse(kept)
