"""Placing models on devices, and pinning processes to cores."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpipe.devices import (
    Device,
    Placement,
    format_cores,
    parse_device,
    place,
    place_apart,
    read_back,
)
from specpipe.errors import UserError, WorkerError


def placed(draft: str | None, target: str, cores: int = 4, gpus: int = 0) -> tuple[str, str]:
    placement = place(draft, target, cores=range(cores), gpus=gpus)
    return str(placement.draft), str(placement.target)


@pytest.mark.parametrize(
    ("spec", "device"),
    [
        ("auto", Device("auto")),
        ("cpu", Device("cpu")),
        ("cpu:0", Device("cpu", (0,))),
        ("cpu:0-3", Device("cpu", (0, 1, 2, 3))),
        ("cpu:0,2", Device("cpu", (0, 2))),
        ("cpu:5,0-1", Device("cpu", (0, 1, 5))),
        ("cuda:1", Device("cuda", gpu=1)),
    ],
)
def test_every_documented_spec_is_read(spec: str, device: Device) -> None:
    assert parse_device(spec) == device


@pytest.mark.parametrize(
    "spec",
    [
        *("", "gpu:0", "cuda", "cuda:", "cuda:-1", "cuda:x", "cuda:0,1", "CPU", "cpu:", "cpu:a"),
        *("cpu:3-1", "cpu:0-", "cpu:-1", "cpu:0,,1", "cpu:0,", "cpu: 0", "cpu:٣", "auto:0"),
        *("cpu:0-99999999999", "cpu:0\n", "cuda:1\n"),
    ],
)
def test_malformed_specs_are_named_in_one_line(spec: str) -> None:
    """`int()` alone would take Arabic digits, blanks and signs; a huge range would eat memory."""
    with pytest.raises(UserError) as caught:
        parse_device(spec)
    assert repr(spec) in str(caught.value)
    assert "cpu:0-3" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_what_is_printed_parses_to_the_same_device(cores: set[int]) -> None:
    """Devices are passed on, shown and pasted back as text."""
    device = Device("cpu", tuple(sorted(cores)))
    assert parse_device(str(device)) == device


def test_runs_of_cores_are_written_as_linux_does() -> None:
    assert format_cores([8, 3, 1, 0, 2, 5, 4, 10]) == "0-5,8,10"
    assert format_cores([]) == ""


@pytest.mark.parametrize(
    ("draft", "target", "cores", "gpus", "expected"),
    [
        ("auto", "auto", 4, 0, ("cpu:0", "cpu:1-3")),
        ("auto", "auto", 2, 0, ("cpu:0", "cpu:1")),
        ("auto", "auto", 1, 0, ("cpu", "cpu")),
        ("auto", "auto", 4, 1, ("cuda:0", "cuda:0")),
        ("auto", "auto", 4, 2, ("cuda:0", "cuda:1")),
        ("auto", "auto", 1, 8, ("cuda:0", "cuda:1")),
        (None, "auto", 4, 0, ("None", "cpu:0-3")),
        (None, "auto", 4, 2, ("None", "cuda:0")),
        (None, "cpu:2", 4, 2, ("None", "cpu:2")),
        ("cpu:3", "auto", 4, 0, ("cpu:3", "cpu:0-2")),
        ("auto", "cpu:1-3", 4, 0, ("cpu:0", "cpu:1-3")),
        ("auto", "cpu:0-3", 4, 0, ("cpu", "cpu:0-3")),
        ("cpu:0", "auto", 1, 0, ("cpu:0", "cpu")),
        ("cpu", "auto", 4, 0, ("cpu", "cpu:0-3")),
        ("cuda:1", "auto", 4, 2, ("cuda:1", "cuda:0")),
        ("auto", "cuda:0", 4, 2, ("cuda:1", "cuda:0")),
        ("auto", "cuda:0", 4, 1, ("cuda:0", "cuda:0")),
        ("cpu:0", "auto", 4, 1, ("cpu:0", "cuda:0")),
        ("cpu", "cpu", 4, 0, ("cpu", "cpu")),
        ("cpu", "cpu:1", 4, 0, ("cpu", "cpu:1")),
        ("cuda:0", "cuda:0", 4, 2, ("cuda:0", "cuda:0")),
    ],
)
def test_auto_takes_what_is_left(
    draft: str | None, target: str, cores: int, gpus: int, expected: tuple[str, str]
) -> None:
    """Two models on one core or GPU by accident overlap nothing, and nobody sees why it is slow."""
    assert placed(draft, target, cores, gpus) == expected


def test_models_that_take_turns_may_share_cores() -> None:
    """Ordinary speculative decoding with all cores for whichever model works."""
    placement = place("cpu:0-1", "cpu:0-1", gpus=0, cores=range(2), taking_turns=True)
    assert placement.shares_cores
    assert not place("cpu:0", "cpu:1", gpus=0, cores=range(2)).shares_cores


def test_cores_are_those_the_process_may_use() -> None:
    """In a container the first core is often not number 0."""
    assert str(place("auto", "auto", cores=[9, 4, 5], gpus=0).draft) == "cpu:4"
    usable = tuple(sorted(os.sched_getaffinity(0)))
    assert place(None, "auto", gpus=0) == Placement(None, Device("cpu", usable))


def test_one_gpu_for_both_is_noticed() -> None:
    """Two processes on one GPU are time-sliced; the launcher has to know."""
    assert place("cuda:1", "cuda:1", gpus=2).shares_gpu
    assert not place("cuda:0", "cuda:1", gpus=2).shares_gpu
    assert not place("cpu", "cpu", gpus=0).shares_gpu
    assert not place(None, "cuda:0", gpus=1).shares_gpu


@pytest.mark.parametrize(
    ("draft", "target", "gpus", "names"),
    [
        ("cpu:4", "auto", 0, ["draft device cpu:4", "core 4", "may use 0-3"]),
        ("auto", "cpu:2-9", 0, ["target device cpu:2-9", "core 4-9", "may use 0-3"]),
        (None, "cpu:7", 0, ["target device cpu:7", "core 7"]),
        ("cpu:1", "cpu:1", 0, ["cpu:1", "share core 1", "its own cores"]),
        ("cpu:0-2", "cpu:2-3", 0, ["share core 2"]),
        ("auto", "cuda:0", 0, ["target device cuda:0", "no GPU", "--target-device cpu"]),
        ("cuda:3", "auto", 0, ["draft device cuda:3", "no GPU", "--draft-device cpu"]),
        ("cuda:1", "auto", 1, ["draft device cuda:1", "only cuda:0"]),
        ("auto", "cuda:4", 4, ["target device cuda:4", "cuda:0 to cuda:3"]),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    draft: str | None, target: str, gpus: int, names: list[str]
) -> None:
    """A late failure in a worker would be a traceback of torch or of Ray."""
    with pytest.raises(UserError) as caught:
        placed(draft, target, gpus=gpus)
    assert all(name in str(caught.value) for name in names), str(caught.value)
    assert "\n" not in str(caught.value)


def in_a_process_with_threads(body: str) -> str:
    """Run `body` in a fresh process with three threads that sleep; return what it prints."""
    program = (
        "import os, threading\n"
        "from specpipe.devices import pin_process, read_back\n"
        "from specpipe.errors import UserError, WorkerError\n"
        "leave = threading.Event()\n"
        "threads = [threading.Thread(target=leave.wait) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        f"try:\n{body}\nfinally: leave.set()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_that_already_run_are_pinned_too() -> None:
    """`sched_setaffinity(0)` pins the calling thread only: torch's pool would go on everywhere."""
    body = (
        " got = pin_process(cores[:1])\n"
        " tasks = [int(tid) for tid in os.listdir('/proc/self/task')]\n"
        " print(got == (cores[0],), len(tasks) >= 4,"
        " all(os.sched_getaffinity(tid) == {cores[0]} for tid in tasks))"
    )
    assert in_a_process_with_threads(body) == "True True True"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_thread_that_strayed_is_found() -> None:
    """The report says what was got, not what was asked."""
    body = (
        " pin_process(cores[:1])\n"
        " os.sched_setaffinity(threads[1].native_id, cores[1:2])\n"
        " try: read_back(cores[:1])\n"
        " except WorkerError as error: print(str(threads[1].native_id) in str(error))\n"
        " print(read_back() == tuple(cores[:2]))"
    )
    assert in_a_process_with_threads(body).split() == ["True", "True"]


def test_no_cores_means_not_pinned() -> None:
    """Plain `cpu` must work on a machine with one core, and leave affinities alone."""
    body = " print(pin_process(()) == tuple(cores))"
    assert in_a_process_with_threads(body) == "True"


def test_a_core_the_system_refuses_is_one_line() -> None:
    """On another node of a cluster the core may be missing although the driver has it."""
    body = (
        " try: pin_process([900])\n"
        " except UserError as error: print('core 900' in str(error), 'may use' in str(error))"
    )
    assert in_a_process_with_threads(body) == "True True"


def test_read_back_refuses_another_affinity_than_asked() -> None:
    with pytest.raises(WorkerError, match="as asked"):
        read_back([9999])


@pytest.mark.parametrize(
    ("draft", "target", "gpus", "expected"),
    [
        ("auto", "auto", 0, ("cpu:0-3", "cpu:0-3")),
        ("auto", "cpu:2", 0, ("cpu:2", "cpu:2")),
        ("cpu:2", "cpu:2", 0, ("cpu:2", "cpu:2")),
        ("cpu:1", "auto", 0, ("cpu:1", "cpu:0-3")),
        ("auto", "cpu", 0, ("cpu", "cpu")),
        ("auto", "auto", 1, ("cpu", "cuda:0")),
    ],
)
def test_a_draft_that_only_looks_up_needs_no_device(draft, target, gpus, expected):
    """Given a core of its own, it takes half of a small machine for microseconds of work."""
    placement = place(draft, target, cores=range(4), gpus=gpus, draft_computes=False)
    assert (str(placement.draft), str(placement.target)) == expected


def test_a_model_that_is_alone_on_its_node_gets_all_of_it() -> None:
    """Equal numbers on two nodes are two devices: nothing is shared, and nothing is refused."""
    assert place_apart("draft", "auto", gpus=0, cores=range(2)) == Device("cpu", (0, 1))
    assert place_apart("draft", "auto", gpus=2, cores=range(2)) == Device("cuda", gpu=0)
    assert place_apart("draft", "cpu:1", gpus=2, cores=range(2)) == Device("cpu", (1,))
    for device in (Device("cpu", (0, 1)), Device("cuda", gpu=0)):
        apart, together = Placement(device, device, apart=True), Placement(device, device)
        assert (apart.shares_cores, apart.shares_gpu) == (False, False)
        assert (together.shares_cores, together.shares_gpu) != (False, False)
    with pytest.raises(UserError, match="draft device cpu:7 asks for core 7"):
        place_apart("draft", "cpu:7", gpus=0, cores=range(2))
