/* bcryptprimitives.dll for Wine before 9: the one function that Rust's standard library takes from it. For tests only. */
#include <stddef.h>

/* RtlGenRandom, under the name by which advapi32 exports it. */
__declspec(dllimport) unsigned char __stdcall SystemFunction036(void *buffer, unsigned long length);

__declspec(dllexport) int __stdcall ProcessPrng(unsigned char *buffer, size_t length) {
    while (length > 0) {
        unsigned long piece = length > 0x10000000 ? 0x10000000 : (unsigned long)length;
        if (!SystemFunction036(buffer, piece)) {
            return 0;
        }
        buffer += piece;
        length -= piece;
    }
    return 1;
}
