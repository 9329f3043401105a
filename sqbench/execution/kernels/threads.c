// Threads of the OpenMP runtime that torch has loaded, and their memory.

#include <stdlib.h>

#include "common.h"

void (*team)(void (*)(void *), void *, unsigned, unsigned);
int (*team_rank)(void), (*team_size)(void);

void use_threads_of(void *parallel, void *rank, void *size) {
    team = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
    team_rank = (int (*)(void))rank;
    team_size = (int (*)(void))size;
}

void *scratch(size_t bytes) {
    static _Thread_local void *memory;
    static _Thread_local size_t size;
    if (bytes > size) {
        free(memory);
        size = (bytes + 4095) / 4096 * 4096;
        memory = aligned_alloc(64, size);
        if (!memory) abort();
    }
    return memory;
}
