"""The command `swav`."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from swav_trainer.errors import TrainerError, did_you_mean, printable, require


class Command(NamedTuple):
    """What a command says of itself, and the module:function that runs it."""

    text: str
    place: str
    needs: tuple[str, ...] = ("tyro", "rich", "safetensors", "cv2", "sklearn")


COMMANDS = {
    "plan": Command(
        "propose settings for a folder of images, with reasons, memory and time",
        "plan.command:main",
    ),
    "train": Command(
        "train SwAV, evaluate it and write a report (swav train --help lists the settings)",
        "run:train",
    ),
    "import": Command("make a run of weights that SwAV's authors or VISSL released", "use:main"),
    "report": Command("write one page on a run, or on several side by side", "report.command:main"),
    "sweep": Command(
        "run a grid of settings over seeds, and compare them in a table", "sweep.command:main"
    ),
    "eval": Command("score the features of a run, on its own images or on others", "use:main"),
    "embed": Command("write the features of images", "use:main"),
    "assign": Command("write the prototype of each image", "use:main"),
    "export": Command(
        "write the backbone's weights, for torchvision, timm, Detectron2, DETR or ONNX", "use:main"
    ),
    "presets": Command("list the presets, or print one", "cli:_presets", ()),
    "lint": Command("find the known defects of home-grown SwAV code", "lint:main", ()),
    "doctor": Command("say which backends can run here, and test each op", "cli:_doctor", ()),
}
USAGE = (
    "usage: swav COMMAND [options]\n\n"
    + "".join(f"  swav {name:<9} {command.text}\n" for name, command in COMMANDS.items())
    + "  swav --version\n"
)


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
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        import swav_kernels as sk

        print(f"swav-kernels {sk.__version__}")
        return 0
    if name not in COMMANDS:
        raise TrainerError(
            f"unknown command {name!r}: choose from {', '.join(COMMANDS)}"
            f"{did_you_mean(name, COMMANDS)}"
        )
    command = COMMANDS[name]
    if name in ("presets", "doctor") and rest and rest[0] in ("-h", "--help"):
        options = " [NAME or FILE.toml]" if name == "presets" else ""
        print(f"usage: swav {name}{options}\n\n{command.text}")
        return 0
    require(*command.needs)
    module, _, function = command.place.partition(":")
    run = getattr(importlib.import_module(f"swav_trainer.{module}"), function)
    return run(name, rest) if module == "use" else run(rest)


def _presets(arguments: Sequence[str]) -> int:
    from swav_trainer import settings

    if len(arguments) > 1:
        raise TrainerError(f"presets takes one name or none, got {' '.join(arguments)}")
    for name in arguments or settings.preset_names():
        preset = settings.load_preset(name)
        notes = settings.about(name)
        print(f"{printable(name)}\n  source: {notes['source']}\n  expected: {notes['expected']}")
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
