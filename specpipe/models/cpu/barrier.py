"""A barrier for threads that compute one pass together: a few hundred to a pass.

The operating system would take longer to wake a thread than most of them wait, so they spin; now
and then they let others run, for a core may have more to do than this.
"""

from typing import Any

from llvmlite import ir
from numba import types

from specpipe.models.cpu.compiled import compiled, generated

ARRIVED, ROUND = 0, 8
"""Places in the int64 array that a barrier lives in; apart, so as not to share a cache line."""
SIZE = 16

_PATIENCE = 2000


@compiled
def wait_for_all(state: Any, parts: int) -> None:
    """Return once all of `parts` threads have called this; state: int64[SIZE], zeros at first."""
    if parts == 1:
        return
    this_round = _read(state, ROUND)
    if _add(state, ARRIVED, 1) == parts - 1:
        _add(state, ARRIVED, -parts)
        _add(state, ROUND, 1)
        return
    spins = 0
    while _read(state, ROUND) == this_round:
        spins += 1
        if spins % _PATIENCE == 0:
            _let_others_run()


@generated
def _read(_context: Any, state: Any, place: Any) -> Any:
    """Read an int64 that another thread writes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at = _place(context, builder, signature, values)
        return builder.load_atomic(at, "acquire", align=8)

    return types.int64(state, types.int64), generate


@generated
def _add(_context: Any, state: Any, place: Any, number: Any) -> Any:
    """Add to an int64, no thread coming between; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at = _place(context, builder, signature, values)
        return builder.atomic_rmw("add", at, values[2], "acq_rel")

    return types.int64(state, types.int64, types.int64), generate


@generated
def _let_others_run(_context: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        known = builder.module.globals.get("sched_yield")
        return builder.call(known or ir.Function(builder.module, kind, "sched_yield"), [])

    return types.int32(), generate


def _place(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.gep(array.data, [values[1]])
