"""Contexts, and the generic call: dicts to descriptors and arguments, a workspace, the C function."""

import ctypes
import functools
import operator
import sys

from . import _arrays
from ._header import constants, prototypes, structs
from ._library import call, library, raise_status

# C element types behind raw pointers, by the arrays' names for them.
ELEMENTS = {
    "float": {"float32"}, "double": {"float64"}, "int32_t": {"int32"}, "int64_t": {"int64"},
    "uint8_t": {"uint8", "bool"}, "uint32_t": {"uint32"}, "uint64_t": {"uint64", "int64"},
}
MODES = {"overwrite": constants["MOE_OUTPUT_OVERWRITE"], "add": constants["MOE_OUTPUT_ADD"]}


class Context:
    """A device: "cpu", "cuda", "cuda:1", an ordinal or MOE_DEVICE_CPU. Any number of threads may share one."""

    def __init__(self, device="cpu"):
        self.device = _ordinal(device)
        self._handle = ctypes.c_void_p()
        call("context_create", self.device, ctypes.byref(self._handle))

    def close(self):
        """Closes the context; closing it twice is allowed."""
        handle, self._handle = self._handle, None
        if handle:
            call("context_destroy", handle)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __del__(self, finalizing=sys.is_finalizing):
        # When the interpreter ends, modules are emptied already, and the process frees the rest.
        if getattr(self, "_handle", None) and not finalizing():
            self.close()

    def __repr__(self):
        return f"libmoe.Context({_name(self.device)!r})"

    @property
    def info(self):
        """What the context runs on: multiprocessors, compute_capability, driver_version."""
        info = initial(structs["moe_context_info_t"])
        call("context_info", self.handle, ctypes.byref(info))
        return {name: getattr(info, name) for name in info.declarations if name not in ("struct_size", "reserved")}

    def query(self, name, desc):
        """A host-side question about a descriptor: query("dispatch_rows_max", {...}), query("..._workspace_size", {...})."""
        parameters = _parameters(name)
        answer = parameters[-1]
        if len(parameters) != 3 or answer.pointers != 1 or parameters[1].name != "desc":
            raise TypeError(f"moe_{name} is not a query of a descriptor")
        out = (ctypes.c_uint64 if answer.base == "uint64_t" else ctypes.c_int64)()
        filled = _Filler(self).fill(parameters[1].base, "desc", desc)
        call(name, self.handle, ctypes.byref(filled), ctypes.byref(out))
        return out.value

    def run(self, name, desc, args, stream=None, workspace=None):
        """Calls moe_<name> with structs filled by field names.

        Arrays become moe_tensor_t, a list of arrays (or None) one by pointers; device integers become moe_count_t;
        "add", "overwrite" or a device int32 an output mode; a (seed, offset) pair a moe_random_t. `stream` is a
        CUstream as an integer or an object of torch or cupy; by default the current one of the arrays' library.
        Whether shapes fit the descriptor is the caller's care: the library sees addresses.
        """
        self.prepare(name, desc, args, stream, workspace)()

    def prepare(self, name, desc, args, stream=None, workspace=None):
        """What `run` would call, as a function to be called as often as wished: structs are filled and the workspace is
        allocated once, and stay alive with it. Without `stream` each call takes the library's current one."""
        parameters = {parameter.name: parameter for parameter in _parameters(name)}
        if not {"desc", "args", "workspace"} <= parameters.keys():
            raise TypeError(f"moe_{name} does not take a descriptor and arguments")
        filler = _Filler(self, stream)
        desc = filler.fill(parameters["desc"].base, "desc", desc)
        args = filler.fill(parameters["args"].base, "args", args)
        size = ctypes.c_uint64()
        call(name + "_workspace_size", self.handle, ctypes.byref(desc), ctypes.byref(size))
        address = None
        if workspace is not None:
            scratch = filler.contiguous("workspace", workspace)
            address, size.value = scratch.pointer, scratch.size * scratch.itemsize
        elif size.value:
            address = filler.contiguous("workspace", filler.allocate("scratch", size.value)).pointer
        return PreparedCall(self, name, desc, args, address, size, filler)

    def stream_wait(self, stream, other, event):
        """What is enqueued on `stream` from now on waits for what `other` holds now; `event` is recorded for that. Each is an
        integer or an object of torch or cupy."""
        if getattr(event, "cuda_event", None) == 0:
            event.record()  # torch makes an event when it is first recorded
        event = getattr(event, "cuda_event", getattr(event, "ptr", event))
        call("stream_wait", self.handle, _stream(stream), _stream(other), event)

    def report_message(self, report):
        """A device report (24 bytes, as given to a call as `report`) in words."""
        copied = report.cpu().numpy() if hasattr(report, "cpu") else report.get() if hasattr(report, "get") else report
        data, text = copied.tobytes(), ctypes.create_string_buffer(512)
        call("device_report_message", ctypes.c_char_p(data), text, len(text))
        return text.value.decode()

    @property
    def handle(self):
        """The moe_context_t."""
        if not self._handle:
            raise ValueError("the context is closed")
        return self._handle


class Keeper:
    """A context that keeps all arrays of its calls, workspaces too, as long as it lives: for work on a second stream."""

    def __init__(self, ctx):
        self.ctx, self.kept = ctx, []

    def __getattr__(self, name):
        return getattr(self.ctx, name)

    def run(self, *arguments):
        prepared = self.ctx.prepare(*arguments)
        self.kept.append(prepared)
        prepared()


@functools.cache
def of_device(device):
    """The process's Context of "cpu", "cuda:0" or an ordinal, for functions that take none."""
    return Context(device)


class PreparedCall:
    """One call of an operation on fixed arguments."""

    def __init__(self, ctx, name, desc, args, workspace, size, filler):
        self.kept = ctx, desc, args, filler
        self.stream = filler.stream if filler.given_stream is not None else None
        self.filler = filler
        self.function = getattr(library(), "moe_" + name)
        self.arguments = ctx.handle, ctypes.byref(desc), ctypes.byref(args), workspace, size.value

    def __call__(self):
        status = self.function(*self.arguments, self.filler.stream if self.stream is None else self.stream)
        if status != 0:
            raise_status(status)


class _Filler:
    """Converts Python values to the fields of structs and keeps alive what they point to."""

    def __init__(self, ctx, stream=None):
        self.device = ctx.device
        self.kept = []
        self.library = _arrays.Numpy if ctx.device < 0 else None
        self.given_stream = stream

    @property
    def stream(self):
        given = self.given_stream
        if given is None:
            return self.library.stream(self.device) if self.library else 0
        return _stream(given)

    def allocate(self, kind, what):
        if self.library is None:
            raise TypeError("workspace: give one, or at least one array of torch or cupy")
        return getattr(self.library, kind)(what, self.device, self.stream)

    def fill(self, struct, where, values):
        if isinstance(values, structs[struct]):
            return values
        if not isinstance(values, dict):
            raise TypeError(f"{where} is {type(values).__name__}; it must be a dict of {struct}'s fields")
        filled = initial(structs[struct])
        for field, value in values.items():
            declaration = filled.declarations.get(field)
            if declaration is None:
                raise TypeError(f"{where}: {struct} has no field {field!r}; it has {', '.join(filled.declarations)}")
            if value is not None:
                setattr(filled, field, self.convert(declaration, f"{where}.{field}", value))
        return filled

    def convert(self, declaration, where, value):
        if declaration.pointers:
            return self.pointer(declaration, where, value)
        special = getattr(self, declaration.base, None)
        if special:
            return special(where, value)
        if declaration.base in structs:
            return self.fill(declaration.base, where, value)
        if declaration.base == "double":
            return float(value)
        return _integer(declaration.ctype, where, value)

    def view(self, where, x):
        view = _arrays.view(where, x)
        self.kept.append(view.owner)
        if view.device is not None and view.device != self.device:
            raise ValueError(f"{where} is on {_name(view.device)}, the context on {_name(self.device)}")
        if self.library is None:
            library = _arrays.array_library(x)
            self.library = library if library is not _arrays.Numpy else None
        return view

    def contiguous(self, where, x):
        view = self.view(where, x)
        if not view.contiguous:
            raise ValueError(f"{where} has shape {view.shape} and strides {view.strides}: it must be contiguous")
        return view

    def pointer(self, declaration, where, value):
        if isinstance(value, int):
            return value
        if not _arrays.is_array(value):
            raise TypeError(f"{where} is {type(value).__name__}: neither an array nor an address")
        view = self.contiguous(where, value)
        expected = ELEMENTS.get(declaration.base)
        if expected and view.dtype not in expected:
            raise TypeError(f"{where} has dtype {view.dtype}; it must be {' or '.join(sorted(expected))}")
        if declaration.base in structs and view.size * view.itemsize < ctypes.sizeof(structs[declaration.base]):
            raise ValueError(f"{where} has {view.size * view.itemsize} bytes, too few for {declaration.base}")
        return view.pointer

    def moe_dtype_t(self, where, value):
        try:
            return value if isinstance(value, int) else _arrays.dtype_code(value)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from None

    def moe_tensor_t(self, where, value):
        if isinstance(value, dict):
            # Fields one by one: `data` and `scale` may be arrays, the others override what follows from them.
            values = dict(value)
            tensor = self.moe_tensor_t(where, values.pop("data")) if _arrays.is_array(values.get("data")) else None
            given = self.fill("moe_tensor_t", where, values)
            for field in values if tensor else ():
                setattr(tensor, field, getattr(given, field))
            return tensor or given
        tensor = initial(structs["moe_tensor_t"])
        views = [self.view(where, x) for x in value if x is not None] if isinstance(value, (list, tuple)) else None
        view = self.view(where, value) if views is None else next(iter(views), None)
        if view is None:
            raise ValueError(f"{where} is a list without an array")
        if views and any((v.dtype, v.shape, v.strides) != (view.dtype, view.shape, view.strides) for v in views):
            raise ValueError(f"{where}: its arrays differ in dtype, shape or strides")
        tensor.dtype = self.moe_dtype_t(where, view.dtype)
        tensor.row_pitch, tensor.group_stride = _arrays.matrix_layout(where, view)
        if views is None:
            tensor.data = view.pointer
        else:
            addresses = iter([v.pointer for v in views])
            table = self.allocate("pointers", [0 if x is None else next(addresses) for x in value])
            tensor.pointers = self.view(where, table).pointer
        return tensor

    def moe_count_t(self, where, value):
        if isinstance(value, dict):
            return self.fill("moe_count_t", where, value)
        view = self.view(where, value)
        if view.size != 1 or view.dtype not in ("int32", "int64"):
            raise TypeError(f"{where} has dtype {view.dtype} and shape {view.shape}; it must be one int32 or int64")
        return structs["moe_count_t"](device=view.pointer, dtype=self.moe_dtype_t(where, view.dtype))

    def moe_output_mode_t(self, where, value):
        if isinstance(value, dict):
            return self.fill("moe_output_mode_t", where, value)
        if isinstance(value, (int, str)):
            if value not in MODES and not isinstance(value, int):
                raise ValueError(f"{where} is {value!r}; it must be {' or '.join(MODES)}")
            return structs["moe_output_mode_t"](mode=MODES.get(value, value))
        return self.fill("moe_output_mode_t", where, {"mode": constants["MOE_OUTPUT_FROM_DEVICE"], "add": value})

    def moe_random_t(self, where, value):
        if not isinstance(value, dict):
            value = dict(zip(("seed", "offset"), value, strict=True))
        fields = {name + "_device" * _arrays.is_array(v): v for name, v in value.items() if not name.endswith("_device")}
        fields.update({name: v for name, v in value.items() if name.endswith("_device")})
        return self.fill("moe_random_t", where, fields)


def initial(struct):
    """A zeroed struct with each struct_size set, as the header's INIT macros do."""
    return struct.from_buffer_copy(_template(struct))


@functools.cache
def _template(struct):
    value = struct()
    for declaration in struct.declarations.values():
        if declaration.name == "struct_size":
            value.struct_size = ctypes.sizeof(struct)
        elif declaration.base in structs and not declaration.pointers:
            setattr(value, declaration.name, initial(structs[declaration.base]))
    return value


def _stream(stream):
    """A CUstream as an integer."""
    return operator.index(getattr(stream, "cuda_stream", getattr(stream, "ptr", stream)))


def _integer(ctype, where, value):
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{where} is {value!r}: not an integer") from None
    if ctype(value).value != value:
        raise ValueError(f"{where} is {value}: it does not fit its {8 * ctypes.sizeof(ctype)} bits")
    return value


def _parameters(name):
    if "moe_" + name not in prototypes:
        raise TypeError(f"the header has no moe_{name}")
    return prototypes["moe_" + name].parameters


def _ordinal(device):
    kind, _, index = str(device).partition(":")
    if kind == "cpu" and not index:
        return constants["MOE_DEVICE_CPU"]
    if kind == "cuda" and (index.isdigit() or not index):
        return int(index or 0)
    if isinstance(device, int):
        return device
    raise ValueError(f"device is {device!r}; it must be 'cpu', 'cuda' or 'cuda:N'")


def _name(device):
    return "the CPU" if device < 0 else f"cuda:{device}"
