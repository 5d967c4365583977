"""Instructions that our generated code is made of, in LLVM's terms: vectors of 16 floats."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types

LANES = 16

_TOLD: str | None = vars(config)["CPU_FEATURES"]  # compiled for, if it isn't this processor
HAS_AVX512 = "+avx512f" in _TOLD if _TOLD else bool(get_host_cpu_features().get("avx512f"))

FLOAT, HALF, BYTE = ir.FloatType(), ir.HalfType(), ir.IntType(8)
INT64, INT32 = ir.IntType(64), ir.IntType(32)
BYTES = {FLOAT: 4, INT32: 4, HALF: 2, BYTE: 1}
VECTOR = ir.VectorType(FLOAT, LANES)


def element(dtype: Any) -> Any:
    """The type of an array's elements: numba knows no float16, so they come as uint16."""
    kinds = {types.uint16: HALF, types.int8: BYTE, types.uint8: BYTE, types.uint32: INT32}
    return kinds.get(dtype, FLOAT)


def pointer(context: Any, builder: Any, signature: Any, values: Any, index: int) -> Any:
    """Where the array begins that is argument `index`."""
    array = context.make_array(signature.args[index])(context, builder, values[index])
    return builder.bitcast(array.data, element(signature.args[index].dtype).as_pointer())


def step(builder: Any, place: Any, elements: Any) -> Any:
    """So many elements on."""
    return builder.gep(place, [elements])


def load(builder: Any, kind: Any, place: Any) -> Any:
    """16 elements as floats."""
    vector = ir.VectorType(kind, LANES)
    found = builder.load(builder.bitcast(place, vector.as_pointer()), align=BYTES[kind])
    if kind is HALF:
        return builder.fpext(found, VECTOR)
    return builder.sitofp(found, VECTOR) if kind is BYTE else found


def store(builder: Any, value: Any, place: Any) -> None:
    """Write 16 floats."""
    builder.store(value, builder.bitcast(place, VECTOR.as_pointer()), align=4)


def spread(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(INT32, 0))
    lanes = ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, lanes)


def lane_by_lane(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes in one, from the first to the last."""
    lanes = [builder.extract_element(vector, ir.Constant(INT32, lane)) for lane in range(LANES)]
    result = lanes[0]
    for lane in lanes[1:]:
        result = combine(result, lane)
    return result


def repeat(
    builder: Any, times: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """A loop of at least one turn.

    Args:
        builder: stands behind the loop afterwards.
        times: how many turns, an INT64.
        carried: vectors of floats that a turn leaves to the next.
        body: emits a turn, given its number and them; what it returns comes in their place.
    """
    before, loop = builder.block, builder.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    turn = builder.phi(INT64)
    turn.add_incoming(ir.Constant(INT64, 0), before)
    phis = [builder.phi(VECTOR) for _ in carried]
    after = body(turn, list(phis))
    following = builder.add(turn, ir.Constant(INT64, 1))
    end = builder.block
    turn.add_incoming(following, end)
    for phi, first, later in zip(phis, carried, after, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, times), loop, done)
    builder.position_at_end(done)
    return after


def call(builder: Any, name: str, *values: Any) -> Any:
    """An intrinsic of LLVM for floats or vectors of them, such as llvm.fma."""
    kind = values[0].type
    suffix = "f32" if kind is FLOAT else f"v{LANES}f32"
    function = ir.FunctionType(kind, [kind] * len(values))
    return builder.call(declared(builder.module, f"{name}.{suffix}", function), values)


def prefetch(builder: Any, place: Any) -> None:
    """Bring a place into the cache; it need not exist."""
    anything = BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [anything, INT32, INT32, INT32])
    function = declared(builder.module, "llvm.prefetch.p0", kind)
    read, keep, data = (ir.Constant(INT32, value) for value in (0, 3, 1))
    builder.call(function, [builder.bitcast(place, anything), read, keep, data])


def declared(module: Any, name: str, kind: Any) -> Any:
    """An external function, or an intrinsic of LLVM."""
    return module.globals.get(name) or ir.Function(module, kind, name)
