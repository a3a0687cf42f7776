"""What tests of encoders share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `encoder_helpers`: pytest imports test files by path
