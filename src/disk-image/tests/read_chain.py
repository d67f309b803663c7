"""Reads a chain of images with code that is not ours: VHDX with libvhdi, VHD with the reader below.

Usage: read_chain.py OUTPUT CHILD PARENT ...    (newest image first; OUTPUT gets the disk's bytes)
Exit code 77 when libvhdi's Python module is needed and not installed.

The VHD reader is written from the specification, without a look at our code. libvhdi 20260901 reads VHD chains of
three images wrong: of a block that is in all of them it returned other bytes for two sectors that only the middle one
has. Chains of two, and all chains of VHDX, agree.
"""
import struct
import sys


class Vhd:
    """One dynamic or differencing VHD, or a fixed one."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read()
        footer = self.bytes[-512:]
        if footer[:8] != b"conectix":
            sys.exit(f"{path}: no footer")
        header_at, = struct.unpack(">Q", footer[16:24])
        self.size, = struct.unpack(">Q", footer[48:56])
        self.type, = struct.unpack(">I", footer[60:64])
        self.id = footer[68:84]
        self.parent_id = None
        if self.type == 2:
            return
        header = self.bytes[header_at:header_at + 1024]
        if header[:8] != b"cxsparse":
            sys.exit(f"{path}: no dynamic header")
        table_at, = struct.unpack(">Q", header[16:24])
        count, self.block = struct.unpack(">II", header[28:36])
        self.table = struct.unpack(f">{count}I", self.bytes[table_at:table_at + 4 * count])
        self.bitmap_length = (self.block // 512 // 8 + 511) // 512 * 512
        if self.type == 4:
            self.parent_id = header[40:56]

    def sector(self, number):
        """The sector's bytes, or None when this image doesn't have it."""
        at = number * 512
        if self.type == 2:
            return self.bytes[at:at + 512]
        entry = self.table[at // self.block]
        if entry == 0xFFFFFFFF:
            return None
        within = at % self.block
        bit = within // 512
        if not self.bytes[entry * 512 + bit // 8] >> (7 - bit % 8) & 1:
            return None
        start = entry * 512 + self.bitmap_length + within
        return self.bytes[start:start + 512]


def read_vhd(paths, output):
    images = [Vhd(path) for path in paths]
    for child, parent in zip(images, images[1:]):
        if child.parent_id != parent.id:
            sys.exit("the parent's unique id is another one")
    if images[-1].parent_id is not None:
        sys.exit("the last image has a parent, too")
    for number in range(images[0].size // 512):
        found = (image.sector(number) for image in images)
        output.write(next((data for data in found if data is not None), bytes(512)))


def read_vhdx(paths, output):
    try:
        import pyvhdi
    except ImportError:
        sys.exit(77)
    images = []
    for path in paths:
        image = pyvhdi.file()
        image.open(path)
        images.append(image)
    for child, parent in zip(images, images[1:]):
        if child.get_parent_identifier() != parent.get_identifier():
            sys.exit(f"{child.get_parent_identifier()} is not {parent.get_identifier()}")
        child.set_parent(parent)
    size = images[0].get_media_size()
    offset = 0
    while offset < size:
        data = images[0].read_buffer_at_offset(min(1 << 20, size - offset), offset)
        if not data:
            sys.exit(f"nothing to read at {offset}")
        output.write(data)
        offset += len(data)


def main():
    paths = sys.argv[2:]
    with open(paths[0], "rb") as file:
        is_vhdx = file.read(8) == b"vhdxfile"
    with open(sys.argv[1], "wb") as output:
        (read_vhdx if is_vhdx else read_vhd)(paths, output)


main()
