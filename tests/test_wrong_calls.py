"""Wrong values for every argument of every public function: one error of ours each."""

import inspect
import json
import re
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_in_calls import DROP_INS
from public_calls import CALLS, Call
from refusals import without_memory, wrong
from torch import Tensor

import swav_kernels as sk
from swav_kernels import compat

PACKAGE = str(Path(sk.__file__).parent)
LONGEST = 400
ALL = {**CALLS, **DROP_INS}
ARGUMENTS = [(name, argument) for name, call in ALL.items() for argument in call.arguments]
TENSORS = ("tensor", "rows", "out", "views", "queue views")


def fault(call: Call, argument: str, label: str, run: Callable[[], Any]) -> str:
    """What is wrong with the answer to a wrong call; nothing if it is an error of ours."""
    try:
        run()
    except Exception as error:
        message = str(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        # sizes fit one another or do not: either argument may be named
        names = (*call.arguments, "assign") if label.startswith("shape") else (argument,)
        if type(error) not in (TypeError, ValueError):
            return f"{type(error).__name__}: {message}"
        if not last.filename.startswith(PACKAGE) or not (last.line or "").startswith("raise"):
            return f"no refusal: {message}"
        if not message.startswith(f"{call.op}: "):
            return f"names another op: {message}"
        if not any(re.search(rf"\b{name}\b", message) for name in names):
            return f"does not name the argument: {message}"
        if "; " not in message:
            return f"has no remedy: {message}"
        if "\n" in message or len(message) > LONGEST:
            return f"is long: {message[:LONGEST]}"
        return ""
    return "is taken"


def right_values(call: Call) -> dict[str, Any]:
    return {name: of.right for name, of in call.arguments.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about prototypes of its own
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_wrong_value_is_refused_by_name(name: str, argument: str) -> None:
    call = ALL[name]
    right = right_values(call)
    faults = {
        label: found
        for label, value in wrong(call.arguments[argument])
        if (
            found := fault(
                call,
                argument,
                label,
                lambda: call.function(**{**right, argument: value}),  # noqa: B023
            )
        )
    }
    assert not faults


def test_there_are_as_many_wrong_calls_as_there_should_be() -> None:
    values = sum(len(list(wrong(ALL[name].arguments[argument]))) for name, argument in ARGUMENTS)
    assert values >= 2500


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("patch", "patched")])
def test_the_right_values_are_taken(name: str) -> None:
    call = ALL[name]
    call.function(**right_values(call))


def test_every_public_name_and_argument_is_in_the_table() -> None:
    functions = [getattr(sk, name) for name in sk.__all__ if name not in ("compat", "__version__")]
    without_arguments = {sk.doctor, sk.available_backends}
    tested: dict[Any, set[str]] = {}
    for name, call in CALLS.items():
        function = getattr(sk, name.partition(" ")[0].partition(".")[0])
        if "." not in name:
            tested.setdefault(function, set()).update(call.arguments)
    assert set(functions) - without_arguments == set(tested)
    for function, arguments in tested.items():
        of_loss = function is sk.SwAVLoss
        signature = inspect.signature(sk.swav_loss if of_loss else function)
        wanted = set(signature.parameters) - (
            {"features", "prototypes", "queue", "potentials"} if of_loss else set()
        )
        assert arguments == wanted, function


def test_every_drop_in_is_in_the_table() -> None:
    modules = [getattr(compat, name) for name in compat.__all__]
    functions = {
        value
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    } - {compat.capi.stabilised_sinkhorn}  # which is not for callers
    names = {call.op for call in DROP_INS.values()}
    assert len(functions) >= 18
    for function in functions:
        if isinstance(function, type):
            assert function.__name__ in names
            continue
        tested = [set(call.arguments) for call in DROP_INS.values() if call.function is function]
        assert tested, function
        for arguments in tested:
            assert arguments == set(inspect.signature(function).parameters), function


@pytest.mark.parametrize("name", ["sinkhorn", "swav_loss", "prototype_scores", "patch", "SwAVLoss"])
def test_an_unknown_keyword_and_a_missing_argument_are_named(name: str) -> None:
    function = getattr(sk, name)
    with pytest.raises(TypeError, match=f"{name}.*epsilom"):
        function(**({} if name == "SwAVLoss" else right_values(CALLS[name])), epsilom=0.05)
    if name != "SwAVLoss":
        with pytest.raises(TypeError, match=f"{name}.*missing 1 .*argument"):
            function(**dict(list(right_values(CALLS[name]).items())[1:]))


# --- tensors without memory, in a process of their own ------------------------------------------


def hidden_calls(mesh: Any) -> list[tuple[str, str, str, Callable[[], Any]]]:
    """Name, argument, label and call for every tensor argument and every such tensor."""
    calls = []
    for name, call in ALL.items():
        for argument, of in call.arguments.items():
            if of.kind in TENSORS and not name.startswith("FeatureQueue"):
                is_list = isinstance(of.right, list)
                for label, value in without_memory(of.right[-1] if is_list else of.right, mesh):
                    value = [*of.right[:-1], value] if is_list else value
                    values = {**right_values(call), argument: value}
                    calls.append((name, argument, label, lambda f=call, v=values: f.function(**v)))
    return calls


def child() -> None:
    """Print a line before and after each call: the last line of a process that died says where."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    subgroup = types.ModuleType("dinov3.distributed")
    subgroup.get_process_subgroup = lambda: dist.group.WORLD
    sys.modules["dinov3"], sys.modules["dinov3.distributed"] = subgroup, subgroup
    for name, argument, label, run in hidden_calls(init_device_mesh("cpu", (1,))):
        print(json.dumps([name, argument, label]), flush=True)
        print(json.dumps(fault(ALL[name], argument, label, run)), flush=True)
    dist.destroy_process_group()


def test_no_tensor_without_memory_reaches_a_kernel() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import test_wrong_calls as t; t.child()"],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"{lines[-1:]}\n{run.stderr[-2000:]}"
    faults = {tuple(case): found for case, found in zip(lines[::2], lines[1::2], strict=True)}
    assert len(faults) >= 450
    assert not {case: found for case, found in faults.items() if found}


@pytest.mark.parametrize("fill", [0.5, -0.5])
def test_a_lazily_negated_gradient_is_refused(fill: float) -> None:
    features = torch.rand(4, 8, requires_grad=True)
    scores = sk.prototype_scores(features, torch.rand(5, 8), backend="cpu")
    gradient: Tensor = torch._neg_view(torch.full((4, 5), fill))
    with pytest.raises(TypeError, match="prototype_scores: gradient is a lazily negated view"):
        scores.backward(gradient)
