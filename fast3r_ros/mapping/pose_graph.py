"""Pose-graph optimisation over keyframes in Sim(3).

Nodes are `map_from_local` of the keyframes, edges are measured `i_from_j`.  Sparse Levenberg-Marquardt with
Cauchy weights on loop edges; the linear systems are solved by SciPy's sparse LU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csc_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from fast3r_ros.geometry.rotation import (
    matrix_from_quaternion,
    matrix_from_vector,
    quaternion_from_matrix,
    vector_from_matrix,
)
from fast3r_ros.geometry.sim3 import Sim3

Float64 = NDArray[np.float64]

_ITERATIONS = 30
_CONVERGED = 1e-6  # relative decrease of the cost


@dataclass(frozen=True)
class Edge:
    """A measured similarity between two keyframes.

    depth: typical depth of keyframe i's scene, in i's local unit: translations are compared relative to it.
    sigma: (rotation in radians, translation / depth, log scale).  robust: whether it may be wrong (a loop).
    """

    i: int
    j: int
    i_from_j: Sim3
    depth: float
    sigma: tuple[float, float, float]
    robust: bool


@dataclass
class _State:
    """(N,) log scales, (N, 3, 3) rotations, (N, 3) translations of the nodes."""

    log_scale: Float64
    rotation: Float64
    translation: Float64

    def moved(self, step: Float64) -> _State:
        """After a step (N, 7) of (translation, rotation vector on the right, log scale)."""
        return _State(
            self.log_scale + step[:, 6],
            self.rotation @ matrix_from_vector(step[:, 3:6]),
            self.translation + step[:, :3],
        )


@dataclass(frozen=True)
class _Edges:
    """All edges as arrays; a, b: node numbers."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    log_scale: Float64
    rotation: Float64
    translation: Float64
    weight: Float64  # (E, 7), one over sigma; translations also over depth
    robust: NDArray[np.bool_]


def optimize(
    nodes: Mapping[int, Sim3], edges: Sequence[Edge], fixed: Collection[int] = ()
) -> dict[int, Sim3]:
    """The nodes that best agree with the edges; edges to unknown nodes are ignored.

    `fixed` nodes do not move.  In a connected part of the graph without any, the node with the lowest id does
    not move.
    """
    known = [edge for edge in edges if edge.i in nodes and edge.j in nodes]
    if not known:
        return dict(nodes)
    ids = sorted(nodes)
    number = {identity: n for n, identity in enumerate(ids)}
    state = _State(
        np.log([nodes[i].scale for i in ids]),
        np.stack([nodes[i].rotation for i in ids]),
        np.stack([nodes[i].translation for i in ids]),
    )
    stacked = _stack(known, number)
    linked = coo_matrix((np.ones(len(known)), (stacked.a, stacked.b)), shape=(len(ids), len(ids)))
    _, part = connected_components(linked, directed=False)
    free = np.array([identity not in fixed for identity in ids])
    lowest = np.unique(part, return_index=True)[1]
    free[lowest[~np.isin(part[lowest], part[~free])]] = False
    if not free.any():
        return dict(nodes)
    column = np.where(free, np.cumsum(free) - 1, -1)
    state = _minimize(state, stacked, column)
    # exact rotations, so that rounding errors do not accumulate over optimisations
    rotation = matrix_from_quaternion(quaternion_from_matrix(state.rotation))
    return {
        identity: Sim3(float(np.exp(state.log_scale[n])), rotation[n], state.translation[n])
        for identity, n in number.items()
    }


def _stack(edges: Sequence[Edge], number: dict[int, int]) -> _Edges:
    rotation, translation, scale = (np.array([e.sigma[k] for e in edges]) for k in range(3))
    weight = np.empty((len(edges), 7))
    weight[:, :3] = 1.0 / (translation * [e.depth for e in edges])[:, None]
    weight[:, 3:6] = 1.0 / rotation[:, None]
    weight[:, 6] = 1.0 / scale
    return _Edges(
        np.array([number[e.i] for e in edges]),
        np.array([number[e.j] for e in edges]),
        np.log([e.i_from_j.scale for e in edges]),
        np.stack([e.i_from_j.rotation for e in edges]),
        np.stack([e.i_from_j.translation for e in edges]),
        weight,
        np.array([e.robust for e in edges]),
    )


def _minimize(state: _State, edges: _Edges, column: NDArray[np.int64]) -> _State:
    """Levenberg-Marquardt; `column` (N,) numbers the free nodes, -1 for fixed ones."""
    damping = 1e-6
    residual = _residual(state, edges)
    cost = _cost(residual, edges)
    for _ in range(_ITERATIONS):
        hessian, gradient = _normal_equations(state, residual, edges, column)
        while damping < 1e6:
            system = hessian + diags(damping * hessian.diagonal() + 1e-12)
            step = np.zeros((len(column), 7))
            step[column >= 0] = _solve(system, -gradient).reshape(-1, 7)
            trial = state.moved(step)
            trial_residual = _residual(trial, edges)
            trial_cost = _cost(trial_residual, edges)
            if trial_cost <= cost:
                break
            damping *= 10
        else:
            return state
        decrease = (cost - trial_cost) / max(cost, 1e-300)
        state, residual, cost = trial, trial_residual, trial_cost
        damping = max(damping / 10, 1e-9)
        if decrease < _CONVERGED:
            break
    return state


def _solve(system: csc_matrix, right: Float64) -> Float64:
    """Solve a sparse symmetric positive definite system."""
    symmetric = {"SymmetricMode": True}
    factors = splu(csc_matrix(system), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=symmetric)
    return np.asarray(factors.solve(right))


def _residual(state: _State, edges: _Edges) -> Float64:
    """(E, 7): weighted difference between the present and the measured `i_from_j`."""
    a, b = edges.a, edges.b
    difference = np.empty((len(a), 7))
    difference[:, :3] = _relative(state, edges) - edges.translation
    turn = np.swapaxes(state.rotation[a], 1, 2) @ state.rotation[b]
    difference[:, 3:6] = vector_from_matrix(np.swapaxes(edges.rotation, 1, 2) @ turn)
    difference[:, 6] = state.log_scale[b] - state.log_scale[a] - edges.log_scale
    return difference * edges.weight


def _relative(state: _State, edges: _Edges) -> Float64:
    """(E, 3): the origin of b in the local frame of a."""
    offset = state.translation[edges.b] - state.translation[edges.a]
    turned = np.einsum("eji,ej->ei", state.rotation[edges.a], offset)
    return turned * np.exp(-state.log_scale[edges.a])[:, None]


def _robust_weight(residual: Float64, edges: _Edges) -> Float64:
    """(E,) Cauchy weights of the loop edges, 1 for the others."""
    return np.where(edges.robust, 1.0 / (1.0 + (residual**2).sum(axis=1) / 7.0), 1.0)


def _cost(residual: Float64, edges: _Edges) -> float:
    square = (residual**2).sum(axis=1)
    return float(np.where(edges.robust, 7.0 * np.log1p(square / 7.0), square).sum())


def _normal_equations(
    state: _State, residual: Float64, edges: _Edges, column: NDArray[np.int64]
) -> tuple[csc_matrix, Float64]:
    """Hessian and gradient over the free nodes."""
    jacobian_a, jacobian_b = _jacobians(state, residual, edges)
    count = len(edges.a)
    rows, columns, values = [], [], []
    for nodes, jacobian in ((edges.a, jacobian_a), (edges.b, jacobian_b)):
        place = column[nodes]
        used = np.flatnonzero(place >= 0)
        rows.append(np.broadcast_to(used[:, None, None] * 7 + np.arange(7)[:, None], (len(used), 7, 7)))
        columns.append(np.broadcast_to(place[used][:, None, None] * 7 + np.arange(7), (len(used), 7, 7)))
        values.append(jacobian[used])
    row, col, value = (np.concatenate([p.reshape(-1) for p in parts]) for parts in (rows, columns, values))
    shape = (7 * count, 7 * (int(column.max()) + 1))
    jacobian = coo_matrix((value, (row, col)), shape=shape).tocsc()
    weighted = jacobian.T @ diags(np.repeat(_robust_weight(residual, edges), 7))
    return csc_matrix(weighted @ jacobian), weighted @ residual.reshape(-1)


def _jacobians(state: _State, residual: Float64, edges: _Edges) -> tuple[Float64, Float64]:
    """Derivatives (E, 7, 7) of the residual by a step of node a and of node b."""
    a, b = edges.a, edges.b
    inverse_scale = np.exp(-state.log_scale[a])[:, None, None]
    back = np.swapaxes(state.rotation[a], 1, 2)
    relative = _relative(state, edges)
    by_a, by_b = np.zeros((2, len(a), 7, 7))
    by_a[:, :3, :3], by_b[:, :3, :3] = -back * inverse_scale, back * inverse_scale
    by_a[:, :3, 3:6] = _cross(relative)
    by_a[:, :3, 6] = -relative
    # the inverse right Jacobian of SO(3) to first order; residual rotations are small
    turn_error = residual[:, 3:6] / edges.weight[:, 3:6]
    right = np.eye(3) + 0.5 * _cross(turn_error)
    by_b[:, 3:6, 3:6] = right
    by_a[:, 3:6, 3:6] = -right @ np.swapaxes(state.rotation[b], 1, 2) @ state.rotation[a]
    by_a[:, 6, 6], by_b[:, 6, 6] = -1.0, 1.0
    return by_a * edges.weight[:, :, None], by_b * edges.weight[:, :, None]


def _cross(vectors: Float64) -> Float64:
    """(E, 3) -> (E, 3, 3) cross-product matrices."""
    result = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    result[:, 0, 1], result[:, 0, 2], result[:, 1, 2] = -z, y, -x
    result[:, 1, 0], result[:, 2, 0], result[:, 2, 1] = z, -y, x
    return result
