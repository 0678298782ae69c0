// Fails `FAIL_OP` on files whose path has `FAIL_PATH` in it, while there is a file `armed` in the working directory. Writes down in the file
// `TRACE_TO`, one line each, what was done to which file, in its order: what a loss of power may undo depends on that. Loaded before libc.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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
static void trace(const char *op, int fd, const char *path) {
    const char *to = getenv("TRACE_TO");
    char link[64], name[4096], line[4200];
    int before = errno;
    if (to) {
        if (!path) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t len = readlink(link, name, sizeof name - 1);
            name[len < 0 ? 0 : len] = 0;
        }
        int len = snprintf(line, sizeof line, "%s %s\n", op, path ? path : name);
        // Not through `write`, which is ours.
        int log = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_APPEND | O_CREAT, 0600);
        syscall(SYS_write, log, line, len);
        syscall(SYS_close, log);
    }
    errno = before;
}
#define NEXT(function) static __typeof__(function) *next; if (!next) next = dlsym(RTLD_NEXT, #function)
ssize_t write(int fd, const void *from, size_t len) {
    NEXT(write);
    if (hit(fd, "write")) return -1;
    trace("write", fd, 0);
    return next(fd, from, len);
}
ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at) {
    NEXT(pwrite64);
    trace("write", fd, 0);
    return next(fd, from, len, at);
}
ssize_t pread64(int fd, void *to, size_t len, off64_t at) {
    NEXT(pread64);
    return hit(fd, "pread") ? -1 : next(fd, to, len, at);
}
// A sync is written down when it is over, all else before it begins.
int fsync(int fd) {
    NEXT(fsync);
    if (hit(fd, "fsync")) return -1;
    int result = next(fd);
    if (!result) trace("sync", fd, 0);
    return result;
}
int fdatasync(int fd) {
    NEXT(fdatasync);
    int result = next(fd);
    if (!result) trace("sync", fd, 0);
    return result;
}
int rename(const char *from, const char *to) {
    NEXT(rename);
    trace("rename", -1, to);
    return next(from, to);
}
