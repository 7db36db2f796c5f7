"""Make the documentation's picture again: the preview of the built-in walk with the demo model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).resolve().parent
COLOURS = 256  # of the palette; keeps the file small


def main() -> None:
    """Reconstruct into a temporary folder and keep its preview as demo.png."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fast3r_ros", "reconstruct", "synthetic", "--output", folder]
        subprocess.run(command, cwd=PICTURES.parents[1], check=True)
        with Image.open(Path(folder) / "preview.png") as preview:
            small = preview.convert("RGB").resize((1200, round(preview.height * 1200 / preview.width)))
            small.quantize(COLOURS).save(PICTURES / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
