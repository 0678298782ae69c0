// Fails `FAIL_OP` on files whose path has `FAIL_PATH` in it, while there is a file `armed` in the working directory. Loaded before libc.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int hit(int fd, const char *op) {
    const char *wanted = getenv("FAIL_OP"), *path = getenv("FAIL_PATH");
    char link[64], name[4096];
    int before = errno;
    if (!wanted || !path || strcmp(wanted, op) || access("armed", F_OK)) { errno = before; return 0; }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, name, sizeof name - 1);
    errno = before;
    if (len < 0) return 0;
    name[len] = 0;
    if (!strstr(name, path)) return 0;
    errno = EIO;
    return 1;
}
#define NEXT(function) static __typeof__(function) *next; if (!next) next = dlsym(RTLD_NEXT, #function)
ssize_t write(int fd, const void *from, size_t len) {
    NEXT(write);
    return hit(fd, "write") ? -1 : next(fd, from, len);
}
ssize_t pread64(int fd, void *to, size_t len, off64_t at) {
    NEXT(pread64);
    return hit(fd, "pread") ? -1 : next(fd, to, len, at);
}
int fsync(int fd) {
    NEXT(fsync);
    return hit(fd, "fsync") ? -1 : next(fd);
}
