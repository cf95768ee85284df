"""The command `swav`."""

import os
import sys
from collections.abc import Sequence

from swav_trainer.errors import TrainerError, did_you_mean, printable, require

USAGE = """\
usage: swav COMMAND [options]

  swav plan      propose settings for a folder of images, with reasons, memory and time
  swav train     train SwAV, evaluate it and write a report (swav train --help lists the settings)
  swav report    write one page on a run, or on several side by side
  swav sweep     run a grid of settings over seeds, and compare them in a table
  swav eval      score the features of a run, on its own images or on others
  swav embed     write the features of images
  swav assign    write the prototype of each image
  swav export    write the backbone's weights, under torchvision's names
  swav presets   list the presets, or print one
  swav lint      find the known defects of home-grown SwAV code
  swav doctor    say which backends can run here, and test each op
  swav --version
"""
COMMANDS = (
    "plan", "train", "report", "sweep", "eval", "embed", "assign", "export", "presets", "lint",
    "doctor",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 2 for a mistake of the user, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no such letter shows another
            stream.reconfigure(errors="replace")
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except TrainerError as error:
        print(f"swav: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("swav: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, `swav train --help | head`: nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = "" if error.filename is None else f" {printable(error.filename)}"
        print(f"swav: cannot use{where}: {error.strerror}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        if "memory" not in reason:
            raise
        print(f"swav: these settings do not fit in memory: {reason}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        import swav_kernels as sk

        print(f"swav-kernels {sk.__version__}")
        return 0
    if command == "doctor":
        return _doctor(rest)
    if command == "presets":
        return _presets(rest)
    if command == "lint":
        from swav_trainer import lint

        return lint.main(rest)
    if command in COMMANDS:
        require("tyro", "rich", "safetensors", "cv2", "sklearn")  # the libraries of the extra
    if command == "plan":
        from swav_trainer.plan.command import main as run_command
    elif command == "train":
        from swav_trainer.run import train as run_command
    elif command == "report":
        from swav_trainer.report.command import main as run_command
    elif command == "sweep":
        from swav_trainer.sweep.command import main as run_command
    elif command in COMMANDS:
        from swav_trainer import use

        return use.main(command, rest)
    else:
        raise TrainerError(
            f"unknown command {command!r}: choose from {', '.join(COMMANDS)}"
            f"{did_you_mean(command, COMMANDS)}"
        )
    return run_command(rest)


def _presets(arguments: Sequence[str]) -> int:
    from swav_trainer import settings

    if len(arguments) > 1:
        raise TrainerError(f"presets takes one name or none, got {' '.join(arguments)}")
    for name in arguments or settings.preset_names():
        preset = settings.load_preset(name)
        notes = settings.about(name)
        print(f"{name}\n  source: {notes['source']}\n  expected: {notes['expected']}")
        if arguments:
            print("\n" + settings.to_text(preset), end="")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    if arguments:
        raise TrainerError(f"doctor takes no options, got {' '.join(arguments)}")
    import swav_kernels as sk

    report = sk.doctor()
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
