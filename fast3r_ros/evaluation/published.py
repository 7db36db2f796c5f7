"""Numbers that others have published, to print beside ours; never mixed with measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.  values: the names and units of our tables; what is not there was not
    given.
    """

    dataset: str
    table: str
    method: str
    source: str
    values: Mapping[str, float]


PUBLISHED = (
    PublishedRow(
        dataset="co3d",
        table="pose",
        method="Fast3R ViT-L 512",
        source="Yang et al., Fast3R, CVPR 2025",
        values={"RRA@15": 0.997},
    ),
)


def published_rows(dataset: str, table: str) -> list[PublishedRow]:
    """What is known to be published for a table of a dataset."""
    return [row for row in PUBLISHED if row.dataset == dataset and row.table == table]
