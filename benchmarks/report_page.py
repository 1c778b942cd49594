"""The page of a thousand made-up trials: seconds to read and write it, its size, seconds until it is drawn.

    python benchmarks/report_page.py [--trials 1000] [--keep DIR]

Every trial has 20 layers and 10 classes. A browser (chromium and chromedriver on the path, driven by
selenium) opens the page from disk; without one that line is left out. Clock seconds, the middle of three.
"""

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the made-up trials are those of the tests

from tests.report.synthetic import METHODS, write_results

from rankwise.report.page import render, write_page
from rankwise.report.trials import read_study

TARGETS = tuple(0.1 * step for step in range(1, 11))
REPEATS = 3
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
         "disable-background-networking", "disable-component-update")  # fmt: skip
# From the start of the navigation until the last chart is in the document.
DRAWN = "return document.body.dataset.ready ? performance.now() : 0"


def seconds(work: Callable[[], Any]) -> float:
    """The middle of three runs."""
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return median(spent)


def drawn(page: Path) -> float | None:
    """Seconds until the page is drawn; None without a browser."""
    driver_path, binary = shutil.which("chromedriver"), shutil.which("chromium")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if not (driver_path and binary):
        return None
    spent = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = webdriver.ChromeOptions()
            options.binary_location = binary
            for flag in (*FLAGS, f"user-data-dir={profile}"):
                options.add_argument(f"--{flag}")
            driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
            try:
                driver.get(f"file://{page}")
                while not (found := driver.execute_script(DRAWN)):
                    time.sleep(0.01)
                spent.append(found / 1000)
            finally:
                driver.quit()
    return median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="where the folder of results is left")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.keep or Path(temporary)
        repetitions = max(1, arguments.trials // (len(METHODS) * len(TARGETS)))
        write_results(out, METHODS, TARGETS, repetitions)
        results = read_study(out)
        page = write_page(results).resolve()
        print(f"trials     {len(results.trials)}")
        print(f"read       {seconds(lambda: read_study(out)):.2f} s")
        print(f"render     {seconds(lambda: render(results)):.2f} s")
        print(f"page       {page.stat().st_size / 1e6:.2f} MB")
        shown = drawn(page)
        if shown is not None:
            print(f"drawn in   {shown:.2f} s")


if __name__ == "__main__":
    main()
