/* A stand-in for Windows' virtdisk.dll, so that our calls of it run under Wine.
 *
 * Written from the documented contract, with MinGW's header: its structures are not those that our code was made with, so a
 * wrong layout, length or constant on our side shows. It refuses what the contract refuses and writes down each call.
 *
 * A disk is a file with its bytes at their virtual places. Beside it:
 *   FILE.stand-in   what the disk is, a line each: kind=vhdx|vhd id=GUID size=BYTES sector=BYTES tracking=0|1 newer=0|1
 *                   recent=RCT-ID since=RCT-ID (the one that is known) change=OFFSET,LENGTH (any number, in order)
 *                   page=BYTES (answered at once) missing=1 changes_error=CODE attach_error=CODE; a later line wins
 *   FILE.calls      the calls, a line each, names in UTF-8
 *
 * It knows version 2 of the parameters of OpenVirtualDisk only. A handle is one of the file, opened OVERLAPPED, so ReadFile
 * and CloseHandle are the system's own, and the system's sharing stands for that of disks. What it can't refuse: reading before
 * attaching, and reading parts of sectors.
 */
#define _WIN32_WINNT 0x0A00
#define WIN32_LEAN_AND_MEAN
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <initguid.h>
#include <windows.h>
#include <virtdisk.h>

/* Not in MinGW's headers. */
#define VHD_INVALID_CHANGE_TRACKING_ID 0xC03A0029u
#define VHD_CHANGE_TRACKING_DISABLED 0xC03A002Au
#define VHD_MISSING_CHANGE_TRACKING_INFORMATION 0xC03A0030u
#define VIRTDISK_PROVIDER_NOT_FOUND 0xC03A0014u

#define OPEN_AT_ONCE 256
#define LONGEST 4096
#define CHANGES 4096

struct disk {
    HANDLE handle;
    WCHAR file[1024];
    BOOL info_only, read_only, attached;
};

struct facts {
    BOOL vhd, tracking, newer, missing;
    GUID id;
    ULONG64 size, page;
    ULONG sector;
    DWORD changes_error, attach_error;
    WCHAR recent[LONGEST], since[LONGEST];
    ULONG count;
    struct { ULONG64 offset, length; } change[CHANGES];
};

static struct disk disks[OPEN_AT_ONCE];
static struct facts facts;
static CRITICAL_SECTION one_at_a_time;

BOOL WINAPI DllMain(HINSTANCE module, DWORD reason, LPVOID reserved)
{
    (void)module, (void)reserved;
    if (reason == DLL_PROCESS_ATTACH) InitializeCriticalSection(&one_at_a_time);
    return TRUE;
}

static FILE *beside(const WCHAR *file, const WCHAR *end, const WCHAR *mode)
{
    WCHAR name[1100];
    if (wcslen(file) > 1000) return NULL;
    wcscpy(name, file);
    wcscat(name, end);
    return _wfopen(name, mode);
}

static void wide(WCHAR *to, const char *from)
{
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, from, -1, to, LONGEST)) to[0] = 0;
}

/* Into `facts`; FALSE when nobody said what the disk is. */
static BOOL look(const WCHAR *file)
{
    static char line[LONGEST];
    FILE *from = beside(file, L".stand-in", L"r");
    if (!from) return FALSE;
    memset(&facts, 0, sizeof facts);
    while (fgets(line, sizeof line, from)) {
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        value[strcspn(value, "\r\n")] = 0;
        if (!strcmp(line, "kind")) facts.vhd = !strcmp(value, "vhd");
        else if (!strcmp(line, "size")) facts.size = strtoull(value, NULL, 10);
        else if (!strcmp(line, "sector")) facts.sector = strtoul(value, NULL, 10);
        else if (!strcmp(line, "tracking")) facts.tracking = *value == '1';
        else if (!strcmp(line, "newer")) facts.newer = *value == '1';
        else if (!strcmp(line, "missing")) facts.missing = *value == '1';
        else if (!strcmp(line, "page")) facts.page = strtoull(value, NULL, 10);
        else if (!strcmp(line, "changes_error")) facts.changes_error = strtoul(value, NULL, 10);
        else if (!strcmp(line, "attach_error")) facts.attach_error = strtoul(value, NULL, 10);
        else if (!strcmp(line, "recent")) wide(facts.recent, value);
        else if (!strcmp(line, "since")) wide(facts.since, value);
        else if (!strcmp(line, "id")) {
            unsigned part[11];
            if (sscanf(value, "%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x", part, part + 1, part + 2, part + 3, part + 4, part + 5,
                       part + 6, part + 7, part + 8, part + 9, part + 10) == 11) {
                facts.id.Data1 = part[0];
                facts.id.Data2 = (unsigned short)part[1];
                facts.id.Data3 = (unsigned short)part[2];
                for (int at = 0; at < 8; at++) facts.id.Data4[at] = (unsigned char)part[3 + at];
            }
        } else if (!strcmp(line, "change") && facts.count < CHANGES) {
            char *comma;
            facts.change[facts.count].offset = strtoull(value, &comma, 10);
            facts.change[facts.count++].length = strtoull(comma + 1, NULL, 10);
        }
    }
    fclose(from);
    return TRUE;
}

/* The disk of a handle, with its facts; the one that was opened last, because closed handles are given out again. */
static struct disk *known(HANDLE handle)
{
    for (int at = 0; at < OPEN_AT_ONCE; at++)
        if (disks[at].handle == handle && handle) return look(disks[at].file) ? &disks[at] : NULL;
    return NULL;
}

static char *guid(const GUID *id, char *text)
{
    sprintf(text, "%08lx-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", id->Data1, id->Data2, id->Data3, id->Data4[0], id->Data4[1],
            id->Data4[2], id->Data4[3], id->Data4[4], id->Data4[5], id->Data4[6], id->Data4[7]);
    return text;
}

static void note(const WCHAR *file, const char *call, DWORD code)
{
    FILE *to = beside(file, L".calls", L"ab");
    if (!to) return;
    fprintf(to, "%s -> 0x%lx\n", call, code);
    fclose(to);
}

static DWORD open_disk(PVIRTUAL_STORAGE_TYPE kind, PCWSTR path, VIRTUAL_DISK_ACCESS_MASK mask, OPEN_VIRTUAL_DISK_FLAG flags,
                       POPEN_VIRTUAL_DISK_PARAMETERS parameters, PHANDLE handle)
{
    static const GUID nothing;
    if (!kind || !path || !handle || !parameters) return ERROR_INVALID_PARAMETER;
    BOOL anyone = IsEqualGUID(&kind->VendorId, &VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN);
    if (kind->DeviceId > VIRTUAL_STORAGE_TYPE_DEVICE_VHDX
        || (!anyone && !IsEqualGUID(&kind->VendorId, &VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT)))
        return VIRTDISK_PROVIDER_NOT_FOUND;
    /* With the second version, what the handle is for stands in the parameters and not in the mask. */
    if (parameters->Version != OPEN_VIRTUAL_DISK_VERSION_2 || mask != VIRTUAL_DISK_ACCESS_NONE || flags != OPEN_VIRTUAL_DISK_FLAG_NONE)
        return ERROR_INVALID_PARAMETER;
    BOOL info_only = parameters->Version2.GetInfoOnly, read_only = parameters->Version2.ReadOnly;
    if ((info_only | read_only | 1) != 1 || IsEqualGUID(&parameters->Version2.ResiliencyGuid, &nothing)) return ERROR_INVALID_PARAMETER;
    if (GetFileAttributesW(path) == INVALID_FILE_ATTRIBUTES) return ERROR_FILE_NOT_FOUND;
    if (!look(path)) return ERROR_FILE_CORRUPT;
    DWORD access = info_only ? FILE_READ_ATTRIBUTES : read_only ? GENERIC_READ : GENERIC_READ | GENERIC_WRITE;
    DWORD share = info_only ? FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE : read_only ? FILE_SHARE_READ : 0;
    HANDLE made = CreateFileW(path, access, share, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL);
    if (made == INVALID_HANDLE_VALUE) return GetLastError();
    struct disk *place = NULL;
    for (int at = 0; at < OPEN_AT_ONCE && !place; at++)
        if (disks[at].handle == made || !disks[at].handle) place = &disks[at];
    if (!place) {
        CloseHandle(made);
        return ERROR_TOO_MANY_OPEN_FILES;
    }
    memset(place, 0, sizeof *place);
    place->handle = made;
    place->info_only = info_only;
    place->read_only = read_only;
    wcscpy(place->file, path);
    *handle = made;
    return ERROR_SUCCESS;
}

DWORD WINAPI stand_in_open(PVIRTUAL_STORAGE_TYPE kind, PCWSTR path, VIRTUAL_DISK_ACCESS_MASK mask, OPEN_VIRTUAL_DISK_FLAG flags,
                           POPEN_VIRTUAL_DISK_PARAMETERS parameters, PHANDLE handle)
{
    static char call[LONGEST * 4], name[LONGEST * 3];
    char vendor[40], own[40];
    EnterCriticalSection(&one_at_a_time);
    DWORD code = open_disk(kind, path, mask, flags, parameters, handle);
    if (kind && path && parameters && WideCharToMultiByte(CP_UTF8, 0, path, -1, name, sizeof name, NULL, NULL)) {
        snprintf(call, sizeof call, "open device=%lu vendor=%s mask=%u flags=%u version=%u info_only=%d read_only=%d own=%s file=%s",
                 kind->DeviceId, guid(&kind->VendorId, vendor), mask, flags, parameters->Version, parameters->Version2.GetInfoOnly,
                 parameters->Version2.ReadOnly, guid(&parameters->Version2.ResiliencyGuid, own), name);
        note(path, call, code);
    }
    LeaveCriticalSection(&one_at_a_time);
    return code;
}

static DWORD attach(struct disk *disk, PSECURITY_DESCRIPTOR descriptor, ATTACH_VIRTUAL_DISK_FLAG flags, ULONG provider,
                    PATTACH_VIRTUAL_DISK_PARAMETERS parameters, LPOVERLAPPED overlapped)
{
    if (provider || (flags & ~0xF)) return ERROR_INVALID_PARAMETER;
    /* Allowed by the contract; nobody needs them here. */
    if (descriptor || parameters || overlapped) return ERROR_NOT_SUPPORTED;
    if (disk->info_only || (disk->read_only && !(flags & ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY))) return ERROR_ACCESS_DENIED;
    if (disk->attached) return ERROR_SHARING_VIOLATION;
    if (facts.attach_error) return facts.attach_error;
    disk->attached = TRUE;
    return ERROR_SUCCESS;
}

DWORD WINAPI stand_in_attach(HANDLE handle, PSECURITY_DESCRIPTOR descriptor, ATTACH_VIRTUAL_DISK_FLAG flags, ULONG provider,
                             PATTACH_VIRTUAL_DISK_PARAMETERS parameters, LPOVERLAPPED overlapped)
{
    char call[200];
    EnterCriticalSection(&one_at_a_time);
    struct disk *disk = known(handle);
    DWORD code = disk ? attach(disk, descriptor, flags, provider, parameters, overlapped) : ERROR_INVALID_HANDLE;
    if (disk) {
        sprintf(call, "attach flags=%u provider=%lu", flags, provider);
        note(disk->file, call, code);
    }
    LeaveCriticalSection(&one_at_a_time);
    return code;
}

static DWORD get_information(PULONG size, PGET_VIRTUAL_DISK_INFO info, PULONG used)
{
    if (!size || !info) return ERROR_INVALID_PARAMETER;
    GET_VIRTUAL_DISK_INFO_VERSION version = info->Version;
    ULONG need = sizeof *info;
    if (version == GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE) {
        ULONG all = (ULONG)(offsetof(GET_VIRTUAL_DISK_INFO, ChangeTrackingState.MostRecentId) + (wcslen(facts.recent) + 1) * sizeof(WCHAR));
        if (all > need) need = all;
    }
    if (*size < need) {
        *size = need;
        return ERROR_INSUFFICIENT_BUFFER;
    }
    if (facts.vhd && (version == GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID || version == GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE))
        return ERROR_NOT_SUPPORTED;
    /* Whoever reads another member than the one asked for shall see nonsense. */
    memset((char *)info + offsetof(GET_VIRTUAL_DISK_INFO, Size), 0xCC, need - offsetof(GET_VIRTUAL_DISK_INFO, Size));
    switch (version) {
    case GET_VIRTUAL_DISK_INFO_SIZE:
        info->Size.VirtualSize = facts.size;
        info->Size.PhysicalSize = facts.size / 2;
        info->Size.BlockSize = 32 << 20;
        info->Size.SectorSize = 512;
        break;
    case GET_VIRTUAL_DISK_INFO_IDENTIFIER:
        /* Of a VHDX it changes with each change of its data: another one than the disk's own. */
        info->Identifier = facts.id;
        if (!facts.vhd) info->Identifier.Data1 = ~facts.id.Data1;
        break;
    case GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID:
        info->VirtualDiskId = facts.id;
        break;
    case GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE:
        info->VhdPhysicalSectorSize = facts.sector;
        break;
    case GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE:
        info->ChangeTrackingState.Enabled = facts.tracking;
        info->ChangeTrackingState.NewerChanges = facts.newer;
        wcscpy(info->ChangeTrackingState.MostRecentId, facts.recent);
        break;
    default:
        return ERROR_INVALID_PARAMETER;
    }
    if (used) *used = need;
    return ERROR_SUCCESS;
}

DWORD WINAPI stand_in_get_information(HANDLE handle, PULONG size, PGET_VIRTUAL_DISK_INFO info, PULONG used)
{
    char call[200];
    EnterCriticalSection(&one_at_a_time);
    struct disk *disk = known(handle);
    ULONG given = size ? *size : 0;
    int version = info ? (int)info->Version : -1;
    DWORD code = disk ? get_information(size, info, used) : ERROR_INVALID_HANDLE;
    if (disk) {
        sprintf(call, "get version=%d size=%lu", version, given);
        note(disk->file, call, code);
    }
    LeaveCriticalSection(&one_at_a_time);
    return code;
}

static DWORD set_information(struct disk *disk, PSET_VIRTUAL_DISK_INFO info)
{
    if (!info || info->Version != SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE || (info->ChangeTrackingEnabled | 1) != 1)
        return ERROR_INVALID_PARAMETER;
    if (facts.vhd) return ERROR_NOT_SUPPORTED;
    if (disk->info_only || disk->read_only) return ERROR_ACCESS_DENIED;
    FILE *to = beside(disk->file, L".stand-in", L"ab");
    if (!to) return ERROR_WRITE_FAULT;
    fprintf(to, "\ntracking=%d\n", info->ChangeTrackingEnabled);
    fclose(to);
    return ERROR_SUCCESS;
}

DWORD WINAPI stand_in_set_information(HANDLE handle, PSET_VIRTUAL_DISK_INFO info)
{
    char call[200];
    EnterCriticalSection(&one_at_a_time);
    struct disk *disk = known(handle);
    DWORD code = disk ? set_information(disk, info) : ERROR_INVALID_HANDLE;
    if (disk) {
        sprintf(call, "set version=%d enabled=%d", info ? (int)info->Version : -1, info ? info->ChangeTrackingEnabled : -1);
        note(disk->file, call, code);
    }
    LeaveCriticalSection(&one_at_a_time);
    return code;
}

static DWORD query_changes(PCWSTR since, ULONG64 offset, ULONG64 length, QUERY_CHANGES_VIRTUAL_DISK_FLAG flags,
                           PQUERY_CHANGES_VIRTUAL_DISK_RANGE ranges, PULONG count, PULONG64 processed)
{
    if (!since || flags || !ranges || !count || !*count || !processed || !length) return ERROR_INVALID_PARAMETER;
    if (offset >= facts.size || length > facts.size - offset) return ERROR_INVALID_PARAMETER;
    if (facts.vhd) return ERROR_NOT_SUPPORTED;
    if (facts.changes_error) return facts.changes_error;
    if (!facts.tracking) return VHD_CHANGE_TRACKING_DISABLED;
    if (facts.missing) return VHD_MISSING_CHANGE_TRACKING_INFORMATION;
    if (wcscmp(since, facts.since)) return VHD_INVALID_CHANGE_TRACKING_ID;
    ULONG64 end = offset + length;
    if (facts.page && facts.page < length) end = offset + facts.page;
    ULONG room = *count, used = 0;
    for (ULONG at = 0; at < facts.count; at++) {
        ULONG64 from = facts.change[at].offset, to = from + facts.change[at].length;
        if (from < offset) from = offset;
        if (to > end) to = end;
        if (from >= to) continue;
        if (used == room) {
            /* The answer is about what is before the range that has no room any more. */
            end = from;
            break;
        }
        ranges[used].ByteOffset = from;
        ranges[used].ByteLength = to - from;
        ranges[used++].Reserved = 0xEEEEEEEEEEEEEEEEull;
    }
    *count = used;
    *processed = end - offset;
    return ERROR_SUCCESS;
}

DWORD WINAPI stand_in_query_changes(HANDLE handle, PCWSTR since, ULONG64 offset, ULONG64 length, QUERY_CHANGES_VIRTUAL_DISK_FLAG flags,
                                    PQUERY_CHANGES_VIRTUAL_DISK_RANGE ranges, PULONG count, PULONG64 processed)
{
    static char call[LONGEST * 4], id[LONGEST * 3];
    EnterCriticalSection(&one_at_a_time);
    struct disk *disk = known(handle);
    ULONG room = count ? *count : 0;
    DWORD code = disk ? query_changes(since, offset, length, flags, ranges, count, processed) : ERROR_INVALID_HANDLE;
    if (disk && since && WideCharToMultiByte(CP_UTF8, 0, since, -1, id, sizeof id, NULL, NULL)) {
        snprintf(call, sizeof call, "changes since=%s offset=%llu length=%llu flags=%d room=%lu", id, offset, length, flags, room);
        note(disk->file, call, code);
    }
    LeaveCriticalSection(&one_at_a_time);
    return code;
}
