"""moe.h as ctypes: constants, structs and prototypes are read from the header itself, so nothing is declared twice."""

import ctypes
import re
from pathlib import Path
from typing import NamedTuple

SCALARS = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint8_t": ctypes.c_uint8,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "char": ctypes.c_char,
    "void": None,
}


class Declaration(NamedTuple):
    """A field or a parameter: `const int64_t *group_offsets`, `uint64_t reserved[4]`."""

    name: str
    base: str
    pointers: int
    ctype: object


class Prototype(NamedTuple):
    name: str
    result: object
    parameters: tuple


class Header(NamedTuple):
    constants: dict
    structs: dict
    prototypes: dict


def locate():
    """The copy beside this module, else the source tree's."""
    packaged = Path(__file__).with_name("moe.h")
    return packaged if packaged.exists() else Path(__file__).resolve().parents[3] / "include" / "moe.h"


def parse(text):
    """cbindgen writes one declaration a field and no expressions, which is all that this reads."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S).replace("\\\n", " ")
    constants = {name: int(value) for name, value in re.findall(r"^#define (MOE_\w+) (-?\d+)$", text, flags=re.M)}
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    types = dict(SCALARS)
    structs = {}
    for match in re.finditer(r"typedef\s+(?:struct\s+(\w+)\s*\{(.*?)\}\s*(\w+)|([^;{}]*?))\s*;", text, flags=re.S):
        tag, body, name, alias = match.groups()
        if body is not None:
            structs[name] = types[name] = _struct(name, body, types)
        else:
            declaration = _declaration(alias, types)
            types[declaration.name] = declaration.ctype
    code = re.sub(r"typedef\s+struct\s+\w+\s*\{.*?\}\s*\w+\s*;|typedef[^;]*;", "", text, flags=re.S)
    prototypes = {}
    for head, parameters in re.findall(r"([\w\s*]+?\bmoe_\w+)\(([^()]*)\);", code):
        function = _declaration(head, types)
        prototypes[function.name] = Prototype(function.name, function.ctype, _parameters(parameters, types))
    return Header(constants, structs, prototypes)


def _struct(name, body, types):
    declarations = [_declaration(field, types) for field in re.split(r";", body) if field.strip()]
    return type(name, (ctypes.Structure,), {
        "_fields_": [(d.name, d.ctype) for d in declarations],
        "declarations": {d.name: d for d in declarations},
    })


def _parameters(text, types):
    return tuple(_declaration(p, types) for p in text.split(",") if p.split() != ["void"])


def _declaration(text, types):
    callback = re.fullmatch(r"\s*(.*?)\(\*(\w+)\)\((.*)\)\s*", text, flags=re.S)
    if callback:
        result, name, parameters = callback.groups()
        result = _declaration(result + " result", types).ctype
        function = ctypes.CFUNCTYPE(result, *(p.ctype for p in _parameters(parameters, types)))
        return Declaration(name, "function", 1, function)
    array = re.search(r"\[(\d+)\]\s*$", text)
    words = re.findall(r"\w+|\*", text[:array.start()] if array else text)
    words = [word for word in words if word not in ("const", "struct")]
    base, name, pointers = words[0], words[-1], words.count("*")
    if pointers:
        ctype = ctypes.c_char_p if (base, pointers) == ("char", 1) else ctypes.c_void_p
    else:
        # An opaque struct has no size: it is only ever pointed to.
        ctype = types.get(base)
    return Declaration(name, base, pointers, ctype * int(array.group(1)) if array else ctype)


header = parse(locate().read_text())
constants, structs, prototypes = header
