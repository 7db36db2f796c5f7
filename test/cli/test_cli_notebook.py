"""The notebook of the documentation runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from shown_commands import ROOT

from fast3r_ros.io.ply import read_ply

NOTEBOOK = ROOT / "docs" / "notebooks" / "scene.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: requirements/test.txt")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: requirements/test.txt")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: requirements/test.txt")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # the kernel of this interpreter, no other
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    said = "".join(output.get("text", "") for output in outputs)
    assert "8 views" in said
    assert len(np.unique(read_ply(tmp_path / "scene.ply").points, axis=0)) > 1000


def test_the_notebook_is_stored_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
