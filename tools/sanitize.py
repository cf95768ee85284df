"""The tests of every op on kernels built under sanitizers, and the proof that these are awake.

    python tools/sanitize.py            # every instruction set of this processor, all tests
    python tools/sanitize.py --quick    # the best one

Address and undefined-behaviour sanitizer: the compiled module under them, in Python, by preloading
their runtime. Thread sanitizer: `tests/sanitizers/threads.cpp`, a program of C++ alone. Each must
report nothing, and must report the faults that `tests/sanitizers` plants. Needs g++ on Linux.
"""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from checkout import ROOT, build, environment_of, in_checkout, located, overlay, run

FOLDER = ROOT / "build/sanitize"
# what an instruction set takes from others
LEANS_ON = {"avx512": "avx2;", "avx512bf16": "avx2;avx512;", "amx": "avx2;avx512;"}
# a planted fault: what the report must say, and where it must have happened
PLANTED = {
    "planted_write_past_the_end": ("heap-buffer-overflow", "rows.h"),
    "planted_read_past_the_end": ("heap-buffer-overflow", "rows.h"),
    "planted_use_after_free": ("heap-use-after-free", "rows.h"),
    "planted_misaligned_read": ("load of misaligned address", "rows.h"),
    "planted_overflow_of_sizes": ("signed integer overflow", "sinkhorn.cpp"),
}
QUICK = ["prototype_scores", "sinkhorn", "sinkhorn_options", "swapped_cross_entropy", "swav_loss"]
QUICK += ["swav_potentials", "swav_stats", "prototype_cross_entropy", "numerics_policy"]
QUICK += ["prototype_distillation_loss"]
FULL = [*QUICK, "bad_input", "fuzz", "properties", "determinism", "modules", "compat"]
# Tests of memory, time and compilers would measure the sanitizer, and some are too large for it
UNWANTED = "not large and not 50_runs and not memory and not compile and not fresh"
UNWANTED_IF_QUICK = f"{UNWANTED} and not more_scores_than_a_cache_holds"


def available_sets() -> list[str]:
    """The instruction sets of this processor, from the slowest to the fastest."""
    code = "import swav_kernels._C"
    environment = environment_of(ROOT) | {"SWAV_KERNELS_CPU": "none"}
    refusal = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    ).stderr
    found = re.search(r"this processor has ([\w, ]+):", refusal)
    if found is None:
        sys.exit(f"tools/sanitize.py: install the package first; it says: {refusal}")
    return found[1].split(", ")


def library(name: str) -> str:
    """The path of a runtime library of g++."""
    return subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()


def wanted_sets(name: str) -> str:
    """What must be built to run the instruction set `name`."""
    return LEANS_ON.get(name, "") + name


def address_and_undefined(name: str, files: list[str], tests: str) -> str:
    """The tests of the ops on one instruction set; returns what there is to say."""
    folder = FOLDER / "address"
    module = build(
        ROOT, folder, "_C", SWAV_SANITIZE="address;undefined",
        SWAV_INSTRUCTION_SETS=wanted_sets(name),
    )  # fmt: skip
    package = overlay(ROOT, FOLDER / "package", module)
    environment = environment_of(
        package,
        LD_PRELOAD=f"{library('libasan.so')}:{library('libubsan.so')}",
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=1",  # Python keeps what it has
        UBSAN_OPTIONS="print_stacktrace=1",
        SWAV_KERNELS_CPU=name,
    )
    for fault, (report, place) in PLANTED.items():
        code = f"import ctypes; ctypes.CDLL({str(module)!r}).{fault}()"
        status, text = run([sys.executable, "-c", code], environment)
        if status == 0 or report not in text or place not in text:
            raise RuntimeError(f"{fault} must be reported as '{report}' in {place}:\n{text}")
    paths = [f"tests/test_{file}.py" for file in files]
    options = [*in_checkout(ROOT), "-x", "-k", f"cpu and {tests}", *located(ROOT, paths)]
    status, text = run([sys.executable, "-m", "pytest", *options], environment)
    summary = text.rstrip().rpartition("\n")[2]
    if status != 0:
        raise RuntimeError(text)
    return f"address and undefined, {name}: {len(PLANTED)} planted faults reported; {summary}"


def threads(name: str) -> str:
    """The program of threaded kernels on one instruction set; returns what there is to say."""
    program = build(
        ROOT, FOLDER / "thread", "swav_threads", SWAV_SANITIZE="thread",
        SWAV_INSTRUCTION_SETS=wanted_sets(name),
    )  # fmt: skip
    environment = environment_of(ROOT, SWAV_KERNELS_CPU=name)
    status, text = run([program, "planted_race"], environment)
    if status == 0 or "ThreadSanitizer: data race" not in text or "exp_row" not in text:
        raise RuntimeError(f"planted_race must be reported as a data race in exp_row:\n{text}")
    status, text = run([program], environment)
    if status != 0:
        raise RuntimeError(text)
    cases = text.count("0 of 3 runs differ")
    return f"thread, {name}: the planted race reported; no race in {cases} cases of 13 kernels"


def main() -> None:
    """Run both; exit status 1 with the report if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the best instruction set only")
    quick = parser.parse_args().quick
    sets = available_sets()
    chosen, tests = (QUICK, UNWANTED_IF_QUICK) if quick else (FULL, UNWANTED)
    try:
        for name in sets[-1:] if quick else reversed(sets):
            started = time.monotonic()
            with ThreadPoolExecutor(2) as pool:  # each waits for processes
                for part in (
                    pool.submit(address_and_undefined, name, chosen, tests),
                    pool.submit(threads, name),
                ):
                    print(part.result(), flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    except RuntimeError as error:
        sys.exit(f"tools/sanitize.py: {error}")


if __name__ == "__main__":
    main()
