"""Calls one operation wrongly in every argument: run by test_misuse.py in a process of its own, so that a crash is a failure
that names its case. The cases follow from the header's declarations; calls.py has the valid calls that they spoil."""

import ctypes
import json
import os
import random
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))

import calls  # noqa: E402
import libmoe  # noqa: E402
from libmoe import _context, _header, _library  # noqa: E402

SUCCESS, INVALID, UNSUPPORTED, INTERNAL = (
    _header.constants["MOE_STATUS_" + name] for name in ("SUCCESS", "INVALID_ARGUMENT", "UNSUPPORTED", "INTERNAL_ERROR"))
CANARY, PATTERN, ZONE = 0xA5, 0x5A, 256
FROM_DEVICE = _header.constants["MOE_OUTPUT_FROM_DEVICE"]

# Large values of these are ordinary ones.
UNBOUNDED = {"max_iterations", "round"}


class Memory:
    """Everything that a call may see: each array between canaries, outputs filled with a pattern."""

    def __init__(self):
        self.blocks = []

    def place(self, value):
        if isinstance(value, dict):
            return {key: self.place(v) if isinstance(v, (np.ndarray, calls.Out)) else v for key, v in value.items()}
        if not isinstance(value, (np.ndarray, calls.Out)):
            return value
        dtype = np.dtype(value.dtype)
        size = int(np.prod(value.shape)) * dtype.itemsize
        block = np.full(size + 3 * ZONE, CANARY, np.uint8)
        start = -block.ctypes.data % ZONE + ZONE
        inside = block[start:start + size].view(dtype).reshape(value.shape)
        if isinstance(value, np.ndarray):
            inside[...] = value
        else:
            block[start:start + size] = getattr(value, "fill", PATTERN)
        self.blocks.append((block, block.copy()))
        return inside

    def changed(self):
        """Whether anything was written; it is put back."""
        found = False
        for block, before in self.blocks:
            found |= not np.array_equal(block, before)
            block[:] = before
        return found


class Prepared:
    """A valid call as C structs, and how to spoil copies of them."""

    def __init__(self, ctx, call):
        self.call, self.memory = call, Memory()
        parameters = {p.name: p for p in _header.prototypes["moe_" + call.name].parameters}
        self.has_comm = "comm" in parameters
        self.arrays = {name: self.memory.place(value) for name, value in call.args.items()}
        self.filler = _context._Filler(ctx)
        self.desc = self.filler.fill(parameters["desc"].base, "desc", call.desc)
        self.args = self.filler.fill(parameters["args"].base, "args", self.arrays)
        self.ctx = ctx._handle
        bytes_ = ctypes.c_uint64()
        self.status = getattr(LIBRARY, f"moe_{call.name}_workspace_size")(self.ctx, ctypes.byref(self.desc), ctypes.byref(bytes_))
        self.needed = bytes_.value if self.status == SUCCESS else 0
        self.workspace = self.memory.place(calls.Out(shape=(self.needed,), dtype=np.uint8)) if self.needed else None

    def run(self, **changes):
        """Status of the call with `changes` to its C arguments."""
        given = {
            "ctx": self.ctx, "comm": None, "desc": ctypes.addressof(self.desc), "args": ctypes.addressof(self.args),
            "workspace": self.workspace.ctypes.data if self.needed else None, "workspace_size": self.needed, "stream": None,
        } | changes
        if not self.has_comm:
            del given["comm"]
        return getattr(LIBRARY, "moe_" + self.call.name)(*given.values())

    def columns(self, name):
        value = self.arrays[name]
        shape = (value["data"] if isinstance(value, dict) else value).shape
        return shape[-1] if len(shape) > 1 and shape[-2] > 1 else 0


LIBRARY = _library.library()


def copied(struct):
    return type(struct).from_buffer_copy(struct)


def spoiled(struct, path, value):
    """A copy of `struct` with the field at `path` set; the owner to keep alive."""
    copy = copied(struct)
    *inner, last = path
    owner = copy
    for name in inner:
        owner = getattr(owner, name)
    setattr(owner, last, value)
    return copy


def wrong_scalars(declaration, current):
    """Values that are wrong in a field of a description."""
    if declaration.base == "double":
        return [float("nan"), float("inf"), float("-inf")]
    if declaration.base == "int64_t":
        return [-1, 2**62, -2**63]
    if declaration.base == "moe_dtype_t":
        return [0, -1, 99]
    return [-1, -2**31] + [2**31 - 1] * (declaration.name not in UNBOUNDED)


def desc_cases(desc):
    """(path, value): a count or a coefficient that the call does not set may be one that it does not read."""
    for declaration in desc.declarations.values():
        current = getattr(desc, declaration.name)
        if declaration.name == "struct_size" or (declaration.base in ("int64_t", "double") and current == 0):
            continue
        for value in [1, -1] if declaration.name == "reserved" else wrong_scalars(declaration, current):
            yield (declaration.name,), value


def args_cases(prepared):
    args, call = prepared.args, prepared.call
    for name, declaration in args.declarations.items():
        value = getattr(args, name)
        if name == "struct_size":
            continue
        if name == "reserved":
            yield (name,), 1
        elif declaration.base == "moe_tensor_t":
            if value.data:
                yield from tensor_cases(prepared, name, value)
        elif declaration.base == "moe_count_t":
            if value.device:
                wrong = (("dtype", 0), ("dtype", 99), ("device", value.device + 1), ("reserved", 1))
                yield from (((name, field), bad) for field, bad in wrong)
        elif declaration.base == "moe_output_mode_t":
            if name in call.args:
                yield from (((name, "mode"), wrong) for wrong in (-1, 3, FROM_DEVICE))
                yield (name, "reserved"), 1
        elif declaration.base == "moe_random_t":
            if name in call.args:
                yield from (((name, field), 1) for field in ("seed_device", "offset_device"))
        elif declaration.pointers:
            if value and declaration.base not in ("uint8_t", "void"):
                yield (name,), value + 1
            if name in call.required:
                yield (name,), None
        elif value:
            yield from (((name,), wrong) for wrong in wrong_scalars(declaration, value))


def tensor_cases(prepared, name, tensor):
    array = prepared.arrays[name]
    array = array["data"] if isinstance(array, dict) else array
    size = ctypes.sizeof(tensor)
    wrong = [("struct_size", 0), ("struct_size", size - 8), ("struct_size", size + 8), ("dtype", 0), ("dtype", 99),
             ("row_pitch", -1), ("group_stride", -1), ("pointers", tensor.data)]
    if name in prepared.call.required:
        wrong.append(("data", None))
    if array.itemsize > 1:
        wrong.append(("data", tensor.data + 1))
    if tensor.scale_kind == 0:
        wrong += [("scale_kind", 1), ("scale_kind", -1)]
    if prepared.columns(name) > 1:
        wrong.append(("row_pitch", prepared.columns(name) - 1))
    if array.ndim == 3:
        wrong.append(("group_stride", array.shape[1] * array.shape[2] - 1))
    yield from (((name, field), value) for field, value in wrong)
    reserved = (ctypes.c_uint64 * 4)(0, 0, 0, 1)
    yield (name, "reserved"), reserved


class Report:
    """Counts cases and collects what was not as it should be."""

    def __init__(self):
        self.cases, self.failures = 0, []

    def begin(self, label):
        self.cases += 1
        os.write(2, f"{label}\n".encode())
        self.label = label

    def expect(self, truth, what):
        if not truth:
            self.failures.append(f"{self.label}: {what}")

    def refused(self, status, word, may_be_unbuilt=False):
        """INVALID_ARGUMENT, with a message that names the argument; or UNSUPPORTED of a function that is not built."""
        message = LIBRARY.moe_last_error_message().decode()
        if may_be_unbuilt and status == UNSUPPORTED:
            return
        self.expect(status == INVALID, f"status {status} ({message if status else 'accepted'})")
        if status == INVALID:
            self.expect(re.search(rf"(^|[^\w]){re.escape(word)}($|[^\w])", message), f"the message lacks {word!r}: {message}")


def struct_size_cases(report, prepared, which, run, unbuilt):
    """The rules of growth, for `desc` or `args`."""
    struct = getattr(prepared, which)
    size = ctypes.sizeof(struct)
    usual = run(**{which: ctypes.addressof(struct)})
    prepared.memory.changed()
    for wrong in (0, 7, 1 << 20, 2**32 - 1):
        report.begin(f"{which}.struct_size = {wrong}")
        copy = spoiled(struct, ("struct_size",), wrong)
        report.refused(run(**{which: ctypes.addressof(copy)}), which)
        report.expect(not prepared.memory.changed(), "something was written")

    for tail, word in ((0, None), (1, which)):
        report.begin(f"{which} of a newer caller, unknown tail {tail}")
        newer = (ctypes.c_uint64 * ((size + 64) // 8))()
        ctypes.memmove(newer, ctypes.byref(struct), size)
        ctypes.cast(newer, ctypes.POINTER(ctypes.c_uint32))[0] = size + 64
        newer[-1] = tail
        status = run(**{which: ctypes.addressof(newer)})
        if word:
            report.refused(status, word)
        else:
            report.expect(status == usual, f"status {status}, {usual} without it: {LIBRARY.moe_last_error_message().decode()}")
        report.expect(not prepared.memory.changed() or status == SUCCESS, "something was written")

    report.begin(f"{which} of an older caller")
    last = list(struct.declarations)[-1]
    offset = getattr(type(struct), last).offset
    older = copied(struct)
    ctypes.memset(ctypes.addressof(older) + offset, 0, size - offset)
    expected = run(**{which: ctypes.addressof(older)})
    ctypes.memset(ctypes.addressof(older) + offset, 0xFF, size - offset)
    older.struct_size = offset
    status = run(**{which: ctypes.addressof(older)})
    report.expect(status == expected, f"status {status}, {expected} with {last} = 0: {LIBRARY.moe_last_error_message().decode()}")
    prepared.memory.changed()

    for label, pointer, word in ((f"{which} is NULL", None, which), (f"{which} is misaligned", ctypes.addressof(struct) + 1, which)):
        report.begin(label)
        report.refused(run(**{which: pointer}), word)
        report.expect(not prepared.memory.changed(), "something was written")


def misuse_operation(report, prepared):
    call = prepared.call
    report.begin("the valid call")
    status = prepared.run()
    message = LIBRARY.moe_last_error_message().decode()
    unbuilt = status == UNSUPPORTED and "not built" in message
    no_comm = prepared.has_comm and status == INVALID and "comm is NULL" in message
    report.expect(status == SUCCESS or unbuilt or no_comm, f"status {status}: {message}")
    prepared.memory.changed()

    report.begin("ctx is NULL")
    report.refused(prepared.run(ctx=None), "ctx")
    report.begin("a stream on the CPU")
    report.refused(prepared.run(stream=0x10), "stream")
    for which in ("desc", "args"):
        struct_size_cases(report, prepared, which, prepared.run, unbuilt)
    if no_comm or (status != SUCCESS and not unbuilt):
        return

    spoil = [("desc", *case) for case in desc_cases(prepared.desc)] + [("args", *case) for case in args_cases(prepared)]
    for which, path, value in spoil:
        shown = list(value) if isinstance(value, ctypes.Array) else value
        report.begin(f"{which}.{'.'.join(path)} = {shown}")
        copy = spoiled(getattr(prepared, which), path, value)
        report.refused(prepared.run(**{which: ctypes.addressof(copy)}), path[0], unbuilt)
        report.expect(not prepared.memory.changed(), "something was written")

    if prepared.needed:
        address = prepared.workspace.ctypes.data
        for label, word, changes in (
            ("workspace is NULL", "workspace", {"workspace": None}),
            ("workspace is misaligned", "workspace", {"workspace": address + 16}),
            ("workspace_size is too small", "workspace_size", {"workspace_size": prepared.needed - 1}),
            ("workspace_size is 0", "workspace_size", {"workspace_size": 0}),
        ):
            report.begin(label)
            report.refused(prepared.run(**changes), word)
            report.expect(not prepared.memory.changed(), "something was written")


def misuse_query(report, prepared, name):
    """A question about a description: the answer is written on success alone."""
    function = getattr(LIBRARY, "moe_" + name)
    word = _header.prototypes["moe_" + name].parameters[-1].name
    room = np.zeros(4, np.int64)

    def run(ctx=prepared.ctx, desc=ctypes.addressof(prepared.desc), answer=room.ctypes.data + 8):
        room[:] = -7
        status = function(ctx, desc, answer)
        report.expect(status == SUCCESS or (room == -7).all(), "the answer was written in spite of the error")
        report.expect(room[0] == room[2] == room[3] == -7, "written beside the answer")
        report.expect(status != INTERNAL, f"internal error: {LIBRARY.moe_last_error_message().decode()}")
        return status

    report.begin(f"the valid question {name}")
    status = run()
    unbuilt = status == UNSUPPORTED
    report.expect(status == SUCCESS or unbuilt, f"status {status}: {LIBRARY.moe_last_error_message().decode()}")
    for label, changes, argument in (
        ("ctx is NULL", {"ctx": None}, "ctx"), (f"{word} is NULL", {"answer": None}, word),
        (f"{word} is misaligned", {"answer": room.ctypes.data + 12}, word),
    ):
        report.begin(f"{name}: {label}")
        report.refused(run(**changes), argument)
    struct_size_cases(report, prepared, "desc", run, unbuilt)
    for path, value in desc_cases(prepared.desc):
        report.begin(f"{name}: desc.{path[0]} = {value}")
        copy = spoiled(prepared.desc, path, value)
        report.refused(run(desc=ctypes.addressof(copy)), path[0], unbuilt)

    for bound in ("num_tokens", "rows_max"):
        if name.endswith("_workspace_size") and not unbuilt and getattr(prepared.desc, bound, 0):
            report.begin(f"{name}: never less for more {bound}")
            sizes = []
            for value in (0, 1, 5, 64, 1000, 10**6, 10**9):
                copy = spoiled(prepared.desc, (bound,), value)
                if run(desc=ctypes.addressof(copy)) == SUCCESS:
                    sizes.append(int(room[1]))
            report.expect(sizes == sorted(sizes), f"{sizes} bytes")


def fuzz(report, prepared, draw):
    """Descriptions of extreme values, with no tensor given: refused or nothing to do, never a crash."""
    numbers = [-2**63, -1, 0, 1, 2, 3, 63, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1]
    empty = _context.initial(type(prepared.args))
    for _ in range(200):
        desc = copied(prepared.desc)
        for declaration in draw.sample(list(desc.declarations.values())[1:], 3):
            if declaration.base == "double":
                value = draw.choice([0.0, -1.0, 1e300, 5e-324, float("nan")])
            elif declaration.base == "int64_t":
                value = draw.choice(numbers)
            else:
                value = draw.choice([-1, 0, 1, 2, 3, 4, 2**31 - 1])
            setattr(desc, declaration.name, value)
        report.begin("fuzz " + ", ".join(f"{name}={getattr(desc, name)}" for name in desc.declarations))
        answer = ctypes.c_int64()
        address = ctypes.addressof(desc)
        for status in (
            getattr(LIBRARY, f"moe_{prepared.call.name}_workspace_size")(prepared.ctx, address, ctypes.byref(answer)),
            prepared.run(desc=address, args=ctypes.addressof(empty)),
        ):
            report.expect(status in (SUCCESS, INVALID, UNSUPPORTED), f"status {status}: {LIBRARY.moe_last_error_message().decode()}")
        report.expect(not prepared.memory.changed(), "something was written")


def main(name, seed):
    report = Report()
    ctx = libmoe.Context("cpu")
    for call in (call for call in calls.CALLS if call.name == name):
        prepared = Prepared(ctx, call)
        misuse_operation(report, prepared)
        misuse_query(report, prepared, name + "_workspace_size")
        for query in (query for query, owner in calls.QUERIES.items() if owner == name):
            misuse_query(report, prepared, query)
        fuzz(report, prepared, random.Random(seed))
    print(json.dumps({"cases": report.cases, "failures": report.failures}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
