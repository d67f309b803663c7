"""Reads a chain of VHD or VHDX images with libvhdi, an implementation independent of ours.

Usage: read_chain.py OUTPUT CHILD PARENT ...    (newest image first; OUTPUT gets the disk's bytes)
Exit code 77 when libvhdi's Python module is not installed.
"""
import sys

try:
    import pyvhdi
except ImportError:
    sys.exit(77)

images = []
for path in sys.argv[2:]:
    image = pyvhdi.file()
    image.open(path)
    images.append(image)
for child, parent in zip(images, images[1:]):
    if child.get_parent_identifier() != parent.get_identifier():
        sys.exit(f"{child.get_parent_identifier()} is not {parent.get_identifier()}")
    child.set_parent(parent)
size = images[0].get_media_size()
with open(sys.argv[1], "wb") as output:
    offset = 0
    while offset < size:
        data = images[0].read_buffer_at_offset(min(1 << 20, size - offset), offset)
        if not data:
            sys.exit(f"nothing to read at {offset}")
        output.write(data)
        offset += len(data)
