"""Reads a replica log by the letter of MS-HRL 6.0 and prints what it finds as JSON.

Written from the specification alone, so that it can vouch for what our writer makes. It is strict where a
reader of somebody else may be: every MUST of sections 2.2 to 2.4 is checked.

Usage: read_hrl.py FILE
"""
import hashlib
import json
import struct
import sys
import uuid

# Section 2.2, packed: cookie, version, time, creator, its version, original size, current size, checksum, EOL, error,
# metadata size, unique id, previous id, last modified, total entries, file type, flags, VHDX data write GUID.
HEADER = struct.Struct("<8sII4sIQQIQiI16s16sIQI2s16s")
METADATA_HEADER = struct.Struct("<QII16s")  # section 2.3
ENTRY = struct.Struct("<QIIIBIB6s")  # section 2.4


def checksum(buffer, ignore):
    """Section 2.6: one's complement of the sum of all bytes outside of the checksum field."""
    total = sum(buffer) - sum(buffer[ignore : ignore + 4])
    return ~total & 0xFFFFFFFF


def must(condition, what):
    if not condition:
        sys.exit(f"not valid: {what}")


def read(data):
    must(len(data) >= 4096, "shorter than a header")
    fields = HEADER.unpack_from(data)
    (cookie, version, created, creator, _creator_version, original_size, current_size, header_sum, eol, error,
     metadata_size, unique_id, previous_id, modified, total, file_type, flags, data_write_guid) = fields
    must(cookie.rstrip(b" \0") == b"msctlog", "cookie")
    must(version == 0x00020000, "version")
    must(creator.rstrip(b" \0") == b"ct", "creator application")
    must(header_sum == checksum(data[:4096], 40), "checksum of the header")
    must(eol != 0, "not closed")
    must(error == 0, "error code")
    must(metadata_size % 512 == 0 and metadata_size > 0, "metadata size is no multiple of 512")
    must(file_type == 0, "file type")
    must(flags == b"\0\0", "flags")
    must(not any(data[HEADER.size : 4096]), "reserved bytes of the header")
    must(original_size <= current_size == len(data) == eol, "sizes")
    must(modified >= created, "time of the last change")

    # Section 2.5, first pass: a stack of metadata locations.
    stack, at = [], eol - metadata_size
    while True:
        stack.append(at)
        back = struct.unpack_from("<Q", data, at)[0]
        if back == 0:
            break
        must(4096 <= at - back, "metadata chain")
        at -= back
    # Second pass: data follows the header or the metadata before it.
    entries, data_at = [], 4096
    while stack:
        at = stack.pop()
        _, valid, metadata_sum, reserved = METADATA_HEADER.unpack_from(data, at)
        must(metadata_sum == checksum(data[at : at + 32], 12), "checksum of a metadata header")
        must(not any(reserved), "reserved bytes of a metadata header")
        must(valid <= metadata_size // 32 - 1, "valid entries")
        for number in range(valid):
            place = at + 32 + 32 * number
            offset, entry_sum, length, time, operation, data_sum, location, reserved = ENTRY.unpack_from(data, place)
            must(entry_sum == checksum(data[place : place + 32], 8), "checksum of an entry")
            must(operation == 1, "operation")
            must(location == 0, "location")
            must(not any(reserved), "reserved bytes of an entry")
            must(created <= time, "time of an entry")
            body = data[data_at : data_at + length]
            must(data_sum == ~sum(body) & 0xFFFFFFFF, "checksum of data")
            entries.append({"offset": offset, "length": length, "time": time,
                            "sha256": hashlib.sha256(body).hexdigest()})
            data_at += length
        must(data_at == at, "data ends at its metadata")
        data_at = at + metadata_size
    must(len(entries) == total, "total entries")
    guid = lambda raw: str(uuid.UUID(bytes_le=raw))
    return {"id": guid(unique_id), "previousId": guid(previous_id), "dataWriteGuid": guid(data_write_guid),
            "created": created, "entries": entries}


print(json.dumps(read(open(sys.argv[1], "rb").read())))
