"""The command `swav`: train and doctor."""

import sys
from collections.abc import Sequence

import swav_kernels as sk
from swav_trainer.errors import TrainerError, did_you_mean, require

USAGE = """\
usage: swav COMMAND [options]

  swav train     train SwAV, evaluate it and write a report (swav train --help lists the settings)
  swav doctor    say which backends can run here, and test each op
  swav --version
"""
COMMANDS = ("train", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 2 for a mistake of the user, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, *rest = arguments or ["--help"]
    try:
        if command in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if command == "--version":
            print(f"swav-kernels {sk.__version__}")
            return 0
        if command == "doctor":
            return _doctor(rest)
        if command == "train":
            require("tyro", "rich", "safetensors", "matplotlib", "cv2", "sklearn")
            from swav_trainer import run  # the libraries of the extra

            return run.train(rest)
        raise TrainerError(
            f"unknown command {command!r}: choose from {', '.join(COMMANDS)}"
            f"{did_you_mean(command, COMMANDS)}"
        )
    except TrainerError as error:
        print(f"swav: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("swav: interrupted", file=sys.stderr)
        return 130


def _doctor(arguments: Sequence[str]) -> int:
    if arguments:
        raise TrainerError(f"doctor takes no options, got {' '.join(arguments)}")
    report = sk.doctor()
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
