"""How long does a run take to start again? The same run six times with one persistent compilation cache.

python benchmarks/speed/second_start.py
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure

ROOT = Path(__file__).parents[2]
RUN = [
    "--config=configs/shapes.py",
    "--config.steps=2",
    "--config.eval.every_epochs=2.0",
    "--config.data.eval_count=16",
]


def start(workdir: Path, cache: Path) -> tuple[float, int]:
    """Trains two steps and evaluates.

    Args:
      workdir: Directory of the run.
      cache: Directory for the compilation cache.

    Returns:
      Seconds that the command took, and the number of programs in the cache afterwards.
    """
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, str(ROOT / "main.py"), *RUN, f"--workdir={workdir}"]
    begin = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, env={**kept, "XDG_CACHE_HOME": str(cache)}, check=True, capture_output=True
    )
    return time.perf_counter() - begin, len(list(cache.rglob("*-cache")))


def main() -> None:
    """Prints and writes one row per start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=6, help="default: %(default)s")
    starts = parser.parse_args().starts
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        print("| start | seconds | programs in the cache |\n| --- | --- | --- |")
        for number in range(1, starts + 1):
            seconds, programs = start(path / f"run{number}", path / "cache")
            rows.append({"start": number, "seconds": seconds, "programs": programs})
            print(f"| {number} | {seconds:.1f} | {programs} |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()
