import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping import pose_graph
from fast3r_ros.mapping.pose_graph import Edge, optimize

TRACK, LOOP = (0.002, 0.002, 0.002), (0.003, 0.003, 0.003)


def random_sim3(rng, size=1.0):
    return Sim3(
        float(np.exp(rng.normal(0, 0.3 * size))),
        matrix_from_vector(rng.normal(0, size, 3)),
        rng.normal(0, 3 * size, 3),
    )


def circle(count):
    angles = np.linspace(0, 2 * np.pi, count)
    return [
        Sim3(1.0, matrix_from_vector([0, 0, a]), np.array([10 * np.cos(a), 10 * np.sin(a), 0.0]))
        for a in angles
    ]


def noisy_chain(truth, rng):
    edges, estimate = [], {0: truth[0]}
    for j in range(1, len(truth)):
        for i in (j - 1, j - 2, j - 4):
            if i < 0:
                continue
            noise = Sim3(
                float(np.exp(rng.normal(0, 0.002))),
                matrix_from_vector(rng.normal(0, 0.002, 3)),
                rng.normal(0, 0.004, 3),
            )
            measured = truth[i].inverse() @ truth[j] @ noise
            edges.append(Edge(i, j, measured, 2.0, TRACK, robust=False))
            if i == j - 1:
                estimate[j] = estimate[i] @ measured
    return edges, estimate


def rmse(estimate, truth):
    return np.sqrt(
        np.mean([((estimate[i].translation - t.translation) ** 2).sum() for i, t in enumerate(truth)])
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_jacobians_are_the_derivatives_of_the_residual(seed):
    rng = np.random.default_rng(seed)
    nodes = [random_sim3(rng), random_sim3(rng)]
    measured = nodes[0].inverse() @ nodes[1] @ random_sim3(rng, 1e-4)
    stacked = pose_graph._stack([Edge(0, 1, measured, 1.7, (0.1, 0.2, 0.3), False)], {0: 0, 1: 1})
    state = pose_graph._State(
        np.log([n.scale for n in nodes]),
        np.stack([n.rotation for n in nodes]),
        np.stack([n.translation for n in nodes]),
    )
    residual = pose_graph._residual(state, stacked)
    analytic = np.concatenate(pose_graph._jacobians(state, residual, stacked), axis=2)[0]
    step = 1e-6
    for column in range(14):
        move = np.zeros(14)
        move[column] = step
        ahead = pose_graph._residual(state.moved(move.reshape(2, 7)), stacked)
        behind = pose_graph._residual(state.moved(-move.reshape(2, 7)), stacked)
        numeric = ((ahead - behind) / (2 * step))[0]
        assert np.allclose(analytic[:, column], numeric, atol=2e-3 * (1 + np.abs(numeric).max()))


def test_consistent_edges_are_met_exactly_from_a_bad_start():
    rng = np.random.default_rng(1)
    truth = [random_sim3(rng, 0.5) for _ in range(12)]
    edges = [
        Edge(i, j, truth[i].inverse() @ truth[j], 1.0, TRACK, False)
        for i in range(12)
        for j in range(i + 1, 12)
    ]
    start = {0: truth[0]} | {i: truth[i] @ random_sim3(rng, 0.2) for i in range(1, 12)}
    result = optimize(start, edges)
    assert rmse(result, truth) < 1e-6
    assert max(abs(np.log(result[i].scale / truth[i].scale)) for i in range(12)) < 1e-6


def test_a_loop_takes_the_drift_out():
    truth = circle(200)
    edges, estimate = noisy_chain(truth, np.random.default_rng(0))
    edges.append(Edge(0, 199, truth[0].inverse() @ truth[199], 2.0, LOOP, robust=True))
    result = optimize(estimate, edges)
    assert rmse(result, truth) < 0.2 * rmse(estimate, truth)
    assert result[199].scale == pytest.approx(1.0, abs=0.005)


def test_a_wrong_loop_among_right_ones_is_outvoted():
    truth = circle(100)
    edges, estimate = noisy_chain(truth, np.random.default_rng(0))
    edges += [Edge(i, 99 - i, truth[i].inverse() @ truth[99 - i], 2.0, LOOP, True) for i in range(3)]
    right = optimize(estimate, edges)
    edges.append(Edge(10, 60, Sim3.identity(), 2.0, LOOP, robust=True))
    assert rmse(optimize(estimate, edges), truth) < 1.5 * rmse(right, truth) + 0.02


def test_parts_without_a_link_each_keep_their_first_node():
    rng = np.random.default_rng(2)
    nodes = {i: random_sim3(rng) for i in range(7)}
    edges = [Edge(0, 1, random_sim3(rng), 1.0, TRACK, False), Edge(3, 5, random_sim3(rng), 1.0, TRACK, False)]
    edges.append(Edge(2, 99, random_sim3(rng), 1.0, TRACK, False))
    result = optimize(nodes, edges)
    for i in (0, 2, 3, 4, 6):
        assert np.allclose(result[i].translation, nodes[i].translation)
    for edge in edges[:2]:
        met = nodes[edge.i] @ edge.i_from_j
        assert np.allclose(result[edge.j].translation, met.translation, atol=1e-6)
    assert optimize(nodes, []) == nodes
