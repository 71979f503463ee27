import sys
from pathlib import Path

# Experiments are scripts: they import each other as those beside them.
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
