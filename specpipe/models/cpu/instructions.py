"""Instructions that our generated code is made of, in LLVM's terms: vectors of 16 floats."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import (
    get_host_cpu_features,
    get_host_cpu_name,
    initialize_native_asmparser,
)
from numba import config, types

LANES = 16

_TOLD: str | None = vars(config)["CPU_FEATURES"]  # compiled for, if it isn't this processor


def _has(feature: str) -> bool:
    return f"+{feature}" in _TOLD if _TOLD else bool(get_host_cpu_features().get(feature))


HAS_AVX512 = _has("avx512f")
_HAS_AVX2, HAS_VNNI = _has("avx2"), _has("avx512vnni")
IS_ZEN = get_host_cpu_name().startswith("znver")
"""AMD's Zen, which does some things in other places and other numbers than Intel's processors."""
if HAS_VNNI or _HAS_AVX2:
    initialize_native_asmparser()

FLOAT, HALF = ir.FloatType(), ir.HalfType()
BYTE, SHORT = ir.IntType(8), ir.IntType(16)
INT64, INT32 = ir.IntType(64), ir.IntType(32)
BYTES = {FLOAT: 4, HALF: 2}
VECTOR, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)
PAIRS = ir.VectorType(SHORT, 2 * LANES)
"""Two numbers of 16 bits in each word."""


def element(dtype: Any) -> Any:
    """The type of an array's elements: numba knows no float16, so they come as uint16."""
    kinds = {types.uint16: HALF, types.uint8: BYTE, types.int8: BYTE}
    kinds |= {types.uint32: INT32, types.int32: INT32, types.int16: SHORT}
    return kinds.get(dtype, FLOAT)


def pointer(context: Any, builder: Any, signature: Any, values: Any, index: int) -> Any:
    """Where the array begins that is argument `index`."""
    array = context.make_array(signature.args[index])(context, builder, values[index])
    return builder.bitcast(array.data, element(signature.args[index].dtype).as_pointer())


def step(builder: Any, place: Any, elements: Any) -> Any:
    """So many elements on."""
    return builder.gep(place, [elements])


def places(builder: Any, first: Any, stride: Any, count: int) -> list[Any]:
    """So many places, each `stride` elements behind the one before."""
    found = [first]
    for _ in range(1, count):
        found.append(step(builder, found[-1], stride))
    return found


def by_count(builder: Any, number: Any, counts: range, emit: Callable[[int], None]) -> None:
    """Code for each of some counts, of which that runs whose count `number` is, or none.

    The builder stands behind all of it afterwards.
    """
    end = builder.append_basic_block("end")
    choice = builder.switch(number, end)
    for count in counts:
        case = builder.append_basic_block(f"count.{count}")
        choice.add_case(ir.Constant(number.type, count), case)
        builder.position_at_end(case)
        emit(count)
        builder.branch(end)
    builder.position_at_end(end)


def load(builder: Any, kind: Any, place: Any) -> Any:
    """16 elements as floats."""
    vector = ir.VectorType(kind, LANES)
    found = builder.load(builder.bitcast(place, vector.as_pointer()), align=BYTES[kind])
    return builder.fpext(found, VECTOR) if kind is HALF else found


def store(builder: Any, value: Any, place: Any) -> None:
    """Write 16 floats."""
    builder.store(value, builder.bitcast(place, VECTOR.as_pointer()), align=4)


def words(number: int) -> Any:
    """A vector of one constant."""
    return ir.Constant(WORDS, [number] * LANES)


def spread(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
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
        carried: values that a turn leaves to the next.
        body: emits a turn, given its number and them; what it returns comes in their place.
    """
    before, loop = builder.block, builder.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    turn = builder.phi(INT64)
    turn.add_incoming(ir.Constant(INT64, 0), before)
    phis = [builder.phi(value.type) for value in carried]
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


def reduced(builder: Any, name: str, vector: Any) -> Any:
    """All lanes in one, by an intrinsic that does not depend on their order."""
    kind = vector.type.element
    suffix = f"v{LANES}{'f32' if kind is FLOAT else 'i32'}"
    function = ir.FunctionType(kind, [vector.type])
    return builder.call(
        declared(builder.module, f"llvm.vector.reduce.{name}.{suffix}", function), [vector]
    )


def add_products(builder: Any, left: Any, place: Any, sums: Any) -> Any:
    """To each word of sums, the products of the two pairs of left's word and of that at `place`."""
    place = builder.bitcast(place, INT32.as_pointer())
    if HAS_VNNI:
        return _by_vnni(builder, "vpdpwssd", left, place, sums)
    if _HAS_AVX2:
        return _add_products_by_halves(builder, left, place, sums)
    right = spread(builder, builder.load(place))
    for lower in (True, False):
        pair = [builder.shl(word, words(16)) if lower else word for word in (left, right)]
        sums = builder.add(sums, builder.mul(*(builder.ashr(word, words(16)) for word in pair)))
    return sums


def add_byte_products(builder: Any, left: Any, place: Any, sums: Any) -> Any:
    """The same of four bytes each, left's without a sign; for processors that have VNNI."""
    return _by_vnni(builder, "vpdpbusd", left, builder.bitcast(place, INT32.as_pointer()), sums)


def _by_vnni(builder: Any, name: str, left: Any, place: Any, sums: Any) -> Any:
    # Not by LLVM's intrinsic: it makes two instructions of it, for a shorter chain of sums,
    # where we have many chains and no time. Nor with the word spread before: LLVM does that by
    # an instruction for floats, which costs AMD's Zen 4 half a cycle before one for integers.
    kind = ir.FunctionType(WORDS, [WORDS, INT32.as_pointer(), WORDS])
    text, where = f"{name} $2{{1to16}}, $1, $0", "=v,v,*m,0"
    code = ir.InlineAsm(kind, text, where, side_effect=False)
    return builder.call(code, [left, place, sums], arg_attrs={1: "elementtype"})


def _add_products_by_halves(builder: Any, left: Any, place: Any, sums: Any) -> Any:
    """The same by AVX2, whose vectors have 8 words.

    Not by LLVM's intrinsic: of a chain of sums it makes a tree, for which all products are kept at
    the same time, most of them in memory.
    """
    half = ir.VectorType(INT32, LANES // 2)
    parts = [
        builder.shuffle_vector(
            vector, vector, ir.Constant(half, [*range(first, first + LANES // 2)])
        )
        for vector in (left, sums)
        for first in (0, LANES // 2)
    ]
    results = ir.LiteralStructType([half] * 4)  # two sums, and two registers that it works in
    kind = ir.FunctionType(results, [INT32.as_pointer(), *[half] * 4])
    text = """
        vpbroadcastd $4, $2
        vpmaddwd $2, $5, $3
        vpaddd $3, $0, $0
        vpmaddwd $2, $6, $2
        vpaddd $2, $1, $1
    """
    where = "=&x,=&x,=&x,=&x,*m,x,x,0,1"
    code = ir.InlineAsm(kind, text, where, side_effect=False)
    found = builder.call(code, [place, *parts], arg_attrs={0: "elementtype"})
    lower, upper = (builder.extract_value(found, i) for i in range(2))
    return builder.shuffle_vector(lower, upper, ir.Constant(WORDS, list(range(LANES))))


def prefetch(builder: Any, place: Any, cache: int = 1) -> None:
    """Bring a place into the first cache, or no nearer than the second; it need not exist."""
    anything = BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [anything, INT32, INT32, INT32])
    function = declared(builder.module, "llvm.prefetch.p0", kind)
    read, keep, data = (ir.Constant(INT32, value) for value in (0, 4 - cache, 1))
    builder.call(function, [builder.bitcast(place, anything), read, keep, data])


def declared(module: Any, name: str, kind: Any) -> Any:
    """An external function, or an intrinsic of LLVM."""
    return module.globals.get(name) or ir.Function(module, kind, name)
