"""Settings for all tests of models."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `memory_helpers`: pytest imports test files by path
