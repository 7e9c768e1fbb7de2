"""The reference of the protocol, from the comments of ``digits.proto``. Called by ``docs/reference/messages.md`` (cog)."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from check_generated import PROTOS, ROOT, buf_module
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from documentation.markup import escape, table

_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
_PARTS = {"message_type": 4, "enum_type": 5, "service": 6, "field": 2, "value": 2, "method": 2}
"""Numbers of these fields in descriptors, of which the path of a comment consists."""


def reference() -> str:
    """Return services, messages and enumerations of our own proto, as Markdown."""
    (proto,) = (proto for proto in PROTOS if proto.ours)
    with buf_module({proto.source: (ROOT / "proto" / proto.source).read_bytes()}) as module:
        buf = Path(sys.executable).with_name("buf")
        built = subprocess.run([buf, "build", "--output", "-"], cwd=module, check=True, capture_output=True).stdout
    described = FileDescriptorSet()
    described.ParseFromString(built)
    (file,) = (file for file in described.file if file.name == str(proto.source))
    return "\n\n".join(_Reference(file).parts())


class _Reference:
    """One file of a protocol."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self.comments = {
            tuple(location.path): location.leading_comments + location.trailing_comments
            for location in file.source_code_info.location
        }
        self.own = {f".{file.package}.{each.name}" for each in (*file.message_type, *file.enum_type)}

    def parts(self) -> Iterator[str]:
        """Yield headings, paragraphs and tables."""
        for index, service in enumerate(self.file.service):
            yield from self._service(service, (_PARTS["service"], index))
        for index, message in enumerate(self.file.message_type):
            yield from self._message(message, (_PARTS["message_type"], index))
        for index, enum in enumerate(self.file.enum_type):
            yield from self._enum(enum, (_PARTS["enum_type"], index))

    def _comment(self, path: tuple[int, ...]) -> str:
        return escape(self.comments.get(path, ""))

    def _head(self, name: str, path: tuple[int, ...]) -> Iterator[str]:
        yield f"## {name}"
        if comment := self._comment(path):
            yield comment

    def _type(self, name: str) -> str:
        short = name.rpartition(".")[2]
        return f"[{short}](#{short.lower()})" if name in self.own else f"`{name.removeprefix('.')}`"

    def _service(self, service: ServiceDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield from self._head(service.name, path)
        rows = []
        for index, method in enumerate(service.method):
            request = "stream of " * method.client_streaming + self._type(method.input_type)
            response = "stream of " * method.server_streaming + self._type(method.output_type)
            rows.append((f"`{method.name}`", request, response, self._comment((*path, _PARTS["method"], index))))
        yield table(("Method", "Request", "Response", "Meaning"), rows)

    def _message(self, message: DescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield from self._head(message.name, path)
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        rows = []
        for index, field in enumerate(message.field):
            if entry := maps.get(field.type_name.rpartition(".")[2]):
                key, value = (self._field_type(part) for part in entry.field)
                kind = f"map of {key} to {value}"
            else:
                repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
                kind = "repeated " * repeated + self._field_type(field)
            rows.append((f"`{field.name}`", kind, str(field.number), self._comment((*path, _PARTS["field"], index))))
        yield table(("Field", "Type", "Number", "Meaning"), rows)

    def _field_type(self, field: FieldDescriptorProto) -> str:
        return self._type(field.type_name) if field.type_name else _SCALARS[field.type]

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield from self._head(enum.name, path)
        rows = [
            (f"`{value.name}`", str(value.number), self._comment((*path, _PARTS["value"], index)))
            for index, value in enumerate(enum.value)
        ]
        yield table(("Value", "Number", "Meaning"), rows)
