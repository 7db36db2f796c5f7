"""Published numbers of others, printed next to ours and never mixed with measured ones.

All rows are from the paper "Fast3R: Towards 3D Reconstruction of 1000+ Images in One Forward Pass" (Yang et
al., CVPR 2025, arXiv 2501.13928v2), those of other methods as given in that paper.  Lengths are converted to
metres: the paper scales those of 7-Scenes and NRGBD by 100, and gives no unit for DTU, whose own unit is the
millimetre.  The paper's other numbers are omitted: they have no counterpart in our tables (frames per second;
Table 5, where means and medians cannot be distinguished) or no loader (RealEstate10K, ETH3D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAPER = "Yang et al., Fast3R, CVPR 2025"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    values: with the names and units of our tables; missing ones were not published.  source: the paper, its
    table and conditions.
    """

    dataset: str
    table: str
    method: str
    source: str
    values: Mapping[str, float]


def _co3d_poses() -> list[PublishedRow]:
    """Table 1, in percent.  None: not given."""
    names = ("RRA@15", "RRA@5", "RTA@15", "RTA@5", "mAA(30)")
    rows: dict[str, tuple[float | None, ...]] = {
        "COLMAP + SuperPoint/SuperGlue": (36.1, 24.4, 27.3, 17.2, 25.3),
        "PixSfM": (33.7, 26.1, 32.9, 17.6, 30.1),
        "RelPose": (57.1, None, None, None, None),
        "PosReg": (53.2, None, 49.1, None, 45.0),
        "PoseDiffusion": (80.5, 59.5, 79.8, 61.7, 66.5),
        "RelPose++, 8 views": (85.5, None, None, None, None),
        "DUSt3R": (96.2, None, 86.8, None, 76.7),
        "MASt3R": (94.6, 93.2, 91.9, 86.2, 81.8),
        "Fast3R without outdoor training data": (99.7, 97.4, 87.1, 76.1, 82.5),
        "Fast3R": (96.2, 90.2, 81.6, 68.2, 75.0),
    }
    return [
        PublishedRow(
            "co3d",
            "pose",
            method,
            f"{PAPER}, Table 1, 10 random views",
            {name: value / 100 for name, value in zip(names, values, strict=True) if value is not None},
        )
        for method, values in rows.items()
    ]


def _medians(
    dataset: str, conditions: str, metres: float, rows: Mapping[str, tuple[float, float]]
) -> list[PublishedRow]:
    """Median accuracy and completion.  metres: length of the table's unit."""
    return [
        PublishedRow(
            dataset,
            "reconstruction",
            method,
            f"{PAPER}, {conditions}",
            {"accuracy_median": accuracy * metres, "completion_median": completion * metres},
        )
        for method, (accuracy, completion) in rows.items()
    ]


def _depth(dataset: str, percent: Mapping[str, float]) -> list[PublishedRow]:
    """AbsRel of the multi-view depth evaluation."""
    source = f"{PAPER}, Table 7"
    return [
        PublishedRow(dataset, "depth", method, source, {"AbsRel": value / 100})
        for method, value in percent.items()
    ]


PUBLISHED = (
    *_co3d_poses(),
    *_medians(
        "7scenes",
        "Table 3, every 20th frame",
        0.01,
        {
            "FrozenRecon": (7.62, 2.31),
            "DUSt3R, 224 px": (1.23, 0.91),
            "Spann3R": (1.48, 0.85),
            "Fast3R": (1.58, 0.93),
        },
    ),
    *_medians(
        "nrgbd",
        "Table 3, every 40th frame",
        0.01,
        {
            "FrozenRecon": (20.59, 6.31),
            "DUSt3R, 224 px": (2.51, 1.03),
            "Spann3R": (3.15, 1.10),
            "Fast3R": (3.40, 1.01),
        },
    ),
    *_medians(
        "dtu",
        "Table 4, every 5th of 49 frames",
        0.001,
        {
            "DUSt3R": (1.159, 0.914),
            "DUSt3R, 224 px": (1.297, 1.002),
            "Spann3R": (2.268, 1.295),
            "Fast3R": (1.706, 0.857),
        },
    ),
    *_depth("scannet", {"COLMAP dense": 38.0, "DUSt3R, 224 px": 5.86, "DUSt3R": 4.93, "Fast3R": 6.27}),
    *_depth("dtu", {"COLMAP dense": 20.8, "DUSt3R, 224 px": 2.76, "DUSt3R": 3.52, "Fast3R": 3.92}),
)


def published_rows(dataset: str, table: str) -> list[PublishedRow]:
    """The published rows for a table of a dataset."""
    return [row for row in PUBLISHED if row.dataset == dataset and row.table == table]
