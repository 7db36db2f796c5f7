import sys
from pathlib import Path

# importlib mode does not find a module beside the tests
sys.path.insert(0, str(Path(__file__).parent))

from second_device import other_device  # noqa: F401
