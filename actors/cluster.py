"""Ray: use the one that runs, or start one and end it again."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from specpipe.config import RayConfig
from specpipe.errors import UserError, WorkerError

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least: the pipeline puts nothing into it
_CONNECT_TIMEOUT_S = 5.0


_lock = threading.Lock()
_started = False  # whether that Ray is ours to end
_sessions = 0  # pipelines of this process that use a Ray which we connected to
_dashboard = ""  # that Ray's


@contextmanager
def ray_session(config: RayConfig) -> Iterator[bool]:
    """A connection to Ray; yields whether that Ray was started here.

    A Ray to which this process is connected, which `config.address` or RAY_ADDRESS names, or which
    `ray start` left running on this machine, is used and left as it is. Otherwise one is started
    here, and ended with the last session that uses it.

    Raises:
        UserError: when nothing answers at the address, or it is not host:port.
        WorkerError: when Ray does not start.
    """
    global _sessions, _started  # noqa: PLW0603 (as Ray's own connection is the process's)
    with _lock:
        theirs = ray.is_initialized() and _sessions == 0
        if not ray.is_initialized():
            _started = _connect(config)
        _sessions += not theirs
    try:
        yield _started and not theirs
    finally:
        with _lock:
            _sessions -= not theirs
            if not theirs and _sessions == 0:
                ray.shutdown()


def _connect(config: RayConfig) -> bool:
    """Connect this process; returns whether a Ray was started for it."""
    global _dashboard  # noqa: PLW0603 (as above)
    address = find_address(config.address or os.environ.get("RAY_ADDRESS"))
    # Before Ray starts, since its processes inherit them: GPUs by the numbers that torch gives
    # them on the node, no usage reports, no warning about actors without GPUs; and models that run
    # at the priority of any other program, not at nice 15 as Ray has its workers do: beside one
    # busy process a model would get a thirtieth of its core.
    os.environ.setdefault("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    _keep_standard_output()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            if address != "auto":  # if it refuses us, one line is enough, and ours
                os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            context = ray.init(address=address, **quiet)
        else:
            context = ray.init(
                address="local",
                include_dashboard=config.dashboard,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
    except ConnectionError:
        raise UserError(
            f"Ray at {address} refused us: if it asks for a token, set RAY_AUTH_MODE=token and put "
            f"the token in ~/.ray/auth_token; is its version ours, {ray.__version__}? With "
            "RAY_ADDRESS=local a Ray is started for this run alone"
        ) from None
    except Exception as error:  # Ray raises whatever its parts do, with a page of advice
        ray.shutdown()
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        raise WorkerError(f"Ray could not be started: {cause}") from error
    except BaseException as error:  # a signal while Ray starts
        ray.shutdown()
        if isinstance(error, SystemExit) and callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)  # Ray had taken it over
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    _dashboard = context.dashboard_url or ""
    return address is None


def _keep_standard_output() -> None:
    """Let Ray log what befalls its processes: it prints that to standard output, amid an answer."""
    from ray._private import worker  # noqa: PLC0415 (Ray has no setting for it)

    def tell(data: Any, ignore_prefix: bool) -> None:
        del ignore_prefix
        log.debug("Ray says: %s", " ".join(data.get("lines", ())))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = tell


def dashboard_address() -> str | None:
    """Where the dashboard of the Ray is that a session connected this process to, if it has one."""
    return f"http://{_dashboard}" if _dashboard else None


def find_address(wanted: str | None) -> str | None:
    """What to tell Ray: "auto", host:port, or None to start one.

    Ray itself tries an address that nobody answers for minutes, so each is called first. A Ray of
    this machine is always "auto": only then does Ray take out the token that it has for it.
    """
    if wanted == "local":
        return None
    here = _left_by_ray_start()
    if wanted is None:
        return "auto" if here and _answers(here) else None
    if wanted == "auto":
        if here and _answers(here):
            return "auto"
        raise UserError(
            "no Ray runs on this machine (address is 'auto'): start one with `ray start --head`, "
            "or leave --address out"
        )
    if not _answers(wanted):
        raise UserError(
            f"no Ray answers at {wanted}: start one with `ray start --head`, or leave --address out"
        )
    host, _, port = wanted.rpartition(":")
    is_here = socket.gethostbyname(host) in {"127.0.0.1", here.rpartition(":")[0]}
    return "auto" if is_here and port == here.rpartition(":")[2] else wanted


def _left_by_ray_start() -> str:
    """The host:port that `ray start` noted on this machine, or nothing."""
    folder = os.environ.get("RAY_TMPDIR", "/tmp")  # noqa: S108 (Ray's own default)
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"address is {address!r}: give host:port, such as 127.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def gpu_count() -> int:
    """How many GPUs this machine has for us; torch is asked only where there might be one."""
    if not any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg")):
        return 0
    import torch  # noqa: PLC0415 (a second that most CPU machines need not spend)

    return torch.cuda.device_count()
