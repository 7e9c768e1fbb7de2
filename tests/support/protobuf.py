"""Encodes fields of protobuf by hand, for messages that no library writes."""


def varint(number: int) -> bytes:
    """Encode an integer with seven bits per byte."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field: text, bytes, a message, or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """Encode a field with an integer."""
    return varint(number << 3) + varint(value)
